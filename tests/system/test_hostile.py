"""A real node among liars: whatever a peer sends is refused, counted, and costs the node little."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import trio
from sources import PASSES, archive, unittest_spec
from swarm_lab import announce, cells, found_project, runs, until

from ponyswarm import codec, keys, status
from ponyswarm.demo import Member, Swarm, open_swarm
from ponyswarm.errors import PeerError
from ponyswarm.exec.interpreters import discover
from ponyswarm.ledger.queries import Reader
from ponyswarm.messages import Announce, Claim, Commit, Entry, Offer, Spec
from ponyswarm.p2p import blobs, sync, witness
from ponyswarm.p2p.discovery import parse_address
from ponyswarm.p2p.network import Network, open_network
from ponyswarm.p2p.topics import DIRECTORY, project_topic
from ponyswarm.volunteer import minor_version

pytestmark = pytest.mark.slow

MEMORY_GROWTH = 25e6


@dataclass
class Victim:
    """A node that volunteers for one project, and the maintainer beside it."""

    swarm: Swarm
    node: Member
    maintainer: Member
    address: str
    project: bytes
    spec: Path
    source: Path

    def refused(self) -> dict[str, int]:
        now = status.read(self.node.home.status)
        return {} if now is None else now.refused

    def works(self) -> None:
        """The node still takes a job and runs it."""
        self.swarm.check(self.node)
        job = announce(self.swarm, self.maintainer, self.source, self.spec)
        until("the node runs an honest job", lambda: runs(self.node, job) == 1, 60)

    def memory(self) -> int:
        assert self.node.process is not None
        return int(psutil.Process(self.node.process.pid).memory_info().rss)

    def a_frame(self) -> bytes:
        """An honest announcement of the project, as it stands in the victim's ledger."""
        with Reader(self.node.home.ledger) as reader:
            entry = reader.entry(reader.jobs(self.project)[0].id)
        assert entry is not None
        return entry.frame


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    folder = tmp_path_factory.mktemp("sources")
    python = next(one for one in discover() if one.implementation == "cpython")
    with open_swarm(print) as swarm:
        maintainer = swarm.member("maintainer", [python])
        node = swarm.member("victim", [python])
        project = found_project(swarm, maintainer)
        swarm.command(node, "trust", "add", project)
        swarm.start(node, [])
        address = swarm.address(node)
        swarm.start(maintainer, [address], "--read-only")
        swarm.address(maintainer)
        victim = Victim(
            swarm,
            node,
            maintainer,
            address,
            bytes.fromhex(project),
            unittest_spec(folder, minor_version(python)),
            archive(folder, "quick", {"test_it.py": PASSES}),
        )
        victim.works()
        yield victim


async def _wait(network: Network, peer: bytes) -> None:
    await trio.sleep(2)


def attack(
    victim: Victim,
    what: Callable[[Network, bytes], Awaitable[None]],
    prepare: Callable[[Network], None] = lambda network: None,
) -> None:
    """Connect to the victim under a fresh key and do something to it."""

    async def main() -> None:
        async with open_network(
            keys.SecretKey.generate(),
            listen=(),
            validate=lambda *_: True,
            refused=lambda *_: None,
        ) as network:
            prepare(network)
            await network.subscribe(DIRECTORY)
            await network.subscribe(project_topic(victim.project))
            peer = await network.dial(victim.address)
            await what(network, peer)

    trio.run(main)


def gossip(victim: Victim, topic: str, messages: list[bytes]) -> None:
    async def send(network: Network, peer: bytes) -> None:
        with trio.move_on_after(5):
            while peer not in network.topic_peers(topic):
                await trio.sleep(0.05)
        for message in messages:
            # Past our own size check: a hostile node has none.
            await network._pubsub.publish(topic, message)
        await trio.sleep(0.7)

    attack(victim, send)


def counted(victim: Victim, *reasons: str) -> None:
    for reason in reasons:
        until(f"{reason} is counted", lambda r=reason: victim.refused().get(r, 0) > 0, 20)


def test_garbage_on_the_port_and_on_each_protocol_is_refused_and_memory_stays_flat(
    victim: Victim,
) -> None:
    before = victim.memory()
    target = parse_address(victim.address)
    for size in (1, 100, 4096, 60_000) * 8:
        # It may hang up on us already, which is what it should do.
        with (
            socket.create_connection((target.host, target.port), timeout=5) as raw,
            suppress(OSError),
        ):
            raw.sendall(os.urandom(size))

    requests = [
        os.urandom(40),
        os.urandom(4000),
        codec.pack({"project": b"short", "root": 7}),
        codec.pack({"hash": bytes(32), "offset": -1, "length": 1 << 40}),
        codec.pack([[[[]]]] * 100),
        b"",
    ]

    async def send(network: Network, peer: bytes) -> None:
        for protocol in (sync.PROTOCOL, blobs.PROTOCOL, witness.PROTOCOL):
            for request in requests:
                try:
                    stream = await network.open(peer, protocol)
                    await stream.send(request)
                    await stream.receive(1 << 20)
                except PeerError:
                    continue
            try:
                stream = await network.open(peer, protocol)
                await stream.send_raw(struct.pack("!I", 0xFFFFFFFF) + bytes(10_000))
                await stream.receive(1 << 20)
            except PeerError:
                pass

    for _ in range(5):
        attack(victim, send)
    counted(victim, "bad-msgpack", "too-long", "bad-sync", "bad-blob-request", "bad-witness")
    victim.works()
    assert victim.memory() - before < MEMORY_GROWTH


