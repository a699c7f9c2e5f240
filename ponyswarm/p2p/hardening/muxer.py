"""One peer's connection: Noise, then Yamux, with every count and wait bounded.

`FencedUpgrader` makes a `FencedYamux` of a socket, whose streams are `FencedStream`s.
"""

from __future__ import annotations

import logging
import math
import random
import struct
from collections import OrderedDict
from collections.abc import Iterable
from typing import SupportsIndex

import libp2p.stream_muxer.yamux.yamux as yamux
import trio
from libp2p.abc import ISecureConn
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import IncompleteReadError
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectError
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from libp2p.transport.exceptions import MuxerUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader

from ponyswarm.p2p.hardening.identity import peer_key
from ponyswarm.p2p.hardening.limits import NetworkLimits, TokenBucket
from ponyswarm.p2p.hardening.referee import Referee


class FencedStream(YamuxStream):  # type: ignore[misc]
    """A Yamux stream with whole messages, patient writers and few window updates.

    Three faults. Two writers of one stream interleave their frames when the window
    is short, and the reader sees neither message. A writer whose reader needs more
    than five seconds for half a window, as any slow line does, is reset. And every
    partial read sends a window update of its own, which is half of the packets and
    CPU of a transfer. Seen with 0.8.1.

    Streams become this class when `FencedYamux` registers them.
    """

    limits: NetworkLimits
    turn: trio.Lock
    half_closed_at: float
    target_recv_window: int

    async def write(self, data: bytes) -> None:
        async with self.turn:
            sent = 0
            while sent < len(data):
                if self.send_closed or self.closed:
                    raise MuxedStreamError("the stream is closed for sending")
                size = min(self.send_window, yamux.MAX_MESSAGE_SIZE - 64, len(data) - sent)
                if size <= 0:
                    await self._wait_for_window()
                    continue
                self.send_window -= size
                await self.conn._write_frame(
                    struct.pack(
                        yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_DATA, 0, self.stream_id, size
                    )
                    + data[sent : sent + size]
                )
                sent += size

    async def _wait_for_window(self) -> None:
        pause = 0.005
        with trio.move_on_after(self.limits.stall):
            while self.send_window <= 0 and not self.closed and not self.send_closed:
                await trio.sleep(pause)
                pause = min(pause * 1.5, 0.05)
            return
        raise MuxedStreamError("the reader takes nothing")

    async def _auto_tune_and_send_window_update(self, *, bytes_read: int = 0) -> None:
        increment = 0
        buffered = len(self.conn.stream_buffers.get(self.stream_id, b""))
        missing = self.target_recv_window - (self.recv_window + buffered)
        if missing > 0 and missing >= self.target_recv_window // 2:
            self.target_recv_window = min(self.target_recv_window * 2, self.limits.window)
            increment = max(0, self.target_recv_window - (self.recv_window + buffered))
            self.recv_window += increment
        if increment > 0 and not self.recv_closed:
            await self.send_window_update(increment)


class _Streams(dict[int, FencedStream]):
    """The stream table of a connection: what enters it becomes a `FencedStream`."""

    def __init__(self, limits: NetworkLimits) -> None:
        super().__init__()
        self._limits = limits

    def __setitem__(self, number: int, stream: YamuxStream) -> None:
        stream.__class__ = FencedStream
        stream.limits = self._limits
        stream.turn = trio.Lock()
        stream.half_closed_at = math.inf
        super().__setitem__(number, stream)


class _Buffer(bytearray):
    """A receive buffer that ends the connection of a peer who ignores the window.

    libp2p only logs a warning, and keeps what it received in memory. `TooSlowError`
    is the one exception upon which its read loop closes the connection. Seen with
    0.8.1.
    """

    limit = 2 * 1024 * 1024

    def extend(self, data: Iterable[SupportsIndex]) -> None:
        data = bytes(data)
        if len(self) + len(data) > self.limit:
            raise trio.TooSlowError
        super().extend(data)


class _Buffers(dict[int, bytearray]):
    def __setitem__(self, number: int, buffer: bytearray) -> None:
        super().__setitem__(number, _Buffer(buffer))


class _Ear:
    """A secured connection that remembers when its peer was heard last."""

    def __init__(self, conn: ISecureConn) -> None:
        self._conn = conn
        self.heard = trio.current_time()

    async def read(self, n: int | None = None) -> bytes:
        data: bytes = await self._conn.read(n)
        self.heard = trio.current_time()
        return data

    def __getattr__(self, name: str) -> object:
        return getattr(self._conn, name)


