"""A later version's node and two of this one in one real swarm."""

from __future__ import annotations

import sys
from pathlib import Path

import msgpack
import pytest
import trio
from swarm_lab import found_project, until

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))

from authors import Author, announce
from test_later_versions import MORE, said_later

from ponyswarm import codec, keys, status
from ponyswarm.codec import ZERO
from ponyswarm.exec.interpreters import discover
from ponyswarm.ledger.queries import Reader
from ponyswarm.node import now_ms
from ponyswarm.p2p.network import Gossip, Network, open_network
from ponyswarm.p2p.topics import project_topic

pytestmark = pytest.mark.slow


@pytest.mark.timeout(120)
def test_what_a_later_node_says_reaches_everybody_and_troubles_nobody(swarm):
    """later – near – far – another later one: entries are kept, messages relayed."""
    python = next(one for one in discover() if one.implementation == "cpython")
    near, far = swarm.member("near", [python]), swarm.member("far", [python])
    project = bytes.fromhex(found_project(swarm, near))
    swarm.command(far, "follow", "add", project.hex())
    swarm.start(near, [], "--read-only")
    swarm.start(far, [swarm.address(near)], "--read-only")
    topic = project_topic(project)

    later = Author(77)
    first = said_later(later, 77, MORE, project, 0, ZERO, now_ms())
    plain = codec.unpack(codec.pack(announce()))
    assert isinstance(plain, dict)
    second = said_later(
        later,
        4,
        {"job": bytes(32), "cell": bytes(32), "commitment": bytes(32), **MORE},
        project,
        1,
        first.id,
        now_ms(),
    )
    said = [
        codec.encode_gossip(first),
        codec.encode_gossip(second),
        bytes([9]) + msgpack.packb(MORE),
        bytes([2])
        + msgpack.packb(
            {
                "interpreters": [],
                "system": "linux",
                "machine": "vax",
                "slots": 0,
                "until": now_ms() + 60_000,
                **MORE,
            }
        ),
    ]
    heard: set[bytes] = set()

    def opened() -> object:
        return open_network(
            keys.SecretKey.generate(), listen=(), validate=lambda *_: True, refused=lambda *_: None
        )

    async def in_mesh(network: Network, peer: bytes) -> None:
        with trio.fail_after(30):
            while peer not in network.topic_peers(topic):
                await trio.sleep(0.1)

    async def main() -> None:
        async with opened() as one, opened() as other, trio.open_nursery() as nursery:
            await one.subscribe(topic)
            await other.subscribe(topic)
            await in_mesh(one, await one.dial(swarm.address(near)))
            await in_mesh(other, await other.dial(swarm.address(far)))

            async def listen() -> None:
                async for event in other.events:
                    if isinstance(event, Gossip):
                        heard.add(event.data)

            nursery.start_soon(listen)
            with trio.fail_after(60):
                while not {*said} <= heard:
                    for message in said:
                        await one.publish(topic, message)
                    await trio.sleep(2)
            nursery.cancel_scope.cancel()

    trio.run(main)

    def holds() -> bool:
        with Reader(far.home.ledger) as reader:
            return reader.entry(first.id) is not None and reader.entry(second.id) is not None

    until("the far node keeps what it cannot read", holds, 30)
    with Reader(far.home.ledger) as reader:
        assert reader.verify(lambda done: None) == []
        kept = reader.entry(first.id)
        assert kept is not None
        assert kept.frame == first.frame
    for member in (near, far):
        now = status.read(member.home.status)
        assert now is not None
        # The raw peers of this test serve no sync; nothing else was held against anyone.
        assert set(now.refused) <= {"no-stream"}
        swarm.check(member)
