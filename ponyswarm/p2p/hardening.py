"""Everything py-libp2p needs around it before strangers may talk to it.

Each class or function here works round one fault, or one family of faults, that
was seen with the version in `LIBP2P_VERSION`; its docstring says what goes wrong
without it. `network.py` puts the pieces together and is their only user. A piece
can go when libp2p has mended the fault and its test in `tests/system` passes
with the bare class.

The rules held here: nothing a peer sends raises out of a handler; every read has
a cap; every count that a peer can raise has a limit; and whatever a peer does is
charged to that peer alone.
"""

from __future__ import annotations

import logging
import math
import random
import struct
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import SupportsIndex
from weakref import WeakSet

import libp2p.network.connection.swarm_connection as swarm_connection
import libp2p.stream_muxer.yamux.yamux as yamux
import trio
from libp2p.abc import IMuxedConn, INetConn, INetStream, INetwork, INotifee, ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.host.ping import ID as PING
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.io.exceptions import IncompleteReadError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.exceptions import (
    MultiselectClientError,
    MultiselectError,
)
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from libp2p.transport.exceptions import MuxerUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from ponyswarm import keys
from ponyswarm.errors import PeerError

LIBP2P_VERSION = "0.8.1"

MESHSUB = TProtocol("/meshsub/1.1.0")
AGENT_PROTOCOLS = (TProtocol(IDENTIFY), TProtocol(PING))

# The bytes before the key in an Ed25519 peer id; see `ponyswarm.keys`.
_ED25519_ID = bytes.fromhex("002408011220")
_SIGNING_PREFIX = b"libp2p-pubsub:"
_TCP_READ = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkLimits:
    """How much of anything strangers may use. All times are seconds."""

    inbound: int = 250  # live inbound connections, handshakes included
    inbound_per_address: int = 12  # of those, from one IP address (loopback is exempt)
    connections: int = 300  # in both directions
    connections_per_peer: int = 3
    handshake_timeout: float = 5.0
    streams_per_peer: int = 64  # open at once, opened by the peer
    stream_rate: float = 50.0  # new ones a second
    stream_burst: float = 200.0
    window: int = 1024 * 1024  # bytes a peer may send ahead of our reading, a stream
    stall: float = 30.0  # a writer waits this long for a reader
    liveness_interval: float = 10.0
    liveness_timeout: float = 10.0
    message: int = 16 * 1024  # bytes of one gossip message
    rpc: int = 256 * 1024  # bytes of one pubsub frame
    message_rate: float = 100.0  # gossip messages a second, a forwarder
    message_burst: float = 500.0
    topic_length: int = 200
    topics_per_peer: int = 2000
    gossip_queue: int = 1024  # outbound frames waiting for one peer
    events: int = 4096  # gossip events waiting for the node
    ban_points: float = 100.0
    ban_time: float = 600.0
    score_half_life: float = 600.0


def peer_key(identity: ID | bytes) -> bytes | None:
    """The 32-byte Ed25519 key inside a libp2p peer id; None for other kinds."""
    raw = identity.to_bytes() if isinstance(identity, ID) else bytes(identity)
    if len(raw) != len(_ED25519_ID) + keys.KEY_SIZE or not raw.startswith(_ED25519_ID):
        return None
    return bytes(raw[len(_ED25519_ID) :])


def peer_identity(key: bytes) -> ID:
    """The libp2p peer id of a 32-byte Ed25519 key."""
    return ID(_ED25519_ID + key)


def quiet_logging() -> None:
    """Keep libp2p out of the process's logging.

    `SwarmConn` calls the root functions ``logging.debug`` and friends. The first
    such call installs a handler on the root logger, and whatever the program
    configures afterwards is ignored. Its many warnings about what strangers send
    are of no use to an owner; refusals are counted by us. Seen with 0.8.1.
    """
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    swarm_connection.logging = logging.getLogger("libp2p.network.connection")


