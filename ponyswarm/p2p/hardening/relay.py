"""Circuit relay v2: carrying streams between two peers, and being carried.

The wire is libp2p's (https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md),
with its own protobuf messages. The handlers are ours, because libp2p's, of 0.8.1, let a
stranger do much with them (`tests/system/test_relay.py` shows it):

- A reservation is made for whatever peer the *message* names, so one stranger takes all
  places under made-up names, or keeps another's place alive.
- A circuit's time is looked at when bytes come, so one that is silent lives for ever, and
  nothing limits how many a peer opens.
- A peer takes circuits from anybody who says to be a relay, in any number.
- Circuits are filed under the peer, so that a second one to it takes the first one down.

What is relayed stays secret and authentic: the two ends do Noise through the circuit.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import trio
from google.protobuf.message import DecodeError
from libp2p.abc import INetStream
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.relay.circuit_v2.pb.circuit_pb2 import (
    HopMessage,
    Limit,
    PeerId,
    Reservation,
    Status,
    StopMessage,
)
from libp2p.utils.varint import encode_varint_prefixed

from ponyswarm.errors import PeerError
from ponyswarm.p2p.hardening.identity import peer_identity, peer_key
from ponyswarm.p2p.hardening.referee import Referee
from ponyswarm.p2p.hardening.streams import NetReader, reset_quietly
from ponyswarm.p2p.hardening.swarm import FencedHost, FencedSwarm

HOP = TProtocol("/libp2p/circuit/relay/0.2.0/hop")
STOP = TProtocol("/libp2p/circuit/relay/0.2.0/stop")

_MESSAGE = 4096
_TALK = 10.0  # Seconds for the messages before a circuit.
_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """What a relay gives. Bytes count both directions of a circuit, times are seconds."""

    reservations: int = 32
    circuits: int = 64
    circuits_per_peer: int = 4
    bytes: int = 64 * 1024 * 1024
    seconds: int = 3600
    silence: float = 60.0
    reservation_seconds: int = 3600


class CircuitStream(ReadWriteCloser):  # type: ignore[misc]
    """A stream to a relay as if it were a socket to the peer behind it."""

    def __init__(self, stream: INetStream, reader: NetReader) -> None:
        self._stream = stream
        self._reader = reader

    async def read(self, n: int | None = None) -> bytes:
        return await self._reader.some(_CHUNK if n is None or n < 0 else min(n, _CHUNK))

    async def write(self, data: bytes) -> None:
        await self._stream.write(data)

    async def close(self) -> None:
        await reset_quietly(self._stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        return None  # By this a relayed connection is known.


async def _send(stream: INetStream, message: HopMessage | StopMessage) -> None:
    await stream.write(encode_varint_prefixed(message.SerializeToString()))


def _parsed(data: bytes, message: HopMessage | StopMessage) -> None:
    try:
        message.ParseFromString(data)
    except (DecodeError, ValueError) as fault:
        raise PeerError("bad-relay", "not a relay message") from fault


class Relay:
    """Carries for others. Until `open` is called, every request is refused."""

    def __init__(self, host: FencedHost, referee: Referee) -> None:
        self._host = host
        self._referee = referee
        self._limits: RelayLimits | None = None
        self._places: dict[bytes, float] = {}  # Until when, in seconds since the epoch.
        self._circuits: Counter[bytes] = Counter()
        self.carrying = 0
        host.set_stream_handler(HOP, self._serve)

    def open(self, limits: RelayLimits | None) -> None:
        """Carry within these limits; None: no more. Circuits that live go on."""
        self._limits = limits
        if limits is None:
            self._places.clear()

    @property
    def offered(self) -> bool:
        return self._limits is not None

    @property
    def reservations(self) -> int:
        return len(self._places)

    async def _serve(self, stream: INetStream) -> None:
        peer = peer_key(stream.muxed_conn.peer_id) or b""
        try:
            reader = NetReader(stream)
            with trio.fail_after(_TALK):
                message = HopMessage()
                _parsed(await reader.varint_frame(_MESSAGE), message)
            if self._limits is None or stream.muxed_conn.get_remote_address() is None:
                await self._end(stream, Status.PERMISSION_DENIED)
            elif message.type == HopMessage.RESERVE:
                await self._reserve(stream, peer, self._limits)
            elif message.type == HopMessage.CONNECT:
                await self._connect(stream, reader, peer, message.peer.id, self._limits)
            else:
                await self._end(stream, Status.UNEXPECTED_MESSAGE)
        except PeerError as fault:
            if fault.reason != "stream-closed":
                self._referee.refuse(fault.reason, peer, 10.0)
        except trio.TooSlowError:
            self._referee.refuse("timeout", peer, 1.0)
        except Exception:
            # libp2p's streams fail in many ways; none may leave a handler.
            self._referee.refuse("relay-error", peer)
        finally:
            await reset_quietly(stream)

    async def _end(self, stream: INetStream, status: Status.ValueType) -> None:
        with trio.fail_after(_TALK):
            await _send(stream, HopMessage(type=HopMessage.STATUS, status=status))
            await stream.close()
            # The reset that follows would overtake the answer.
            await trio.sleep(0.5)

    async def _reserve(self, stream: INetStream, peer: bytes, limits: RelayLimits) -> None:
        # The connection says who it is for; the message's own field is for nobody.
        now = time.time()
        self._places = {one: end for one, end in self._places.items() if end > now}
        if peer not in self._places and len(self._places) >= limits.reservations:
            self._referee.refuse("relay-full", peer)
            await self._end(stream, Status.RESERVATION_REFUSED)
            return
        self._places[peer] = end = now + limits.reservation_seconds
        own = self._host.get_id()
        answer = HopMessage(
            type=HopMessage.STATUS,
            status=Status.OK,
            reservation=Reservation(
                expire=int(end),
                addrs=[
                    address.encapsulate(f"/p2p/{own}").to_bytes()
                    for address in self._host.announced
                ],
            ),
            limit=Limit(duration=limits.seconds, data=limits.bytes),
        )
        with trio.fail_after(_TALK):
            await _send(stream, answer)
            await stream.close()
            await trio.sleep(0.5)

    async def _connect(
        self,
        stream: INetStream,
        reader: NetReader,
        peer: bytes,
        wanted: bytes,
        limits: RelayLimits,
    ) -> None:
        target = peer_key(wanted)
        if target is None or self._places.get(target, 0.0) < time.time():
            await self._end(stream, Status.NO_RESERVATION)
            return
        full = self.carrying >= limits.circuits
        if full or max(self._circuits[peer], self._circuits[target]) >= limits.circuits_per_peer:
            self._referee.refuse("relay-full", peer)
            await self._end(stream, Status.RESOURCE_LIMIT_EXCEEDED)
            return
        self.carrying += 1
        self._circuits.update((peer, target))
        try:
            await self._carry(stream, reader, peer, target, limits)
        finally:
            self.carrying -= 1
            self._circuits.subtract((peer, target))
            self._circuits += Counter()  # Forgets the zeros.

    async def _carry(
        self,
        stream: INetStream,
        reader: NetReader,
        peer: bytes,
        target: bytes,
        limits: RelayLimits,
    ) -> None:
        limit = Limit(duration=limits.seconds, data=limits.bytes)
        far: INetStream | None = None
        try:
            try:
                with trio.fail_after(_TALK):
                    far = await self._host.new_stream(peer_identity(target), [STOP])
                    far_reader = NetReader(far)
                    source = PeerId(id=peer_identity(peer).to_bytes())
                    await _send(
                        far, StopMessage(type=StopMessage.CONNECT, peer=source, limit=limit)
                    )
                    answer = StopMessage()
                    _parsed(await far_reader.varint_frame(_MESSAGE), answer)
            except Exception:
                # In whatever way the far peer cannot be reached, the near one is told.
                await self._end(stream, Status.CONNECTION_FAILED)
                return
            if answer.status != Status.OK:
                await self._end(stream, Status.CONNECTION_FAILED)
                return
            await _send(stream, HopMessage(type=HopMessage.STATUS, status=Status.OK, limit=limit))
            budget = [limits.bytes]
            with trio.move_on_after(limits.seconds):
                async with trio.open_nursery() as nursery:

                    async def pump(source: NetReader, sink: INetStream) -> None:
                        await _pump(source, sink, budget, limits.silence)
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(pump, reader, far)
                    nursery.start_soon(pump, far_reader, stream)
        finally:
            if far is not None:
                await reset_quietly(far)


async def _pump(source: NetReader, sink: INetStream, budget: list[int], silence: float) -> None:
    """Carry bytes until an end closes, is silent for too long, or the budget is spent."""
    while True:
        with trio.move_on_after(silence) as scope:
            data = await source.some(_CHUNK)
        if scope.cancelled_caught or not data or len(data) > budget[0]:
            return
        budget[0] -= len(data)
        try:
            await sink.write(data)
        except Exception:
            return  # The other end went; its stream tells in many ways.


class Carried:
    """Is carried by others: reserves a place at a relay, takes and opens circuits."""

    def __init__(self, host: FencedHost, swarm: FencedSwarm, referee: Referee) -> None:
        self._host = host
        self._swarm = swarm
        self._referee = referee
        self._places: dict[bytes, float] = {}
        host.set_stream_handler(STOP, self._serve)

    def places(self) -> dict[bytes, float]:
        """The relays that keep a place for us, and until when (seconds since the epoch)."""
        now = time.time()
        self._places = {
            relay: end
            for relay, end in self._places.items()
            if end > now and self._swarm.is_directly_connected(relay)
        }
        return dict(self._places)

    async def reserve(self, relay: bytes) -> float:
        """Ask a connected peer to keep a place for us; until when it does.

        Raises `PeerError` ("no-relay") when it does not.
        """
        answer, stream, _ = await self._ask(relay, HopMessage(type=HopMessage.RESERVE))
        await reset_quietly(stream)
        if answer.status != Status.OK:
            raise PeerError("no-relay", f"the relay answers with status {answer.status}")
        now = time.time()
        # Whatever it says, it is asked again within the hour.
        end = min(max(float(answer.reservation.expire), now), now + 3600)
        self._places[relay] = end
        return end

    async def dial(self, relay: bytes, peer: bytes) -> None:
        """Connect to a peer through a connected relay. Raises `PeerError` or others."""
        wanted = PeerId(id=peer_identity(peer).to_bytes())
        answer, stream, reader = await self._ask(
            relay, HopMessage(type=HopMessage.CONNECT, peer=wanted)
        )
        if answer.status != Status.OK:
            await reset_quietly(stream)
            raise PeerError("no-relay", f"the relay answers with status {answer.status}")
        raw = RawConnection(CircuitStream(stream, reader), True, ConnectionType.RELAYED)
        try:
            conn = await self._swarm.upgrade_outbound_raw_conn(raw, peer_identity(peer))
            conn.muxed_conn.relay = relay
        except BaseException:
            await reset_quietly(stream)
            raise

    async def _ask(
        self, relay: bytes, message: HopMessage
    ) -> tuple[HopMessage, INetStream, NetReader]:
        try:
            stream = await self._host.new_stream(peer_identity(relay), [HOP])
        except Exception as fault:
            # Every layer has its own family of errors for a stream that does not open.
            raise PeerError("no-relay", "the peer is no relay") from fault
        reader = NetReader(stream)
        try:
            await _send(stream, message)
            answer = HopMessage()
            _parsed(await reader.varint_frame(_MESSAGE), answer)
        except BaseException:
            await reset_quietly(stream)
            raise
        return answer, stream, reader

    async def _serve(self, stream: INetStream) -> None:
        relay = peer_key(stream.muxed_conn.peer_id) or b""
        try:
            reader = NetReader(stream)
            with trio.fail_after(_TALK):
                message = StopMessage()
                _parsed(await reader.varint_frame(_MESSAGE), message)
            known = relay in self.places()
            good = known and message.type == StopMessage.CONNECT and peer_key(message.peer.id)
            status = Status.OK if good else Status.PERMISSION_DENIED
            with trio.fail_after(_TALK):
                await _send(stream, StopMessage(type=StopMessage.STATUS, status=status))
            if not good:
                self._referee.refuse("no-reservation", relay, 5.0)
                await trio.sleep(0.5)
                return
            await self._take(stream, reader, relay)
        except PeerError as fault:
            if fault.reason != "stream-closed":
                self._referee.refuse(fault.reason, relay, 10.0)
        except trio.TooSlowError:
            self._referee.refuse("timeout", relay, 1.0)
        finally:
            await reset_quietly(stream)

    async def _take(self, stream: INetStream, reader: NetReader, relay: bytes) -> None:
        # All that comes through one relay shares the places of one address.
        entrance = f"relay {relay.hex()}"
        if not await self._swarm.welcome(entrance, relay):
            return
        try:
            raw = RawConnection(CircuitStream(stream, reader), False, ConnectionType.RELAYED)
            muxed = await self._swarm.upgrade_inbound_raw_conn(raw, None)
            muxed.relay = relay
            await muxed.event_closed.wait()
        except Exception:
            # What a stranger makes of a handshake must not leave the handler.
            self._referee.refuse("handshake", relay)
        finally:
            self._swarm.door.leave(entrance)
