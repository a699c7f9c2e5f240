"""The ledger's only writer, on real SQLite files."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from authors import FAR, NOW, Author, announce, cell_ids, digest, fork_of, project_record, result
from hypothesis import given, settings
from hypothesis import strategies as st
from told import told

from ponyswarm.codec import ZERO, check_segment, decode_frame, decode_kept
from ponyswarm.errors import InfraError
from ponyswarm.ledger import store as store_module
from ponyswarm.ledger.chain import (
    Accept,
    Completed,
    Diverges,
    Duplicate,
    Early,
    Forked,
    Gap,
    Refused,
)
from ponyswarm.ledger.queries import Reader
from ponyswarm.ledger.store import Store, forked_mark
from ponyswarm.ledger.verdicts import Verdict
from ponyswarm.messages import DROPPABLE, Entry, FeedMark, Kind, Spec, Vouch
from ponyswarm.policy import ReaderPolicy

LATER = NOW + 3_600_000


def reader(ledger: Store) -> Reader:
    path = ledger._db.execute("PRAGMA database_list").fetchone()[2]
    return Reader(Path(path))


def fill(ledger: Store, *entries: Entry) -> None:
    for entry, judgement in zip(entries, ledger.append_all(entries, LATER), strict=True):
        assert judgement == Accept(), (entry.header, judgement)


# --- one entry after another --------------------------------------------------------------


def test_an_entry_is_kept_byte_for_byte(ledger, maintainer):
    genesis = maintainer.project()
    assert ledger.append(genesis, LATER) == Accept()
    assert ledger.entry(genesis.id) == genesis
    assert ledger.holds(genesis.id)
    assert not ledger.holds(ZERO)
    assert ledger.append(genesis, LATER) == Duplicate()


def test_a_gap_is_said_and_nothing_is_kept(ledger, maintainer):
    genesis = maintainer.project()
    first, second = (maintainer.announce(genesis.id, title=title) for title in "ab")
    fill(ledger, genesis)
    assert ledger.append(second, LATER) == Gap(0)
    assert not ledger.holds(second.id)
    fill(ledger, first, second)


def test_an_entry_of_the_future_is_held_back(ledger, maintainer):
    genesis = maintainer.project()
    assert ledger.append(genesis, NOW - 3_600_000) == Early()
    assert not ledger.holds(genesis.id)


def test_a_batch_judges_each_entry_on_its_own(ledger, maintainer):
    genesis = maintainer.project()
    stranger = Author(9)
    first = maintainer.announce(genesis.id)
    batch = [genesis, stranger.announce(genesis.id), first, first]
    assert ledger.append_all(batch, LATER) == [
        Accept(), Refused("unauthorised-announce"), Accept(), Duplicate(),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["announce", "withdraw", "vouch", "project", "revoke"])
def test_what_a_stranger_directs_is_refused_by_name(ledger, maintainer, kind):
    genesis = maintainer.project()
    fill(ledger, genesis)
    stranger = Author(9)
    entry = {
        "announce": lambda: stranger.announce(genesis.id),
        "withdraw": lambda: stranger.withdraw(genesis.id, digest("job")),
        "vouch": lambda: stranger.vouch(genesis.id, stranger.public, "me"),
        "project": lambda: stranger.sign(project_record(stranger), genesis.id),
        "revoke": lambda: stranger.revoke(genesis.id, maintainer.public, 0),
    }[kind]()
    before = ledger.frontier(genesis.id)
    assert ledger.append(entry, LATER) == Refused(f"unauthorised-{kind}")
    assert ledger.frontier(genesis.id) == before


def test_an_entry_of_an_unknown_project_is_refused(ledger, maintainer):
    assert ledger.append(maintainer.announce(digest("?")), LATER) == Refused("unknown-project")


def test_an_announcement_without_cells_is_refused(ledger, maintainer):
    genesis = maintainer.project()
    fill(ledger, genesis)
    spec = Spec(python=("3.12",), exclude=({"python": "3.12"},))
    assert ledger.append(maintainer.announce(genesis.id, spec=spec), LATER) == Refused("bad-matrix")


def test_a_payload_out_of_bounds_is_refused(ledger, maintainer):
    from test_codec import frame_of

    from ponyswarm.codec import decode_entry

    genesis = maintainer.project()
    fill(ledger, genesis)
    entry = decode_entry(frame_of(b"\x80", kind=2, project=genesis.id))
    assert ledger.append(entry, LATER) == Refused("bad-payload")
    unknown = decode_entry(frame_of(b"\x80", kind=99, project=genesis.id))
    assert ledger.append(unknown, LATER) == Accept()


# --- rights that change -----------------------------------------------------------------------


def test_a_former_announcers_old_jobs_are_taken_and_its_new_ones_end_at_once(ledger):
    root, former = Author(1), Author(2)
    genesis = root.project(announcers=(former.public,))
    before = former.sign(announce(), genesis.id, NOW + 1000)
    removal = root.sign(project_record(root, name="smaller"), genesis.id, NOW + 2000)
    after = former.sign(announce(title="after"), genesis.id, NOW + 3000)
    fill(ledger, genesis, removal, before, after)
    assert ledger.ended(genesis.id) == {after.id}
    jobs = {job.id: job.withdrawn for job in reader(ledger).jobs()}
    assert jobs == {before.id: False, after.id: True}
    assert reader(ledger).projects()[0].record.name == "smaller"


def test_rights_that_come_late_end_what_rested_on_none(ledger):
    root, former = Author(1), Author(2)
    genesis = root.project(announcers=(former.public,))
    job = former.sign(announce(), genesis.id, NOW + 3000)
    fill(ledger, genesis, job)
    assert ledger.ended(genesis.id) == frozenset()
    fill(ledger, root.revoke(genesis.id, former.public, NOW + 2000))
    assert ledger.ended(genesis.id) == {job.id}


def test_a_withdrawal_by_a_revoked_key_ends_nothing(ledger):
    root, former = Author(1), Author(2)
    genesis = root.project(announcers=(former.public,))
    job = root.announce(genesis.id)
    withdrawal = former.withdraw(genesis.id, job.id)
    fill(ledger, genesis, job, withdrawal)
    assert ledger.ended(genesis.id) == {job.id}
    fill(ledger, root.revoke(genesis.id, former.public, 0))
    assert ledger.ended(genesis.id) == frozenset()


def test_a_withdrawal_may_come_before_its_job(ledger, maintainer):
    genesis = maintainer.project(announcers=(Author(2).public,))
    job = maintainer.announce(genesis.id)
    fill(ledger, genesis, Author(2).withdraw(genesis.id, job.id), job)
    assert [row.withdrawn for row in reader(ledger).jobs()] == [True]


def test_a_withdrawal_in_another_project_ends_nothing(ledger):
    one, two = Author(1), Author(2)
    mine, theirs = one.project(), two.project(name="other")
    job = one.announce(mine.id)
    fill(ledger, mine, theirs, job, two.withdraw(theirs.id, job.id))
    assert ledger.ended(mine.id) == frozenset()
    assert [row.withdrawn for row in reader(ledger).jobs(mine.id)] == [False]


def test_results_of_a_revoked_key_count_until_its_end(ledger, maintainer):
    genesis = maintainer.project()
    job = maintainer.announce(genesis.id)
    cell = cell_ids(job, announce())[0]
    runs = [Author(n).sign(result(job.id, cell), genesis.id, NOW + 1000 * n) for n in (2, 3)]
    fill(ledger, genesis, job, *runs)

    def verdict() -> Verdict:
        read = reader(ledger)
        return read.cells(read.jobs()[0], ReaderPolicy())[0].finding.verdict

    assert verdict() == Verdict.CONFIRMED_PASS
    fill(ledger, maintainer.revoke(genesis.id, Author(3).public, NOW + 3001))
    assert verdict() == Verdict.CONFIRMED_PASS
    fill(ledger, maintainer.revoke(genesis.id, Author(3).public, NOW + 3000))
    assert verdict() == Verdict.UNCONFIRMED


# --- forks -------------------------------------------------------------------------------------


def test_a_fork_is_found_kept_and_proven(ledger, maintainer):
    genesis = maintainer.project()
    author = Author(5)
    job = digest("job")
    first = author.result(genesis.id, job, job)
    twin = author.branch()
    second = author.result(genesis.id, job, job, passed=4)
    third = author.result(genesis.id, job, job, passed=5)
    other = twin.result(genesis.id, job, job, passed=6)
    fill(ledger, genesis, first, second, third)
    assert ledger.evidence(genesis.id, author.public) is None
    assert ledger.append(other, LATER) == Forked(1)
    assert ledger.append(other, LATER) == Forked(1)
    proof = ledger.evidence(genesis.id, author.public)
    assert {proof.first, proof.second} == {second.frame[:160], other.frame[:160]}
    assert ledger.frontier(genesis.id)[first.feed] == FeedMark(1, forked_mark(first.id))
    twin.result(genesis.id, job, job)
    assert ledger.append(twin.result(genesis.id, job, job), LATER) == Diverges(2)
    assert ledger.append(author.result(genesis.id, job, job), LATER) == Accept()
    assert reader(ledger).forked(genesis.id) == {author.public}


def test_a_fork_entry_is_proof_enough_even_before_the_feed_is_known(ledger, maintainer):
    genesis = maintainer.project()
    author = Author(5)
    first = author.result(genesis.id, ZERO, ZERO)
    twin = author.branch()
    proof = fork_of(author.result(genesis.id, ZERO, ZERO), twin.announce(genesis.id))
    fill(ledger, genesis, Author(6).sign(proof, genesis.id))
    assert reader(ledger).forked(genesis.id) == {author.public}
    fill(ledger, first)
    assert ledger.frontier(genesis.id)[first.feed] == FeedMark(1, forked_mark(first.id))


def test_a_false_proof_is_refused(ledger, maintainer):
    genesis = maintainer.project()
    fill(ledger, genesis)
    author = Author(5)
    one = author.result(genesis.id, ZERO, ZERO)
    two = author.result(genesis.id, ZERO, ZERO)
    other_feed = author.reopen(b"another.").result(genesis.id, ZERO, ZERO)
    elsewhere = Author(5).result(digest("elsewhere"), ZERO, ZERO)
    for first, second in ((one, one), (one, two), (one, other_feed), (elsewhere, one)):
        entry = Author(6).sign(fork_of(first, second), genesis.id)
        assert ledger.append(entry, LATER) == Refused("bad-fork")
    assert reader(ledger).forked(genesis.id) == frozenset()


def test_a_vouch_after_the_fork_restores_the_authors_weight(ledger, maintainer):
    genesis = maintainer.project()
    author = Author(5)
    twin = author.branch()
    one = author.result(genesis.id, ZERO, ZERO)
    two = twin.result(genesis.id, ZERO, digest("cell"))
    early = maintainer.vouch(genesis.id, author.public, "carol")
    fill(ledger, genesis, one, early)
    ledger.append(two, LATER)
    assert reader(ledger).forked(genesis.id) == {author.public}
    fill(ledger, maintainer.vouch(genesis.id, author.public, "carol"))
    assert reader(ledger).forked(genesis.id) == frozenset()


def test_what_a_forked_maintainer_directed_from_there_on_has_no_force(ledger):
    root, other = Author(1), Author(2)
    genesis = root.sign(project_record(root, other))
    good = other.announce(genesis.id)
    twin = other.branch()
    bad = other.announce(genesis.id, title="bad")
    rename = other.sign(project_record(root, name="renamed"), genesis.id)
    fill(ledger, genesis, good, bad, rename)
    assert reader(ledger).projects()[0].record.name == "renamed"
    assert ledger.append(twin.announce(genesis.id, title="worse"), LATER) == Forked(1)
    assert ledger.state(genesis.id).record.name == "demo"
    assert reader(ledger).projects()[0].record.name == "demo"
    assert ledger.ended(genesis.id) == {bad.id}
    fill(ledger, other.announce(genesis.id, title="later"))
    assert len(ledger.ended(genesis.id)) == 2


def set_with_forks() -> tuple[bytes, list[Entry]]:
    """A genesis, a job, honest results, an author that forked twice, and two `fork` entries."""
    root, liar, honest, witness = Author(1), Author(5), Author(6), Author(7)
    genesis = root.project(announcers=(Author(2).public,))
    job = root.announce(genesis.id)
    cell = cell_ids(job, announce())[0]

    def say(author: Author, passed: int) -> Entry:
        return author.result(genesis.id, job.id, cell, passed=passed)

    a0 = say(liar, 3)
    left = liar.branch()
    a1, b1 = say(liar, 4), say(left, 5)
    late = liar.branch()
    a2, c2 = say(liar, 3), say(late, 6)
    h0, h1 = say(honest, 3), say(honest, 3)
    proof = witness.sign(fork_of(a1, b1), genesis.id)
    again = witness.sign(fork_of(c2, a2), genesis.id)
    vouch = Author(2).vouch(genesis.id, honest.public, "alice")
    return genesis.id, [genesis, job, a0, a1, b1, a2, c2, h0, h1, proof, again, vouch]


def judged_by_now(path: Path, project: bytes, order: Sequence[Entry]) -> object:
    """Give a ledger a set of entries, again and again as sync does; what it says in the end."""
    ledger = Store(path)
    try:
        for _ in range(len(order)):
            before = (ledger.frontier(project), ledger.count())
            for entry in order:
                ledger.append(entry, LATER)
            if (ledger.frontier(project), ledger.count()) == before:
                break
        read = Reader(path)
        cells = [read.cells(job, ReaderPolicy(agreeing=1)) for job in read.jobs()]
        rows = ledger._db.execute("SELECT author, nonce, min(seq) FROM fork_evidence GROUP BY 1, 2")
        facts = (
            ledger.frontier(project),
            rows.fetchall(),
            read.forked(project),
            [(cell.id, cell.finding) for job in cells for cell in job],
            ledger.state(project),
            ledger.ended(project),
            read.project(project) == ledger.state(project),
            read.verify(lambda _: None),
        )
        read.close()
        return facts
    finally:
        ledger.close()


@given(st.data())
@settings(max_examples=40)
def test_what_counts_is_the_same_whatever_order_entries_arrived_in(data):
    project, entries = set_with_forks()
    with TemporaryDirectory() as folder:
        expected = judged_by_now(Path(folder, "a"), project, entries)
        order = data.draw(st.permutations(entries))
        facts = judged_by_now(Path(folder, "b"), project, order)
        assert facts == expected
        assert facts[-2:] == (True, [])
        assert facts[2] == {Author(5).public}
        assert facts[1][0][2] == 1


def set_with_many_forks() -> tuple[bytes, list[Entry]]:
    """Three histories of one place, two forked feeds of one author, `fork` entries about all
    of them (one of these in a place that is disputed itself), vouches before and after."""
    root, twice, thrice = Author(1), Author(5), Author(6)
    genesis = root.project()
    job = root.announce(genesis.id)
    cell = cell_ids(job, announce())[0]

    def say(author: Author, passed: int, time: int | None = None) -> Entry:
        return author.sign(result(job.id, cell, passed=passed), genesis.id, time)

    again = twice.reopen(b"another.")
    first = [say(twice, 3), say(again, 3)]
    left, other = twice.branch(), again.branch()
    a, b = say(twice, 4), say(left, 5)
    c, d = say(again, 4), say(other, 5)
    second, third = thrice.branch(), thrice.branch()
    x, y, z = say(thrice, 1, NOW + 9000), say(second, 2, NOW + 1000), say(third, 3, NOW + 30_000)
    witness, forked_witness = Author(7), Author(8)
    proofs = [
        witness.sign(fork_of(a, b), genesis.id, NOW + 10_000),
        witness.sign(fork_of(d, c), genesis.id, NOW + 11_000),
        witness.sign(fork_of(x, z), genesis.id, NOW + 12_000),
    ]
    liar = forked_witness.branch()
    one = forked_witness.sign(fork_of(y, x), genesis.id, NOW + 50_000)
    two = liar.sign(result(job.id, cell), genesis.id, NOW + 50_000)
    proofs.append(witness.sign(fork_of(one, two), genesis.id, NOW + 51_000))
    early = root.sign(Vouch(key=thrice.public, operator="x"), genesis.id, NOW + 11_500)
    late = root.sign(Vouch(key=twice.public, operator="y"), genesis.id, NOW + 20_000)
    entries = [genesis, job, *first, a, b, c, d, x, y, z, one, two, *proofs, early, late]
    return genesis.id, entries


@given(st.data())
@settings(max_examples=30)
def test_several_forks_and_vouches_come_to_the_same_whatever_the_order(data):
    project, entries = set_with_many_forks()
    with TemporaryDirectory() as folder:
        expected = judged_by_now(Path(folder, "a"), project, entries)
        facts = judged_by_now(Path(folder, "b"), project, data.draw(st.permutations(entries)))
        assert facts == expected
        # Vouched for after all that tells of its forks; the others were not.
        assert facts[2] == {Author(6).public, Author(8).public}
        assert facts[-2:] == (True, [])


def histories(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The chains of a set, one for each branch of each feed, from its first entry on."""
    by_id = {entry.id: entry for entry in entries}
    tips = by_id.keys() - {entry.header.prev for entry in entries}
    chains = []
    for tip in sorted(tips):
        chain = [by_id[tip]]
        while chain[0].header.seq:
            chain.insert(0, by_id[chain[0].header.prev])
        chains.append(chain)
    return chains


