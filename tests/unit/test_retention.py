"""What goes when blobs are old or many, and what stays whatever happens."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from authors import FAR, NOW, Author, announce, cell_ids, result
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from ponyswarm import codec
from ponyswarm.config import Retention, parse, template
from ponyswarm.errors import InfraError, LocalError
from ponyswarm.keeping import Keeping
from ponyswarm.ledger.retention import FULL, ROOMY, Held, victims, worth
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Blob, Entry, Payload, Status
from ponyswarm.p2p.blobs import BlobStore

DAY = 86_400_000


def held(number: int, size: int = 10, **more: object) -> Held:
    return replace(Held(hash=bytes([number]) * 32, size=size, kept=NOW), **more)


KINDS = {
    "unknown": held(1),
    "passing log": held(2, role="log", job=b"j"),
    "old source": held(3, role="source", job=b"j", expires=NOW - 1),
    "failing log": held(4, role="log", job=b"j", failing=True),
    "latest log": held(5, role="log", job=b"k", latest=True),
    "open source": held(6, role="source", job=b"k", expires=NOW + DAY, latest=True),
}


def names(gone: list[Held]) -> list[str]:
    return [name for blob in gone for name, one in KINDS.items() if one == blob]


def test_nothing_goes_while_there_is_room_and_nothing_is_old():
    assert victims(KINDS.values(), budget=1000, keep_ms=DAY, now=NOW) == []


def test_what_is_missed_least_goes_first():
    order = list(KINDS)
    for most in range(1, 6):
        gone = victims(KINDS.values(), budget=most * 10, keep_ms=DAY, now=NOW)
        assert names(gone) == order[: len(gone)]
        assert len(gone) >= 6 - most
    assert names(victims(KINDS.values(), budget=0, keep_ms=DAY, now=NOW)) == order


def test_age_takes_what_nothing_needs_and_never_the_latest_job():
    gone = victims(KINDS.values(), budget=1000, keep_ms=DAY, now=NOW + 2 * DAY)
    left = set(KINDS) - set(names(gone))
    assert left == {"latest log", "open source"}


def test_of_one_worth_the_oldest_goes_first():
    blobs = [held(n, role="log", job=b"j", kept=NOW - n) for n in range(1, 11)]
    gone = victims(blobs, budget=100, keep_ms=DAY, now=NOW)
    assert [blob.hash[0] for blob in gone] == [10, 9]


@given(
    st.lists(
        st.builds(
            Held,
            hash=st.binary(min_size=32, max_size=32),
            size=st.integers(0, 100),
            role=st.sampled_from(["", "log", "tests", "source", "locks"]),
            failing=st.booleans(),
            latest=st.booleans(),
            kept=st.integers(NOW - 10 * DAY, NOW),
            expires=st.integers(NOW - DAY, NOW + DAY),
        ),
        unique_by=lambda blob: blob.hash,
        max_size=30,
    ),
    st.integers(0, 1000),
)
def test_what_is_left_fits_and_nothing_better_went_before_something_worse(blobs, budget):
    gone = victims(blobs, budget=budget, keep_ms=5 * DAY, now=NOW)
    left = [blob for blob in blobs if blob not in gone]
    assert len({blob.hash for blob in gone}) == len(gone)
    assert sum(blob.size for blob in left) <= FULL * budget
    by_age = [b for b in blobs if NOW - b.kept > 5 * DAY and worth(b, NOW) < 4]
    by_space = [blob for blob in gone if blob not in by_age]
    if by_space and left:
        assert max(worth(b, NOW) for b in by_space) <= min(worth(b, NOW) for b in left)
        # And no more went than was needed.
        spared = sum(b.size for b in left) + by_space[-1].size
        assert spared > ROOMY * budget
    assert set(by_age) <= set(gone)


# --- the shell, on real files -------------------------------------------------------------------


class House:
    def __init__(self, folder: Path, *, budget: int = 1000, keep_ms: int | None = DAY) -> None:
        self.store = Store(folder / "ledger")
        self.blobs = BlobStore(folder / "blobs", budget=budget, floor=0)
        self.keeping = Keeping(self.store, self.blobs, budget=budget, keep_ms=keep_ms)
        self.maintainer = Author(1)
        genesis = self.maintainer.project()
        self.project = genesis.id
        self.take(genesis, None)

    def take(self, entry: Entry, payload: Payload | None, now: int = NOW) -> None:
        self.store.append(entry, FAR)
        self.keeping.expect(entry, payload or codec.decode_payload(entry), now)

    def job(self, source: bytes, **more: object) -> Entry:
        blob = self.blobs.put(source)
        payload = structs.replace(announce(**more), source=blob.hash, source_size=blob.size)
        entry = self.maintainer.sign(payload, self.project)
        self.take(entry, payload)
        return entry

    def run(self, job: Entry, log: bytes, *, failed: int = 0, now: int = NOW) -> Blob:
        blob = self.blobs.put(log)
        cell = cell_ids(job, announce())[0]
        payload = structs.replace(result(job.id, cell, failed=failed), log=blob)
        self.take(Author(2).reopen(os.urandom(8)).sign(payload, self.project), payload, now)
        return blob


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path)
    yield made
    made.store.close()


def test_a_full_store_makes_room_for_what_comes(house):
    old = house.job(b"s" * 100, title="old")
    passing = [house.run(old, bytes([n]) * 100, now=NOW + n) for n in range(4)]
    failing = house.run(old, b"f" * 100, failed=1)
    new = house.job(b"t" * 100, title="new")
    latest = house.run(new, b"l" * 100)
    coming = house.blobs.put(b"x" * 300)
    assert coming.hash in house.blobs
    assert passing[0].hash not in house.blobs
    assert all(blob.hash in house.blobs for blob in (failing, latest))
    assert house.blobs.used == sum(blob.size for blob in house.blobs.held())
    with pytest.raises(InfraError, match="no room"):
        house.blobs.put(b"y" * 2000)


def test_a_sweep_drops_the_old_the_unknown_first_and_partial_files(house, tmp_path):
    job = house.job(b"source", title="old")
    log = house.run(job, b"log")
    house.job(b"newer", title="new")
    unknown = house.blobs.put(b"nobody named it")
    half = Blob(hash=b"h" * 32, size=10)
    house.blobs.extend(half, b"12345")
    part = next((tmp_path / "blobs" / "partial").iterdir())
    trio.run(house.keeping.sweep, NOW + DAY // 2)
    assert log.hash in house.blobs
    assert part.exists()
    long_ago = time.time() - 86_400
    os.utime(part, (long_ago, long_ago))
    # The unknown one is dated by its file.
    trio.run(house.keeping.sweep, max(NOW, int(time.time() * 1000)) + 2 * DAY)
    assert log.hash not in house.blobs
    assert unknown.hash not in house.blobs
    assert not part.exists()
    assert {blob.role for blob in house.store.notes.blobs()} == {"source"}
    # Entries stay, all of them.
    assert house.store.count() == 4


def test_an_archive_drops_nothing(tmp_path):
    house = House(tmp_path, budget=1 << 30, keep_ms=None)
    log = house.run(house.job(b"source"), b"log")
    trio.run(house.keeping.sweep, NOW + 1000 * DAY)
    assert log.hash in house.blobs
    house.store.close()


def test_the_messages_of_a_list_that_comes_are_searchable_and_go_with_age(house):
    records = [
        codec.TestRecord("t::bad", Status.FAILED, 0.1, "AssertionError: kaputt"),
        codec.TestRecord("t::good", Status.PASSED, 0.1, ""),
    ]
    data = codec.encode_tests(records)
    blob = Blob(hash=hashlib.sha256(data).digest(), size=len(data))
    job = house.job(b"source")
    cell = cell_ids(job, announce())[0]
    payload = structs.replace(result(job.id, cell, failed=1), tests=blob)
    house.take(Author(2).sign(payload, house.project), payload)

    def found(word: str) -> int:
        sql = "SELECT count(*) FROM failure_text WHERE failure_text MATCH ?"
        return house.store._db.execute(sql, (word,)).fetchone()[0]

    assert (found("f0"), found("kaputt")) == (1, 0)
    house.blobs.put(data)
    trio.run(house.keeping.kept, blob, NOW)
    assert (found("f0"), found("kaputt"), found("bad"), found("good")) == (0, 1, 1, 0)
    house.store.notes.forget_messages(NOW + DAY)
    assert (found("kaputt"), found("bad")) == (0, 1)


def test_the_settings_say_how_long(tmp_path):
    assert parse(template()).retention == Retention(keep=90 * 86_400, archive=False)
    chosen = parse("[retention]\nkeep = 2 d\narchive = yes\n").retention
    assert chosen == Retention(keep=2 * 86_400, archive=True)
    with pytest.raises(LocalError, match="too little"):
        parse("[retention]\nkeep = 1 s\n")