class FencedYamux(Yamux):  # type: ignore[misc]
    """A Yamux connection that bounds what its peer can open, send and leave hanging.

    - A peer may open streams without limit (3,000 cost 3,000 tasks and 30 MB):
      more than ``streams_per_peer`` at once are reset. Each costs some milliseconds of
      negotiation, so those that come faster than ``stream_rate`` wait for their turn, and
      with them whatever else this peer sends: others' requests are answered in between.
    - A frame of up to 16 MB is read into memory for any stream, known or not.
    - A stream that one side has closed and the other never does stays forever.
    - A peer that hangs (a stopped process, a pulled cable) is never noticed. The
      health monitor for it opens, negotiates and closes a stream for each check;
      Yamux has a ping of one frame, so this closes a connection upon which nothing
      was heard for a while after such a ping.
    - An exception that leaves ``start`` ends the host.

    Seen with 0.8.1.
    """

    def __init__(
        self,
        conn: ISecureConn,
        peer_id: ID,
        initiator: bool,
        limits: NetworkLimits,
        referee: Referee,
    ) -> None:
        # The key of the relay that carries this connection, if one does.
        self.relay: bytes | None = None
        self._ear = _Ear(conn)
        super().__init__(self._ear, peer_id, is_initiator=initiator)
        self._limits = limits
        self._referee = referee
        self._bucket = TokenBucket(limits.stream_rate, limits.stream_burst, trio.current_time())
        self.streams = _Streams(limits)
        self.stream_buffers = _Buffers()

    @property
    def relayed(self) -> bool:
        return self.get_remote_address() is None

    async def start(self) -> None:
        try:
            await super().start()
        except Exception:
            # Whatever garbage makes of the base class ends one connection.
            self._referee.refuse("muxer-error", peer_key(self.peer_id))
            self.event_started.set()
            await self._hang_up()
            await self._cleanup_on_error()

    async def accept_stream(self) -> YamuxStream:
        while True:
            stream = await super().accept_stream()
            theirs = sum(1 for known in self.streams.values() if not known.is_initiator)
            if theirs <= self._limits.streams_per_peer:
                await trio.sleep(self._bucket.queue(1, trio.current_time()))
                return stream
            self._referee.refuse("too-many-streams", peer_key(self.peer_id), 0.5)
            await stream.reset()

    async def _write_frame(self, data: bytes) -> None:
        # The base method formats a log line for each frame, logged or not.
        async with self._write_lock:
            await self.secured_conn.write(data)

    async def _read_data_body(self, length: int) -> bytes:
        if length > _Buffer.limit:
            raise trio.TooSlowError  # see _Buffer
        body = bytearray()
        with trio.fail_after(self._limits.stall):
            while len(body) < length:
                data = await self.secured_conn.read(length - len(body))
                if not data:
                    raise IncompleteReadError(
                        "the connection ended within a frame",
                        expected_bytes=length,
                        received_bytes=len(body),
                    )
                body += data
        return bytes(body)

    async def _measure_rtt_loop(self) -> None:
        # Spread, so that a node's many connections do not all wake at once.
        pause = self._limits.liveness_interval * random.uniform(0.5, 1.0)  # noqa: S311
        while not self.event_shutting_down.is_set():
            with trio.move_on_after(pause):
                await self.event_shutting_down.wait()
                return
            pause = self._limits.liveness_interval
            asked = trio.current_time()
            if self._ear.heard > asked - pause:
                continue
            self._ping_id = (self._ping_id + 1) & 0xFFFFFFFF
            self._ping_event = trio.Event()
            self._ping_sent_time = asked
            header = struct.pack(
                yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_PING, yamux.FLAG_SYN, 0, self._ping_id
            )
            try:
                with trio.move_on_after(self._limits.liveness_timeout):
                    await self._write_frame(header)
                    await self._ping_event.wait()
            except Exception:
                return  # The read loop sees the same fault and cleans up.
            if not self._ping_event.is_set() and self._ear.heard <= asked:
                await self._hang_up()
                return

    async def _hang_up(self) -> None:
        # Not close(): that first sends a farewell, which waits behind the blocked writer.
        try:
            await self.secured_conn.close()
        except Exception:
            # It is dead: that it cannot be closed, for whatever reason, changes nothing.
            logging.getLogger("libp2p").debug("closing a dead connection failed", exc_info=True)

    async def _stale_stream_sweeper(self) -> None:
        while not self.event_shutting_down.is_set():
            with trio.move_on_after(30.0):
                await self.event_shutting_down.wait()
                return
            now = trio.current_time()
            async with self.streams_lock:
                self._sweep_stale_streams()
                late = [
                    stream for stream in self.streams.values() if now - stream.half_closed_at > 60
                ]
                for stream in self.streams.values():
                    if stream.send_closed and stream.half_closed_at == math.inf:
                        stream.half_closed_at = now
            for stream in late:
                try:
                    await stream.reset()
                except Exception:
                    return  # The connection broke; the read loop sees it and cleans up.


class FencedUpgrader(TransportUpgrader):  # type: ignore[misc]
    """Noise and `FencedYamux`, and nothing else.

    By default libp2p accepts plaintext and SECIO, with which anybody connects under
    any peer id. And its muxer negotiation makes its own Yamux whatever class it is
    given. Seen with 0.8.1.
    """

    _KNOCKS = 256

    def __init__(self, key_pair: KeyPair, limits: NetworkLimits, referee: Referee) -> None:
        noise = Noise(key_pair, noise_privkey=x25519_key_pair().private_key)
        timeout = max(1, int(limits.handshake_timeout))
        super().__init__({NOISE: noise}, {TProtocol(yamux.PROTOCOL_ID): Yamux}, timeout)
        self._limits = limits
        self._referee = referee
        # When each peer last proved its key on a connection that it opened to us.
        self.knocks: OrderedDict[bytes, float] = OrderedDict()

    def _note_knock(self, conn: ISecureConn, peer_id: ID) -> None:
        peer = peer_key(peer_id)
        if conn.is_initiator or peer is None or conn.get_remote_address() is None:
            return
        self.knocks[peer] = trio.current_time()
        self.knocks.move_to_end(peer)
        if len(self.knocks) > self._KNOCKS:
            self.knocks.popitem(last=False)

    async def upgrade_connection(self, conn: ISecureConn, peer_id: ID) -> FencedYamux:
        self._note_knock(conn, peer_id)
        selector = self.muxer_multistream._selector
        timeout = max(1, int(self._limits.handshake_timeout))
        try:
            await selector.select(conn, conn.is_initiator, timeout)
        except (MultiselectError, MultiselectClientError) as fault:
            raise MuxerUpgradeFailure("no common multiplexer") from fault
        return FencedYamux(conn, peer_id, conn.is_initiator, self._limits, self._referee)
