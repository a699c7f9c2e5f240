"""The ledger beside PyNaCl: how much of the raw verify rate is left when entries are kept.

Every rate is measured side by side with raw verification of the same signatures with kept
key objects, in turns, several times; the best of each counts. Rates of one process are by
its CPU time, so that what else the machine does falls out; that of two is by the clock.
Then a ledger is built (ten million entries; fewer with --quick) and asked. Its entries are
frames as nodes publish them; to build ten million without ten million signatures, their
signatures are noise, which the store never looks at.
"""

from __future__ import annotations

import gc
import hashlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import trio
from anyio import to_process
from nacl.signing import VerifyKey

from bench.report import Row, main
from ponyswarm import codec
from ponyswarm.codec import ZERO, Cursor, check_segment, decode_entry, decode_frame, sign_entry
from ponyswarm.keys import SecretKey
from ponyswarm.ledger.queries import Reader
from ponyswarm.ledger.signatures import holding
from ponyswarm.ledger.store import Store
from ponyswarm.matrix import cells
from ponyswarm.messages import (
    Announce,
    Blob,
    Entry,
    Environment,
    Header,
    Kind,
    Project,
    Result,
    Spec,
    Status,
)
from ponyswarm.policy import ReaderPolicy

NOW = 1_800_000_000_000
LATER = NOW + 10**12
SEGMENT = 50
AUTHORS = 20
CELLS = 40
HOT = 61_000


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def environment(author: int) -> Environment:
    return Environment(
        implementation="cpython",
        version=f"3.12.{author % 5}",
        build="GCC 13.2.0",
        system="linux",
        release="6.8.0-45-generic",
        machine="x86_64",
        libc="glibc 2.39",
        packages=digest("packages"),
        services={"postgresql": "16.3"},
        sandbox="bubblewrap 0.9.0",
    )


def outcome(job: bytes, cell: bytes, author: int, number: int) -> Result:
    return Result(
        job=job,
        cell=cell,
        state="completed",
        counts={Status.PASSED: 1200 + number % 7, Status.SKIPPED: 14},
        digest=hashlib.sha256(job + bytes([number % 3])).digest(),
        tests=Blob(hash=os.urandom(32), size=20_000 + number % 9000),
        log=Blob(hash=os.urandom(32), size=3_000 + number % 900),
        environment=environment(author),
        started=NOW + number * 60_000,
        seconds=31.5 + number / 7,
    )


class World:
    """A project, its jobs, and volunteers whose feeds go on and on."""

    def __init__(self) -> None:
        self.root = SecretKey(b"\1" * 32)
        self.genesis = self._said(Project(name="bench", roots=(self.root.public,)), ZERO, ZERO, 0)
        self.project = self.genesis.id
        self.jobs: list[tuple[Entry, list[bytes]]] = []
        self._prev = ZERO

    @classmethod
    def with_jobs(cls, count: int) -> World:
        world = cls()
        for _ in range(count):
            world.announce()
        return world

    def _said(self, payload: Project | Announce, project: bytes, prev: bytes, seq: int) -> Entry:
        return sign_entry(
            self.root, payload, project=project, nonce=bytes(8), seq=seq, prev=prev, time=NOW + seq
        )

    def announce(self) -> Entry:
        number = len(self.jobs)
        spec = Spec(python=tuple(f"3.{minor}" for minor in range(CELLS)))
        said = Announce(
            title=f"commit {number}",
            commit=hashlib.sha1(str(number).encode()).hexdigest(),
            source=digest(f"source {number}"),
            source_size=100_000,
            source_name="bench.tar.gz",
            spec=spec,
            resolve_before=NOW,
            expires=LATER,
        )
        job = self._said(said, self.project, self._prev, number)
        self._prev = job.id
        self.jobs.append((job, [codec.cell_id(job.id, cell) for cell in cells(spec)]))
        return job


