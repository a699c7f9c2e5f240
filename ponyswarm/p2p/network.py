"""The network as the node sees it: keys, topics, streams and events.

This module, `stream.py` and `hardening/` hold all libp2p code of the project. Peers are known
by the 32 bytes of their key, addresses are multiaddr strings, and what comes from
peers is bytes to be judged by the caller: gossip passes the caller's validator
before it is relayed, and a stream handler gets a `Stream` with caps and deadlines.

A peer's misdeeds end in the ``refused`` callback and in its score, never in an
exception; a peer with a bad score is disconnected and refused for a while.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import trio
from libp2p.abc import INetConn, INetStream, INetwork
from libp2p.custom_types import TProtocol
from libp2p.tools.anyio_service import background_trio_service

from ponyswarm import keys
from ponyswarm.errors import LocalError, PeerError
from ponyswarm.keys import SecretKey
from ponyswarm.p2p import hardening
from ponyswarm.p2p.choosing import Link
from ponyswarm.p2p.discovery import (
    Address,
    Circuit,
    DnsAddress,
    parse_target,
    range_of,
)
from ponyswarm.p2p.hardening import NetworkLimits, RelayLimits, peer_identity, peer_key
from ponyswarm.p2p.listening import bind, own_addresses
from ponyswarm.p2p.stream import Stream

__all__ = [
    "Connected",
    "Disconnected",
    "Followed",
    "Gossip",
    "Named",
    "Network",
    "NetworkEvent",
    "NetworkLimits",
    "RelayLimits",
    "Validator",
    "open_network",
]

_CLOSING = 1.5  # Seconds for all farewells together.


@dataclass(frozen=True, slots=True)
class Connected:
    peer: bytes


@dataclass(frozen=True, slots=True)
class Disconnected:
    peer: bytes


@dataclass(frozen=True, slots=True)
class Followed:
    """A connected peer says that it follows a topic that we follow."""

    topic: str
    peer: bytes


@dataclass(frozen=True, slots=True)
class Gossip:
    """``origin`` signed the message; ``forwarder`` is the peer it came from."""

    topic: str
    origin: bytes
    forwarder: bytes
    data: bytes


NetworkEvent = Connected | Disconnected | Followed | Gossip

# (topic, origin, forwarder, data); synchronous and quick. False: refused, not relayed.
Validator = Callable[[str, bytes, bytes, bytes], bool]

# (topic, author): whether it is none of the topic's strangers, who share one quota.
Named = Callable[[str, bytes], bool]


@contextmanager
def _unreachable(what: str, timeout: float) -> Iterator[None]:
    """A deadline, and `PeerError` ("unreachable") for whatever libp2p may raise."""
    try:
        with trio.fail_after(timeout):
            yield
    except PeerError:
        raise
    except trio.TooSlowError as fault:
        raise PeerError("unreachable", f"{what} did not answer in {timeout:g} s") from fault
    except OSError as fault:
        raise PeerError("unreachable", f"{what}: {fault}") from fault
    except Exception as fault:
        # Noise, multistream and Yamux have no common kind of error.
        raise PeerError(
            "unreachable", f"{what} is not the peer it should be, or hung up: {fault}"
        ) from fault


Handler = Callable[[Stream], Awaitable[None]]


class Network:
    """An open network; made by `open_network`."""

    def __init__(
        self,
        key: SecretKey,
        limits: NetworkLimits,
        validate: Validator,
        refused: Callable[[str, bytes | None], None],
        named: Named,
        nursery: trio.Nursery,
    ) -> None:
        self.peer: bytes = key.public
        self.addresses: tuple[str, ...] = ()
        self._limits = limits
        self._nursery = nursery
        self._live: set[bytes] = set()
        # Unbounded, so that connects and disconnects are never lost; gossip is counted.
        self._send, self.events = trio.open_memory_channel[NetworkEvent](math.inf)
        self._referee = hardening.Referee(limits, refused, self._banned)
        pair = hardening.key_pair(key)
        self._upgrader = hardening.FencedUpgrader(pair, limits, self._referee)
        self._swarm = hardening.FencedSwarm(pair, self._upgrader, limits, self._referee)
        self._host = hardening.FencedHost(self._swarm, limits)
        self._router = hardening.FencedGossip(self._referee)
        self._pubsub = hardening.FencedPubsub(
            self._host,
            self._router,
            validate=validate,
            deliver=self._deliver,
            followed=lambda topic, peer: self._tell(Followed(topic, peer), peer),
            limits=limits,
            referee=self._referee,
            quotas=hardening.Quotas(limits, lambda t, a: a == self.peer or named(t, a)),
            nursery=nursery,
        )
        self.relay = hardening.Relay(self._host, self._referee)
        self._carried = hardening.Carried(self._host, self._swarm, self._referee)
        self._puncher = hardening.Puncher(
            self._host, self._swarm, self._referee, lambda: self.punch_candidates
        )
        self.punch_candidates: tuple[str, ...] = ()
        """Our addresses as others see them; told to a peer that wants a direct connection."""
        self._swarm.register_notifee(hardening.DropStale(self._swarm, self._pubsub, nursery))
        self._swarm.register_notifee(_Watcher(self))

    # Peers

    def peers(self) -> tuple[bytes, ...]:
        """The peers that are connected."""
        return tuple(self._live)

    def links(self) -> dict[bytes, Link]:
        """Each connected peer's address range, and whether we called it."""
        links: dict[bytes, Link] = {}
        for peer in self._live:
            conns = self._swarm.get_connections(peer_identity(peer))
            where = self.remote_address(peer)
            called = any(conn.muxed_conn.is_initiator for conn in conns)
            links[peer] = Link(range_of(where) if where else "", called)
        return links

    def _connected(self, peer: bytes) -> bool:
        # Sooner than the event, which libp2p gives a tenth of a second after the end.
        connections = self._swarm.get_connections(peer_identity(peer))
        return any(not conn.is_closed for conn in connections)

    def remote_address(self, peer: bytes) -> str | None:
        """Where the peer is connected from or to, without its key."""
        carried: bytes | None = None
        for conn in self._swarm.get_connections(peer_identity(peer)):
            remote = conn.muxed_conn.get_remote_address()
            if remote is not None:
                kind = "ip6" if ":" in remote[0] else "ip4"
                return str(Address(kind, remote[0], remote[1], None))
            carried = conn.muxed_conn.relay
        if carried is None or carried == peer:
            return None
        relay = self.remote_address(carried)
        if relay is None:
            return None
        return f"{relay}/p2p/{keys.peer_id(carried)}/p2p-circuit/p2p/{keys.peer_id(peer)}"

    def relayed(self) -> dict[bytes, bool]:
        """The peers that are connected through relays alone, and whether we called them."""
        found: dict[bytes, bool] = {}
        for peer in self._live:
            if not self._swarm.is_directly_connected(peer):
                conns = self._swarm.get_connections(peer_identity(peer))
                found[peer] = any(conn.muxed_conn.is_initiator for conn in conns)
        return found

    async def dial(self, address: str, *, timeout: float = 5.0) -> bytes:
        """Connect to a peer unless it is connected; returns its key.

        A peer that is connected through a relay is called directly, if the address is
        direct. `PeerError` has the reason ``bad-address``, ``own-address``, ``banned`` or
        ``unreachable``.
        """
        try:
            target = parse_target(address)
        except LocalError as fault:
            raise PeerError("bad-address", str(fault)) from fault
        peer = target.peer
        if isinstance(target, DnsAddress) or peer is None:
            raise PeerError("bad-address", f"{address} does not name its peer: add /p2p/ and a key")
        if peer == self.peer:
            raise PeerError("own-address", f"{address} is this node")
        if self.is_banned(peer):
            raise PeerError("banned", f"{keys.peer_id(peer)} misbehaved; try again later")
        if isinstance(target, Circuit):
            if not self._connected(peer):
                await self._dial_through(target, timeout)
            return peer
        if self._swarm.is_directly_connected(peer):
            return peer
        with _unreachable(address, timeout):
            await self._swarm.dial(target.host, target.port, peer)
        return peer

    async def _dial_through(self, target: Circuit, timeout: float) -> None:
        relay = await self.dial(str(target.relay), timeout=timeout)
        with _unreachable(str(target), timeout):
            await self._carried.dial(relay, target.peer)

    # Being called

    @property
    def port(self) -> int | None:
        """The port where we listen; the first, when there are several."""
        for listener in self._swarm.sockets:
            return int(listener.socket.getsockname()[1])
        return None

    async def knock(self, peer: bytes, port: int, *, timeout: float) -> bool:
        """Whether a peer answers at a port of the address from which it is connected."""
        remote = self._swarm.direct_address(peer)
        if remote is None:
            return False
        try:
            with trio.fail_after(timeout):
                await self._swarm.knock(remote[0], port, peer)
        except Exception:
            return False  # In whatever way the knock failed, the peer does not answer there.
        return True

    def knocked(self, peer: bytes) -> float:
        """When the peer last opened a connection to us and proved its key (trio's clock)."""
        return self._upgrader.knocks.get(peer, -math.inf)

    def announce(self, addresses: Sequence[str]) -> None:
        """The addresses that identify tells of, without our key."""
        self._host.announce(addresses)

    def relays(self) -> dict[bytes, float]:
        """The relays that keep a place for us, and until when (seconds since the epoch)."""
        return self._carried.places()

    async def reserve(self, relay: bytes, *, timeout: float) -> float:
        """Have a connected peer keep a place for us; until when. `PeerError` ("no-relay")."""
        with _unreachable(keys.peer_id(relay), timeout):
            return await self._carried.reserve(relay)

    async def punch(self, peer: bytes) -> bool:
        """Turn a relayed connection, which the peer began, into a direct one; whether it did.

        Raises `PeerError` when the peer does not take part.
        """
        return await self._puncher.punch(peer)

    async def disconnect(self, peer: bytes) -> None:
        await self._close(self._swarm.get_connections(peer_identity(peer)))

    def penalise(self, peer: bytes, points: float) -> None:
        """Add to the peer's bad score; at ``ban_points`` it is disconnected and refused."""
        self._referee.penalise(peer, points)

    def is_banned(self, peer: bytes) -> bool:
        return self._referee.banned(peer)

    def _banned(self, peer: bytes) -> None:
        self._nursery.start_soon(self.disconnect, peer)

    async def _close(self, connections: Iterable[INetConn]) -> None:
        async with trio.open_nursery() as nursery:
            for conn in connections:
                nursery.start_soon(hardening.close_quietly, conn, _CLOSING)

    # Gossip

    async def subscribe(self, topic: str) -> None:
        if len(topic) > self._limits.topic_length:
            raise LocalError(f"a topic has at most {self._limits.topic_length} characters")
        await self._pubsub.subscribe(topic)

    async def unsubscribe(self, topic: str) -> None:
        await self._pubsub.unsubscribe(topic)

    async def publish(self, topic: str, data: bytes) -> None:
        """Send to the topic's followers. The node's own messages make no event here."""
        if len(data) > self._limits.message:
            raise LocalError(
                f"a message has at most {self._limits.message} bytes, this one {len(data)}"
            )
        await self._pubsub.publish(topic, data)

    def topics(self) -> tuple[str, ...]:
        return tuple(self._pubsub.topic_ids)

    def topic_peers(self, topic: str) -> tuple[bytes, ...]:
        """The connected peers that follow the topic."""
        found = (peer_key(peer) for peer in self._pubsub.peer_topics.get(topic, ()))
        return tuple(key for key in found if key is not None)

    def _deliver(self, topic: str, origin: bytes, forwarder: bytes, data: bytes) -> None:
        self._tell(Gossip(topic, origin, forwarder, data), forwarder)

    def _tell(self, event: Followed | Gossip, peer: bytes) -> None:
        if self._send.statistics().current_buffer_used >= self._limits.events:
            self._referee.refuse("events-full", peer)
            return
        self._send.send_nowait(event)

    # Streams

    def serve(
        self, protocol: str, handler: Handler, *, concurrent_per_peer: int, timeout: float
    ) -> None:
        """Answer a protocol. ``timeout`` is for the whole of one stream.

        The handler may raise `PeerError`; whatever it raises is counted, and the
        stream is reset. When it returns, the stream is closed.
        """
        quota = hardening.StreamQuota(concurrent_per_peer)

        async def serve(raw: INetStream) -> None:
            peer = peer_key(raw.muxed_conn.peer_id) or b""
            stream = Stream(raw, peer, timeout)
            with quota.slot(peer) as free:
                if not free:
                    self._referee.refuse("too-many-streams", peer)
                    await stream.reset()
                    return
                try:
                    with trio.fail_after(timeout):
                        await handler(stream)
                        await stream.close()
                except PeerError as fault:
                    self._referee.refuse(fault.reason, peer)
                except trio.TooSlowError:
                    self._referee.refuse("timeout", peer)
                except Exception:
                    # A fault in a handler of ours, or of libp2p's below it, ends one stream.
                    self._referee.refuse("handler-error", peer)
                else:
                    return
                await stream.reset()

        self._host.set_stream_handler(TProtocol(protocol), serve)

    async def open(self, peer: bytes, protocol: str, *, timeout: float = 5.0) -> Stream:
        """Open a stream to a connected peer. Its ``timeout`` can be changed afterwards.

        `PeerError` has the reason ``not-connected``, ``timeout`` or ``no-stream``.
        """
        if not self._connected(peer):
            raise PeerError("not-connected", keys.peer_id(peer))
        try:
            with trio.fail_after(timeout):
                raw = await self._host.new_stream(peer_identity(peer), [TProtocol(protocol)])
        except trio.TooSlowError as fault:
            raise PeerError("timeout", f"no stream for {protocol} in {timeout:g} s") from fault
        except Exception as fault:
            # Every layer has its own family of errors for a stream that does not open.
            raise PeerError("no-stream", f"the peer does not offer {protocol}") from fault
        return Stream(raw, peer, max(timeout, 5.0))

    # Opening and closing

    async def _listen(self, sockets: Sequence[trio.SocketListener]) -> None:
        self._swarm.sockets = tuple(sockets)
        addresses = [text for listener in sockets for text in own_addresses(listener)]
        self.addresses = tuple(f"{text}/p2p/{keys.peer_id(self.peer)}" for text in addresses)
        self._host.announce(addresses)
        if sockets:
            self._nursery.start_soon(trio.serve_listeners, self._swarm.admit, list(sockets))

    async def _shut(self) -> None:
        with trio.move_on_after(_CLOSING) as scope:
            scope.shield = True
            await self._close(self._swarm.get_connections())
            await self._host.close()

    def _up(self, peer: bytes) -> None:
        if peer not in self._live:
            self._live.add(peer)
            self._send.send_nowait(Connected(peer))

    def _down(self, peer: bytes) -> None:
        if peer in self._live and not self._swarm.get_connections(peer_identity(peer)):
            self._live.discard(peer)
            self._send.send_nowait(Disconnected(peer))


