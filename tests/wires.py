"""Streams for tests: frames with a length over trio's memory streams, as `network.Stream` has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
import trio.testing

from ponyswarm.errors import PeerError

Handler = Callable[["Pipe"], Awaitable[None]]


class Pipe:
    """One end of a stream. ``cut_after`` ends it after so many bytes were received."""

    def __init__(
        self, stream: trio.StapledStream, peer: bytes, cut_after: int | None = None
    ) -> None:
        self.peer = peer
        self.sent = 0
        self.frames = 0
        self._stream = stream
        self._left = cut_after

    async def send(self, data: bytes) -> None:
        self.sent += len(data)
        self.frames += 1
        try:
            await self._stream.send_all(len(data).to_bytes(4, "big") + data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as fault:
            raise PeerError("stream-closed") from fault

    async def receive(self, limit: int) -> bytes:
        size = int.from_bytes(await self._exactly(4), "big")
        if size > limit:
            raise PeerError("too-long")
        return await self._exactly(size)

    async def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            if self._left is not None and self._left <= 0:
                raise PeerError("stream-closed")
            try:
                part = await self._stream.receive_some(size - len(found))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as fault:
                raise PeerError("stream-closed") from fault
            if not part:
                raise PeerError("stream-closed")
            if self._left is not None:
                self._left -= len(part)
            found += part
        return found

    async def close(self) -> None:
        await self._stream.aclose()


class Wire:
    """Opens streams to peers whose handlers run in ``nursery``."""

    def __init__(self, nursery: trio.Nursery, handlers: dict[bytes, Handler]) -> None:
        self.opened: list[tuple[bytes, Pipe, Pipe]] = []
        self.cuts: list[int] = []
        self.faults: list[PeerError] = []
        self._nursery = nursery
        self._handlers = handlers

    async def open(self, peer: bytes) -> Pipe:
        if peer not in self._handlers:
            raise PeerError("unreachable")
        near, far = trio.testing.memory_stream_pair()
        cut = self.cuts.pop(0) if self.cuts else None
        mine, theirs = Pipe(near, peer, cut), Pipe(far, b"asker")
        self.opened.append((peer, mine, theirs))
        self._nursery.start_soon(self._serve, self._handlers[peer], theirs)
        return mine

    async def _serve(self, handler: Handler, stream: Pipe) -> None:
        try:
            await handler(stream)
        except PeerError as fault:
            self.faults.append(fault)
        finally:
            await stream.close()


def run(handlers: dict[bytes, Handler], client: Callable[[Wire], Awaitable[object]]) -> object:
    """Run a client against handlers; what it returned. Every test ends within ten seconds."""

    async def main() -> object:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                wire = Wire(nursery, handlers)
                answer = await client(wire)
                nursery.cancel_scope.cancel()
                return answer

    return trio.run(main)
