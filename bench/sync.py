"""Sync over real libp2p streams on loopback: bytes, round trips, and entries a second.

Two nodes' ledgers in two processes; 2,000 feeds with a million entries (fewer with
--quick). The asker lacks the last entries of some feeds. Control bytes are what both sides
say before the first entry travels and after the last, project and lengths left out; the
limit is what decoding, checking and keeping the same segments takes without a network.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from bench.report import Row, main
from bench.world import LATER, World, outcome
from ponyswarm import codec
from ponyswarm.codec import ZERO, check_segment, decode_frame
from ponyswarm.keys import SecretKey
from ponyswarm.ledger.chain import Accept
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Entry, Header, Kind
from ponyswarm.p2p import replication, sync
from ponyswarm.p2p.blobs import Stream
from ponyswarm.p2p.network import open_network

FEEDS = 2_000


class Counted:
    """A stream that counts what passes."""

    def __init__(self, stream: Stream, tally: Tally) -> None:
        self._stream, self._tally = stream, tally

    @property
    def peer(self) -> bytes:
        return self._stream.peer

    async def send(self, data: bytes) -> None:
        self._tally.trips += 1
        self._tally.control += len(data)
        await self._stream.send(data)

    async def receive(self, limit: int) -> bytes:
        data = await self._stream.receive(limit)
        if data[:1] == b"\1" and len(data) > 1:
            self._tally.data += len(data)
        else:
            self._tally.control += len(data)
        return data

    async def close(self) -> None:
        await self._stream.close()


class Tally:
    def __init__(self) -> None:
        self.control = self.data = self.trips = self.rounds = 0


def feeds(world: World, each: int) -> list[list[bytes]]:
    """2,000 feeds; only every tenth entry and the last ones are really signed."""
    found = []
    noise = os.urandom(64)
    for number in range(FEEDS):
        key = SecretKey(hashlib.sha256(str(number).encode()).digest())
        job, ids = world.jobs[number % len(world.jobs)]
        prev, frames = ZERO, []
        for seq in range(each):
            body = codec.pack(outcome(job.id, ids[seq % len(ids)], number % 20, seq))
            header = Header(
                Kind.RESULT, len(body), key.public, world.project, bytes(8), seq, prev,
                1_800_000_000_000 + seq * 61_000, hashlib.sha256(body).digest(),
            )  # fmt: skip
            raw = codec.pack_header(header)
            prev = codec.entry_id(raw)
            real = seq % 10 == 9 or seq >= each - 2
            signature = key.sign(codec.signed_text(prev)) if real else os.urandom(32) + noise[:32]
            frames.append(raw + signature + body)
        found.append(frames)
    return found


def fill(path: Path, world: World, chains: list[list[bytes]], lacking: list[int]) -> Store:
    store = Store(path)
    store.append_all([world.genesis, *(job for job, _ in world.jobs)], LATER)
    for start in range(0, len(chains), 20):
        segments = [
            [decode_frame(frame) for frame in chain[: len(chain) - less]]
            for chain, less in zip(
                chains[start : start + 20], lacking[start : start + 20], strict=True
            )
        ]
        store.append_segments([segment for segment in segments if segment], LATER)
    return store


async def serve(path: Path) -> None:
    store = Store(path)
    async with open_network(
        SecretKey.generate(),
        listen=["/ip4/127.0.0.1/tcp/0"],
        validate=lambda *_: True,
        refused=lambda *_: None,
    ) as network:

        async def handle(stream: Stream) -> None:
            await replication.serve(stream, store.live_frontier, store.segment)

        network.serve(sync.PROTOCOL, handle, concurrent_per_peer=4, timeout=600)
        print(network.addresses[0], flush=True)
        await trio.sleep_forever()


async def pull(address: str, store: Store, project: bytes) -> tuple[Tally, int, float, float]:
    """(tally, new entries, seconds, seconds of it in taking)."""
    tally = Tally()
    taking = 0.0

    async def take(project: bytes, segments: object, peer: bytes) -> int:
        nonlocal taking
        start = time.perf_counter()
        assert isinstance(segments, tuple)
        for segment in segments:
            check_segment(segment)
        judged = store.append_segments(segments, LATER)
        taking += time.perf_counter() - start
        return sum(judgements.count(Accept()) for judgements in judged)

    async with open_network(
        SecretKey.generate(), listen=[], validate=lambda *_: True, refused=lambda *_: None
    ) as network:
        peer = await network.dial(address)

        async def open_(peer: bytes) -> Counted:
            tally.rounds += 1
            return Counted(await network.open(peer, sync.PROTOCOL, timeout=600), tally)

        store.live_frontier(project)
        start = time.perf_counter()
        pulled = await replication.pull(open_, peer, project, store.live_frontier, take)
        seconds = time.perf_counter() - start
    # Of each round, the 32 bytes that name the project.
    tally.control -= 32 * tally.rounds
    return tally, pulled.new, seconds, taking


def limit(folder: Path, world: World, chains: list[list[bytes]], lacking: list[int]) -> float:
    """Entries a second when the same segments come from memory."""
    store = fill(folder / "limit.db", world, chains, lacking)
    packed = [
        codec.pack_segment(chain[len(chain) - less :])
        for chain, less in zip(chains, lacking, strict=True)
        if less
    ]
    start = time.perf_counter()
    count = 0
    for at in range(0, len(packed), 4):
        segments: list[list[Entry]] = [
            codec.unpack_segment(codec.Cursor(data), world.project, 10_000)
            for data in packed[at : at + 4]
        ]
        for segment in segments:
            check_segment(segment)
        store.append_segments(segments, LATER)
        count += sum(map(len, segments))
    seconds = time.perf_counter() - start
    store.close()
    return count / seconds


def measure(quick: bool) -> list[Row]:
    each = 12 if quick else 500
    world = World.with_jobs(8)
    chains = feeds(world, each)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="ponyswarm-bench-") as name:
        folder = Path(name)
        fill(folder / "server.db", world, chains, [0] * FEEDS).close()
        server = subprocess.Popen(
            [sys.executable, "-m", "bench.sync", "--serve", str(folder / "server.db")],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            for missing in (0, 10, 1_000, 10_000 if quick else 100_000):
                # Spread over the feeds that lack any, at most half of each.
                each_lacks = max(1, missing // FEEDS)
                lacking = [each_lacks] * (missing // each_lacks)
                lacking += [0] * (FEEDS - len(lacking))
                store = fill(folder / f"{missing}.db", world, chains, lacking)
                tally, new, seconds, _ = trio.run(pull, address, store, world.project)
                assert new == missing
                store.close()
                rows += _rows(missing, tally, seconds, chains, lacking)
                if missing >= 10_000:
                    most = limit(folder, world, chains, lacking)
                    rows.append(
                        Row(
                            f"d = {missing:,}: entries/s over the wire",
                            missing / seconds,
                            "the same segments from memory",
                            most,
                        )
                    )
        finally:
            server.kill()
            server.wait()
            if server.stdout is not None:
                server.stdout.close()
    return rows


def _rows(
    missing: int, tally: Tally, seconds: float, chains: list[list[bytes]], lacking: list[int]
) -> list[Row]:
    name = f"d = {missing:,}"
    goal = {0: "<= 17", 10: "<= 1500"}.get(missing, "<= 5000")
    # One message more than round trips have questions: the first and the second.
    rows = [
        Row(f"{name}: control bytes, of them 1 is the answer's", tally.control, goal=goal),
        Row(f"{name}: round trips", tally.trips, goal="<= 2"),
    ]
    if missing >= 1_000:
        frames = sum(
            sum(map(len, chain[len(chain) - less :]))
            for chain, less in zip(chains, lacking, strict=True)
            if less
        )
        rows.append(
            Row(
                f"{name}: all bytes, segments of {max(lacking)}",
                tally.control + tally.data,
                "their frames",
                frames,
                "<= 0.70x" if missing >= 10_000 else "<= 0.85x",
            )
        )
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        trio.run(serve, Path(sys.argv[2]))
    else:
        main("sync", __doc__ or "", measure)