def without_payload(entry: Entry) -> Entry:
    """As a peer gives an entry whose payload it has dropped, where it may drop one."""
    return decode_kept(entry.frame[:224]) if entry.header.kind in DROPPABLE else entry


@st.composite
def deliveries(draw: st.DrawFn, entries: Sequence[Entry]) -> list[list[Entry]]:
    """Segments of a set, as peers may give them: any stretch, in any order, some bare."""
    found = []
    chains = histories(entries)
    for _ in range(draw(st.integers(0, 25))):
        chain = draw(st.sampled_from(chains))
        start = draw(st.integers(0, len(chain) - 1))
        stop = draw(st.integers(start + 1, len(chain)))
        found.append([without_payload(e) if draw(st.booleans()) else e for e in chain[start:stop]])
    return found


def what_stands(ledger: Store, project: bytes) -> object:
    """What no payload of a result has a part in: how far feeds go, who forked, who may what."""
    first = "SELECT author, nonce, min(seq) FROM fork_evidence GROUP BY 1, 2"
    return (
        ledger.frontier(project),
        ledger._db.execute(first).fetchall(),
        ledger.forked(project),
        ledger.state(project),
        ledger.ended(project),
    )


def settle(ledger: Store, project: bytes, segments: Sequence[Sequence[Entry]]) -> None:
    """Give a ledger the same segments again and again, as sync does, until nothing is new."""
    for _ in range(10 * len(segments)):
        before = (ledger.count(), what_stands(ledger, project))
        judged = [j for part in segments for j in ledger.append_segment(part, LATER)]
        if (ledger.count(), what_stands(ledger, project)) == before and not any(
            isinstance(judgement, Completed) for judgement in judged
        ):
            return
    raise AssertionError("it never comes to rest")


