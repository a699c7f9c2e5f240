"""The network's promises to the node, between open networks on loopback."""

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import trio
from p2p_lab import TOPIC, accept, meet, node, until
from told import told

from bench.bare import LOCAL
from ponyswarm import keys
from ponyswarm.errors import LocalError, PeerError
from ponyswarm.keys import SecretKey
from ponyswarm.p2p.network import (
    Connected,
    Disconnected,
    Followed,
    Gossip,
    NetworkLimits,
    open_network,
)

pytestmark = pytest.mark.timeout(120)


def run(body, seconds=30.0):
    async def bounded():
        with trio.fail_after(seconds):
            await body()

    trio.run(bounded)
    gc.collect()  # A socket that was left open is warned of, which fails the test.


def test_two_nodes_meet_talk_and_part():
    async def body():
        async with node() as one:
            async with node() as other:
                await meet(one, other)
                assert one.network.peers() == (other.network.peer,)
                await one.network.publish(TOPIC, b"hello")
                await until(lambda: other.got == [b"hello"])
                heard = other.events[-1]
                assert heard == Gossip(TOPIC, one.network.peer, one.network.peer, b"hello")
                assert one.got == []  # Its own message makes no event.
                assert other.network.remote_address(one.network.peer).startswith("/ip4/127.0.0.1/")
                assert one.network.remote_address(os.urandom(32)) is None
            await until(lambda: one.events[-1] == Disconnected(other.network.peer))
            assert one.events[0] == Connected(other.network.peer)
            assert one.network.peers() == ()
            assert not one.refused

    run(body)


def test_gossip_is_relayed_with_its_origin_and_forwarder():
    async def body():
        async with node() as first, node() as middle, node() as last:
            await meet(first, middle)
            await meet(last, middle)
            await trio.sleep(1)
            await first.network.publish(TOPIC, b"far")
            await until(lambda: b"far" in last.got)
            heard = next(event for event in last.events if isinstance(event, Gossip))
            assert (heard.origin, heard.forwarder) == (first.network.peer, middle.network.peer)

    run(body)


def test_what_the_validator_refuses_is_neither_told_nor_relayed():
    seen = []

    def picky(topic, origin, forwarder, data):
        seen.append((topic, origin, forwarder, data))
        return not data.startswith(b"bad")

    async def body():
        async with node() as first, node(validate=picky) as middle, node() as last:
            await meet(first, middle)
            await meet(last, middle)
            await trio.sleep(1)
            await first.network.publish(TOPIC, b"bad")
            await first.network.publish(TOPIC, b"good")
            await until(lambda: b"good" in last.got)
            assert middle.got == [b"good"]
            assert last.got == [b"good"]
            assert middle.refused["invalid"] == 1
            assert seen[0] == (TOPIC, first.network.peer, first.network.peer, b"bad")

    run(body)


def test_late_followers_and_leavers():
    async def body():
        async with node(topics=()) as one, node() as other:
            await one.network.dial(other.address)
            await one.network.subscribe("late")
            await other.network.subscribe("late")
            await until(lambda: one.network.peer in other.network.topic_peers("late"))
            await until(lambda: other.network.peer in one.network.topic_peers("late"))
            assert one.network.topics() == ("late",)
            await other.network.publish("late", b"1")
            await until(lambda: one.got == [b"1"])
            await one.network.unsubscribe("late")
            await until(lambda: not other.network.topic_peers("late"))
            await other.network.publish("late", b"2")
            await one.network.publish("late", b"3")  # Publishing needs no subscription.
            await until(lambda: other.got == [b"3"])
            assert one.got == [b"1"]

    run(body)


def test_who_follows_a_topic_while_connected_hears_of_it_from_then_on():
    """A GRAFT that comes before the subscription is turned down, for a minute."""

    async def body():
        async with node(topics=("kept",)) as one, node(topics=()) as other:
            await one.network.dial(other.address)
            await until(lambda: one.network.peer in other.network.topic_peers("kept"))
            await other.network.subscribe("kept")
            await until(lambda: other.network.peer in one.network.topic_peers("kept"))
            await until(lambda: Followed("kept", other.network.peer) in one.events)
            await trio.sleep(0.5)
            await one.network.publish("kept", b"down")
            await until(lambda: other.got == [b"down"])
            await other.network.publish("kept", b"up")
            await until(lambda: one.got == [b"up"])

    run(body)