class TokenBucket:
    """``rate`` tokens a second, at most ``burst`` at once."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst, self._tokens, self._at = rate, burst, burst, now

    def take(self, cost: float, now: float) -> bool:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < cost:
            return False
        self._tokens -= cost
        return True


class Referee:
    """Counts refusals, keeps each peer's score, and says who is banned.

    libp2p's own scoring is inert by default, its blacklist does not disconnect,
    and forged messages cost their sender nothing. Seen with 0.8.1.
    """

    _KEPT = 4096  # Peers remembered; the least blamed are forgotten first.

    def __init__(
        self,
        limits: NetworkLimits,
        refused: Callable[[str, bytes | None], None],
        banned: Callable[[bytes], None],
    ) -> None:
        self._limits = limits
        self._refused = refused
        self._on_ban = banned
        self._scores: dict[bytes, tuple[float, float]] = {}
        self._banned: dict[bytes, float] = {}
        self._buckets: dict[bytes, TokenBucket] = {}

    def refuse(self, reason: str, peer: bytes | None, points: float = 0.0) -> None:
        try:
            self._refused(reason, peer)
        except Exception:
            # The owner's counter is code of ours; a fault in it must not end the network.
            logging.getLogger(__name__).exception("the refusal callback failed")
        if peer is not None and points > 0:
            self.penalise(peer, points)

    def penalise(self, peer: bytes, points: float) -> None:
        now = trio.current_time()
        score, at = self._scores.get(peer, (0.0, now))
        score = score * 0.5 ** ((now - at) / self._limits.score_half_life) + points
        if score < self._limits.ban_points:
            self._scores[peer] = (score, now)
            self._forget_some()
            return
        self._scores.pop(peer, None)
        self._banned[peer] = now + self._limits.ban_time
        self._forget_some()
        self._on_ban(peer)

    def banned(self, peer: bytes) -> bool:
        until = self._banned.get(peer)
        if until is None:
            return False
        if until > trio.current_time():
            return True
        del self._banned[peer]
        return False

    def allow(self, peer: bytes, cost: float) -> bool:
        """Take ``cost`` gossip messages from the peer's token bucket."""
        now = trio.current_time()
        bucket = self._buckets.get(peer)
        if bucket is None:
            if len(self._buckets) >= self._KEPT:
                self._buckets.pop(next(iter(self._buckets)))
            bucket = TokenBucket(self._limits.message_rate, self._limits.message_burst, now)
            self._buckets[peer] = bucket
        return bucket.take(cost, now)

    def _forget_some(self) -> None:
        while len(self._scores) > self._KEPT:
            del self._scores[min(self._scores, key=lambda peer: self._scores[peer][0])]
        while len(self._banned) > self._KEPT:
            del self._banned[min(self._banned, key=lambda peer: self._banned[peer])]


class Doorkeeper:
    """Counts live inbound connections, in all and by address, and frees their slots.

    libp2p takes an inbound slot for each connection and gives it back only when
    the host stops, so after 250 inbound connections, however short, nobody else
    gets in. Its default resource manager adds a cap of 256 and a circuit breaker
    that a stranger can trip for everybody. Both are replaced by this. Seen with
    0.8.1.
    """

    def __init__(self, limits: NetworkLimits) -> None:
        self._limits = limits
        self._addresses: dict[str, int] = defaultdict(int)
        self.inside = 0

    def enter(self, address: str) -> bool:
        if self.inside >= self._limits.inbound:
            return False
        local = address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1")
        if not local and self._addresses[address] >= self._limits.inbound_per_address:
            return False
        self.inside += 1
        self._addresses[address] += 1
        return True

    def leave(self, address: str) -> None:
        self.inside -= 1
        self._addresses[address] -= 1
        if self._addresses[address] <= 0:
            del self._addresses[address]


class StreamQuota:
    """At most ``per_peer`` streams of a protocol at once from one peer.

    libp2p starts a task for every stream a peer opens, without limit. Seen with
    0.8.1.
    """

    def __init__(self, per_peer: int) -> None:
        self._per_peer = per_peer
        self._open: dict[bytes, int] = defaultdict(int)

    @contextmanager
    def slot(self, peer: bytes) -> Iterator[bool]:
        """Yield whether there is room; hold the slot meanwhile."""
        if self._open[peer] >= self._per_peer:
            yield False
            return
        self._open[peer] += 1
        try:
            yield True
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]


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
      more than ``streams_per_peer``, or faster than ``stream_rate``, are reset.
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
        self._ear = _Ear(conn)
        super().__init__(self._ear, peer_id, is_initiator=initiator)
        self._limits = limits
        self._referee = referee
        self._bucket = TokenBucket(limits.stream_rate, limits.stream_burst, trio.current_time())
        self.streams = _Streams(limits)
        self.stream_buffers = _Buffers()

    async def start(self) -> None:
        try:
            await super().start()
        except Exception:
            self._referee.refuse("muxer-error", peer_key(self.peer_id))
            self.event_started.set()
            await self._hang_up()
            await self._cleanup_on_error()

    async def accept_stream(self) -> YamuxStream:
        while True:
            stream = await super().accept_stream()
            theirs = sum(1 for known in self.streams.values() if not known.is_initiator)
            if theirs <= self._limits.streams_per_peer and self._bucket.take(
                1, trio.current_time()
            ):
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
                    return