@given(st.data(), st.sampled_from([set_with_forks, set_with_many_forks]))
@settings(max_examples=25)
def test_segments_bare_entries_forks_and_vouches_come_to_the_same_whatever_the_order(data, made):
    project, entries = made()
    singles = [[entry] for entry in entries]
    with TemporaryDirectory() as folder:
        expected = judged_by_now(Path(folder, "a"), project, entries)
        ledger = Store(Path(folder, "b"))
        # Strangers' feeds are taken once the project's record is there.
        for part in data.draw(deliveries(entries)):
            ledger.append_segment(part, LATER)
        bare = [[without_payload(entry)] for entry in entries]
        settle(ledger, project, data.draw(st.permutations(bare)))
        stands = what_stands(ledger, project)
        settle(ledger, project, data.draw(st.permutations(singles)))
        assert what_stands(ledger, project) == stands, "payloads changed who may what"
        ledger.close()
        facts = judged_by_now(Path(folder, "b"), project, entries)
        assert facts == expected
        assert facts[-2:] == (True, [])


def test_each_forked_feed_is_untold_until_an_undisputed_entry_tells_of_it(ledger, maintainer):
    genesis = maintainer.project()
    fill(ledger, genesis)
    witness, pairs = Author(6), []
    for one in (Author(5), Author(5).reopen(b"another.")):
        twin = one.branch()
        pairs.append(
            (one.result(genesis.id, ZERO, ZERO), twin.result(genesis.id, ZERO, genesis.id))
        )
        fill(ledger, pairs[-1][0])
        assert ledger.append(pairs[-1][1], LATER) == Forked(0)
    assert len(ledger.untold_forks(genesis.id)) == 2
    # Told by one who forks at that very place: another node may hold its other history.
    liar = Author(7)
    twin = liar.branch()
    fill(ledger, liar.sign(fork_of(*pairs[0]), genesis.id))
    assert len(ledger.untold_forks(genesis.id)) == 1
    assert ledger.append(twin.result(genesis.id, ZERO, ZERO), LATER) == Forked(0)
    assert len(ledger.untold_forks(genesis.id)) == 3
    for proof in ledger.untold_forks(genesis.id):
        fill(ledger, witness.sign(proof, genesis.id))
    assert ledger.untold_forks(genesis.id) == []


