"""Rights: who may say what, as a function of the set of entries."""

from __future__ import annotations

import pytest
from authors import NOW, Author, announce, digest, project_record, result
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ponyswarm.codec import Entry, decode_payload
from ponyswarm.messages import Approve, Cosign, CrossCheck, Project, Rotate, Spec
from ponyswarm.policy import (
    ReaderPolicy,
    Standing,
    advance,
    agreeing_roots,
    cosign_text,
    cross_check,
    draft_refusal,
    fold,
    has_force,
    refusal,
    rotation,
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
    record = project_record(one, two, name="renamed")

    def names(payload: Project) -> str:
        entry = one.branch().sign(payload, genesis.id)
        assert refused(told(genesis), entry) is None  # Anyone may propose who is a root.
        return told(genesis, entry).record.name

    assert names(record) == "demo"
    for_another = cosigned(replace(record, name="x"), two).cosigns
    assert names(replace(record, cosigns=for_another)) == "demo"
    assert names(cosigned(record, one, one)) == "demo"
    assert names(cosigned(record, Author(9))) == "demo"
    assert names(cosigned(record, two)) == "renamed"


def test_roots_agree_by_entries_of_their_own():
    one, two, three = Author(1), Author(2), Author(3)
    genesis = one.sign(project_record(one, two, three, threshold=2))
    record = project_record(one, two, name="renamed")
    proposal = one.sign(record, genesis.id, NOW + 1000)
    state = told(genesis, proposal)
    (open_,) = state.proposals
    assert (open_.id, open_.agreed) == (proposal.id, frozenset([one.public]))
    twice = one.sign(Approve(record=proposal.id), genesis.id, NOW + 2000)
    stranger = Author(9).sign(Approve(record=proposal.id), genesis.id, NOW + 2000)
    assert refused(state, stranger) == "unauthorised-approve"
    assert told(genesis, proposal, twice, stranger).record.name == "demo"
    approval = two.sign(Approve(record=proposal.id), genesis.id, NOW + 3000)
    assert refused(state, approval) is None
    state = told(genesis, proposal, approval)
    assert state.record.name == "renamed"
    assert state.proposals == ()
    assert state.record_at(NOW + 2999).name == "demo"
    # The clock of who proposed may be behind that of who approved.
    early = two.branch().sign(Approve(record=proposal.id), genesis.id, NOW + 500)
    assert told(genesis, proposal, early).record.name == "renamed"


def test_a_proposal_never_undoes_a_change_that_it_did_not_know():
    one, two = Author(1), Author(2)
    genesis = one.sign(project_record(one, two, threshold=2))
    record = project_record(one, two, threshold=2, replaces=genesis.id)
    old = one.sign(replace(record, name="old idea"), genesis.id, NOW + 1000)
    new = one.sign(cosigned(replace(record, name="new"), two), genesis.id, NOW + 2000)
    late = two.sign(Approve(record=old.id), genesis.id, NOW + 3000)
    state = told(genesis, old, new, late)
    assert (state.record.name, state.entry) == ("new", new.id)
    assert [open_.stale for open_ in state.proposals] == [True]


def test_who_a_proposal_names_has_no_right_before_it_is_agreed():
    one, two, friend = Author(1), Author(2), Author(7)
    genesis = one.sign(project_record(one, two, threshold=2))
    proposal = one.sign(project_record(one, friend), genesis.id)
    job = friend.announce(genesis.id)
    assert refused(told(genesis, proposal), job) == "unauthorised-announce"
    agreed = two.sign(Approve(record=proposal.id), genesis.id)
    assert refused(told(genesis, proposal, agreed), job) is None


# --- a key gives its place to a successor -----------------------------------------------------


def rotated(project: bytes, old: Author, new: Author, time: int) -> Entry:
    return old.sign(rotation(project, old.public, new.key), project, time)


def test_a_successor_has_the_rights_the_operator_and_the_record_of_the_key_before():
    root, announcer, heir = Author(1), Author(2), Author(3)
    genesis = root.project(announcers=(announcer.public,))
    vouch = root.vouch(genesis.id, announcer.public, "alice")
    entry = rotated(genesis.id, announcer, heir, NOW + 5000)
    state = told(genesis, vouch)
    assert refused(state, entry) is None
    state = told(genesis, vouch, entry)
    assert state.may_announce(heir.public, NOW + 6000)
    assert not state.may_announce(announcer.public, NOW + 6000)
    assert state.may_announce(announcer.public, NOW + 4000)
    assert refused(state, heir.announce(genesis.id)) is None
    standing = state.standing()
    assert standing.voice(heir.public) == standing.voice(announcer.public) == "alice"
    assert ReaderPolicy(vouched_only=True).counts(heir.public, standing)


def test_unvouched_keys_of_one_line_are_one_voice():
    genesis = Author(1).project()
    old, new, newest = Author(4), Author(5), Author(6)
    entries = [
        rotated(genesis.id, old, new, NOW + 2000),
        rotated(genesis.id, new, newest, NOW + 3000),
    ]
    standing = told(genesis, *entries).standing()
    assert {standing.voice(key.public) for key in (old, new, newest)} == {old.public}


def test_nobody_takes_a_place_without_both_signatures():
    genesis, thief, victim = Author(1).project(), Author(2), Author(3)
    state = told(genesis)
    signed_by_thief = rotation(genesis.id, thief.public, thief.key).signature
    forged = thief.sign(Rotate(successor=victim.public, signature=signed_by_thief), genesis.id)
    assert refused(state, forged) == "bad-rotation"
    elsewhere = rotation(digest("another project"), thief.public, victim.key)
    assert refused(state, thief.branch().sign(elsewhere, genesis.id)) == "bad-rotation"
    to_itself = rotation(genesis.id, thief.public, thief.key)
    assert refused(state, thief.branch().sign(to_itself, genesis.id)) == "bad-rotation"


def test_a_key_gives_its_place_once_and_never_in_a_ring():
    genesis, a, b, c = Author(1).project(), Author(2), Author(3), Author(4)
    state = told(
        genesis,
        rotated(genesis.id, a, b, NOW + 1000),
        rotated(genesis.id, a, c, NOW + 1000),
        rotated(genesis.id, b, a, NOW + 2000),
    )
    assert state.before == {b.public: a.public}
    assert set(state.revoked) == {a.public}


def test_a_revoked_key_gives_its_place_to_nobody():
    root, stolen, thief = Author(1), Author(2), Author(3)
    genesis = root.project(announcers=(stolen.public,))
    ended = root.revoke(genesis.id, stolen.public, NOW + 1500)
    state = told(genesis, ended, rotated(genesis.id, stolen, thief, NOW + 3000))
    assert not state.may_announce(thief.public, NOW + 9000)


def test_a_rotated_root_is_still_one_of_the_threshold():
    one, two, heir = Author(1), Author(2), Author(3)
    genesis = one.sign(project_record(one, two, threshold=2))
    turned = rotated(genesis.id, two, heir, NOW + 1000)
    proposal = one.sign(project_record(one, two, name="renamed"), genesis.id, NOW + 2000)
    by_old = two.sign(Approve(record=proposal.id), genesis.id, NOW + 3000)
    by_new = heir.sign(Approve(record=proposal.id), genesis.id, NOW + 3000)
    assert told(genesis, turned, proposal, by_old).record.name == "demo"
    assert told(genesis, turned, proposal, by_new).record.name == "renamed"


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
        rotated(id_, three, Author(4), NOW + 2800),
        two.sign(Approve(record=genesis.id), id_, NOW + 2900),
    ]


