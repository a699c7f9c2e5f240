"""Relays and hole punching with real networks on loopback, and what a stranger can do there.

Whether this works through real routers is shown in `test_namespaces.py`.
"""

import os
import time

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, Status, StopMessage
from libp2p.relay.circuit_v2.protocol import CircuitV2Protocol
from libp2p.relay.circuit_v2.resources import RelayLimits as BareLimits
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils import encode_varint_prefixed
from p2p_lab import meet, node, until

from bench.bare import bare_dial, bare_host, running
from ponyswarm.errors import PeerError
from ponyswarm.keys import SecretKey, peer_id
from ponyswarm.p2p.hardening.identity import peer_identity
from ponyswarm.p2p.hardening.punch import DCUTR
from ponyswarm.p2p.hardening.relay import HOP, STOP
from ponyswarm.p2p.hardening.streams import NetReader
from ponyswarm.p2p.network import RelayLimits

TOPIC = "t"


def run(body, seconds=30):
    async def bounded():
        with trio.fail_after(seconds):
            await body()

    trio.run(bounded)


def through(relay, peer):
    return f"{relay.address}/p2p-circuit/p2p/{peer_id(peer.network.peer)}"


async def echo(one, other, size=100):
    async with await one.network.open(other.network.peer, "/echo/1") as stream:
        sent = os.urandom(size)
        await stream.send(sent)
        assert await stream.receive(1 << 20) == sent


async def reserved(relay, hidden):
    """``hidden`` listens nowhere and has a place at the relay."""
    await hidden.network.dial(relay.address)
    await hidden.network.reserve(relay.network.peer, timeout=5)


def test_two_that_cannot_be_called_talk_through_a_relay():
    async def body():
        async with node() as relay, node(listen=()) as alice, node(listen=()) as bob:
            relay.network.relay.open(RelayLimits())
            await reserved(relay, alice)
            await bob.network.dial(through(relay, alice))
            await until(lambda: bob.network.peer in alice.network.peers(), what="the circuit")
            await echo(bob, alice, 300_000)
            await echo(alice, bob)
            assert "p2p-circuit" in bob.network.remote_address(alice.network.peer)
            assert bob.network.relayed() == {alice.network.peer: True}
            assert alice.network.relayed() == {bob.network.peer: False}
            await until(lambda: alice.network.peer in bob.network.topic_peers(TOPIC), what="gossip")
            await bob.network.publish(TOPIC, b"through the relay")
            await until(lambda: b"through the relay" in alice.got, what="the message")

    run(body)


def test_a_direct_connection_takes_the_place_of_a_relayed_one():
    async def body():
        async with node() as relay, node() as alice, node(listen=()) as bob:
            relay.network.relay.open(RelayLimits())
            await reserved(relay, alice)
            await bob.network.dial(through(relay, alice))
            await until(lambda: bob.network.peer in alice.network.peers(), what="the circuit")
            await meet(bob, alice)
            await until(lambda: not bob.network.relayed() and not alice.network.relayed())
            await until(lambda: relay.network.relay.carrying == 0, what="the circuit's end")
            await echo(bob, alice)
            await bob.network.publish(TOPIC, b"direct")
            await until(lambda: b"direct" in alice.got, what="gossip after the change")
            gone = sum(type(event).__name__ == "Disconnected" for event in alice.events)
            assert gone == 0

    run(body)


def test_a_punch_makes_a_relayed_connection_direct():
    async def body():
        async with node() as relay, node() as alice, node() as bob:
            relay.network.relay.open(RelayLimits())
            for one in (alice, bob):
                address = one.address.partition("/p2p/")[0]
                one.network.punch_candidates = (address,)
            await reserved(relay, alice)
            await bob.network.dial(through(relay, alice))
            await until(lambda: bob.network.peer in alice.network.relayed(), what="the circuit")
            assert await alice.network.punch(bob.network.peer)
            await until(lambda: not alice.network.relayed() and not bob.network.relayed())
            await echo(bob, alice)

    run(body)


