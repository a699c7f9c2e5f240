"""Segments taken by one signature: what vouches for what, and what a crash leaves of it."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import psutil
import pytest
import trio
from authors import NOW, Author, digest, fork_of, result
from hypothesis import given, settings
from hypothesis import strategies as st
from told import told

from ponyswarm.codec import check_segment, decode_frame
from ponyswarm.errors import PeerError
from ponyswarm.ledger import signatures
from ponyswarm.ledger import store as store_module
from ponyswarm.ledger.chain import Accept, Diverges, Duplicate, Early, Forked, Gap, Refused
from ponyswarm.ledger.database import Auth
from ponyswarm.ledger.queries import Reader
from ponyswarm.ledger.signatures import check_some, holding
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Entry

LATER = NOW + 3_600_000


def junk(entry: Entry) -> Entry:
    """The entry as its author might write it: the same id under a signature of nothing."""
    frame = bytearray(entry.frame)
    frame[170] ^= 1
    return decode_frame(bytes(frame))


def runs(author: Author, project: bytes, count: int) -> list[Entry]:
    return [author.result(project, digest("job"), digest(str(n))) for n in range(count)]


@pytest.fixture
def project(ledger, maintainer) -> bytes:
    genesis = maintainer.project()
    assert ledger.append(genesis, LATER) == Accept()
    return genesis.id


def auths(ledger: Store, entries: list[Entry]) -> list[Auth | None]:
    return [ledger.auth(entry.id) for entry in entries]


def test_the_last_signature_vouches_for_all(ledger, project, volunteers):
    entries = runs(volunteers[0], project, 5)
    assert ledger.append_segment(entries, LATER) == [Accept()] * 5
    assert auths(ledger, entries) == [Auth.CHAIN] * 4 + [Auth.OWN]
    assert ledger.append_segment(entries, LATER) == [Duplicate()] * 5
    rows = ledger._db.execute("SELECT auth FROM entries ORDER BY arrival").fetchall()
    assert [row[0] for row in rows] == ["own"] + ["chain"] * 4 + ["own"]


def test_a_segment_whose_last_signature_is_junk_is_nobodys(volunteers):
    entries = runs(volunteers[0], digest("p"), 3)
    check_segment([junk(entries[0]), entries[1]])
    with pytest.raises(PeerError, match="bad-signature"):
        check_segment([entries[0], junk(entries[1])])


def test_segments_and_single_entries_give_the_same_ledger(ledger, project, volunteers, tmp_path):
    entries = [entry for author in volunteers for entry in runs(author, project, 7)]
    other = Store(tmp_path / "other")
    genesis = ledger.entry(project)
    assert other.append_all([genesis, *entries], LATER) == [Accept()] * (1 + len(entries))
    for author in volunteers:
        mine = [entry for entry in entries if entry.header.author == author.public]
        ledger.append_segments([mine[:3], mine[3:]], LATER)
    assert ledger.frontier(project) == other.frontier(project)
    assert ledger.live_frontier(project).root == other.live_frontier(project).root
    for table in ("result", "environment", "feed"):
        query = f"SELECT * FROM {table}"
        assert ledger._db.execute(query).fetchall() == other._db.execute(query).fetchall()
    other.close()


def test_what_is_kept_of_a_refused_segment_ends_at_a_signature_that_holds(
    ledger, project, volunteers, monkeypatch
):
    entries = runs(volunteers[0], project, 8)
    size = sum(len(entry.frame) for entry in entries[:5])
    monkeypatch.setattr(store_module, "MAX_BYTES_PER_FEED", size - 1)
    bad = [*entries[:3], junk(entries[3]), junk(entries[4]), *entries[5:]]
    judged = ledger.append_segment(bad, LATER)
    assert judged[:3] == [Accept()] * 3
    assert Accept() not in judged[3:]
    assert auths(ledger, entries) == [Auth.CHAIN] * 2 + [Auth.OWN] + [None] * 5
    assert ledger.segment(project, entries[0].feed, 0, 1 << 20) == [e.frame for e in entries[:3]]


def test_a_segment_of_the_future_waits_but_what_is_due_is_taken(ledger, project):
    author = Author(2)
    times = [NOW, NOW + 1000, LATER + 10**6]
    entries = [author.sign(result(digest("j"), digest("c")), project, t) for t in times]
    assert ledger.append_segment(entries, LATER) == [Accept(), Accept(), Early()]
    assert auths(ledger, entries) == [Auth.CHAIN, Auth.OWN, None]


def test_an_unauthorised_entry_ends_a_segment(ledger, project, volunteers):
    author = volunteers[0]
    entries = [*runs(author, project, 2), author.announce(project), *runs(author, project, 2)]
    refused = Refused("unauthorised-announce")
    assert ledger.append_segment(entries, LATER) == [Accept()] * 2 + [refused] * 3
    assert auths(ledger, entries) == [Auth.CHAIN, Auth.OWN, None, None, None]


def test_a_segment_beyond_a_gap_or_on_another_head_says_so(ledger, project, volunteers):
    author = volunteers[0]
    entries = runs(author, project, 3)
    twin = author.branch()
    assert ledger.append_segment(entries[1:], LATER) == [Gap(0)] * 2
    ledger.append_segment(entries, LATER)
    runs(twin, project, 1)
    author.branch()
    lost = runs(author, project, 1)
    other = runs(twin, project, 2)
    assert other[0].header.prev != lost[0].header.prev
    assert isinstance(ledger.append_segment(other[1:], LATER)[0], Diverges | Gap)


def test_junk_signatures_prove_no_fork_and_later_good_ones_do(ledger, project):
    author = Author(2)
    common = runs(author, project, 2)
    twin = author.branch()
    ours = runs(author, project, 3)
    theirs = [twin.result(project, digest("job"), digest(f"other {n}"), failed=1) for n in range(3)]
    ledger.append_segment([*common, junk(ours[0]), *ours[1:]], LATER)
    judged = ledger.append_segment(theirs, LATER)
    assert judged[0] == Forked(2)
    proof = ledger.evidence(project, author.public)
    assert proof in (fork_of(ours[1], theirs[1]), fork_of(theirs[1], ours[1]))


def test_segments_that_are_served_end_where_a_signature_was_checked(ledger, project, volunteers):
    entries = runs(volunteers[0], project, 9)
    ledger.append_segments([entries[:4], entries[4:]], LATER)
    ref, size = entries[0].feed, len(entries[0].frame)
    frames = [entry.frame for entry in entries]
    assert ledger.segment(project, ref, 0, size) == frames[:4]
    assert ledger.segment(project, ref, 0, 6 * size) == frames[:4]
    assert ledger.segment(project, ref, 4, 2 * size) == frames[4:]
    assert ledger.segment(project, ref, 0, 99 * size) == frames


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=40)
def test_whatever_is_junk_every_prefix_that_is_kept_can_be_given_on(tmp_path_factory, flags):
    """Segments end where the first flag says; the second makes a signature junk."""
    folder = tmp_path_factory.mktemp("ledger")
    author, root = Author(2), Author(1)
    genesis = root.project()
    entries = runs(author, genesis.id, len(flags))
    segments: list[list[Entry]] = [[]]
    for entry, (ends, bad) in zip(entries, flags, strict=True):
        segments[-1].append(entry if ends or entry is entries[-1] or not bad else junk(entry))
        if ends:
            segments.append([])
    given_, taken = Store(folder / "a"), Store(folder / "b")
    for ledger in (given_, taken):
        ledger.append(genesis, LATER)
    given_.append_segments([segment for segment in segments if segment], LATER)
    start = 0
    while start < len(entries):
        frames = given_.segment(genesis.id, entries[0].feed, start, 3_000)
        segment = [decode_frame(frame) for frame in frames]
        check_segment(segment)
        assert set(taken.append_segment(segment, LATER)) == {Accept()}
        start += len(frames)
    assert taken.frontier(genesis.id) == given_.frontier(genesis.id)
    given_.close()
    taken.close()


# --- the rest is checked when idle -------------------------------------------------------------


def test_the_other_signatures_are_checked_in_a_process_and_junk_is_marked(
    ledger, project, volunteers
):
    entries = runs(volunteers[0], project, 6)
    entries[2] = junk(entries[2])
    ledger.append_segment(entries, LATER)

    async def check() -> list[int]:
        one = anyio.CapacityLimiter(1)
        with trio.fail_after(60):
            return [await check_some(ledger, one, 3) for _ in range(3)]

    assert trio.run(check) == [3, 2, 0]
    assert auths(ledger, entries) == [Auth.OWN] * 2 + [Auth.JUNK] + [Auth.OWN] * 3
    path = ledger._db.execute("PRAGMA database_list").fetchone()[2]
    with Reader(Path(path)) as reader:
        assert reader.count() == 7
    assert ledger._db.execute("SELECT count(*) FROM entries WHERE auth = 'junk'").fetchone()[0] == 1


def test_a_check_that_is_cancelled_ends_its_batch_and_leaves_no_process(
    ledger, project, volunteers
):
    entries = runs(volunteers[0], project, 6)
    ledger.append_segment(entries, LATER)

    async def check() -> None:
        with trio.move_on_after(0.05):
            await check_some(ledger, anyio.CapacityLimiter(1))

    trio.run(check)
    assert set(auths(ledger, entries)) == {Auth.OWN}
    assert not psutil.Process().children()


def test_a_checking_process_that_dies_is_an_infra_error(ledger, project, volunteers, monkeypatch):
    entries = runs(volunteers[0], project, 3)
    ledger.append_segment(entries, LATER)
    monkeypatch.setattr(signatures, "holding", _die)

    async def check() -> None:
        with trio.fail_after(60), told("a process that checks signatures ended (…)"):
            await check_some(ledger, anyio.CapacityLimiter(1))

    trio.run(check)
    assert auths(ledger, entries)[0] == Auth.CHAIN


def _die(heads: list[bytes], quietly: bool) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_holding_says_what_holds(volunteers):
    entries = runs(volunteers[0], digest("p"), 3)
    heads = [entry.frame[:224] for entry in (entries[0], junk(entries[1]), entries[2])]
    assert holding(heads) == [True, False, True]


# --- crashes -----------------------------------------------------------------------------------


PART, PARTS = 20, 8


# The child takes segments of two feeds until it is killed. It imports no more than it needs.
INGEST = f"""
import pickle, sys, time
from pathlib import Path
from ponyswarm.codec import decode_frame
from ponyswarm.ledger.store import Store
genesis, *entries = [decode_frame(f) for f in pickle.loads(Path(sys.argv[2]).read_bytes())]
ledger = Store(Path(sys.argv[1]))
ledger.append(genesis, {LATER})
print("ready", flush=True)
for start in range(0, len(entries), {PART}):
    ledger.append_segment(entries[start : start + {PART}], {LATER})
    time.sleep(0.002)
