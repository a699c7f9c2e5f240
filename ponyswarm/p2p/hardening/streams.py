"""Reading from peers: small reads, exact reads, and ends that never raise."""

from __future__ import annotations

import logging

import trio
from libp2p.abc import INetStream
from libp2p.io.trio import TrioTCPStream

from ponyswarm.errors import PeerError

_TCP_READ = 64 * 1024


class BoundedTCP(TrioTCPStream):  # type: ignore[misc]
    """A TCP stream whose single reads are small, and which knows an IPv6 peer.

    The handshake reads as many bytes as a stranger's length prefix says, and one
    read then asks the system for a buffer of up to 2^63 bytes. The base class also
    takes the four-part name of an IPv6 peer for no address at all. Seen with 0.8.1.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        name = stream.socket.getpeername()
        self._cached_remote_address = (str(name[0]), int(name[1]))

    async def read(self, n: int | None = None) -> bytes:
        amount = _TCP_READ if n is None or n < 0 else min(n, _TCP_READ)
        data: bytes = await super().read(amount)
        return data


class NetReader:
    """Reads a libp2p stream through a buffer, exactly and with caps.

    libp2p's ``read_exactly`` gives up after about a hundred partial reads, so a
    body over 6.8 MB, or 150 kB in small frames, fails; and its pubsub reads a
    length prefix by single bytes, each a trip through every layer. Seen with 0.8.1.
    """

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def _fill(self) -> None:
        try:
            data = await self._stream.read(_TCP_READ)
        except Exception as fault:
            # Every layer has its own family of errors for a stream that ended.
            raise PeerError("stream-closed") from fault
        if not data:
            raise PeerError("stream-closed")
        self._buffer += data

    async def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._fill()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def some(self, size: int) -> bytes:
        """At least one and at most ``size`` bytes; none at the end of the stream."""
        if not self._buffer:
            try:
                await self._fill()
            except PeerError:
                return b""
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def varint_frame(self, limit: int) -> bytes:
        size = 0
        for shift in range(0, 35, 7):
            byte = (await self.exactly(1))[0]
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            raise PeerError("malformed", "the length prefix does not end")
        if size > limit:
            raise PeerError("too-long", f"{size} bytes, at most {limit} are taken")
        return await self.exactly(size)


async def reset_quietly(stream: INetStream) -> None:
    """Reset a stream, whatever state it is in and whether or not we are cancelled."""
    with trio.move_on_after(1.0) as scope:
        scope.shield = True
        try:
            await stream.reset()
        except Exception:
            # It may be closed, half closed or broken, and each layer says so in its own way.
            logging.getLogger("libp2p").debug("resetting a stream failed", exc_info=True)
