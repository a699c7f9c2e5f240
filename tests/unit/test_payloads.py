"""Payloads of old results: dropped, synced without, and got back from who has them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from authors import NOW, Author, announce, cell_ids
from wires import Wire, run

from ponyswarm import codec
from ponyswarm.codec import Cursor, check_segment, decode_kept, pack_segment, unpack_segment
from ponyswarm.errors import PeerError
from ponyswarm.keeping import Keeping
from ponyswarm.ledger import fsck
from ponyswarm.ledger.chain import Accept, Completed
from ponyswarm.ledger.proofs import Tree
from ponyswarm.ledger.queries import Reader
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Entry
from ponyswarm.p2p import replication
from ponyswarm.p2p.blobs import BlobStore
from ponyswarm.policy import ReaderPolicy

LATER = NOW + 3_600_000
HOUR = 3_600_000
DAY = 24 * HOUR


class World:
    """A project with jobs that ended, run by volunteers; the last run of each job fails."""

    def __init__(self, *, jobs: int = 2, volunteers: int = 3) -> None:
        root = Author(1)
        self.genesis = root.project()
        self.project = self.genesis.id
        said = announce(expires=NOW + HOUR)
        self.jobs = [root.sign(said, self.project) for _ in range(jobs)]
        self.cell = {job.id: cell_ids(job, said)[0] for job in self.jobs}
        self.runs: list[Entry] = []
        for number in range(volunteers):
            author = Author(2 + number)
            for job in self.jobs:
                failed = number == volunteers - 1
                run = author.result(self.project, job.id, self.cell[job.id], failed=int(failed))
                self.runs.append(run)

    def fill(self, store: Store) -> None:
        entries = [self.genesis, *self.jobs, *self.runs]
        assert store.append_all(entries, LATER) == [Accept()] * len(entries)

    def drop(self, store: Store) -> int:
        """Everything that may go."""
        last, entries = store.payloads.stretch(0, 10_000)
        store.payloads.drop(0, last, {entry.id for entry in entries})
        return len(entries)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[list[Store]]:
    made = [Store(tmp_path / name) for name in ("one", "two", "three")]
    yield made
    for store in made:
        store.close()


def content(store: Store) -> list[tuple[object, ...]]:
    """What is derived from results, whatever numbers stand for it."""
    rows = store._db.execute(
        "SELECT job, cell, entry.id, state, reason, passed, failed, total, digest, text FROM result"
        " JOIN environment USING (environment) JOIN entry USING (arrival) ORDER BY entry.id"
    ).fetchall()
    failing = "SELECT id, test FROM failure JOIN entry USING (arrival) ORDER BY id, test"
    return rows + store._db.execute(failing).fetchall()


def pull(asker: Store, server: Store, project: bytes, *, since: int | None = None) -> int:
    """What a pull brings; with ``since`` of entries that lack their payloads."""

    async def take(_: bytes, segments: Sequence[Sequence[Entry]], peer: bytes) -> int:
        for segment in segments:
            check_segment(segment)
        judged = asker.append_segments(segments, LATER)
        return sum(isinstance(j, Accept | Completed) for many in judged for j in many)

    frontier_of = (
        asker.live_frontier if since is None else partial(asker.whole_frontier, since=since)
    )

    async def client(wire: Wire) -> int:
        pulled = await replication.pull(wire.open, b"a", project, frontier_of, take)
        return pulled.new

    serve = partial(replication.serve, frontier_of=server.live_frontier, segment=server.segment)
    return run({b"a": serve}, client)


def test_verdicts_and_chains_stand_without_the_payloads(world, stores):
    store = stores[0]
    world.fill(store)
    before = content(store)
    with Reader(store.path) as reader:
        job = reader.find_job(None, world.jobs[0].id.hex(), None)
        verdicts = [row.finding for row in reader.matrix(job, ReaderPolicy())]
    assert world.drop(store) == len(world.runs)
    assert world.drop(store) == 0
    assert content(store) == before
    with Reader(store.path) as reader:
        assert [row.finding for row in reader.matrix(job, ReaderPolicy())] == verdicts
        (cell,) = reader.cells(job, ReaderPolicy())
        assert {run.failed for run in cell.results} == {0, 1}
        assert all("dropped" in run.result.detail for run in cell.results)
        assert reader.verify(lambda _: None) == []
        assert {row.kind for row in reader.log()} >= {"project", "announce"}
    entry = store.entry(world.runs[0].id)
    assert entry is not None
    assert entry.is_bare
    assert codec.is_authentic(entry)
    assert codec.decode_payload(entry) is None


def test_what_directs_the_swarm_is_never_bare(world):
    for entry in (world.genesis, world.jobs[0]):
        with pytest.raises(PeerError) as fault:
            decode_kept(entry.frame[:224])
        assert fault.value.reason == "bad-frame"
        packed = pack_segment([entry.frame[:224]])
        with pytest.raises(PeerError) as fault:
            unpack_segment(Cursor(packed), world.project, 10)
        assert fault.value.reason == "bad-frame"


def test_a_segment_carries_bare_entries_byte_for_byte(world):
    frames = [world.runs[0].frame[:224], world.runs[1].frame]
    entries = unpack_segment(Cursor(pack_segment(frames)), world.project, 10)
    assert [entry.frame for entry in entries] == frames
    assert [entry.id for entry in entries] == [run.id for run in world.runs[:2]]


def test_an_empty_payload_is_not_a_dropped_one(world):
    packed = bytearray(pack_segment([world.runs[0].frame[:224]]))
    at = 32 + 8 + 1 + 1 + 1 + 1  # author, nonce, genesis, seq, count, kind
    length = codec.varint(int.from_bytes(world.runs[0].frame[4:8], "big") + codec.MAX_PAYLOAD + 1)
    assert packed[at : at + len(length)] == length
    packed[at : at + len(length)] = b"\0"
    with pytest.raises(PeerError):
        unpack_segment(Cursor(bytes(packed)), world.project, 10)


def test_a_newcomer_gets_the_headers_of_one_and_the_payloads_of_another(world, stores):
    full, forgetful, newcomer = stores
    world.fill(full)
    world.fill(forgetful)
    world.drop(forgetful)
    assert pull(newcomer, forgetful, world.project) == len(world.runs) + 1 + len(world.jobs)
    assert newcomer.frontier(world.project) == full.frontier(world.project)
    assert newcomer._db.execute("SELECT count(*) FROM run").fetchone() == (0,)
    # By heights alone the two agree; asked for what lacks, one that has it gives it.
    assert pull(newcomer, full, world.project) == 0
    assert pull(newcomer, forgetful, world.project, since=0) == 0
    assert pull(newcomer, full, world.project, since=0) == len(world.runs)
    assert newcomer.whole_frontier(world.project, since=0) is None
    assert content(newcomer) == content(full)
    assert fsck.check(newcomer.path).faults == []


def test_what_was_dropped_is_got_back_once(world, stores):
    full, forgetful, _ = stores
    world.fill(full)
    world.fill(forgetful)
    world.drop(forgetful)
    assert forgetful.whole_frontier(world.project, since=NOW + 10**12) is None
    assert pull(forgetful, full, world.project, since=0) == len(world.runs)
    assert content(forgetful) == content(full)
    assert all(forgetful.entry(run.id) == run for run in world.runs)


def test_fsck_keeps_what_was_derived_from_payloads_that_are_gone(world, stores):
    store = stores[0]
    world.fill(store)
    before = content(store)
    world.drop(store)
    assert fsck.check(store.path).faults == []
    store._db.execute("DELETE FROM job")
    assert fsck.check(store.path, repair=True).repaired
    mended = Store(store.path)
    assert content(mended) == before
    mended.close()
    assert fsck.check(store.path).faults == []


def test_fsck_looks_into_the_merkle_tree_and_a_repair_resets_it(tmp_path):
    world = World(jobs=40, volunteers=8)
    store = Store(tmp_path / "ledger")
    world.fill(store)
    store.close()
    tree = Tree(store.path)
    while not tree.grow():
        pass
    tree.close()
    assert fsck.check(store.path).faults == []
    db = sqlite3.connect(store.path)
    db.execute("UPDATE tree_block SET hash = ?", (bytes(32),))
    db.commit()
    db.close()
    assert fsck.check(store.path).faults == ["the Merkle tree does not fit the entries"]
    db = sqlite3.connect(store.path)
    db.execute("UPDATE entry SET frame = zeroblob(300) WHERE arrival = 100")
    db.commit()
    db.close()
    report = fsck.check(store.path, repair=True)
    assert report.repaired
    assert report.dropped
    tree = Tree(store.path)
    while not tree.grow():
        pass
    size = tree.view().size
    tree.close()
    assert size == report.entries - report.dropped
    assert fsck.check(store.path).faults == []


# --- what goes, and when --------------------------------------------------------------------------


def bare(store: Store) -> set[bytes]:
    rows = store._db.execute("SELECT id FROM entry WHERE length(frame) = 224")
    return {row[0] for row in rows}


def sweep(store: Store, folder: Path, now: int, keep_ms: int | None) -> None:
    blobs = BlobStore(folder / "blobs", budget=1 << 20, floor=0)
    keeping = Keeping(store, blobs, budget=1 << 20, keep_ms=keep_ms)

    import trio

    trio.run(keeping.sweep, now)


def test_old_results_of_ended_jobs_lose_their_payloads_failing_ones_last(world, stores, tmp_path):
    store = stores[0]
    world.fill(store)
    old = [run for run in world.runs if run.said.job == world.jobs[0].id]
    failing = {run.id for run in old if run.said.bad}
    sweep(store, tmp_path, LATER, DAY)
    assert bare(store) == set()
    sweep(store, tmp_path, LATER + 30 * DAY, None)
    assert bare(store) == set()
    sweep(store, tmp_path, LATER + 2 * DAY, DAY)
    assert bare(store) == {run.id for run in old} - failing
    sweep(store, tmp_path, LATER + 5 * DAY, DAY)
    # Those of a project's latest job stay, whatever their age.
    assert bare(store) == {run.id for run in old}


def test_open_jobs_keep_theirs(stores, tmp_path):
    store = stores[0]
    world = World()
    world.fill(store)
    sweep(store, tmp_path, NOW + HOUR - 1, 1)
    assert bare(store) == set()


def test_a_ledger_near_its_limit_drops_earlier_and_takes_in_again(tmp_path):
    world = World(jobs=30, volunteers=20)
    store = Store(tmp_path / "ledger", budget=1 << 40)
    world.fill(store)
    store.close()
    size = store.path.stat().st_size
    store = Store(tmp_path / "ledger", budget=int(size / 0.95))
    assert store.fullness > 0.9
    sweep(store, tmp_path, LATER + HOUR, 30 * DAY)
    assert store.fullness < 0.9
    kept = [store.entry(run.id) for run in world.runs if run.said.job == world.jobs[-1].id]
    assert not any(entry.is_bare for entry in kept)
    store.close()