def test_the_port_stays_ours_alone_while_calls_leave_from_it():
    """That two routers take such calls for answers is shown in `test_namespaces.py`."""

    async def body():
        async with node() as alice, node() as bob:
            await alice.network._swarm.meet(
                "127.0.0.1", bob.network.port, bob.network.peer, lead=True
            )
            await until(lambda: alice.network.peer in bob.network.peers(), what="the call")
            remote = bob.network.remote_address(alice.network.peer)
            assert remote == f"/ip4/127.0.0.1/tcp/{alice.network.port}"
            with pytest.raises(Exception, match="cannot listen"):
                async with node(listen=(alice.address.partition("/p2p/")[0],)):
                    raise AssertionError

    run(body)


def test_a_relay_that_is_closed_carries_nobody():
    async def body():
        async with node() as relay, node(listen=()) as alice:
            await alice.network.dial(relay.address)
            with pytest.raises(PeerError) as caught:
                await alice.network.reserve(relay.network.peer, timeout=5)
            assert caught.value.reason == "no-relay"

    run(body)


@pytest.mark.parametrize(
    "limits",
    [RelayLimits(bytes=200_000), RelayLimits(seconds=1), RelayLimits(silence=0.5)],
    ids=["bytes", "seconds", "silence"],
)
def test_a_circuit_ends_at_its_limits(limits):
    async def body():
        async with node() as relay, node(listen=()) as alice, node(listen=()) as bob:
            relay.network.relay.open(limits)
            await reserved(relay, alice)
            await bob.network.dial(through(relay, alice))
            with trio.move_on_after(8):
                while alice.network.peer in bob.network.peers():
                    try:
                        if limits.bytes < 1 << 20:
                            await echo(bob, alice, 50_000)
                    except PeerError:
                        break
                    await trio.sleep(0.1)
            await until(lambda: relay.network.relay.carrying == 0, what="the end of the circuit")
            await until(lambda: alice.network.peer not in bob.network.peers(), what="the parting")

    run(body)


def test_places_and_circuits_are_counted():
    async def body():
        async with node() as relay, node(listen=()) as alice, node(listen=()) as bob:
            relay.network.relay.open(RelayLimits(reservations=1, circuits_per_peer=1))
            await reserved(relay, alice)
            await reserved(relay, alice)  # The same place again.
            await bob.network.dial(relay.address)
            with pytest.raises(PeerError):
                await bob.network.reserve(relay.network.peer, timeout=5)
            assert relay.network.relay.reservations == 1
            await bob.network.dial(through(relay, alice))
            async with node(listen=()) as third:
                with pytest.raises(PeerError):
                    await third.network.dial(through(relay, alice))
            assert relay.refused["relay-full"] == 2

    run(body)


# What a stranger can do


async def say(host, peer, protocol, *messages):
    """Send messages of the relay protocol; the status of each answer."""
    stream = await host.new_stream(peer, [TProtocol(protocol)])
    reader = NetReader(stream)
    answers = []
    for message in messages:
        await stream.write(encode_varint_prefixed(message.SerializeToString()))
        answer = type(message)()
        answer.ParseFromString(await reader.varint_frame(65536))
        answers.append(answer.status)
    await stream.reset()
    return answers


def made_up():
    return PeerId(id=peer_identity(SecretKey.generate().public).to_bytes())


async def places_left_after_a_stranger(address, victim_peer, count):
    """A stranger reserves under made-up names; how an honest peer's own request then ends."""
    stranger, honest = bare_host(), bare_host()
    async with running(stranger, listen=False), running(honest, listen=False):
        await bare_dial(stranger, address)
        await bare_dial(honest, address)
        for _ in range(count):
            message = HopMessage(type=HopMessage.RESERVE, peer=made_up())
            await say(stranger, victim_peer, HOP, message)
        return (await say(honest, victim_peer, HOP, HopMessage(type=HopMessage.RESERVE)))[0]