class _Watcher(hardening.Notifee):
    """Tells the network of peers that come and go."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        peer = peer_key(conn.muxed_conn.peer_id)
        if peer is not None and not conn.is_closed:
            self._network._up(peer)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        peer = peer_key(conn.muxed_conn.peer_id)
        if peer is not None:
            self._network._down(peer)


@asynccontextmanager
async def open_network(
    key: SecretKey,
    *,
    listen: Sequence[str],
    validate: Validator,
    refused: Callable[[str, bytes | None], None],
    named: Named = lambda topic, author: False,
    limits: NetworkLimits | None = None,
) -> AsyncIterator[Network]:
    """Open the network and close it, in less than two seconds, on leaving.

    ``listen`` may be empty: such a node only dials. ``refused`` gets a short reason
    and the peer, if it is known, for whatever was refused; ``named`` is asked for each
    gossip message. Raises `InfraError` when
    an address cannot be listened on, `LocalError` when it makes no sense.
    """
    hardening.quiet_logging()
    limits = limits or NetworkLimits()
    sockets = await bind(listen)
    try:
        async with trio.open_nursery() as nursery:
            network = Network(key, limits, validate, refused, named, nursery)
            try:
                async with (
                    network._host.run([]),
                    background_trio_service(network._pubsub),
                    background_trio_service(network._router),
                ):
                    await network._pubsub.wait_until_ready()
                    await network._listen(sockets)
                    try:
                        yield network
                    finally:
                        await network._shut()
            finally:
                nursery.cancel_scope.cancel()
                network._swarm.drop_sockets()
                network._pubsub.stop_sweeping()
                network._send.close()
    except BaseExceptionGroup as group:
        # The nurseries here are ours; the caller raised one thing and shall see it.
        fault: BaseException = group
        while isinstance(fault, BaseExceptionGroup) and len(fault.exceptions) == 1:
            fault = fault.exceptions[0]
        raise fault from None
    finally:
        for listener in sockets:
            listener.socket.close()
