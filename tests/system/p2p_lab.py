"""Bare py-libp2p hosts, attacks by them, and a victim of each kind.

An attack is a coroutine that gets an `Attacker`: a bare host, connected to its
target. The same attack is run against a bare target (as a program of its own:
``python p2p_lab.py ATTACK`` prints ``survived`` at the end, if it comes to that)
and against `open_network`.
"""

from __future__ import annotations

import logging
import os
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as x25519
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection import swarm_connection
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from ponyswarm.keys import SecretKey
from ponyswarm.p2p.network import Gossip, NetworkLimits, open_network

LOCAL = "/ip4/127.0.0.1/tcp/0"
MESHSUB = "/meshsub/1.1.0"
TOPIC = "t"

# A bare host in a test must not set up logging for the whole run.
swarm_connection.logging = logging.getLogger("libp2p.network.connection")


# Bare libp2p


def noise_only(pair):
    return {NOISE: Noise(pair, noise_privkey=x25519().private_key)}


def bare_host(pair=None, **options):
    pair = pair or create_new_key_pair()
    options.setdefault("sec_opt", noise_only(pair))
    options.setdefault("connection_config", ConnectionConfig(min_connections=0, low_watermark=0))
    return new_host(key_pair=pair, **options)


def bare_gossip(host, **options):
    router = GossipSub(
        protocols=[MESHSUB],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=1,
        heartbeat_initial_delay=0.2,
        spam_protection_enabled=False,
        adaptive_gossip_enabled=False,
        eclipse_protection_enabled=False,
    )
    return Pubsub(host, router, **options), router


@asynccontextmanager
async def running(host, pubsub=None, router=None, *, listen=True):
    """The host, run; with its address in ``host.lab_address`` when it listens."""
    async with host.run([Multiaddr(LOCAL)] if listen else []):
        if listen:
            host.lab_address = str(host.get_addrs()[0])
        if pubsub is None:
            yield host
        else:
            async with background_trio_service(pubsub), background_trio_service(router):
                yield host
        await host.close()


async def bare_dial(host, address):
    target = Multiaddr(address)
    peer = ID.from_base58(target.value_for_protocol("p2p"))
    await host.get_network().dial_addr(target, peer)
    return peer


# Ours


def accept(*_):
    return True


@dataclass
class Node:
    """An open network with an echo service, and what came out of it."""

    network: object
    refused: Counter = field(default_factory=Counter)
    got: list[bytes] = field(default_factory=list)
    events: list = field(default_factory=list)

    @property
    def address(self):
        return self.network.addresses[0]

    async def collect(self):
        async for event in self.network.events:
            self.events.append(event)
            if isinstance(event, Gossip):
                self.got.append(event.data)


@asynccontextmanager
async def node(
    key=None, *, topics=(TOPIC,), listen=(LOCAL,), validate=accept, limits=None, collect=True
):
    refused = Counter()

    def count(reason, peer):
        refused[reason] += 1

    async def echo(stream):
        await stream.send(await stream.receive(1 << 20))

    async def boom(stream):
        await stream.receive_some()
        raise ZeroDivisionError("a fault in a handler")

    async with open_network(
        key or SecretKey.generate(),
        listen=listen,
        validate=validate,
        refused=count,
        limits=limits or NetworkLimits(),
    ) as network:
        network.serve("/echo/1", echo, concurrent_per_peer=4, timeout=10)
        network.serve("/boom/1", boom, concurrent_per_peer=4, timeout=10)
        for topic in topics:
            await network.subscribe(topic)
        made = Node(network, refused)
        async with trio.open_nursery() as nursery:
            if collect:
                nursery.start_soon(made.collect)
            yield made
            nursery.cancel_scope.cancel()


async def until(condition, seconds=8.0, what="it"):
    with trio.move_on_after(seconds):
        while not condition():
            await trio.sleep(0.02)
        return
    raise AssertionError(f"{what} did not come true in {seconds} s")


async def meet(one, other, topic=TOPIC):
    """Connect two nodes and wait until each knows that the other follows the topic."""
    await one.network.dial(other.address)
    await until(
        lambda: (
            other.network.peer in one.network.topic_peers(topic)
            and one.network.peer in other.network.topic_peers(topic)
        ),
        what="knowing of each other's topic",
    )


async def assert_serves(victim):
    """A clean peer connects to the victim, exchanges gossip both ways, and a stream."""
    async with node() as clean:
        await meet(clean, victim)
        ours, theirs = os.urandom(16), os.urandom(16)

        async def keep(network, data):
            for _ in range(40):
                await network.publish(TOPIC, data)
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, clean.network, ours)
            nursery.start_soon(keep, victim.network, theirs)
            await until(lambda: ours in victim.got, what="gossip to the victim")
            await until(lambda: theirs in clean.got, what="gossip from the victim")
            nursery.cancel_scope.cancel()
        async with await clean.network.open(victim.network.peer, "/echo/1") as stream:
            await stream.send(b"still there?")
            assert await stream.receive(100) == b"still there?"