def test_flipped_forged_and_overlong_gossip_is_refused_with_a_counted_reason(
    victim: Victim,
) -> None:
    before = victim.memory()
    chance = random.Random(7)
    frame = victim.a_frame()
    topic = project_topic(victim.project)

    def flipped(place: int) -> bytes:
        damaged = bytearray(frame)
        damaged[place] ^= 1 << chance.randrange(8)
        return b"\x01" + bytes(damaged)

    header, signature, payload = 20, 170, len(frame) - 5
    batches = [
        [flipped(header)],
        [flipped(signature)],
        [flipped(payload)],
        [flipped(0)],
        *([flipped(chance.randrange(len(frame))) for _ in range(3)] for _ in range(8)),
        [b"\x01" + frame + b"more", b"\x01" + frame[:-1], b"\x01"],
        [os.urandom(500), b"\x02" + os.urandom(100), b"\xff" + frame],
        [b"\x01" + bytes(40_000)],
        [b"\x01" + bytes(200_000)],
    ]
    for messages in batches:
        gossip(victim, topic, messages)
    gossip(victim, DIRECTORY, [b"\x01" + frame])
    counted(victim, "bad-frame", "bad-signature", "bad-gossip", "bad-directory")
    victim.works()
    assert victim.memory() - before < MEMORY_GROWTH


def test_an_announcement_by_a_key_the_project_does_not_name_is_neither_kept_nor_run(
    victim: Victim,
) -> None:
    stranger = keys.SecretKey.generate()
    now = int(time.time() * 1000)
    forged = Announce(
        title="let me in",
        source=bytes(32),
        source_size=10,
        source_name="x",
        spec=Spec(python=("3",)),
        resolve_before=now,
        expires=now + 10**7,
    )
    entry = codec.sign_entry(
        stranger,
        forged,
        project=victim.project,
        nonce=b"stranger",
        seq=0,
        prev=bytes(32),
        time=now,
    )
    gossip(victim, project_topic(victim.project), [codec.encode_gossip(entry)])
    counted(victim, "unauthorised-announce")

    # By sync, too: a peer that claims to have the entry is pulled from, and refused alike.
    counts = victim.refused()
    attack(victim, _wait, _serve_forged(entry))
    until(
        "what sync brought is counted",
        lambda: victim.refused()["unauthorised-announce"] > counts["unauthorised-announce"],
        20,
    )
    with Reader(victim.node.home.ledger) as reader:
        assert reader.entry(entry.id) is None
        assert all(job.title != "let me in" for job in reader.jobs())
    victim.works()


def _serve_forged(entry: Entry) -> Callable[[Network], None]:
    """A sync server that says it has more, and sends what nobody may say, then junk."""

    async def lie(stream: blobs.Stream) -> None:
        await stream.receive(4096)
        await stream.send(b"\2" + bytes(64 * 12))
        await stream.receive(1 << 20)
        await stream.send(b"\1" + zlib.compress(codec.pack_segment([entry.frame])))
        await stream.send(b"\1junk")

    def prepare(network: Network) -> None:
        network.serve(sync.PROTOCOL, lie, concurrent_per_peer=4, timeout=10)

    return prepare


def test_claims_and_offers_without_end_cost_no_memory_and_stop_nobody(victim: Victim) -> None:
    before = victim.memory()
    topic = project_topic(victim.project)
    with Reader(victim.node.home.ledger) as reader:
        job = reader.jobs(victim.project)[0]
    cell = cells(victim.node, job.id.hex())[0]
    far = int(time.time() * 1000) + 10**9
    for _ in range(6):
        flood = [
            codec.encode_gossip(Claim(job=job.id, cell=os.urandom(32), until=far)),
            codec.encode_gossip(Claim(job=os.urandom(32), cell=cell.id, until=far)),
            codec.encode_gossip(
                Offer(interpreters=(), system="x", machine="y", slots=1000, until=far)
            ),
        ] * 40
        gossip(victim, topic, flood)
    victim.works()
    assert victim.memory() - before < MEMORY_GROWTH


def test_the_status_file_tells_the_owner_what_was_refused(victim: Victim) -> None:
    said = json.loads(victim.swarm.command(victim.node, "status", "--json"))
    assert said["node_runs"]
    assert sum(said["refused"].values()) > 0
    assert "refused" in victim.swarm.command(victim.node, "status")


@pytest.mark.timeout(120)
def test_two_histories_in_gossip_become_one_proof_that_all_hold(victim: Victim) -> None:
    key = keys.SecretKey.generate()
    job = codec.decode_frame(victim.a_frame()).id
    texts = [
        codec.sign_entry(
            key,
            Commit(job=job, cell=bytes(32), commitment=bytes([face]) * 32),
            project=victim.project,
            nonce=b"twofaces",
            seq=0,
            prev=bytes(32),
            time=int(time.time() * 1000),
        )
        for face in (1, 2)
    ]
    gossip(victim, project_topic(victim.project), [codec.encode_gossip(entry) for entry in texts])

    def told(member: Member) -> list[str]:
        with Reader(member.home.ledger) as reader:
            assert reader.forked(victim.project) <= {key.public}
            return [row.text for row in reader.log(project=victim.project) if row.kind == "fork"]

    name = keys.peer_id(key.public)
    for member in (victim.node, victim.maintainer):
        until("it holds the proof", lambda m=member: any(name in t for t in told(m)), 30)
    time.sleep(4)
    # Both may have spoken before they heard the other, and no more than once.
    assert len(told(victim.node)) <= 2
    said = victim.swarm.command(victim.node, "verify")
    assert f"forked: {name} signed two histories" in said
    victim.works()