class FencedUpgrader(TransportUpgrader):  # type: ignore[misc]
    """Noise and `FencedYamux`, and nothing else.

    By default libp2p accepts plaintext and SECIO, with which anybody connects under
    any peer id. And its muxer negotiation makes its own Yamux whatever class it is
    given. Seen with 0.8.1.
    """

    def __init__(self, key_pair: KeyPair, limits: NetworkLimits, referee: Referee) -> None:
        noise = Noise(key_pair, noise_privkey=x25519_key_pair().private_key)
        timeout = max(1, int(limits.handshake_timeout))
        super().__init__({NOISE: noise}, {TProtocol(yamux.PROTOCOL_ID): Yamux}, timeout)
        self._limits = limits
        self._referee = referee

    async def upgrade_connection(self, conn: ISecureConn, peer_id: ID) -> FencedYamux:
        selector = self.muxer_multistream._selector
        timeout = max(1, int(self._limits.handshake_timeout))
        try:
            await selector.select(conn, conn.is_initiator, timeout)
        except (MultiselectError, MultiselectClientError) as fault:
            raise MuxerUpgradeFailure("no common multiplexer") from fault
        return FencedYamux(conn, peer_id, conn.is_initiator, self._limits, self._referee)


class _Idle:
    """Stands in for libp2p's connection pruner and auto-connector.

    The auto-connector dials whatever peers have told about themselves, towards the
    middle of the two watermarks, and the pruner closes what it dialled. Who to
    connect to is the node's decision. Seen with 0.8.1.
    """

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def run_background_task(self, nursery: trio.Nursery) -> None: ...

    async def maybe_connect(self) -> None: ...

    async def maybe_prune_connections(self) -> None: ...

    def record_disconnect(self, peer_id: ID) -> None: ...


