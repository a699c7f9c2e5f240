"""The ledger beside PyNaCl: how much of the raw verify rate is left when entries are kept.

Every rate is measured side by side with raw verification of the same signatures with kept
key objects, in turns, several times; the best of each counts. Rates of one process, and
answers from memory, are by CPU time, so that what else the machine does falls out; that of
several processes is by the clock.
Then a ledger is built (`bench.world`: ten million entries; fewer with --quick) and asked.
"""

from __future__ import annotations

import gc
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

from bench.report import Row, arguments, report
from bench.world import AUTHORS, CELLS, LATER, NOW, SEGMENT, World, build_home, jobs_of, outcome
from ponyswarm import codec
from ponyswarm.codec import ZERO, Cursor, check_segment, decode_entry, decode_frame, sign_entry
from ponyswarm.home import Home
from ponyswarm.keys import SecretKey
from ponyswarm.ledger.diff import diff, of_job
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


# One more than cores: a worker that is done waits for this process, which may be writing, and
# a core must not stand idle meanwhile.
WORKERS = 3


async def _two_cores(store: Store, batches: Sequence[Sequence[bytes]]) -> None:
    """Workers check, this process decodes and keeps; a bounded number of batches under way."""
    send, receive = trio.open_memory_channel[tuple[list[Entry], trio.Event, list[bool]]](4)
    limiter = anyio.CapacityLimiter(WORKERS)

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
                limiter = anyio.CapacityLimiter(WORKERS)
                for _ in range(WORKERS):
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
        Row(
            "live ingest on two cores, signatures in workers: entries/s",
            two,
            name,
            clock,
            ">= 1.1x",
        ),
        Row(f"bulk ingest, segments of {SEGMENT}: entries/s", many, name, verify, ">= 2.5x"),
    ]


def ask(reader: Reader, project: bytes, commit: str, clock: Callable[[], float]) -> float:
    """Seconds that the question for a project and commit took."""
    start = clock()
    reader.select(
        "SELECT environment.text, count(*), sum(failed) FROM job JOIN result USING (job)"
        " JOIN environment USING (environment) WHERE project = ? AND \"commit\" != ''"
        ' AND "commit" = ? GROUP BY environment.environment',
        (project, commit),
    )
    return clock() - start


def drop_cached(path: Path) -> bool:
    """Drop what the system keeps of a ledger in memory; whether it could be told to."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for each in (path, path.with_name(path.name + "-wal")):
        if each.exists():
            with each.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def asked_cold(path: Path, project: bytes, commits: Sequence[str], times: int) -> list[float]:
    """Seconds of a first question by the clock, each read from the disk, as after a start.

    What stays in memory is the program, and the schema, which a reader has read by then.
    """
    took = []
    for at in range(times):
        if not drop_cached(path):
            return []
        with Reader(path) as reader:
            reader.select("SELECT 1 FROM project")
            took.append(ask(reader, project, commits[at], time.perf_counter))
    return sorted(took)


def fastest(body: Callable[[], object]) -> float:
    """Milliseconds of CPU, the best of three."""
    took = []
    for _ in range(3):
        start = time.process_time()
        body()
        took.append(1000 * (time.process_time() - start))
    return min(took)


def p99(took: Sequence[float]) -> float:
    return 1000 * took[min(len(took) - 1, len(took) * 99 // 100)]


def kept(path: Path) -> list[Row]:
    """What a built ledger takes, and how long its answers do."""
    project, jobs = jobs_of(path)
    opening = []
    for _ in range(5):
        start = time.perf_counter()
        Store(path).close()
        opening.append(1000 * (time.perf_counter() - start))
    chance = random.Random(1)
    with Reader(path) as reader:
        commits = [job.commit for job in reader.jobs(project) if job.id != jobs[0]]
        asked = [chance.choice(commits) for _ in range(1000)]
        warm = sorted(ask(reader, project, commit, time.process_time) for commit in asked)
    cold = asked_cold(path, project, asked, 100)
    with Reader(path) as reader:
        count = reader.count()
        (frames,) = reader.select("SELECT sum(bytes) FROM feed")[0]
        job = reader.find_job(None, jobs[0].hex(), None)
        matrix = reader.matrix(job, ReaderPolicy())
        runs = sum(row.runs for row in matrix)
        hot = fastest(lambda: reader.matrix(job, ReaderPolicy()))
        latest, older = (reader.find_job(None, jobs[at].hex(), None) for at in (-2, len(jobs) // 2))
        cell = reader.matrix(latest, ReaderPolicy())[0].id
        questions = {
            "volunteers, SQL view": lambda: reader.select("SELECT * FROM volunteers"),
            "results of a title, SQL view": lambda: reader.select(
                "SELECT * FROM results WHERE job = ?", (latest.title,)
            ),
            "show: a cell with its runs": lambda: reader.cells(latest, ReaderPolicy(), cell),
            "diff of two commits": lambda: diff(
                of_job(reader, older), of_job(reader, latest), lambda _: None
            ),
            "diff with the hot commit": lambda: diff(
                of_job(reader, job), of_job(reader, latest), lambda _: None
            ),
        }
        answers = [
            Row(f"{name}, ms", fastest(question), goal="<= 100")
            for name, question in questions.items()
        ]
    size = path.stat().st_size
    return [
        Row(f"storage at {count:,} entries, MB", size / 1e6, "frames, MB", frames / 1e6, "<= 1.4x"),
        Row("opening the ledger, ms", statistics.median(opening), goal="<= 100"),
        Row("project and commit by environment, p99 warm, ms", p99(warm), goal="<= 2"),
        *([Row("the same, p99 from the disk, ms", p99(cold), goal="<= 5")] if cold else []),
        Row(f"verdicts of a hot commit of {runs:,} rows, ms", hot, goal="<= 100"),
        *answers,
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
