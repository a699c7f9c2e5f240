"""Gossip among many nodes: CPU for each delivered entry, and how long delivery takes.

Two contenders, one after the other, each in a process of its own that holds all its nodes:
bare py-libp2p hosts with gossipsub, and our networks with the validation that a node makes
of each entry (strict decoding and its signature). Both have the same random connections,
and the same nodes publish the same entries at the same times.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from bench.bare import LOCAL, bare_dial, bare_gossip, bare_host, running
from bench.report import Row, main
from ponyswarm.codec import ZERO, decode_gossip, encode_gossip, sign_entry
from ponyswarm.errors import PeerError
from ponyswarm.keys import SecretKey
from ponyswarm.messages import Result
from ponyswarm.p2p.network import Gossip, open_network

TOPIC = "/ponyswarm/1/p/" + "00" * 32
DEGREE = 4  # Connections that each node makes.
SEED = 11

# What a contender's node is for the measurement: its address, and three things to do.
Publish = Callable[[bytes], Awaitable[None]]
Deliver = Callable[[int, bytes], None]


@dataclass(frozen=True, slots=True)
class Node:
    address: str
    dial: Callable[[str], Awaitable[object]]
    publish: Publish


@dataclass(frozen=True, slots=True)
class Delivery:
    """Of all deliveries that should be: the share that came, their times, their CPU."""

    share: float
    p50: float
    p99: float
    cpu: float


@asynccontextmanager
async def _bare(number: int, deliver: Deliver) -> AsyncIterator[Node]:
    host = bare_host()
    pubsub, router = bare_gossip(host)

    async def listen() -> None:
        subscription = await pubsub.subscribe(TOPIC)
        while True:
            message = await subscription.get()
            deliver(number, message.data)

    async with running(host, pubsub, router), trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        yield Node(
            host.lab_address,
            lambda address: bare_dial(host, address),
            lambda data: pubsub.publish(TOPIC, data),
        )
        nursery.cancel_scope.cancel()


def _valid(topic: str, origin: bytes, forwarder: bytes, data: bytes) -> bool:
    try:
        decode_gossip(data)
    except PeerError:
        return False
    return True


@asynccontextmanager
async def _ours(number: int, deliver: Deliver) -> AsyncIterator[Node]:
    async with (
        open_network(
            SecretKey.generate(), listen=[LOCAL], validate=_valid, refused=lambda *_: None
        ) as network,
        trio.open_nursery() as nursery,
    ):
        await network.subscribe(TOPIC)

        async def listen() -> None:
            async for event in network.events:
                if isinstance(event, Gossip):
                    deliver(number, event.data)

        nursery.start_soon(listen)
        yield Node(network.addresses[0], network.dial, lambda data: network.publish(TOPIC, data))
        nursery.cancel_scope.cancel()


CONTENDERS = {"bare py-libp2p gossipsub": _bare, "open_network": _ours}


def entries(count: int) -> list[bytes]:
    """Gossip messages that are results as a volunteer signs them, of one feed."""
    key = SecretKey(bytes([7]) * 32)
    made = []
    prev = ZERO
    for seq in range(count):
        result = Result(
            job=bytes([1]) * 32,
            cell=seq.to_bytes(32, "big"),
            state="completed",
            counts={"passed": 100},
            digest=seq.to_bytes(32, "big"),
            started=1_800_000_000_000,
            seconds=1.0,
        )
        entry = sign_entry(
            key,
            result,
            project=bytes([1]) * 32,
            nonce=bytes(8),
            seq=seq,
            prev=prev,
            time=1_800_000_000_000 + seq,
        )
        prev = entry.id
        made.append(encode_gossip(entry))
    return made


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def deliveries(name: str, nodes: int, messages: int, rate: float) -> Delivery:
    """Let ``nodes`` of a contender say ``messages`` in all, ``rate`` a second."""
    sent: dict[bytes, tuple[int, float]] = {}
    times: list[float] = []

    def deliver(number: int, data: bytes) -> None:
        origin, at = sent.get(data, (number, 0.0))
        if origin != number:
            times.append(time.perf_counter() - at)

    chance = random.Random(SEED)
    async with AsyncExitStack() as stack:
        swarm = [
            await stack.enter_async_context(CONTENDERS[name](number, deliver))
            for number in range(nodes)
        ]
        for number, node in enumerate(swarm):
            # The one before makes the swarm whole, the others are chance.
            others = {number - 1} if number else set()
            while len(others) < min(DEGREE, number):
                others.add(chance.randrange(number))
            for other in others:
                await node.dial(swarm[other].address)
        await trio.sleep(5)  # The meshes form, heartbeat by heartbeat.
        cpu = time.process_time()
        began = trio.current_time()
        for count, data in enumerate(entries(messages)):
            number = chance.randrange(nodes)
            sent[data] = (number, time.perf_counter())
            await swarm[number].publish(data)
            await trio.sleep_until(began + (count + 1) / rate)
        with trio.move_on_after(10):
            while len(times) < messages * (nodes - 1):
                await trio.sleep(0.1)
        cpu = time.process_time() - cpu
        done = Delivery(
            len(times) / (messages * (nodes - 1)),
            _percentile(times, 0.5),
            _percentile(times, 0.99),
            cpu / max(1, len(times)),
        )
        # Thirty hosts in good order take longer than the measurement did.
        print(json.dumps([done.share, done.p50, done.p99, done.cpu]), flush=True)
        os._exit(0)


def _in_process(name: str, nodes: int, messages: int, rate: float) -> Delivery:
    arguments = [sys.executable, "-m", "bench.gossip", "--role", name]
    done = subprocess.run(
        [*arguments, str(nodes), str(messages), str(rate)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return Delivery(*json.loads(done.stdout.splitlines()[-1]))


def measure(quick: bool) -> list[Row]:
    nodes, messages, rate = (12, 60, 5.0) if quick else (30, 200, 2.0)
    bare_name = "bare py-libp2p gossipsub"
    found: Mapping[str, Delivery] = {
        name: _in_process(name, nodes, messages, rate) for name in CONTENDERS
    }
    bare, ours = found[bare_name], found["open_network"]
    what = f"{nodes} nodes, {rate:g} entries/s"
    return [
        Row(f"{what}: CPU a delivery, ms", 1000 * ours.cpu, bare_name, 1000 * bare.cpu, "<= 1x"),
        Row(f"{what}: delivery p50, ms", 1000 * ours.p50, bare_name, 1000 * bare.p50),
        Row(f"{what}: delivery p99, ms", 1000 * ours.p99, bare_name, 1000 * bare.p99, "<= 1x"),
        Row(f"{what}: delivered, %", 100 * ours.share, bare_name, 100 * bare.share, ">= 99.9"),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--role"]:
        name, nodes, messages, rate = sys.argv[2:]
        trio.run(deliveries, name, int(nodes), int(messages), float(rate))
    else:
        main("gossip", __doc__.splitlines()[0], measure)
