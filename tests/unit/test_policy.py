"""Rights: who may say what, as a function of the set of entries."""

from __future__ import annotations

from dataclasses import replace

import pytest
from authors import NOW, Author, announce, digest, project_record, result
from hypothesis import given
from hypothesis import strategies as st

from ponyswarm.codec import Entry, decode_payload
from ponyswarm.messages import Cosign, Project
from ponyswarm.policy import (
    ReaderPolicy,
    advance,
    agreeing_roots,
    cosign_text,
    draft_refusal,
    fold,
    has_force,
    refusal,
    run_refusal,
)

JOB = digest("job")


def told(*entries: Entry):
    return fold((entry, decode_payload(entry)) for entry in entries)


def refused(state, entry: Entry) -> str | None:
    return refusal(state, entry, decode_payload(entry))


def in_force(state, entry: Entry) -> bool:
    return has_force(state, entry, decode_payload(entry))


def cosigned(record: Project, *roots: Author) -> Project:
    text = cosign_text(record)
    cosigns = tuple(Cosign(key=root.public, signature=root.key.sign(text)) for root in roots)
    return replace(record, cosigns=cosigns)


def test_a_genesis_record_names_its_author_as_a_root():
    assert refused(None, Author(1).project()) is None
    assert refused(None, Author(1).sign(project_record(Author(2)))) == "bad-genesis"


def test_a_threshold_that_no_set_of_roots_reaches_is_refused():
    one = Author(1)
    assert refused(None, one.sign(project_record(one, one, threshold=2))) == "bad-genesis"
    genesis = one.project()
    later = one.sign(project_record(one, threshold=2), genesis.id)
    assert refused(told(genesis), later) == "unauthorised-project"


def test_nothing_is_judged_before_the_record_is_known():
    assert refused(None, Author(1).announce(digest("project"))) == "unknown-project"


@pytest.mark.parametrize("kind", ["announce", "withdraw", "vouch", "project", "revoke"])
def test_a_stranger_directs_nothing(kind):
    genesis = Author(1).project()
    stranger = Author(9)
    entry = {
        "announce": lambda: stranger.announce(genesis.id),
        "withdraw": lambda: stranger.withdraw(genesis.id, JOB),
        "vouch": lambda: stranger.vouch(genesis.id, stranger.public, "me"),
        "project": lambda: stranger.sign(project_record(stranger), genesis.id),
        "revoke": lambda: stranger.revoke(genesis.id, Author(1).public, 0),
    }[kind]()
    assert refused(told(genesis), entry) == f"unauthorised-{kind}"


def test_anyone_may_publish_a_result_and_end_its_own_key():
    genesis = Author(1).project()
    stranger = Author(9)
    assert refused(told(genesis), stranger.result(genesis.id, JOB, JOB)) is None
    assert refused(told(genesis), stranger.revoke(genesis.id, stranger.public, 0)) is None


def test_an_announcer_announces_and_is_no_root():
    root, announcer = Author(1), Author(2)
    genesis = root.project(announcers=(announcer.public,))
    state = told(genesis)
    assert refused(state, announcer.announce(genesis.id)) is None
    takeover = announcer.sign(project_record(announcer), genesis.id)
    assert refused(state, takeover) == "unauthorised-project"


def test_a_later_record_needs_the_threshold_of_the_one_before():
    one, two, three = Author(1), Author(2), Author(3)
    genesis = one.sign(project_record(one, two, three, threshold=2))
    state = told(genesis)
    record = project_record(one, two, name="renamed")
    alone = one.branch().sign(record, genesis.id)
    assert refused(state, alone) == "unauthorised-project"
    for_another = cosigned(replace(record, name="x"), two).cosigns
    forged = one.branch().sign(replace(record, cosigns=for_another), genesis.id)
    assert refused(state, forged) == "unauthorised-project"
    twice = one.branch().sign(cosigned(record, one, one), genesis.id)
    assert refused(state, twice) == "unauthorised-project"
    stranger = one.branch().sign(cosigned(record, Author(9)), genesis.id)
    assert refused(state, stranger) == "unauthorised-project"
    together = one.branch().sign(cosigned(record, two), genesis.id)
    assert refused(state, together) is None
    assert told(genesis, together).record.name == "renamed"


def test_agreeing_roots_counts_keys_not_signatures():
    one, two = Author(1), Author(2)
    record = cosigned(project_record(one, two), two, two, one)
    roots = {one.public, two.public}
    assert agreeing_roots(record, one.public, roots) == 2
    assert agreeing_roots(record, two.public, roots) == 2
    assert agreeing_roots(record, Author(9).public, {one.public}) == 1


def test_an_announcement_has_force_by_the_record_of_its_own_time():
    """So a newcomer that gets the records first takes the old jobs of a former announcer."""
    root, former = Author(1), Author(2)
    genesis = root.project(announcers=(former.public,))
    before = former.sign(announce(), genesis.id, NOW + 1000)
    removal = root.sign(project_record(root), genesis.id, NOW + 2000)
    after = former.sign(announce(), genesis.id, NOW + 3000)
    state = told(genesis, removal)
    assert refused(state, before) is None
    assert in_force(state, before)
    assert refused(state, after) is None  # The feed stays whole, and the entry moves nobody.
    assert not in_force(state, after)


