"""One stream to one peer, with a cap on all that is read and a deadline for each operation."""

from __future__ import annotations

import struct
from types import TracebackType

import trio
from libp2p.abc import INetStream

from ponyswarm.errors import PeerError
from ponyswarm.p2p import hardening


class Stream:
    """One stream to one peer: frames with a length, or raw bytes.

    Every operation has ``timeout`` seconds and ends in `PeerError` otherwise, with
    the reason ``timeout``, ``stream-closed`` or ``too-long``; after that the stream
    is of no further use.
    """

    def __init__(self, stream: INetStream, peer: bytes, timeout: float) -> None:
        self.peer = peer
        self.timeout = timeout
        self._stream = stream
        self._reader = hardening.NetReader(stream)

    async def send(self, data: bytes) -> None:
        """Send one frame: its length as four bytes, then ``data``."""
        await self.send_raw(struct.pack("!I", len(data)) + data)

    async def send_raw(self, data: bytes) -> None:
        try:
            with trio.fail_after(self.timeout):
                await self._stream.write(data)
        except trio.TooSlowError as fault:
            raise PeerError("timeout", "the peer does not read") from fault
        except Exception as fault:
            # Every layer of libp2p has its own family of errors for a stream that ended.
            raise PeerError("stream-closed") from fault

    async def receive(self, limit: int) -> bytes:
        """The next frame, which may have ``limit`` bytes."""
        with self._deadline():
            (size,) = struct.unpack("!I", await self._reader.exactly(4))
            if size > limit:
                raise PeerError("too-long", f"{size} bytes, at most {limit} are taken")
            return await self._reader.exactly(size)

    async def receive_exactly(self, size: int) -> bytes:
        with self._deadline():
            return await self._reader.exactly(size)

    async def receive_some(self, limit: int = 65536) -> bytes:
        """What is there, at least one byte; none when the peer closed its side."""
        with self._deadline():
            return await self._reader.some(limit)

    def _deadline(self) -> _Deadline:
        return _Deadline(self.timeout)

    async def close(self) -> None:
        """Say that nothing more comes from us; what was sent still arrives."""
        with trio.move_on_after(self.timeout):
            try:
                await self._stream.close()
            except Exception:
                # A stream that cannot be closed in good order, for whatever reason, is reset.
                await self.reset()

    async def reset(self) -> None:
        """End both directions at once; what is under way is lost."""
        await hardening.reset_quietly(self._stream)

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        await (self.close() if kind is None else self.reset())


class _Deadline:
    """`trio.fail_after` whose failure is the peer's."""

    def __init__(self, seconds: float) -> None:
        self._scope = trio.move_on_after(seconds)

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._scope.__exit__(kind, fault, trace)
        if self._scope.cancelled_caught:
            raise PeerError("timeout", "nothing came from the peer")
