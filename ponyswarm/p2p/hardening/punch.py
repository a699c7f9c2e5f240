"""DCUtR: a direct connection in place of a relayed one, through two routers if need be.

The wire is libp2p's (https://github.com/libp2p/specs/blob/master/relay/DCUtR.md): over the
relayed connection the two tell each other their addresses, one measures the way there and
back, and both call at the same moment. The handlers are ours, because libp2p's, of 0.8.1,
dial whatever addresses a peer names, any number of them and of times, and listen for the
answer on no port that a router would let through.

Calls go to few addresses, and only to such as a peer could have; one peer at a time and
not often, so that nobody makes a node knock at a third one's door.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import trio
from google.protobuf.message import DecodeError
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

from ponyswarm.errors import LocalError, PeerError
from ponyswarm.p2p.discovery import Address, is_dialable, parse_address
from ponyswarm.p2p.hardening.identity import peer_identity, peer_key
from ponyswarm.p2p.hardening.limits import TokenBucket
from ponyswarm.p2p.hardening.referee import Referee
from ponyswarm.p2p.hardening.streams import NetReader, reset_quietly
from ponyswarm.p2p.hardening.swarm import FencedHost, FencedSwarm

DCUTR = TProtocol("/libp2p/dcutr")

TRIES = 3
PAUSE = 60.0  # Seconds in which a peer may have so many tries.
_MESSAGE = 4096
_ADDRESSES = 4
_TALK = 10.0
_ALONE = 3.0  # Seconds for a call before anything is agreed: the other may be open.
_TOGETHER = 4.0  # Seconds for one call at the same moment.
_KEPT = 256


class Puncher:
    """``candidates`` are the addresses where routers may let a peer through to us."""

    def __init__(
        self,
        host: FencedHost,
        swarm: FencedSwarm,
        referee: Referee,
        candidates: Callable[[], Sequence[str]],
    ) -> None:
        self._host = host
        self._swarm = swarm
        self._referee = referee
        self._candidates = candidates
        self._buckets: OrderedDict[bytes, TokenBucket] = OrderedDict()
        host.set_stream_handler(DCUTR, self._serve)

    async def punch(self, peer: bytes) -> bool:
        """Try to reach a peer directly that came to us through a relay; whether it worked.

        Raises `PeerError` when the peer does not take part.
        """
        if not self._may(peer, TRIES):
            return False
        for attempt in range(TRIES):
            try:
                with trio.fail_after(_TALK):
                    stream = await self._host.new_stream(peer_identity(peer), [DCUTR])
            except Exception as fault:
                # Every layer has its own family of errors for a stream that does not open.
                raise PeerError("no-stream", "the peer does not punch holes") from fault
            try:
                with trio.fail_after(_TALK):
                    asked = trio.current_time()
                    await self._send(stream, HolePunch.CONNECT)
                    theirs = await self._receive(NetReader(stream), HolePunch.CONNECT, stream)
                    there_and_back = trio.current_time() - asked
                if attempt == 0 and await self._call(theirs, peer, _ALONE):
                    return True
                with trio.fail_after(_TALK):
                    await self._send(stream, HolePunch.SYNC)
            except trio.TooSlowError as fault:
                raise PeerError("timeout", "the peer does not answer") from fault
            finally:
                await self._close(stream)
            await trio.sleep(there_and_back / 2)
            if await self._meet(theirs, peer, lead=False):
                return True
        return False

    async def _serve(self, stream: INetStream) -> None:
        peer = peer_key(stream.muxed_conn.peer_id) or b""
        try:
            if not stream.muxed_conn.relayed or not self._may(peer, 1):
                self._referee.refuse("unwanted-punch", peer, 1.0)
                return
            reader = NetReader(stream)
            with trio.fail_after(_TALK):
                theirs = await self._receive(reader, HolePunch.CONNECT, stream)
                await self._send(stream, HolePunch.CONNECT)
            with trio.fail_after(_TALK + _ALONE):
                await self._receive(reader, HolePunch.SYNC, stream)
            await self._meet(theirs, peer, lead=True)
        except PeerError as fault:
            if fault.reason != "stream-closed":
                self._referee.refuse(fault.reason, peer, 10.0)
        except trio.TooSlowError:
            self._referee.refuse("timeout", peer)
        finally:
            await reset_quietly(stream)

    def _may(self, peer: bytes, cost: int) -> bool:
        """Whether so many tries with this peer are due; counts them."""
        now = trio.current_time()
        bucket = self._buckets.pop(peer, None) or TokenBucket(TRIES / PAUSE, TRIES, now)
        self._buckets[peer] = bucket
        while len(self._buckets) > _KEPT:
            self._buckets.popitem(last=False)
        return bucket.take(cost, now)

    async def _send(self, stream: INetStream, kind: HolePunch.Type.ValueType) -> None:
        own: list[bytes] = []
        if kind == HolePunch.CONNECT:
            for text in list(self._candidates())[:_ADDRESSES]:
                own.append(Multiaddr(text.partition("/p2p/")[0]).to_bytes())
        message = HolePunch(type=kind, ObsAddrs=own)
        try:
            await stream.write(encode_varint_prefixed(message.SerializeToString()))
        except Exception as fault:
            # Every layer has its own family of errors for a stream that ended.
            raise PeerError("stream-closed") from fault

    async def _receive(
        self, reader: NetReader, kind: HolePunch.Type.ValueType, stream: INetStream
    ) -> list[Address]:
        message = HolePunch()
        try:
            message.ParseFromString(await reader.varint_frame(_MESSAGE))
        except (DecodeError, ValueError) as fault:
            raise PeerError("bad-punch", "not a message of DCUtR") from fault
        if message.type != kind:
            raise PeerError("bad-punch", "not the message that is due")
        found: list[Address] = []
        for raw in message.ObsAddrs[:_ADDRESSES]:
            try:
                address = parse_address(str(Multiaddr(raw)).partition("/p2p/")[0])
            except LocalError:
                continue
            except Exception as fault:
                # Each protocol of a multiaddr is parsed by code with errors of its own.
                raise PeerError("bad-punch", "not an address") from fault
            if address.kind in ("ip4", "ip6") and is_dialable(str(address), from_=self._own()):
                found.append(address)
        return found

    def _own(self) -> str | None:
        """An address of ours: private ones are called by those who have one."""
        candidates = self._candidates()
        return candidates[0] if candidates else None

    async def _call(self, addresses: Sequence[Address], peer: bytes, seconds: float) -> bool:
        with trio.move_on_after(seconds):
            for address in addresses:
                try:
                    await self._swarm.dial(address.host, address.port, peer)
                except Exception:  # noqa: S112
                    # In whatever way this address fails, the next may do.
                    continue
                return True
        return False

    async def _meet(self, addresses: Sequence[Address], peer: bytes, *, lead: bool) -> bool:
        """Call all addresses at once, again and again for a while; whether one answered."""
        met = False

        async def call(address: Address) -> None:
            nonlocal met
            while True:
                try:
                    await self._swarm.meet(address.host, address.port, peer, lead=lead)
                except Exception:
                    # Most calls fail, in many ways, before the routers let one through.
                    await trio.sleep(0.1)
                    continue
                met = True
                nursery.cancel_scope.cancel()
                return

        with trio.move_on_after(_TOGETHER):
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    nursery.start_soon(call, address)
        return met or self._swarm.is_directly_connected(peer)

    async def _close(self, stream: INetStream) -> None:
        try:
            with trio.fail_after(1):
                await stream.close()
        except Exception:
            # A stream that cannot be closed in good order, for whatever reason, is reset.
            await reset_quietly(stream)