def test_a_revoked_key_has_force_until_its_end():
    root, announcer = Author(1), Author(2)
    genesis = root.project(announcers=(announcer.public,))
    before = announcer.sign(announce(), genesis.id, NOW + 1000)
    after = announcer.sign(announce(), genesis.id, NOW + 3000)
    state = told(genesis, root.revoke(genesis.id, announcer.public, NOW + 2000))
    assert in_force(state, before)
    assert not in_force(state, after)
    assert refused(state, after) is None
    assert draft_refusal(state, after, decode_payload(after)) == "unauthorised-announce"
    assert draft_refusal(state, before, decode_payload(before)) is None


def test_a_revoked_root_changes_nothing_any_more():
    one, two = Author(1), Author(2)
    genesis = one.sign(project_record(one, two))
    state = told(
        genesis,
        one.sign(project_record(one, two, name="kept"), genesis.id, NOW + 1000),
        two.revoke(genesis.id, one.public, NOW + 1500),
        one.sign(project_record(one, name="stolen"), genesis.id, NOW + 2000),
        one.sign(decode_payload(Author(1).vouch(JOB, JOB, "x")), genesis.id, NOW + 2001),
    )
    assert state.record.name == "kept"
    assert state.operators == {}
    assert not state.may_announce(one.public, NOW + 1500)
    assert state.may_announce(one.public, NOW + 1499)


def test_a_revocation_is_never_taken_back_nor_moved_later():
    root = Author(1)
    genesis = root.project()
    state = told(
        genesis,
        root.revoke(genesis.id, JOB, NOW + 10),
        root.revoke(genesis.id, JOB, NOW + 99),
    )
    assert state.revoked == {JOB: NOW + 10}


def test_the_last_vouch_names_the_operator():
    root = Author(1)
    genesis = root.project()
    first = root.vouch(genesis.id, JOB, "alice")
    state = told(genesis, first, root.vouch(genesis.id, JOB, "bob"))
    assert state.operators == {JOB: "bob"}
    assert state.vouched[JOB] > first.header.time


def small_history() -> tuple[Entry, list[Entry]]:
    one, two, three = Author(1), Author(2), Author(3)
    genesis = one.sign(project_record(one, announcers=(three.public,)))
    id_ = genesis.id
    return genesis, [
        one.sign(project_record(one, two, announcers=(three.public,)), id_),
        two.sign(project_record(two, name="by two"), id_, NOW + 2500),
        one.sign(project_record(one, name="too late"), id_, NOW + 3000),
        three.vouch(id_, JOB, "by three"),
        one.vouch(id_, JOB, "by one"),
        two.vouch(id_, JOB, "by two"),
        two.revoke(id_, one.public, NOW + 2600),
        one.revoke(id_, two.public, NOW + 2700),
    ]


@given(st.randoms(), st.integers(0, 8))
def test_the_state_is_the_same_whatever_order_entries_arrived_in(chance, at_once):
    genesis, entries = small_history()
    expected = told(genesis, *entries)
    chance.shuffle(entries)
    state = told(*entries[:at_once], genesis)
    for entry in entries[at_once:]:
        state = advance(state, entry, decode_payload(entry))
    assert state == expected


@given(st.randoms())
def test_what_is_taken_in_the_end_is_the_same_whatever_order_entries_arrived_in(chance):
    """Refused entries come again by sync, so taking must only ever grow."""

    def settle(entries: list[Entry]) -> set[bytes]:
        state, taken, missing = None, set(), list(entries)
        while True:
            kept = []
            for entry in missing:
                payload = decode_payload(entry)
                if refusal(state, entry, payload) is None:
                    state = advance(state, entry, payload)
                    taken.add(entry.id)
                else:
                    kept.append(entry)
            if len(kept) == len(missing):
                return taken
            missing = kept

    genesis, entries = small_history()
    stranger = Author(9)
    entries += [stranger.announce(genesis.id), Author(2).announce(genesis.id)]
    expected = settle([genesis, *entries])
    shuffled = [genesis, *entries]
    chance.shuffle(shuffled)
    assert settle(shuffled) == expected
    assert len(expected) == len(entries)  # All but the stranger's.


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"trusted": ()}, "not trusted"),
        ({"withdrawn": True}, "withdrew"),
        ({"expires": NOW}, "expired"),
        ({}, None),
    ],
)
def test_a_job_runs_only_if_trusted_open_and_not_withdrawn(facts, word):
    project = digest("project")
    given_ = {"trusted": {project}, "expires": NOW + 1, "now": NOW, "withdrawn": False, **facts}
    answer = run_refusal(project, **given_)
    assert (answer is None) if word is None else (word in answer)


def test_a_reader_counts_whom_it_chooses():
    key, other = digest("a"), digest("b")
    assert ReaderPolicy().counts(key, {})
    assert ReaderPolicy(keys=frozenset([key])).counts(key, {})
    assert not ReaderPolicy(keys=frozenset([key])).counts(other, {other: "x"})
    assert ReaderPolicy(vouched_only=True).counts(key, {key: "x"})
    assert not ReaderPolicy(vouched_only=True).counts(other, {key: "x"})


def test_results_are_anyones_whatever_they_say():
    genesis = Author(1).project()
    author = Author(5)
    entry = author.sign(result(JOB, JOB, state="broken", reason="timeout"), genesis.id)
    assert refused(told(genesis), entry) is None
