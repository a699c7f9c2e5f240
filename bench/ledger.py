"""The ledger beside PyNaCl: how much of the raw verify rate is left when entries are kept.

Every rate is measured side by side with raw verification of the same signatures with kept
key objects, in turns, several times; the best of each counts. Rates of one process, and
answers from memory, are by CPU time, so that what else the machine does falls out; that of
two processes is by the clock.
Then a ledger is built (`bench.world`: ten million entries; fewer with --quick) and asked.
"""

from __future__ import annotations

import gc
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

from bench.report import Row, arguments, report
from bench.world import AUTHORS, CELLS, LATER, NOW, SEGMENT, World, build_home, jobs_of, outcome
from ponyswarm import codec
from ponyswarm.codec import ZERO, Cursor, check_segment, decode_entry, decode_frame, sign_entry
from ponyswarm.home import Home
from ponyswarm.keys import SecretKey
from ponyswarm.ledger.queries import Reader
from ponyswarm.ledger.signatures import holding
from ponyswarm.ledger.store import Store
from ponyswarm.messages import (
    Entry,
)
from ponyswarm.policy import ReaderPolicy


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


def ask(
    path: Path, project: bytes, jobs: Sequence[bytes], times: int, clock: Callable[[], float]
) -> list[float]:
    """Seconds that each question for a random commit took."""
    chance = random.Random(1)
    took = []
    with Reader(path) as reader:
        for _ in range(times):
            job = chance.choice(jobs[1:])
            start = clock()
            reader.select(
                "SELECT environment.text, count(*), sum(failed) FROM job JOIN result USING (job)"
                " JOIN environment USING (environment) WHERE project = ? AND \"commit\" != ''"
                ' AND "commit" = (SELECT "commit" FROM job WHERE job = ?)'
                " GROUP BY environment.environment",
                (project, job),
            )
            took.append(clock() - start)
    return took


def kept(path: Path) -> list[Row]:
    """What a built ledger takes, and how long its answers do."""
    project, jobs = jobs_of(path)
    opening = []
    for _ in range(5):
        start = time.perf_counter()
        Store(path).close()
        opening.append(1000 * (time.perf_counter() - start))
    cold = 1000 * max(
        took for _ in range(9) for took in ask(path, project, jobs, 1, time.perf_counter)
    )
    warm = sorted(ask(path, project, jobs, 1000, time.process_time))
    with Reader(path) as reader:
        count = reader.count()
        (frames,) = reader.select("SELECT sum(bytes) FROM feed")[0]
        job = reader.find_job(None, jobs[0].hex(), None)
        hot = []
        for _ in range(3):
            start = time.process_time()
            runs = sum(row.runs for row in reader.matrix(job, ReaderPolicy()))
            hot.append(1000 * (time.process_time() - start))
    size = path.stat().st_size
    return [
        Row(f"storage at {count:,} entries, MB", size / 1e6, "frames, MB", frames / 1e6, "<= 1.4x"),
        Row("opening the ledger, ms", statistics.median(opening), goal="<= 100"),
        Row("project and commit by environment, p99 warm, ms", 1000 * warm[989], goal="<= 2"),
        Row("the same, first question of a connection, ms", cold, goal="<= 5"),
        Row(f"verdicts of a hot commit of {runs:,} rows, ms", min(hot), goal="<= 100"),
    ]


def measure(quick: bool, home: Path | None) -> list[Row]:
    world = World.with_jobs(8)
    with tempfile.TemporaryDirectory(prefix="ponyswarm-bench-") as name:
        folder = Path(name)
        rows = ingest(world, folder, 4_000 if quick else 40_000, 3 if quick else 5)
        if home is None:
            home = folder / "home"
            build_home(home, 40_000 if quick else 10_000_000)
        return rows + kept(Home.under(home).ledger)


if __name__ == "__main__":
    chosen = arguments(__doc__ or "", home="a home that bench.world built")
    report("ledger", measure(chosen.quick, chosen.home), as_json=chosen.json)