def test_a_feed_that_is_forked_from_its_start_is_in_no_frontier(ledger, tmp_path, maintainer):
    """One node holds a branch and one knows only the proof: their frontiers must be equal."""
    genesis = maintainer.project()
    author = Author(5)
    twin = author.branch()
    one, two = author.result(genesis.id, ZERO, ZERO), twin.announce(genesis.id)
    proof = Author(6).sign(fork_of(one, two), genesis.id)
    fill(ledger, genesis, one, proof)
    other = Store(tmp_path / "other")
    fill(other, genesis, proof)
    assert ledger.frontier(genesis.id) == other.frontier(genesis.id)
    other.close()


def test_a_proof_does_not_take_the_genesis_feed_of_the_same_nonce_away(ledger, maintainer):
    genesis = maintainer.project()
    twin = maintainer.branch()
    one, two = maintainer.announce(genesis.id), twin.announce(genesis.id, title="two")
    fill(ledger, genesis, one, Author(6).sign(fork_of(one, two), genesis.id))
    assert ledger.frontier(genesis.id)[genesis.feed] == FeedMark(1, genesis.id[:8])
    assert ledger.state(genesis.id) is not None


# --- derived rows, for people ---------------------------------------------------------------------


def test_a_result_may_come_before_its_job(ledger, maintainer):
    genesis = maintainer.project()
    job = maintainer.announce(genesis.id)
    cell = cell_ids(job, announce())[0]
    fill(ledger, genesis, Author(2).result(genesis.id, job.id, cell))
    row = ledger._db.execute("SELECT job, python, passed FROM results").fetchone()
    assert row == (None, None, 3)
    fill(ledger, job)
    row = ledger._db.execute("SELECT job, python, passed FROM results").fetchone()
    assert row == ("demo 1.0", "3.12", 3)