class FencedSwarm(Swarm):  # type: ignore[misc]
    """The connections of a host: our own door, our own dialling, guarded handlers.

    - **An exception in any stream handler ends the host.** Handlers run inside
      `guard`.
    - Inbound slots are freed when their connection ends, see `Doorkeeper`; the
      resource manager is left out.
    - ``host.connect`` takes 252 ms, tries one address, and remembers a failure for
      a minute; the natural time-outs are 121 and 540 s. `dial` opens one address
      under the caller's deadline and remembers nothing.
    - libp2p listens with SO_REUSEPORT, so two nodes share a port and each gets half
      of the callers. Sockets are bound by `network.py` and handed to `admit`.

    Seen with 0.8.1.
    """

    def __init__(
        self, key_pair: KeyPair, upgrader: FencedUpgrader, limits: NetworkLimits, referee: Referee
    ) -> None:
        identity = ID.from_pubkey(key_pair.public_key)
        peerstore = PeerStore()
        peerstore.add_key_pair(identity, key_pair)
        config = ConnectionConfig(
            max_connections=limits.connections,
            min_connections=0,
            low_watermark=0,
            high_watermark=limits.connections,
            max_connections_per_peer=limits.connections_per_peer,
            inbound_upgrade_timeout=limits.handshake_timeout,
            outbound_upgrade_timeout=limits.handshake_timeout,
            inbound_stream_protocol_negotiation_timeout=limits.handshake_timeout,
            outbound_stream_protocol_negotiation_timeout=limits.handshake_timeout,
        )
        super().__init__(identity, peerstore, upgrader, [], RetryConfig(max_retries=0), config)
        self._limits = limits
        self._referee = referee
        self.door = Doorkeeper(limits)
        self._sockets: WeakSet[trio.SocketStream] = WeakSet()
        self.notifees.clear()  # The tag store's; nothing here is tagged.
        self.auto_connector = self.connection_pruner = _Idle()

    def _schedule_auto_connect(self) -> None: ...

    def _schedule_prune(self) -> None: ...

    def set_stream_handler(self, stream_handler: Callable[[INetStream], Awaitable[None]]) -> None:
        async def guard(stream: INetStream) -> None:
            peer = peer_key(stream.muxed_conn.peer_id)
            try:
                await stream_handler(stream)
            except Exception:
                self._referee.refuse("stream-error", peer)
                await reset_quietly(stream)

        super().set_stream_handler(guard)

    async def admit(self, stream: trio.SocketStream) -> None:
        """Serve one accepted connection until it ends."""
        try:
            tcp = BoundedTCP(stream)
        except OSError:
            await trio.aclose_forcefully(stream)
            return
        address = tcp.get_remote_address()[0]
        if not self.door.enter(address):
            self._referee.refuse("too-many-connections", None)
            await trio.aclose_forcefully(stream)
            return
        try:
            raw = RawConnection(tcp, False)
            with trio.fail_after(2 * self._limits.handshake_timeout):
                muxed = await self.upgrade_inbound_raw_conn(raw, None)
            await muxed.event_closed.wait()
        except Exception:
            self._referee.refuse("handshake", None)
        finally:
            self.door.leave(address)
            await trio.aclose_forcefully(stream)

    async def dial(self, host: str, port: int, key: bytes) -> None:
        """Connect to one address; the caller sets the deadline. Raises `OSError` or others."""
        if len(self.get_connections()) >= self._limits.connections:
            raise SwarmException("there are too many connections")
        stream = await trio.open_tcp_stream(host, port)
        self._sockets.add(stream)
        try:
            raw = RawConnection(BoundedTCP(stream), True)
            await self.upgrade_outbound_raw_conn(raw, peer_identity(key))
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
            raise

    def drop_sockets(self) -> None:
        """Close what is left of dialled connections, when the network closes.

        libp2p forgets the socket of a connection whose two ends close at once, as the
        task that would close it is cancelled.
        """
        for stream in list(self._sockets):
            stream.socket.close()

    async def add_conn(self, muxed_conn: IMuxedConn, direction: str = "unknown") -> INetConn:
        peer = peer_key(muxed_conn.peer_id)
        fault = None
        if peer is None or not keys.is_valid_key(peer):
            fault = "bad-key"
        elif self._referee.banned(peer):
            fault = "banned"
        elif muxed_conn.peer_id == self.self_id:
            fault = "own-address"
        elif len(self.get_connections(muxed_conn.peer_id)) > self._limits.connections_per_peer:
            fault = "too-many-connections"
        if fault is not None:
            self._referee.refuse(fault, peer)
            await muxed_conn._hang_up()
            muxed_conn.event_closed.set()
            raise SwarmException(fault)
        return await super().add_conn(muxed_conn, direction)


class Notifee(INotifee):  # type: ignore[misc]
    """A listener to connections; libp2p wants all six methods of each."""

    async def connected(self, network: INetwork, conn: INetConn) -> None: ...

    async def disconnected(self, network: INetwork, conn: INetConn) -> None: ...

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None: ...

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None: ...


class DropStale(Notifee):
    """When a peer connects anew, its older connections are closed.

    A peer that restarts within the time TCP needs to notice is known by two
    connections, and pubsub stays on the dead one: of 60 messages none arrived, with
    this all. It also forgets what is stored of a peer that left; libp2p keeps the
    records of every stranger. Seen with 0.8.1.
    """

    MIN_AGE = 2.0  # Two peers that dial each other at once keep both connections.

    def __init__(self, swarm: FencedSwarm, pubsub: FencedPubsub, nursery: trio.Nursery) -> None:
        self._swarm, self._pubsub, self._nursery = swarm, pubsub, nursery

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        peer = conn.muxed_conn.peer_id
        now = time.time()
        old = [
            other
            for other in self._swarm.get_connections(peer)
            if other is not conn and now - other._created_at > self.MIN_AGE
        ]
        if old:
            self._nursery.start_soon(self._drop, peer, old)

    async def _drop(self, peer: ID, old: list[INetConn]) -> None:
        for conn in old:
            await close_quietly(conn, 3.0)
        stream = self._pubsub.peers.get(peer)
        if stream is not None and any(stream.muxed_conn is conn.muxed_conn for conn in old):
            self._pubsub._handle_dead_peer(peer)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        peer = conn.muxed_conn.peer_id
        stream = self._pubsub.peers.get(peer)
        if stream is not None and stream.muxed_conn is conn.muxed_conn:
            self._pubsub._handle_dead_peer(peer)  # Opens another, if there is a connection.
        store = self._swarm.peerstore
        if not self._swarm.get_connections(peer) and store.has_peer(peer):
            store.clear_peerdata(peer)