# Attacks


@dataclass
class Attacker:
    host: object
    pair: object
    target: ID
    port: int

    @property
    def muxer(self):
        return self.host.get_network().get_connections(self.target)[0].muxed_conn

    async def stream(self, protocol):
        return await self.host.new_stream(self.target, [protocol])

    async def rpc(self, rpc, stream=None):
        stream = stream or await self.stream(MESHSUB)
        await stream.write(encode_varint_prefixed(rpc.SerializeToString()))
        return stream

    def message(self, data, topics=(TOPIC,), number=1):
        message = rpc_pb2.Message(
            data=data,
            topicIDs=list(topics),
            from_id=ID.from_pubkey(self.pair.public_key).to_bytes(),
            seqno=number.to_bytes(8, "big"),
        )
        message.signature = self.pair.private_key.sign(
            b"libp2p-pubsub:" + message.SerializeToString()
        )
        message.key = self.pair.public_key.serialize()
        return message


async def garbage_tcp(attacker):
    for opening in (
        os.urandom(4096),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x13/multistream/1.0.0\n" + b"\x07/noise\n" + b"\xff\xff" + os.urandom(65535),
        b"\xff\xff\xff\xff\xff\xff\xff\x7f" + os.urandom(65535),
        b"\xff\xff\xff\xff\x0f" + os.urandom(65535),
    ):
        stream = await trio.open_tcp_stream("127.0.0.1", attacker.port)
        try:
            await stream.send_all(opening)
            await trio.sleep(0.1)
        except trio.BrokenResourceError:
            pass
        await stream.aclose()


async def garbage_protocols(attacker):
    for protocol in ("/ipfs/id/1.0.0", "/ipfs/ping/1.0.0", MESHSUB, "/echo/1"):
        for payload in (
            os.urandom(300),
            b"\xff" * 150,
            encode_varint_prefixed(b"\x0a\x05hello\x12\x03abc\x1a\x02\x01\x02"),
            b"",
        ):
            try:
                stream = await attacker.stream(protocol)
                await stream.write(payload)
                await trio.sleep(0.02)
                await stream.reset()
            except Exception:
                if attacker.host.get_network().get_connections(attacker.target):
                    continue
                return  # Banned, and rightly.


async def garbage_negotiation(attacker):
    for _ in range(5):
        stream = await attacker.host.get_network().new_stream(attacker.target)
        await stream.write(os.urandom(2000))


async def malformed_protobuf(attacker):
    stream = await attacker.stream(MESHSUB)
    await stream.write(encode_varint_prefixed(b"\xff\xfe\xfd" + os.urandom(100)))


async def invalid_utf8(attacker):
    stream = await attacker.stream(MESHSUB)
    await stream.write(encode_varint_prefixed(b"\x0a\x06\x08\x01\x12\x02\xff\xfe"))


async def garbage_key(attacker):
    message = rpc_pb2.Message(
        data=b"x",
        topicIDs=[TOPIC],
        from_id=b"\x12\x20" + os.urandom(32),
        seqno=b"1" * 8,
        key=b"\xff\xff\xffgarbage",
        signature=b"s" * 64,
    )
    await attacker.rpc(rpc_pb2.RPC(publish=[message]))


async def garbage_origin(attacker):
    for origin in (b"", b"\x00\x05abcde", bytes.fromhex("002408011220") + b"\xff" * 32, b"j" * 99):
        message = attacker.message(b"x")
        message.from_id = origin
        await attacker.rpc(rpc_pb2.RPC(publish=[message]))
        await trio.sleep(0.05)


async def forged(attacker):
    changed = attacker.message(b"hello")
    changed.data = b"forged"
    unsigned = attacker.message(b"unsigned", number=2)
    unsigned.ClearField("signature")
    await attacker.rpc(rpc_pb2.RPC(publish=[changed, unsigned]))


async def validator_raises(attacker):
    await attacker.rpc(rpc_pb2.RPC(publish=[attacker.message(b"raise")]))


async def handler_raises(attacker):
    stream = await attacker.stream("/boom/1")
    await stream.write(b"x")


async def overlong_frames(attacker):
    for opening in (b"\xff\xff\xff\x7f", b"\xff" * 20):
        stream = await attacker.stream(MESHSUB)
        await stream.write(opening + b"x" * 1000)
    stream = await attacker.stream("/echo/1")
    await stream.write(struct.pack("!I", 0xFFFFFFFF) + b"x" * 1000)