def test_a_message_has_a_size():
    async def body():
        async with node() as one, node() as other:
            await meet(one, other)
            largest = os.urandom(16 * 1024)
            await one.network.publish(TOPIC, largest)
            await until(lambda: other.got == [largest])
            with told("a message has at most 16384 bytes, this one 16385"):
                await one.network.publish(TOPIC, largest + b"x")
            with told("a topic has at most … characters"):
                await one.network.subscribe("x" * 1000)

    run(body)


def test_a_burst_arrives_whole():
    async def body():
        async with node() as one, node() as other:
            await meet(one, other)
            await trio.sleep(0.2)
            sent = [b"%d" % n for n in range(300)]
            for data in sent:
                await one.network.publish(TOPIC, data)
            await until(lambda: len(other.got) == 300)
            assert other.got == sent

    run(body)


def test_gossip_is_dropped_before_connects_are():
    limits = NetworkLimits(events=5)

    async def body():
        async with node() as talker, node(limits=limits, collect=False) as busy:
            await meet(talker, busy)
            for n in range(20):
                await talker.network.publish(TOPIC, b"%d" % n)
            await until(lambda: busy.refused["events-full"] >= 15)
            async with node() as other:
                await busy.network.dial(other.address)
                kept = []
                while busy.network.events.statistics().current_buffer_used:
                    kept.append(await busy.network.events.receive())
                assert Connected(other.network.peer) in kept
                assert sum(isinstance(event, Gossip) for event in kept) < 6

    run(body)


# Streams


def test_frames_and_raw_bytes():
    async def body():
        async with node() as one, node() as other:

            async def serve(stream):
                assert stream.peer == one.network.peer
                request = await stream.receive(100)
                await stream.send(request.upper())
                await stream.send_raw(b"raw bytes")

            other.network.serve("/frames/1", serve, concurrent_per_peer=2, timeout=5)
            await one.network.dial(other.address)
            async with await one.network.open(other.network.peer, "/frames/1") as stream:
                await stream.send(b"abc")
                assert await stream.receive(3) == b"ABC"
                assert await stream.receive_exactly(3) == b"raw"
                assert await stream.receive_exactly(6) == b" bytes"
                with pytest.raises(PeerError) as fault:
                    await stream.receive_exactly(1)
                assert fault.value.reason == "stream-closed"
            assert not other.refused

    run(body)


def test_caps_and_deadlines_of_streams():
    async def body():
        async with node() as one, node() as other:

            async def silent(stream):
                await trio.sleep_forever()

            other.network.serve("/silent/1", silent, concurrent_per_peer=2, timeout=1)
            await one.network.dial(other.address)
            peer = other.network.peer
            async with await one.network.open(peer, "/echo/1") as stream:
                await stream.send(b"x" * 100)
                with pytest.raises(PeerError) as fault:
                    await stream.receive(99)
                assert fault.value.reason == "too-long"
            stream = await one.network.open(peer, "/silent/1")
            stream.timeout = 0.2
            with pytest.raises(PeerError) as fault:
                await stream.receive(99)
            assert fault.value.reason == "timeout"
            await until(lambda: other.refused["timeout"] == 1)  # Its handler's own deadline.
            with pytest.raises(PeerError) as fault:
                await one.network.open(peer, "/unknown/1")
            assert fault.value.reason == "no-stream"
            with pytest.raises(PeerError) as fault:
                await one.network.open(os.urandom(32), "/echo/1")
            assert fault.value.reason == "not-connected"

    run(body)


def test_handlers_that_raise_are_counted():
    async def body():
        async with node() as one, node() as other:

            async def refuse(stream):
                await stream.receive_some()
                raise PeerError("bad-request")

            other.network.serve("/refuse/1", refuse, concurrent_per_peer=2, timeout=5)
            await one.network.dial(other.address)
            for protocol in ("/refuse/1", "/boom/1"):
                stream = await one.network.open(other.network.peer, protocol)
                await stream.send_raw(b"x")
                with pytest.raises(PeerError):
                    await stream.receive_exactly(1)
                await stream.reset()
            await until(lambda: other.refused["handler-error"] == 1)
            assert other.refused["bad-request"] == 1
            assert one.network.peers() == (other.network.peer,)

    run(body)