time.sleep(60)
"""


def test_a_kill_amid_segments_leaves_a_valid_prefix_and_ingest_goes_on(tmp_path):
    chance = random.Random(4)
    genesis = Author(1).project()
    chains = [runs(Author(n), genesis.id, PART * PARTS) for n in (2, 3)]
    frames = tmp_path / "frames"
    frames.write_bytes(pickle.dumps([e.frame for e in (genesis, *chains[0], *chains[1])]))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    seen = set()
    for round_ in range(8):
        path = tmp_path / str(round_) / "ledger"
        child = subprocess.Popen(
            [sys.executable, "-c", INGEST, path, frames], stdout=subprocess.PIPE, env=environment
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(chance.uniform(0, 0.06))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        ledger = Store(path)
        for chain in chains:
            mark = ledger.frontier(genesis.id).get(chain[0].feed)
            height = 0 if mark is None else mark.height
            seen.add(height)
            kept = ledger.segment(genesis.id, chain[0].feed, 0, 1 << 30)
            assert kept == [entry.frame for entry in chain[:height]]
            rest = ledger.append_segment(chain, LATER)
            assert rest == [Duplicate()] * height + [Accept()] * (len(chain) - height)
        assert ledger.count() == 1 + 2 * PART * PARTS
        assert ledger._db.execute("SELECT count(*) FROM result").fetchone()[0] == 2 * PART * PARTS
        ledger.close()
    assert len(seen) > 1