def test_made_up_names_take_all_places_of_a_bare_relay_and_one_of_ours():
    async def body():
        bare = bare_host()
        limits = BareLimits(duration=60, data=1 << 20, max_circuit_conns=8, max_reservations=4)
        async with running(bare):
            service = CircuitV2Protocol(bare, limits=limits, allow_hop=True)
            async with background_trio_service(service):
                await service.event_started.wait()
                got = await places_left_after_a_stranger(bare.lab_address, bare.get_id(), 4)
        assert got == Status.RESOURCE_LIMIT_EXCEEDED
        async with node() as relay:
            relay.network.relay.open(RelayLimits(reservations=4))
            peer = peer_identity(relay.network.peer)
            assert await places_left_after_a_stranger(relay.address, peer, 4) == Status.OK
            assert relay.network.relay.reservations == 2

    run(body, 60)


async def stop_by_a_stranger(address, target):
    """Somebody who is no relay of the target says that a peer calls through him."""
    stranger = bare_host()
    async with running(stranger, listen=False):
        await bare_dial(stranger, address)
        return (await say(stranger, target, STOP, StopMessage(type=0, peer=made_up())))[0]


def test_a_bare_host_takes_circuits_from_anybody_and_ours_from_its_relays_alone():
    async def body():
        bare = bare_host()
        async with running(bare):
            service = CircuitV2Protocol(bare)
            async with background_trio_service(service):
                await service.event_started.wait()
                assert await stop_by_a_stranger(bare.lab_address, bare.get_id()) == Status.OK
        async with node() as victim:
            status = await stop_by_a_stranger(victim.address, peer_identity(victim.network.peer))
            assert status == Status.PERMISSION_DENIED
            assert victim.refused["no-reservation"] == 1

    run(body)


def garbage():
    yield b""
    yield os.urandom(200)
    yield b"\xff" * 20
    yield encode_varint_prefixed(os.urandom(300))
    yield encode_varint_prefixed(b"\xff\xfe\xfd" * 30)
    yield b"\xff\xff\xff\x7f" + b"x" * 5000
    for kind in range(4):
        yield encode_varint_prefixed(
            HopMessage(type=kind % 3, peer=PeerId(id=b"junk")).SerializeToString()
        )
        yield encode_varint_prefixed(b"\x08" + bytes([kind]) + b"\x12\x04\x0a\x02\xff\xff")


def test_garbage_to_every_protocol_of_relays_ends_nothing():
    async def body():
        async with node() as victim:
            victim.network.relay.open(RelayLimits())
            attacker = bare_host()
            async with running(attacker, listen=False):
                await bare_dial(attacker, victim.address)
                target = peer_identity(victim.network.peer)
                for protocol in (HOP, STOP, DCUTR):
                    for data in garbage():
                        try:
                            stream = await attacker.new_stream(target, [protocol])
                            if data:
                                await stream.write(data)
                            await stream.close()
                        except Exception:
                            # Banned meanwhile, as it should be: one more peer goes on.
                            await trio.sleep(0.05)
                await trio.sleep(0.5)
            assert victim.network.relay.carrying == 0
            assert victim.network.relay.reservations <= 1
            async with node() as clean:
                await meet(clean, victim)
                await echo(clean, victim)

    run(body, 60)


def test_nobody_is_called_for_a_stranger_over_a_direct_connection():
    async def body():
        async with node() as victim, node() as stranger:
            await stranger.network.dial(victim.address)
            with pytest.raises(PeerError):
                await stranger.network.punch(victim.network.peer)
            assert victim.refused["unwanted-punch"] == 1

    run(body)


def test_a_reservation_outlives_no_clock_that_a_relay_invents():
    async def body():
        async with node() as relay, node(listen=()) as alice:
            relay.network.relay.open(RelayLimits(reservation_seconds=10**9))
            await alice.network.dial(relay.address)
            end = await alice.network.reserve(relay.network.peer, timeout=5)
            assert end <= time.time() + 3601

    run(body)