async def big_message(attacker):
    await attacker.rpc(rpc_pb2.RPC(publish=[attacker.message(os.urandom(100_000))]))


async def bad_control(attacker):
    rpc = rpc_pb2.RPC()
    rpc.control.ihave.add(topicID=TOPIC, messageIDs=[os.urandom(40) for _ in range(2000)])
    rpc.control.iwant.add(messageIDs=[b"abc", b"\xff"])
    rpc.control.graft.add(topicID="nope")
    rpc.control.graft.add()
    rpc.control.prune.add(topicID="zzz", backoff=2**62)
    prune = rpc.control.prune.add(topicID=TOPIC, backoff=1)
    prune.peers.add(peerID=b"garbage", signedPeerRecord=b"junk")
    prune.peers.add(peerID=b"")
    await attacker.rpc(rpc)
    await attacker.rpc(rpc_pb2.RPC(senderRecord=b"garbage"))


async def yamux_garbage(attacker):
    await attacker.muxer.secured_conn.write(os.urandom(500))


async def yamux_big_frame(attacker):
    await attacker.muxer.secured_conn.write(struct.pack("!BBHII", 0, 0, 1, 1001, 12 << 20) + b"x")


async def yamux_window_overrun(attacker):
    """8 MB on a stream whose reader takes nothing, window or not."""
    conn = attacker.muxer.secured_conn
    await conn.write(struct.pack("!BBHII", 0, 1, 1, 1001, 0))
    chunk = bytes(60_000)
    try:
        for _ in range(140):
            await conn.write(struct.pack("!BBHII", 0, 0, 0, 1001, len(chunk)) + chunk)
    except Exception:
        return


async def stream_flood(attacker):
    conn = attacker.muxer.secured_conn
    try:
        for number in range(1500):
            await conn.write(struct.pack("!BBHII", 0, 0, 1, 2 * number + 1001, 0))
    except Exception:
        return


async def half_streams(attacker):
    for _ in range(50):
        await attacker.host.get_network().new_stream(attacker.target)


async def message_flood(attacker):
    messages = [attacker.message(b"flood%d" % n, number=n) for n in range(1, 2501)]
    stream = None
    for start in range(0, len(messages), 5):
        try:
            stream = await attacker.rpc(rpc_pb2.RPC(publish=messages[start : start + 5]), stream)
        except Exception:
            return


async def subscription_flood(attacker):
    options = [
        rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"{n}" + "x" * (n % 400)) for n in range(700)
    ]
    stream = await attacker.rpc(rpc_pb2.RPC(subscriptions=options))
    for n in range(20):
        more = [rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"{n}-{i}") for i in range(700)]
        try:
            await attacker.rpc(rpc_pb2.RPC(subscriptions=more), stream)
        except Exception:
            return


ATTACKS = {
    attack.__name__: attack
    for attack in (
        garbage_tcp,
        garbage_protocols,
        garbage_negotiation,
        malformed_protobuf,
        invalid_utf8,
        garbage_key,
        garbage_origin,
        forged,
        validator_raises,
        handler_raises,
        overlong_frames,
        big_message,
        bad_control,
        yamux_garbage,
        yamux_big_frame,
        yamux_window_overrun,
        stream_flood,
        half_streams,
        message_flood,
        subscription_flood,
    )
}


@asynccontextmanager
async def attacker_of(address):
    pair = create_new_key_pair()
    host = bare_host(pair)
    async with running(host, listen=False):
        target = await bare_dial(host, address)
        port = int(Multiaddr(address).value_for_protocol("tcp"))
        yield Attacker(host, pair, target, port)


def bare_survives(attack: str) -> bool:
    """Whether a bare host is there after the attack; it runs in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, attack],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "attacked" in done.stdout, done.stderr
    return "survived" in done.stdout


async def _bare_victim(attack):
    host = bare_host()
    pubsub, router = bare_gossip(host)

    def validator(peer, message):
        if message.data == b"raise":
            raise ZeroDivisionError
        return True

    async def boom(stream):
        await stream.read(1)
        raise ZeroDivisionError

    host.set_stream_handler("/boom/1", boom)
    pubsub.set_topic_validator(TOPIC, validator, False)
    async with running(host, pubsub, router):
        await pubsub.subscribe(TOPIC)
        async with attacker_of(host.lab_address) as attacker:
            print("attacked", flush=True)
            await ATTACKS[attack](attacker)
            await trio.sleep(1.5)
            print("survived", flush=True)
            os._exit(0)


if __name__ == "__main__":
    started = time.monotonic()
    trio.run(_bare_victim, sys.argv[1])