class FencedHost(BasicHost):  # type: ignore[misc]
    """A host that answers identify and ping, within a quota, and asks nothing.

    The base class asks every new peer to identify itself and keeps the addresses,
    protocols and records that it claims, takes more of them by identify/push, and
    the dialling of libp2p trusts them. Nothing here needs them. Seen with 0.8.1.
    """

    def __init__(self, swarm: FencedSwarm, limits: NetworkLimits) -> None:
        self.announced: list[Multiaddr] = []
        super().__init__(
            swarm,
            negotiate_timeout=max(1, int(limits.handshake_timeout)),
            addrs_factory=lambda _: list(self.announced),
            disable_identify_address_discovery=True,
        )
        handlers = self.multiselect.handlers
        for protocol in list(handlers):
            handler = handlers.pop(protocol)
            if protocol in AGENT_PROTOCOLS:
                handlers[protocol] = self._with_quota(handler, StreamQuota(2))

    def announce(self, addresses: Iterable[str]) -> None:
        self.announced = [Multiaddr(address) for address in addresses]

    @staticmethod
    def _with_quota(
        handler: Callable[[INetStream], Awaitable[None]], quota: StreamQuota
    ) -> Callable[[INetStream], Awaitable[None]]:
        async def serve(stream: INetStream) -> None:
            with quota.slot(peer_key(stream.muxed_conn.peer_id) or b"") as free:
                if free:
                    await handler(stream)
                else:
                    await reset_quietly(stream)

        return serve

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None: ...

    async def _push_identify_to_all_peers(self) -> None: ...