@given(st.randoms(), st.integers(0, 10))
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
    vouched = Standing(operators={key: "x"})
    assert ReaderPolicy().counts(key, Standing())
    assert not ReaderPolicy().counts(key, Standing(forked=frozenset([key])))
    assert ReaderPolicy(keys=frozenset([key])).counts(key, Standing())
    assert not ReaderPolicy(keys=frozenset([key])).counts(other, vouched)
    assert ReaderPolicy(keys=frozenset([key])).counts(other, Standing(before={other: key}))
    assert ReaderPolicy(vouched_only=True).counts(key, vouched)
    assert not ReaderPolicy(vouched_only=True).counts(other, vouched)


@pytest.mark.parametrize(
    ("job", "project", "redundancy", "mode"),
    [
        ("open", "open", 2, "open"),
        ("blind", "open", 2, "blind"),
        ("open", "blind", 2, "blind"),
        ("blind", "blind", 1, "open"),
    ],
)
def test_a_job_is_blind_when_it_or_its_project_says_so(job, project, redundancy, mode):
    genesis = Author(1).project(cross_check=CrossCheck(mode=project))
    spec = Spec(python=("3.12",), redundancy=redundancy, cross_check=job)
    check = cross_check(told(genesis), announce(spec=spec), NOW)
    assert (check.mode, check.redundancy) == (mode, redundancy)


def test_results_are_anyones_whatever_they_say():
    genesis = Author(1).project()
    author = Author(5)
    entry = author.sign(result(JOB, JOB, state="broken", reason="timeout"), genesis.id)
    assert refused(told(genesis), entry) is None
