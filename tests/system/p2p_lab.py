"""Bare py-libp2p hosts, attacks by them, and a victim of each kind.

An attack is a coroutine that gets an `Attacker`: a bare host, connected to its
target. The same attack is run against a bare target (as a program of its own:
``python p2p_lab.py ATTACK`` prints ``survived`` at the end, if it comes to that)
and against `open_network`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from libp2p.pubsub.pb import rpc_pb2

from bench import hostile
from bench.bare import LOCAL, bare_gossip, bare_host, running
from bench.hostile import wire
from ponyswarm.keys import SecretKey
from ponyswarm.p2p.network import Gossip, NetworkLimits, open_network

TOPIC = "t"


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
    key=None,
    *,
    topics=(TOPIC,),
    listen=(LOCAL,),
    validate=accept,
    named=lambda topic, author: False,
    limits=None,
    collect=True,
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
        named=named,
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

# What the victims here serve.
LAB = (TOPIC, "/echo/1")


def attacker_of(address):
    return hostile.attacker_of(address, *LAB)


async def validator_raises(attacker):
    await attacker.rpc(rpc_pb2.RPC(publish=[attacker.message(b"raise")]))


async def handler_raises(attacker):
    stream = await attacker.stream("/boom/1")
    await stream.write(b"x")


ATTACKS = {attack.__name__: attack for attack in (*wire.ALL, validator_raises, handler_raises)}


def bare_survives(attack: str) -> bool:
    """Whether a bare host is there after the attack; it runs in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, attack],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
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
    trio.run(_bare_victim, sys.argv[1])