def test_the_views_are_readable_in_plain_sql(ledger, maintainer):
    genesis = maintainer.project(url="https://example.org")
    spec = Spec(
        python=("3.12", "3.13"), services=("redis + postgresql",), factors={"django": {"5": ()}}
    )
    job = maintainer.announce(genesis.id, spec=spec, commit="abc")
    cell = cell_ids(job, announce(spec=spec))[0]
    run = Author(2).result(genesis.id, job.id, cell, passed=4, failed=1)
    fork = Author(2).branch().result(genesis.id, job.id, cell)
    fill(ledger, genesis, job, run, maintainer.withdraw(genesis.id, job.id))
    ledger.append(fork, LATER)
    db = sqlite3.connect(ledger._db.execute("PRAGMA database_list").fetchone()[2])
    db.row_factory = sqlite3.Row

    def one(view: str) -> dict[str, object]:
        return dict(db.execute(f"SELECT * FROM {view}").fetchone())

    project = one("projects")
    assert (project["name"], project["jobs"]) == ("demo", 1)
    assert project["updated"].startswith("2027-01-15")
    found = one("jobs")
    assert (found["title"], found["commit"], found["withdrawn"]) == ("demo 1.0", "abc", 1)
    found = one("results")
    assert (found["services"], found["factors"]) == ("postgresql redis", "django=5")
    assert (found["passed"], found["failed"], found["total"]) == (4, 1, 5)
    assert found["environment"] == "cpython 3.12.1 linux x86_64"
    assert found["disputed"] == 1
    assert one("volunteers")["completed"] == 1
    assert [row["kind"] for row in db.execute("SELECT kind FROM entries")] == [
        "project", "announce", "result", "withdraw",
    ]  # fmt: skip
    assert db.execute("SELECT count(*) FROM feeds").fetchone()[0] == 3
    db.close()


