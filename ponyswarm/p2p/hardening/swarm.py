"""All connections of a host, and the host: who comes in, who is dialled, what is answered."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from weakref import WeakSet

import trio
from libp2p.abc import IMuxedConn, INetConn, INetStream, INetwork, INotifee
from libp2p.crypto.keys import KeyPair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.host.ping import ID as PING
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.transport.exceptions import MuxerUpgradeFailure
from multiaddr import Multiaddr

from ponyswarm import keys
from ponyswarm.p2p.hardening.identity import peer_identity, peer_key
from ponyswarm.p2p.hardening.limits import Doorkeeper, NetworkLimits, StreamQuota
from ponyswarm.p2p.hardening.muxer import FencedUpgrader
from ponyswarm.p2p.hardening.referee import Referee
from ponyswarm.p2p.hardening.streams import BoundedTCP, reset_quietly

AGENT_PROTOCOLS = (TProtocol(IDENTIFY), TProtocol(PING))


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
        self.sockets: Sequence[trio.SocketListener] = ()
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
                # An exception of any kind that left a handler would end the host.
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
        if not await self.welcome(address, None):
            await trio.aclose_forcefully(stream)
            return
        try:
            raw = RawConnection(tcp, False)
            with trio.fail_after(2 * self._limits.handshake_timeout):
                muxed = await self.upgrade_inbound_raw_conn(raw, None)
            await muxed.event_closed.wait()
        except Exception as fault:
            # A stranger's bytes fail in each layer's own way; who proves its key and hangs up
            # then calls us back, as `p2p.reach` asks.
            if not isinstance(fault.__cause__, MuxerUpgradeFailure):
                self._referee.refuse("handshake", None)
        finally:
            self.door.leave(address)
            await trio.aclose_forcefully(stream)

    async def welcome(self, address: str, relay: bytes | None) -> bool:
        """Whether a caller may begin its handshake, when its turn has come; it is to leave then."""
        pause = self.door.turn(address, trio.current_time())
        if pause is None or not self.door.enter(address):
            self._referee.refuse("too-many-connections", relay)
            return False
        try:
            await trio.sleep(pause)
        except BaseException:
            self.door.leave(address)
            raise
        return True

    async def dial(self, host: str, port: int, key: bytes) -> None:
        """Connect to one address; the caller sets the deadline. Raises `OSError` or others."""
        self._room()
        await self._adopt(await trio.open_tcp_stream(host, port), key)

    async def meet(self, host: str, port: int, key: bytes, *, lead: bool) -> None:
        """Call a peer that calls us at the same moment, from the port where we listen.

        Two routers then see each a call from inside, and let the other's in. ``lead`` says
        which side begins the handshake; both ends must have agreed. Errors as in `dial`.
        """
        self._room()
        sock = self._socket_of_listener(host)
        try:
            await sock.connect((host, port))
        except BaseException:
            sock.close()
            raise
        stream = trio.SocketStream(sock)
        if lead:
            await self._adopt(stream, key)
            return
        self._sockets.add(stream)
        try:
            with trio.fail_after(2 * self._limits.handshake_timeout):
                muxed = await self.upgrade_inbound_raw_conn(
                    RawConnection(BoundedTCP(stream), False), None
                )
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
            raise
        if muxed.peer_id != peer_identity(key):
            await muxed._hang_up()
            raise SwarmException("another peer answered")

    async def knock(self, host: str, port: int, key: bytes) -> None:
        """Prove that a peer answers at an address: a fresh connection, a handshake, no more.

        Raises `OSError` or others when it does not.
        """
        stream = await trio.open_tcp_stream(host, port)
        try:
            raw = RawConnection(BoundedTCP(stream), True)
            await self.upgrader.upgrade_security(raw, True, peer_identity(key))
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    def _room(self) -> None:
        if len(self.get_connections()) >= self._limits.connections:
            raise SwarmException("there are too many connections")

    async def _adopt(self, stream: trio.SocketStream, key: bytes) -> None:
        self._sockets.add(stream)
        try:
            raw = RawConnection(BoundedTCP(stream), True)
            await self.upgrade_outbound_raw_conn(raw, peer_identity(key))
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
            raise

    def _socket_of_listener(self, host: str) -> trio.socket.SocketType:
        """A socket with the port on which we listen, though nobody else may share that.

        The listening socket allows it only while this one is bound.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        for listener in self.sockets:
            if listener.socket.family != family or not hasattr(socket, "SO_REUSEPORT"):
                continue
            fresh = socket.socket(family, socket.SOCK_STREAM)
            fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                fresh.bind(listener.socket.getsockname()[:2])
            except OSError:
                fresh.close()
                raise
            finally:
                listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
            return trio.socket.from_stdlib_socket(fresh)
        raise SwarmException("this node does not listen there")

    def is_directly_connected(self, key: bytes) -> bool:
        """Whether a live connection to the peer goes through no relay."""
        return self.direct_address(key) is not None

    def direct_address(self, key: bytes) -> tuple[str, int] | None:
        """The host and port of a live connection to the peer that goes through no relay."""
        for conn in self.get_connections(peer_identity(key)):
            if not conn.is_closed and (remote := conn.muxed_conn.get_remote_address()) is not None:
                return str(remote[0]), int(remote[1])
        return None

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
        elif muxed_conn.relayed and self.is_directly_connected(peer):
            fault = "relay-not-needed"
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


async def close_quietly(conn: INetConn, timeout: float) -> None:
    """Close a connection; when its peer does not take the farewell, hang up."""
    with trio.move_on_after(timeout) as scope:
        try:
            await conn.close()
        except Exception:
            # Whatever it raises, the connection is of no further use.
            logging.getLogger("libp2p").debug("closing a connection failed", exc_info=True)
    if scope.cancelled_caught:
        with trio.CancelScope(shield=True):
            await conn.muxed_conn._hang_up()