class FencedGossip(GossipSub):  # type: ignore[misc]
    """GossipSub 1.1 with the settings and repairs that make it usable.

    - The default heartbeat is 120 s, adaptive mode slows a fast one down, the "spam
      protection" drops more than ten messages a second, the node's own included,
      and 1.2 and later double the CPU. All are off.
    - **The heartbeat sends one peer's GRAFTs to the next**, because it never empties
      its lists: a node joins meshes, and gets messages, of topics that it does not
      follow. See `_emit_control_msgs`, `handle_graft` and `_get_peers_to_send`.
    - An exception in a heartbeat ends the host.
    - One IWANT may name one message ten thousand times and get as many copies; a
      PRUNE may name addresses, which libp2p then dials, and a back-off of an age.
    - `publish` keeps up to a hundred messages for every peer that does *not* follow
      the topic, and a list of every delivery that only adaptive mode empties.
    - Replays to a new subscriber are written past its queue, into the middle of
      what the queue is writing.
    - Every frame carries a signed record of the sender's addresses.

    Seen with 0.8.1.
    """

    _IDS = 256
    _TOPICS = 512

    def __init__(self, referee: Referee) -> None:
        super().__init__(
            protocols=[MESHSUB],
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=1,
            heartbeat_initial_delay=0.5,
            do_px=False,
            spam_protection_enabled=False,
            adaptive_gossip_enabled=False,
            eclipse_protection_enabled=False,
        )
        self._referee = referee
        nothing: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=0))
        self.recent_message_deliveries = nothing

    async def heartbeat(self) -> None:
        await trio.sleep(self.heartbeat_initial_delay)
        while True:
            try:
                grafts, prunes = self.mesh_heartbeat()
                self.fanout_heartbeat()
                await self._emit_control_msgs(grafts, prunes, self.gossip_heartbeat())
                self.mcache.shift()
                self.scorer.on_heartbeat()
                self._periodic_security_cleanup()
                self._end_back_offs()
            except Exception:
                self._referee.refuse("heartbeat-error", None)
            await trio.sleep(self.heartbeat_interval)

    def _end_back_offs(self) -> None:
        # The base class keeps the back-off of every peer that ever left.
        now = time.time()
        for topic, until in list(self.back_off.items()):
            for peer in [peer for peer, end in until.items() if end < now]:
                del until[peer]
            if not until:
                del self.back_off[topic]

    async def _emit_control_msgs(
        self,
        peers_to_graft: dict[ID, list[str]],
        peers_to_prune: dict[ID, list[str]],
        peers_to_gossip: dict[ID, dict[str, list[bytes]]],
    ) -> None:
        for peer in {*peers_to_graft, *peers_to_prune, *peers_to_gossip}:
            grafts = [rpc_pb2.ControlGraft(topicID=topic) for topic in peers_to_graft.get(peer, ())]
            prunes = [
                rpc_pb2.ControlPrune(topicID=topic, backoff=self.prune_back_off)
                for topic in peers_to_prune.get(peer, ())
            ]
            ihaves = [
                rpc_pb2.ControlIHave(topicID=topic, messageIDs=ids)
                for topic, ids in peers_to_gossip.get(peer, {}).items()
            ]
            await self.emit_control_message(self.pack_control_msgs(ihaves, grafts, prunes), peer)

    async def emit_control_message(self, control_msg: rpc_pb2.ControlMessage, to_peer: ID) -> None:
        self.send_rpc(to_peer, rpc_pb2.RPC(control=control_msg), priority=True)

    async def handle_rpc(self, rpc: rpc_pb2.RPC, sender_peer_id: ID) -> None:
        self._trim(rpc.control)
        await super().handle_rpc(rpc, sender_peer_id)

    def _trim(self, control: rpc_pb2.ControlMessage) -> None:
        """Cut a control message down to what we could have a use for."""
        ihaves = [ihave for ihave in control.ihave if ihave.topicID in self.mesh][: self._TOPICS]
        for ihave in ihaves:
            del ihave.messageIDs[self._IDS :]
        wanted = list(dict.fromkeys(id for iwant in control.iwant for id in iwant.messageIDs))
        prunes = [prune for prune in control.prune if prune.topicID in self.mesh][: self._TOPICS]
        for prune in prunes:
            prune.ClearField("peers")
            prune.backoff = min(prune.backoff, 3600)
        grafts = list(control.graft)[: self._TOPICS]
        kept = rpc_pb2.ControlMessage(ihave=ihaves, graft=grafts, prune=prunes)
        if wanted:
            kept.iwant.add(messageIDs=wanted[: self._IDS])
        control.CopyFrom(kept)

    async def handle_graft(self, graft_msg: rpc_pb2.ControlGraft, sender_peer_id: ID) -> None:
        topic = graft_msg.topicID
        if sender_peer_id not in self.pubsub.peer_topics.get(topic, ()):
            await self.emit_prune(topic, sender_peer_id, False, False)
            return
        await super().handle_graft(graft_msg, sender_peer_id)

    def _get_peers_to_send(
        self, topic_ids: Iterable[str], msg_forwarder: ID, origin: ID, msg_id: bytes | None = None
    ) -> Iterable[ID]:
        topics = list(topic_ids)
        followers: set[ID] = set()
        for topic in topics:
            followers |= self.pubsub.peer_topics.get(topic, set())
        return [
            peer
            for peer in super()._get_peers_to_send(topics, msg_forwarder, origin, msg_id)
            if peer in followers
        ]

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        self.mcache.put(pubsub_msg)
        rpc = rpc_pb2.RPC(publish=[pubsub_msg])
        origin = ID(pubsub_msg.from_id)
        for peer in self._get_peers_to_send(pubsub_msg.topicIDs, msg_forwarder, origin):
            self.send_rpc(peer, rpc)
        for topic in pubsub_msg.topicIDs:
            self.time_since_last_publish[topic] = int(time.time())

    async def flush_pending_messages(self, peer_id: ID) -> None: ...

    async def send_recent_messages(self, peer_id: ID, topic: str) -> None:
        for number in self.mcache.window(topic):
            message = self.mcache.get(number)
            if message is not None:
                self.send_rpc(peer_id, rpc_pb2.RPC(publish=[message]))

    async def on_peer_subscribed(self, peer_id: ID, topic: str) -> None:
        try:
            await super().on_peer_subscribed(peer_id, topic)
        except Exception:
            self._referee.refuse("graft-error", peer_key(peer_id))