def test_segments_begin_where_asked_and_end_at_the_bound(ledger, maintainer):
    genesis = maintainer.project()
    jobs = [maintainer.announce(genesis.id, title=str(i)) for i in range(5)]
    fill(ledger, genesis, *jobs)
    ref = jobs[0].feed
    assert ledger.segment(genesis.id, ref, 2, 1 << 20) == [job.frame for job in jobs[2:]]
    size = len(jobs[0].frame)
    assert ledger.segment(genesis.id, ref, 0, 2 * size) == [job.frame for job in jobs[:2]]
    assert ledger.segment(genesis.id, ref, 9, 1 << 20) == []
    assert ledger.segment(genesis.id, genesis.feed, 0, 1 << 20) == [genesis.frame]


def test_entries_of_some_kinds_come_in_order_of_arrival(ledger, maintainer):
    genesis = maintainer.project()
    jobs = [maintainer.announce(genesis.id, title=str(i)) for i in range(3)]
    fill(ledger, genesis, *jobs)
    assert ledger.entries(genesis.id, (Kind.ANNOUNCE, Kind.PROJECT)) == [genesis, *jobs]
    assert ledger.entries(genesis.id, (Kind.RESULT,)) == []


# --- quotas and faults ------------------------------------------------------------------------


def test_an_author_opens_only_so_many_feeds(ledger, maintainer, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_FEEDS_PER_AUTHOR", 3)
    genesis = maintainer.project()
    fill(ledger, genesis)
    entries = [Author(5, nonce=bytes([n]) * 8).result(genesis.id, ZERO, ZERO) for n in range(4)]
    fill(ledger, *entries[:3])
    assert ledger.append(entries[3], LATER) == Refused("too-many-feeds")


def test_a_feed_that_is_too_large_stays_a_valid_prefix(ledger, maintainer, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_BYTES_PER_FEED", 1000)
    genesis = maintainer.project()
    fill(ledger, genesis)
    author = Author(5)
    judgements = [ledger.append(author.result(genesis.id, ZERO, ZERO), LATER) for _ in range(6)]
    taken = judgements.count(Accept())
    assert 0 < taken < 5
    assert judgements[taken] == Refused("feed-too-large")
    assert set(judgements[taken + 1 :]) <= {Gap(taken)}


def test_a_quota_cuts_a_segment_where_a_signature_vouches_for_what_is_kept(
    ledger, maintainer, monkeypatch
):
    monkeypatch.setattr(store_module, "MAX_BYTES_PER_FEED", 2000)
    genesis = maintainer.project()
    fill(ledger, genesis)
    author, other = Author(5), Author(6)
    entries = [author.result(genesis.id, ZERO, ZERO) for _ in range(9)]
    small = [other.result(genesis.id, ZERO, ZERO)]
    judged, theirs = ledger.append_segments([entries, small], LATER)
    taken = judged.count(Accept())
    assert 0 < taken < 9
    assert judged[taken:] == [Refused("feed-too-large")] * (9 - taken)
    assert theirs == [Accept()], "one author's quota is no other's"
    frames = ledger.segment(genesis.id, entries[0].feed, 0, 1 << 20)
    assert frames == [entry.frame for entry in entries[:taken]]
    check_segment([decode_frame(frame) for frame in frames])
    # Asked again and again, it keeps no more, and says why.
    assert ledger.append_segment(entries, LATER)[taken] == Refused("feed-too-large")
    assert ledger.count() == taken + 2


def test_the_number_of_feeds_is_one_authors_in_one_project(ledger, maintainer, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_FEEDS_PER_AUTHOR", 2)
    genesis, elsewhere = maintainer.project(), Author(2).project()
    fill(ledger, genesis, elsewhere)

    def feeds(number: int, project: bytes) -> list[list[Entry]]:
        authors = [Author(number, nonce=bytes([n]) * 8) for n in range(4)]
        return [[author.result(project, ZERO, ZERO) for _ in range(2)] for author in authors]

    no = Refused("too-many-feeds")
    for number, project in ((5, genesis.id), (6, genesis.id), (5, elsewhere.id)):
        judged = ledger.append_segments(feeds(number, project), LATER)
        assert judged == [[Accept()] * 2] * 2 + [[no] * 2] * 2
    # A feed that is there grows on.
    more = Author(5, nonce=bytes([1]) * 8)
    entries = [more.result(genesis.id, ZERO, ZERO) for _ in range(3)]
    assert ledger.append_segment(entries, LATER)[-1] == Accept()


def test_a_full_ledger_gives_no_dropped_payload_back_and_hears_maintainers(tmp_path, maintainer):
    path, genesis, author = tmp_path / "ledger", maintainer.project(), Author(5)
    entries = [author.result(genesis.id, ZERO, ZERO) for _ in range(3)]
    ledger = Store(path)
    fill(ledger, genesis)
    bare = [without_payload(entry) for entry in entries]
    assert ledger.append_segment(bare, LATER) == [Accept()] * 3
    ledger.close()
    full = Store(path, budget=1)
    for judgements in full.append_segments(
        [entries, [author.result(genesis.id, ZERO, ZERO)]], LATER
    ):
        assert set(judgements) == {Refused("ledger-full")}
    fill(full, maintainer.announce(genesis.id))
    full.close()
    roomy = Store(path, budget=1 << 30)
    judgements = roomy.append_segment(entries, LATER)
    assert all(isinstance(judgement, Completed) for judgement in judgements)
    roomy.close()


def test_above_the_budget_only_maintainers_are_heard(tmp_path, maintainer):
    ledger = Store(tmp_path / "ledger", budget=1)
    genesis = maintainer.project()
    fill(ledger, genesis, maintainer.announce(genesis.id))
    entry = Author(5).result(genesis.id, ZERO, ZERO)
    assert ledger.append(entry, LATER) == Refused("ledger-full")
    ledger.close()


def test_a_full_disk_loses_nothing_and_is_no_end(ledger, maintainer):
    genesis = maintainer.project()
    fill(ledger, genesis)
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    author = Author(5)
    kept: list[Entry] = []
    with told("the ledger could not be written (…): free some disk space; nothing was lost"):
        for _ in range(500):
            batch = [author.result(genesis.id, ZERO, ZERO) for _ in range(3)]
            assert ledger.append_all(batch, LATER) == [Accept()] * 3
            kept += batch
    assert kept
    assert all(ledger.holds(entry.id) for entry in kept)
    assert not any(ledger.holds(entry.id) for entry in batch)
    assert ledger.frontier(genesis.id)[kept[-1].feed] == FeedMark(len(kept), kept[-1].id[:8])
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 2000}")
    fill(ledger, *batch)
    assert reader(ledger).verify(lambda _: None) == []


def test_a_fault_in_a_batch_forgets_what_it_had_learned(ledger, maintainer, monkeypatch):
    genesis = maintainer.project()
    job = maintainer.announce(genesis.id)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(ledger._views, "add_job", fail)
        with pytest.raises(InfraError):
            ledger.append_all([genesis, job], LATER)
    assert ledger.state(genesis.id) is None
    assert ledger.append(job, LATER) == Refused("unknown-project")
    fill(ledger, genesis, job)


def test_the_state_follows_what_another_process_wrote(tmp_path, maintainer):
    one, two = Store(tmp_path / "ledger"), Store(tmp_path / "ledger")
    genesis = maintainer.project()
    assert one.state(genesis.id) is None
    fill(two, genesis)
    assert one.state(genesis.id).record.name == "demo"
    fill(two, maintainer.sign(project_record(maintainer, name="new"), genesis.id))
    assert one.state(genesis.id).record.name == "new"
    one.close()
    two.close()


def test_a_ledger_survives_being_closed_and_opened(tmp_path, maintainer):
    genesis = maintainer.project()
    job = maintainer.announce(genesis.id)
    ledger = Store(tmp_path / "ledger")
    fill(ledger, genesis, job, maintainer.withdraw(genesis.id, job.id))
    frontier, state, ended = (f(genesis.id) for f in (ledger.frontier, ledger.state, ledger.ended))
    ledger.close()
    ledger = Store(tmp_path / "ledger")
    assert (frontier, state, ended) == (
        ledger.frontier(genesis.id), ledger.state(genesis.id), ledger.ended(genesis.id),
    )  # fmt: skip
    ledger.close()


def test_a_file_that_is_no_ledger_or_a_later_one_is_said_so(tmp_path):
    path = tmp_path / "ledger"
    path.write_bytes(b"hello" * 1000)
    with told(
        "… cannot be opened as a database (…): if it is damaged, move it away; peers give the "
        "ledger back"
    ):
        Store(path)
    path = tmp_path / "later"
    Store(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.commit()
    db.close()
    with told("… was written by a later PonySwarm (schema 99): update this one"):
        Store(path)


def test_verify_finds_what_was_changed_behind_the_ledgers_back(ledger, maintainer):
    genesis = maintainer.project()
    job = maintainer.announce(genesis.id, expires=FAR)
    fill(ledger, genesis, job, Author(5).result(genesis.id, job.id, ZERO))
    assert reader(ledger).verify(lambda _: None) == []
    ledger._db.execute("UPDATE outcome SET failed = 9")
    ledger._db.execute("UPDATE feed SET height = 7 WHERE feed = 2")
    frame = bytearray(job.frame)
    frame[165] ^= 1
    ledger._db.execute("UPDATE entry SET frame = ? WHERE id = ?", (bytes(frame), job.id))
    faults = " / ".join(reader(ledger).verify(lambda _: None))
    assert "'result'" in faults
    assert "feed 2" in faults
    assert "signature" in faults