def test_streams_at_once_are_limited_for_each_peer():
    async def body():
        async with node() as one, node() as third, node() as other:
            gate = trio.Event()

            async def wait(stream):
                await stream.send(b"in")
                await gate.wait()

            other.network.serve("/wait/1", wait, concurrent_per_peer=3, timeout=10)
            got = []

            async def ask(asker):
                stream = await asker.network.open(other.network.peer, "/wait/1")
                try:
                    got.append((asker, await stream.receive(10)))
                except PeerError as fault:
                    got.append((asker, fault.reason))

            await one.network.dial(other.address)
            await third.network.dial(other.address)
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(ask, one)
                nursery.start_soon(ask, third)
            answers = [answer for asker, answer in got if asker is one]
            assert answers.count(b"in") == 3
            assert answers.count("stream-closed") == 2
            assert [answer for asker, answer in got if asker is third] == [b"in"]
            gate.set()
            assert other.refused["too-many-streams"] == 2

    run(body)


# Connecting


def test_addresses_have_real_ports_and_wildcards_are_spelled_out():
    async def body():
        async with node(listen=["/ip4/0.0.0.0/tcp/0"]) as wide, node(listen=()) as quiet:
            tail = "/p2p/" + keys.peer_id(wide.network.peer)
            assert wide.network.addresses
            assert all(address.endswith(tail) for address in wide.network.addresses)
            assert not any("0.0.0.0" in a or "/tcp/0/" in a for a in wide.network.addresses)
            local = next(a for a in wide.network.addresses if a.startswith("/ip4/127.0.0.1/"))
            assert quiet.network.addresses == ()
            assert await quiet.network.dial(local) == wide.network.peer
            await until(lambda: wide.network.peers() == (quiet.network.peer,))

    run(body)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ip6():
    async def body():
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 here")
        async with node(listen=["/ip6/::1/tcp/0"]) as one, node() as other:
            await meet(other, one)
            assert one.network.remote_address(other.network.peer).startswith("/ip6/::1/")

    run(body)


def test_one_port_has_one_node():
    async def body():
        async with node() as first:
            port = first.address.split("/")[4]
            with told(
                "cannot listen on …: Address already in use. Another node or program may have the "
                "port: stop it, or choose another port (tcp/0 takes a free one)"
            ):
                async with node(listen=[f"/ip4/127.0.0.1/tcp/{port}"]):
                    raise AssertionError
        async with node(listen=[f"/ip4/127.0.0.1/tcp/{port}"]):
            pass  # Free again at once.

    run(body)


@pytest.mark.parametrize(
    "address", ["", "junk", "/dns4/example.org/tcp/1", "/ip4/127.0.0.1/udp/1", "/ip4/1.2.3/tcp/1"]
)
def test_addresses_that_cannot_be_listened_on(address):
    async def body():
        with pytest.raises(LocalError):
            async with node(listen=[address]):
                raise AssertionError

    run(body)


def test_dialling_that_fails_says_why():
    async def body():
        async with node() as one, node() as other:
            stranger = keys.peer_id(SecretKey.generate().public)
            port = other.address.split("/")[4]
            for address, reason in {
                "junk": "bad-address",
                "/ip4/127.0.0.1/tcp/1": "bad-address",
                one.address: "own-address",
                f"/ip4/127.0.0.1/tcp/1/p2p/{stranger}": "unreachable",
                f"/ip4/127.0.0.1/tcp/{port}/p2p/{stranger}": "unreachable",  # Somebody else.
            }.items():
                with pytest.raises(PeerError) as fault:
                    await one.network.dial(address)
                assert fault.value.reason == reason, address
            assert one.network.peers() == ()
            # No memory of failures: the right address works at once.
            assert await one.network.dial(other.address) == other.network.peer
            assert await one.network.dial(other.address) == other.network.peer
            assert len(one.network._swarm.get_connections()) == 1

    run(body)


def test_a_silent_address_is_given_up_in_time():
    async def body():
        listener = socket.create_server(("127.0.0.1", 0))
        stranger = keys.peer_id(SecretKey.generate().public)
        port = listener.getsockname()[1]
        async with node() as one:
            started = time.monotonic()
            with pytest.raises(PeerError, match=r"0\.5 s"):
                await one.network.dial(f"/ip4/127.0.0.1/tcp/{port}/p2p/{stranger}", timeout=0.5)
            assert time.monotonic() - started < 1.5
        listener.close()

    run(body)


def test_both_may_dial_at_once():
    async def body():
        async with node() as one, node() as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.network.dial, other.address)
                nursery.start_soon(other.network.dial, one.address)
            await until(lambda: one.network.topic_peers(TOPIC) and other.network.topic_peers(TOPIC))
            await trio.sleep(1.5)
            await one.network.publish(TOPIC, b"a")
            await other.network.publish(TOPIC, b"b")
            await until(lambda: one.got == [b"b"] and other.got == [b"a"])
            assert one.events.count(Connected(other.network.peer)) == 1

    run(body)