class FencedPubsub(Pubsub):  # type: ignore[misc]
    """Pubsub that survives whatever its peers send, and charges them for it.

    - A malformed protobuf, a garbage key in a message, or a validator that raises
      ends the host.
    - Each message becomes a task before anything is checked, and there is no limit:
      one peer at 1,000 messages a second fills a core. Messages are handled in the
      reading task, after a size check and the forwarder's token bucket.
    - Signatures by any kind of key are accepted by whatever library handles it. Only
      Ed25519 by the one rule of `ponyswarm.keys` counts here.
    - A message for a topic that we follow *and* one that we don't is relayed to both.
    - Sequence numbers restart with the clock's second, so after a quick restart what
      a node sends counts as seen (4 of 60 arrived).
    - Queues hold 32 frames and then drop.
    - Every frame carries a signed peer record: half the CPU of a small message.
    - A thread that sweeps the cache of seen messages is never stopped.

    Seen with 0.8.1.
    """

    def __init__(
        self,
        host: FencedHost,
        router: FencedGossip,
        *,
        validate: Callable[[str, bytes, bytes, bytes], bool],
        deliver: Callable[[str, bytes, bytes, bytes], None],
        limits: NetworkLimits,
        referee: Referee,
    ) -> None:
        super().__init__(
            host,
            router,
            strict_signing=True,
            max_inbound_rpc_size=limits.rpc,
            max_subscriptions_per_peer=limits.topics_per_peer,
        )
        self.counter = time.time_ns()
        self._validate = validate
        self._deliver = deliver
        self._limits = limits
        self._referee = referee
        self._inbound: dict[ID, INetStream] = {}

    # Sending

    def get_hello_packet(self) -> rpc_pb2.RPC:
        options = [rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic) for topic in self.topic_ids]
        return rpc_pb2.RPC(subscriptions=options)

    def _build_announce_rpc(
        self, topic_id: str, subscribe: bool
    ) -> tuple[rpc_pb2.RPC, rpc_pb2.RPC.SubOpts]:
        option = rpc_pb2.RPC.SubOpts(subscribe=subscribe, topicid=topic_id)
        return rpc_pb2.RPC(subscriptions=[option]), option

    async def write_msg(self, stream: INetStream, rpc_msg: rpc_pb2.RPC) -> bool:
        rpc_msg.ClearField("senderRecord")
        sent: bool = await super().write_msg(stream, rpc_msg)
        return sent

    async def _handle_new_peer(self, peer_id: ID) -> None:
        with trio.move_on_after(4 * self._limits.handshake_timeout) as scope:
            await super()._handle_new_peer(peer_id)
        if scope.cancelled_caught:
            raise SwarmException("the peer does not take a pubsub stream")  # Tried again later.
        queue = self.peer_queues.get(peer_id)
        if queue is not None:
            queue._queue.max_size = self._limits.gossip_queue

    # Receiving

    async def stream_handler(self, stream: INetStream) -> None:
        peer_id = stream.muxed_conn.peer_id
        older = self._inbound.get(peer_id)
        self._inbound[peer_id] = stream
        if older is not None:
            await reset_quietly(older)
        try:
            await self._read(stream, peer_id)
        except PeerError as fault:
            if fault.reason != "stream-closed":
                self._referee.refuse(fault.reason, peer_key(peer_id), 25.0)
        except Exception:
            self._referee.refuse("gossip-error", peer_key(peer_id), 25.0)
        finally:
            if self._inbound.get(peer_id) is stream:
                del self._inbound[peer_id]
                self._forget_all_subscriptions(peer_id)
            await reset_quietly(stream)

    async def _read(self, stream: INetStream, peer_id: ID) -> None:
        peer = peer_key(peer_id) or b""
        reader = NetReader(stream)
        while self.manager.is_running:
            data = await reader.varint_frame(self._limits.rpc)
            rpc = rpc_pb2.RPC()
            try:
                rpc.ParseFromString(data)
            except Exception as fault:
                raise PeerError("malformed", "not a pubsub frame") from fault
            if not self._referee.allow(peer, self._cost(rpc)):
                self._referee.refuse("flood", peer, 0.1 * (1 + len(rpc.publish)))
                continue
            for message in rpc.publish:
                await self.push_msg(peer_id, message)
            for option in rpc.subscriptions:
                self.handle_subscription(peer_id, option)
            if rpc.HasField("control"):
                await self.router.handle_rpc(rpc, peer_id)

    @staticmethod
    def _cost(rpc: rpc_pb2.RPC) -> float:
        control = rpc.control
        small = len(rpc.subscriptions) + len(control.graft) + len(control.prune)
        small += sum(1 + len(ihave.messageIDs) for ihave in control.ihave)
        wanted = sum(1 + len(iwant.messageIDs) for iwant in control.iwant)
        # A frame that holds nothing but bookkeeping is cheap, and heartbeats are steady.
        return 0.1 + len(rpc.publish) + small / 50 + wanted / 4

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        if msg_forwarder == self.my_id:
            self._mark_msg_seen(msg)
            await self.router.publish(msg_forwarder, msg)
            return
        forwarder = peer_key(msg_forwarder) or b""
        if self._is_msg_seen(msg):
            return
        if len(msg.data) > self._limits.message or len(msg.seqno) != 8:
            self._referee.refuse("too-long", forwarder, 10.0)
            return
        topics = list(msg.topicIDs)
        if len(topics) != 1:
            self._referee.refuse("bad-topic", forwarder, 10.0)
            return
        if topics[0] not in self.topic_ids:
            return  # It may have been sent before our leaving was known.
        origin = peer_key(msg.from_id)
        if origin is None or not self._signed(msg, origin):
            self._referee.refuse("bad-signature", forwarder, 25.0)
            return
        self._mark_msg_seen(msg)
        if msg.from_id == self.my_id.to_bytes():
            return
        try:
            valid = self._validate(topics[0], origin, forwarder, msg.data)
        except Exception:
            self._referee.refuse("validator-error", forwarder)
            return
        if not valid:
            self._referee.refuse("invalid", forwarder)
            return
        self._deliver(topics[0], origin, forwarder, msg.data)
        await self.router.publish(msg_forwarder, msg)

    @staticmethod
    def _signed(msg: rpc_pb2.Message, origin: bytes) -> bool:
        content = rpc_pb2.Message(
            data=msg.data, topicIDs=msg.topicIDs, from_id=msg.from_id, seqno=msg.seqno
        )
        return keys.verify(origin, _SIGNING_PREFIX + content.SerializeToString(), msg.signature)

    def handle_subscription(self, origin_id: ID, sub_message: rpc_pb2.RPC.SubOpts) -> None:
        topic = sub_message.topicid
        if not isinstance(topic, str):
            raise PeerError("malformed", "a topic is not text")  # protobuf gives bytes then.
        if len(topic) > self._limits.topic_length:
            self._referee.refuse("bad-topic", peer_key(origin_id), 1.0)
            return
        super().handle_subscription(origin_id, sub_message)
        if not sub_message.subscribe:
            self.router.mesh.get(topic, set()).discard(origin_id)
            self.router.fanout.get(topic, set()).discard(origin_id)

    def _forget_all_subscriptions(self, peer_id: ID) -> None:
        # The base class forgets them when *our* stream to the peer fails too, though the
        # peer, whose stream to us lives, will not tell them again.
        if peer_id in self._inbound:
            return
        super()._forget_all_subscriptions(peer_id)
        for meshes in (self.router.mesh, self.router.fanout):
            for peers in meshes.values():
                peers.discard(peer_id)

    def stop_sweeping(self) -> None:
        self.seen_messages.stop()


async def reset_quietly(stream: INetStream) -> None:
    """Reset a stream, whatever state it is in and whether or not we are cancelled."""
    with trio.move_on_after(1.0) as scope:
        scope.shield = True
        try:
            await stream.reset()
        except Exception:
            logging.getLogger("libp2p").debug("resetting a stream failed", exc_info=True)


async def close_quietly(conn: INetConn, timeout: float) -> None:
    """Close a connection; when its peer does not take the farewell, hang up."""
    with trio.move_on_after(timeout) as scope:
        try:
            await conn.close()
        except Exception:
            logging.getLogger("libp2p").debug("closing a connection failed", exc_info=True)
    if scope.cancelled_caught:
        with trio.CancelScope(shield=True):
            await conn.muxed_conn._hang_up()


def key_pair(key: keys.SecretKey) -> KeyPair:
    """The libp2p form of our key."""
    return ed25519_key_pair(key.seed)