def signed_feeds(world: World, count: int) -> list[list[bytes]]:
    """Segments of really signed frames, the feeds in turns."""
    segments: list[list[bytes]] = []
    heads = dict.fromkeys(range(AUTHORS), (0, ZERO))
    keys = [SecretKey(bytes([2 + author]) * 32) for author in range(AUTHORS)]
    for at in range(count // SEGMENT):
        author = at % AUTHORS
        seq, prev = heads[author]
        frames = []
        for _ in range(SEGMENT):
            job, ids = world.jobs[seq // CELLS % len(world.jobs)]
            entry = sign_entry(
                keys[author],
                outcome(job.id, ids[seq % CELLS], author, seq),
                project=world.project,
                nonce=bytes(8),
                seq=seq,
                prev=prev,
                time=NOW + seq * 61_000,
            )
            seq, prev = seq + 1, entry.id
            frames.append(entry.frame)
        heads[author] = (seq, prev)
        segments.append(frames)
    return segments


def fresh(world: World, folder: Path) -> Store:
    store = Store(folder / f"{time.monotonic_ns()}.db")
    store.append_all([world.genesis, *(job for job, _ in world.jobs)], LATER)
    return store


def best(times: int, *bodies: Callable[[], float]) -> list[float]:
    """The best rate of each body, taken in turns."""
    rates = [[body() for body in bodies] for _ in range(times)]
    return [max(column) for column in zip(*rates, strict=True)]


async def _two_cores(store: Store, batches: Sequence[Sequence[bytes]]) -> None:
    """Workers check, this process decodes and keeps; a bounded number of batches under way."""
    send, receive = trio.open_memory_channel[tuple[list[Entry], trio.Event, list[bool]]](4)
    limiter = anyio.CapacityLimiter(2)

    async def check(entries: list[Entry], done: trio.Event, found: list[bool]) -> None:
        heads = [entry.frame[:224] for entry in entries]
        found += await to_process.run_sync(holding, heads, limiter=limiter)
        done.set()

    async def feed(nursery: trio.Nursery) -> None:
        async with send:
            for batch in batches:
                item = ([decode_frame(frame) for frame in batch], trio.Event(), list[bool]())
                nursery.start_soon(check, *item)
                await send.send(item)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed, nursery)
        async with receive:
            async for entries, done, found in receive:
                await done.wait()
                assert all(found)
                store.append_all(entries, LATER)


def ingest(world: World, folder: Path, count: int, times: int) -> list[Row]:
    segments = signed_feeds(world, count)
    frames = [frame for segment in segments for frame in segment]
    packed = [codec.pack_segment(segment) for segment in segments]
    kept = {frame[8:40]: VerifyKey(frame[8:40]) for frame in frames}
    signed = [
        (kept[frame[8:40]], codec.signed_text(codec.entry_id(frame[:160])), frame[160:224])
        for frame in frames[: count // 4]
    ]

    def raw() -> float:
        start = time.process_time()
        for key, text, signature in signed:
            key.verify(text, signature)
        return len(signed) / (time.process_time() - start)

    def live() -> float:
        store = fresh(world, folder)
        start = time.process_time()
        for at in range(0, count, 100):
            store.append_all([decode_entry(frame) for frame in frames[at : at + 100]], LATER)
        rate = count / (time.process_time() - start)
        assert store.count() == 1 + len(world.jobs) + count
        store.close()
        return rate

    def bulk() -> float:
        store = fresh(world, folder)
        start = time.process_time()
        for at in range(0, len(packed), 20):
            chunk = [
                codec.unpack_segment(Cursor(data), world.project, SEGMENT)
                for data in packed[at : at + 20]
            ]
            for segment in chunk:
                check_segment(segment)
            store.append_segments(chunk, LATER)
        rate = count / (time.process_time() - start)
        assert store.count() == 1 + len(world.jobs) + count
        store.close()
        return rate

    def both() -> float:
        async def timed() -> float:
            store = fresh(world, folder)
            warm = [frame[:224] for frame in frames[:10]]
            async with trio.open_nursery() as nursery:
                limiter = anyio.CapacityLimiter(2)
                for _ in range(2):
                    nursery.start_soon(lambda: to_process.run_sync(holding, warm, limiter=limiter))
            start = time.perf_counter()
            await _two_cores(store, [frames[at : at + 250] for at in range(0, count, 250)])
            rate = count / (time.perf_counter() - start)
            store.close()
            return rate

        return trio.run(timed)

    def raw_by_clock() -> float:
        start = time.perf_counter()
        for key, text, signature in signed:
            key.verify(text, signature)
        return len(signed) / (time.perf_counter() - start)

    # What the bench itself holds is no cost of the ledger's: the collector need not look at it.
    gc.collect()
    gc.freeze()
    verify, one, many, clock, two = best(times, raw, live, bulk, raw_by_clock, both)
    name = "PyNaCl verify, one core"
    return [
        Row("live ingest, every signature, one process: entries/s", one, name, verify, ">= 0.65x"),
        Row("live ingest, signatures in two processes: entries/s", two, name, clock, ">= 1.1x"),
        Row(f"bulk ingest, segments of {SEGMENT}: entries/s", many, name, verify, ">= 2.5x"),
    ]


def build(world: World, store: Store, count: int) -> tuple[int, float]:
    """Fill a ledger; (bytes of frames, seconds). The signatures are noise."""
    start = time.perf_counter()
    project, total = world.project, 0
    heads: dict[int, tuple[int, bytes, int]] = {}
    authors = [SecretKey(bytes([2 + author]) * 32).public for author in range(AUTHORS)]
    noise = os.urandom(64 + 4096)
    hot = min(HOT, count // 4)
    templates = [codec.pack(outcome(bytes(32), bytes(32), author, 7)) for author in range(AUTHORS)]
    places = [(t.index(b"\xa3job") + 6, t.index(b"\xa4cell") + 7) for t in templates]
    done = 0
    feeds = 0
    while done < count:
        if done >= hot and done % (CELLS * AUTHORS) < SEGMENT:
            store.append(world.announce(), LATER)
        batch = []
        for _ in range(20):
            author = feeds % AUTHORS
            feeds += 1
            # Feeds are at most 64 MiB: a new one every 50,000 entries.
            seq, prev, nonce = heads.get(author, (0, ZERO, 0))
            if seq == 50_000:
                seq, prev, nonce = 0, ZERO, nonce + 1
            job, ids = world.jobs[0 if done < hot else -1 - random.randrange(2) % len(world.jobs)]
            template, (a, b) = templates[author], places[author]
            segment = []
            for _ in range(SEGMENT):
                cell = ids[seq % CELLS]
                body = template[:a] + job.id + template[a + 32 : b] + cell + template[b + 32 :]
                header = Header(
                    Kind.RESULT, len(body), authors[author], project, nonce.to_bytes(8, "big"),
                    seq, prev, NOW + (done + seq) * 1000 + nonce, hashlib.sha256(body).digest(),
                )  # fmt: skip
                packed = codec.pack_header(header)
                at = seq % 4096
                segment.append(packed + noise[at : at + 64] + body)
                seq, prev = seq + 1, codec.entry_id(packed)
            heads[author] = (seq, prev, nonce)
            batch.append([decode_frame(frame) for frame in segment])
            total += sum(map(len, segment))
            done += SEGMENT
        store.append_segments(batch, LATER)
    return total, time.perf_counter() - start


def ask(path: Path, world: World, times: int) -> list[float]:
    """Seconds that each question for a random commit took."""
    chance = random.Random(1)
    took = []
    with Reader(path) as reader:
        for _ in range(times):
            job, _ = chance.choice(world.jobs[1:])
            start = time.perf_counter()
            reader.select(
                "SELECT environment.text, count(*), sum(failed) FROM job JOIN result USING (job)"
                ' JOIN environment USING (environment) WHERE project = ? AND "commit" ='
                ' (SELECT "commit" FROM job WHERE job = ?) GROUP BY environment.environment',
                (world.project, job.id),
            )
            took.append(time.perf_counter() - start)
    return took


def built(world: World, folder: Path, count: int) -> list[Row]:
    path = folder / "built.db"
    store = Store(path)
    store.append_all([world.genesis, *(job for job, _ in world.jobs)], LATER)
    frames, seconds = build(world, store, count)
    start = time.perf_counter()
    store.close()
    print(
        f"built {count:,} entries in {seconds:.0f} s, closed in {time.perf_counter() - start:.1f} s"
    )
    opening = []
    for _ in range(5):
        start = time.perf_counter()
        Store(path).close()
        opening.append(1000 * (time.perf_counter() - start))
    cold = 1000 * max(ask(path, world, 1) + ask(path, world, 1))
    warm = sorted(ask(path, world, 1000))
    with Reader(path) as reader:
        job = reader.find_job(None, world.jobs[0][0].id.hex(), None)
        start = time.perf_counter()
        reader.matrix(job, ReaderPolicy())
        hot = 1000 * (time.perf_counter() - start)
    size = path.stat().st_size
    return [
        Row(f"storage at {count:,} entries, MB", size / 1e6, "frames, MB", frames / 1e6, "<= 1.4x"),
        Row("opening the ledger, ms", statistics.median(opening), goal="<= 100"),
        Row("project and commit by environment, p99 warm, ms", 1000 * warm[989], goal="<= 2"),
        Row("the same, first question of a connection, ms", cold, goal="<= 5"),
        Row(f"verdicts of a hot commit of {min(HOT, count // 4):,} rows, ms", hot, goal="<= 100"),
    ]


def measure(quick: bool) -> list[Row]:
    world = World.with_jobs(8)
    with tempfile.TemporaryDirectory(prefix="ponyswarm-bench-") as name:
        folder = Path(name)
        rows = ingest(world, folder, 4_000 if quick else 40_000, 3 if quick else 5)
        return rows + built(World.with_jobs(1), folder, 40_000 if quick else 10_000_000)


if __name__ == "__main__":
    main("ledger", __doc__ or "", measure)