def test_disconnecting_and_dialling_again():
    async def body():
        async with node() as one, node() as other:
            for n in range(3):
                await meet(one, other)
                await one.network.publish(TOPIC, b"%d" % n)
                await until(lambda n=n: b"%d" % n in other.got)
                await one.network.disconnect(other.network.peer)
                await until(lambda: not one.network.peers() and not other.network.peers())
            assert one.events.count(Disconnected(other.network.peer)) == 3

    run(body)


def test_dialling_again_at_once():
    async def body():
        async with node() as one, node() as other:
            await one.network.dial(other.address)
            for n in range(8):
                await one.network.disconnect(other.network.peer)
                await trio.sleep(0.02 * n)
                await one.network.dial(other.address)
                await trio.sleep(0.3)
                await meet(one, other)
                sent = b"%d" % n

                async def keep(data):
                    for _ in range(30):
                        await one.network.publish(TOPIC, data)
                        await other.network.publish(TOPIC, data)
                        await trio.sleep(0.1)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(keep, sent)
                    await until(lambda sent=sent: sent in one.got and sent in other.got, 4)
                    nursery.cancel_scope.cancel()

    run(body)


def test_a_banned_peer_is_out_for_a_while():
    limits = NetworkLimits(ban_time=1.0)

    async def body():
        async with node(limits=limits) as one, node() as other:
            await meet(one, other)
            one.network.penalise(other.network.peer, 60)
            assert not one.network.is_banned(other.network.peer)
            one.network.penalise(other.network.peer, 60)
            assert one.network.is_banned(other.network.peer)
            await until(lambda: not one.network.peers() and not other.network.peers())
            with pytest.raises(PeerError, match="banned"):
                await one.network.dial(other.address)
            with contextlib.suppress(PeerError):
                await other.network.dial(one.address)
            await trio.sleep(0.2)
            assert not one.network.peers()
            await until(lambda: not one.network.is_banned(other.network.peer))
            await meet(other, one)

    run(body)


# Opening and closing


def test_closing_is_quick_and_quiet():
    async def body():
        async with trio.open_nursery() as nursery, node() as centre:
            ready = []

            async def satellite():
                async with node() as one:
                    await one.network.dial(centre.address)
                    ready.append(one)
                    await trio.sleep_forever()

            for _ in range(8):
                nursery.start_soon(satellite)
            await until(lambda: len(centre.network.peers()) == 8)
            async with node() as leaver:
                for one in ready:
                    await leaver.network.dial(one.address)
                started = time.monotonic()
            assert time.monotonic() - started < 2
            nursery.cancel_scope.cancel()
            started = time.monotonic()
        assert time.monotonic() - started < 2

    run(body)


def test_the_callers_exception_comes_through_as_it_is():
    async def body():
        with pytest.raises(ZeroDivisionError):
            async with open_network(
                SecretKey.generate(), listen=[LOCAL], validate=accept, refused=lambda *_: None
            ):
                raise ZeroDivisionError

    run(body)


_PEER = """
import sys, trio
from ponyswarm.keys import SecretKey
from ponyswarm.p2p.network import open_network
async def main():
    async with open_network(SecretKey.generate(), listen=["/ip4/127.0.0.1/tcp/0"],
                            validate=lambda *_: True, refused=lambda *_: None) as network:
        print(network.addresses[0], flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no signals here")
def test_peers_that_are_killed_or_stopped_are_noticed():
    limits = NetworkLimits(liveness_interval=1.0, liveness_timeout=1.0)

    async def body():
        other = subprocess.Popen([sys.executable, "-c", _PEER], stdout=subprocess.PIPE, text=True)
        third = subprocess.Popen([sys.executable, "-c", _PEER], stdout=subprocess.PIPE, text=True)
        try:
            addresses = [process.stdout.readline().strip() for process in (other, third)]
            async with node(limits=limits) as watcher:
                for address in addresses:
                    await watcher.network.dial(address)
                await trio.sleep(3)
                assert len(watcher.network.peers()) == 2
                other.kill()
                await until(lambda: len(watcher.network.peers()) == 1, 2, "noticing a kill")
                third.send_signal(signal.SIGSTOP)
                await until(lambda: not watcher.network.peers(), 4, "noticing a stop")
        finally:
            for process in (other, third):
                process.kill()
                process.wait()
                process.stdout.close()

    run(body)
