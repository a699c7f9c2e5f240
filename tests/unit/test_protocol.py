"""What a node does about what it hears, as a dialogue: an event in, effects out."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from authors import FAR, NOW, Author, announce, cell_ids, digest, environment, result

from ponyswarm.codec import decode_gossip, decode_payload
from ponyswarm.messages import Claim, Entry, Interpreter, Offer, Spec
from ponyswarm.p2p.claims import GIVE_UP_MS
from ponyswarm.p2p.effects import (
    Admit,
    Effect,
    Fetch,
    Heard,
    Penalise,
    Publish,
    Pull,
    Run,
    Stop,
    Subscribe,
    Unsubscribe,
)
from ponyswarm.p2p.following import CATCH_UP_MS, PULL_PAUSE_MS
from ponyswarm.p2p.jobs import CLOCK_MS, GIVE_WAY_MS, STALE_MS
from ponyswarm.p2p.offers import Capacity
from ponyswarm.p2p.protocol import MESH_MS, Protocol
from ponyswarm.p2p.scheduling import AGAIN_MS, FIRM_MS, LEASE_MS, OLDEST_MS, RENEW_MS, SETTLE_MS
from ponyswarm.p2p.topics import DIRECTORY, project_topic, topic_project

ME, PEER, OTHER = (Author(n).public for n in (50, 51, 52))
CAPACITY = Capacity(
    interpreters=(Interpreter(implementation="cpython", version="3.12.1"),),
    services=("redis",),
    system="linux",
    machine="x86_64",
    slots=2,
)


class Scene:
    """One node that follows one project, and the time."""

    def __init__(self, *, trusted: bool = True, capacity: Capacity | None = CAPACITY) -> None:
        self.protocol = Protocol(ME, capacity, random.Random(1))
        self.now = NOW + 60_000
        self.maintainer = Author(1)
        self.genesis = self.maintainer.project()
        self.project = self.genesis.id
        self.protocol.follow(self.project, trusted=trusted, genesis=self.genesis, now=self.now)

    def job(self, *, own: bool = False, **facts: object) -> tuple[Entry, list[bytes]]:
        payload = announce(**facts)
        entry = self.maintainer.sign(payload, self.project)
        self.admit(entry, own=own)
        return entry, cell_ids(entry, payload)

    def admit(self, entry: Entry, *, peer: bytes | None = PEER, own: bool = False) -> list[Effect]:
        payload = decode_payload(entry)
        return self.protocol.admitted(entry, payload, self.now, peer=peer, own=own)

    def hear(self, message: Entry | Offer | Claim, origin: bytes = PEER) -> list[Effect]:
        return self.protocol.gossip(self.project, origin, PEER, message, self.now)

    def tick(self, after: int = 0) -> list[Effect]:
        self.now += after
        return self.protocol.tick(self.now)

    def claims(self, effects: list[Effect]) -> list[Claim]:
        said = [decode_gossip(e.data) for e in effects if isinstance(e, Publish)]
        return [message for message in said if isinstance(message, Claim)]


def runs(effects: list[Effect]) -> list[Run]:
    return [effect for effect in effects if isinstance(effect, Run)]


def peers_offer(until: int = FAR, slots: int = 1) -> Offer:
    return Offer(
        interpreters=CAPACITY.interpreters,
        services=(),
        system="linux",
        machine="x86_64",
        slots=slots,
        until=until,
    )


@pytest.fixture
def scene() -> Scene:
    return Scene()


# --- projects and peers ------------------------------------------------------------------


def test_following_subscribes_and_asks_the_peers(scene):
    other = digest("other project")
    scene.protocol.connected(PEER, scene.now)
    effects = scene.protocol.follow(other, trusted=False, genesis=None, now=scene.now)
    assert effects == [Subscribe(project_topic(other)), Pull(PEER, other)]
    assert scene.protocol.followed == {scene.project, other}
    assert scene.protocol.unfollow(other) == [Unsubscribe(project_topic(other))]
    assert scene.protocol.unfollow(other) == []


def test_a_peer_that_had_no_answer_is_asked_as_soon_as_it_follows(scene):
    project = scene.project
    assert scene.protocol.connected(PEER, scene.now) == [Pull(PEER, project)]
    scene.protocol.pulled(PEER, project, knows=False)
    scene.tick(2 * PULL_PAUSE_MS)
    assert scene.protocol.peer_follows(PEER, project, scene.now) == [Pull(PEER, project)]
    again = scene.tick(CATCH_UP_MS)
    assert [e for e in again if isinstance(e, Pull)] == [Pull(PEER, project)]
    # It cannot make us ask, or tell our offers, by saying so again and again.
    scene.tick(2 * PULL_PAUSE_MS)
    assert scene.protocol.peer_follows(PEER, project, scene.now) == []
    assert scene.protocol.peer_follows(PEER, digest("not ours"), scene.now) == []


def test_a_peer_that_answered_is_not_asked_for_following_but_told_what_stands(scene):
    scene.protocol.connected(PEER, scene.now)
    scene.protocol.pulled(PEER, scene.project, knows=True)
    scene.tick(5_000)
    assert scene.protocol.peer_follows(PEER, scene.project, scene.now) == []
    told = [e for e in scene.tick(MESH_MS) if isinstance(e, Publish)]
    assert [e.topic for e in told] == [project_topic(scene.project)]
    scene.protocol.disconnected(PEER, scene.now)
    assert scene.protocol.peer_follows(PEER, scene.project, scene.now) == []


def test_topics_name_projects():
    project = digest("p")
    assert topic_project(project_topic(project)) == project
    for topic in (DIRECTORY, "/ponyswarm/1/p/", "/ponyswarm/1/p/zz", "/ponyswarm/1/p/" + "a" * 62):
        assert topic_project(topic) is None


def test_a_gap_right_after_a_pull_is_asked_about_a_little_later(scene):
    assert scene.protocol.connected(PEER, scene.now) == [Pull(PEER, scene.project)]
    entry = scene.maintainer.announce(scene.project)
    assert scene.protocol.gap(entry, PEER, scene.now) == []
    assert scene.protocol.gap(entry, PEER, scene.now) == []
    later = scene.tick(PULL_PAUSE_MS)
    assert [e for e in later if isinstance(e, Pull)] == [Pull(PEER, scene.project)]
    assert not [e for e in scene.tick(1) if isinstance(e, Pull)]


def test_a_peer_that_left_is_not_asked(scene):
    scene.protocol.connected(PEER, scene.now)
    entry = scene.maintainer.announce(scene.project)
    scene.protocol.gap(entry, PEER, scene.now)
    scene.protocol.disconnected(PEER, scene.now)
    assert not [e for e in scene.tick(PULL_PAUSE_MS) if isinstance(e, Pull)]
    assert scene.protocol.gap(entry, PEER, scene.now) == []


def test_peers_are_asked_again_and_again(scene):
    scene.protocol.connected(PEER, scene.now)
    pulls = [e for _ in range(600) for e in scene.tick(1000) if isinstance(e, Pull)]
    assert 8 <= len(pulls) <= 14


# --- gossip ---------------------------------------------------------------------------------


def test_the_directory_takes_genesis_entries_only(scene):
    genesis = Author(2).project()
    heard = scene.protocol.gossip(None, PEER, PEER, genesis, scene.now)
    assert heard == [Heard(genesis)]
    for message in (scene.maintainer.announce(scene.project), peers_offer()):
        effects = scene.protocol.gossip(None, OTHER, PEER, message, scene.now)
        assert effects == [Penalise(PEER, "bad-directory")]


def test_an_entry_on_another_projects_topic_is_held_against_its_forwarder(scene):
    assert scene.hear(Author(2).project()) == [Penalise(PEER, "wrong-topic")]


def test_an_entry_goes_to_the_ledger_first(scene):
    entry = scene.maintainer.announce(scene.project)
    assert scene.hear(entry) == [Admit(entry, PEER)]


def test_gossip_of_a_project_that_is_not_followed_is_nothing(scene):
    effects = scene.protocol.gossip(digest("?"), PEER, PEER, peers_offer(), scene.now)
    assert effects == []


def test_own_entries_are_told_and_others_are_not(scene):
    entry = scene.maintainer.announce(scene.project)
    assert not [e for e in scene.admit(entry) if isinstance(e, Publish)]
    entry = scene.maintainer.announce(scene.project)
    (told,) = [e for e in scene.admit(entry, own=True) if isinstance(e, Publish)]
    assert (told.topic, decode_gossip(told.data)) == (project_topic(scene.project), entry)


def test_a_claim_counts_from_when_it_is_heard_whatever_its_author_s_clock_says(scene):
    job, (cell,) = scene.job(redundancy=1)
    for author, until in ((60, scene.now - CLOCK_MS), (61, FAR * 2)):
        scene.hear(Claim(job=job.id, cell=cell, until=until), Author(author).public)
    assert scene.claims(scene.tick(LEASE_MS - 1)) == []
    assert [claim.cell for claim in scene.claims(scene.tick(2))] == [cell]


def test_a_claim_that_somebody_kept_and_sends_again_is_nothing(scene):
    job, (cell,) = scene.job(redundancy=1)
    scene.hear(Claim(job=job.id, cell=cell, until=scene.now - STALE_MS))
    assert [claim.cell for claim in scene.claims(scene.tick())] == [cell]


def test_who_is_at_a_cell_is_known_until_the_claim_is_given_back_or_lapses(scene):
    job, cells = scene.job(own=True)
    assert scene.protocol.at_work(scene.now) == {}
    scene.hear(Claim(job=job.id, cell=cells[0], until=scene.now + LEASE_MS))
    assert scene.protocol.at_work(scene.now)[cells[0]] == {PEER: scene.now}
    assert scene.protocol.at_work(scene.now + LEASE_MS) == {}
    scene.hear(Claim(job=job.id, cell=cells[0], until=0))
    assert cells[0] not in scene.protocol.at_work(scene.now)


def test_a_claim_may_come_before_its_job(scene):
    """Where the announcement was lost and sync brings it, the others are at it already."""
    payload = announce(redundancy=1)
    job = scene.maintainer.sign(payload, scene.project)
    (cell,) = cell_ids(job, payload)
    scene.hear(Claim(job=job.id, cell=cell, until=scene.now + LEASE_MS))
    scene.now += 10_000
    scene.admit(job)
    assert scene.claims(scene.tick()) == []
    assert scene.claims(scene.tick(LEASE_MS)) != []


def test_who_let_its_claim_lapse_keeps_nobody_away_a_second_time(scene):
    job, (cell,) = scene.job(redundancy=1)
    idler = Claim(job=job.id, cell=cell, until=scene.now + LEASE_MS)
    scene.hear(idler)
    scene.now += 2 * LEASE_MS
    scene.hear(replace(idler, until=scene.now + LEASE_MS))
    assert [claim.cell for claim in scene.claims(scene.tick())] == [cell]


def test_a_lease_whose_renewals_were_lost_stands_where_it_stood_when_one_comes(scene):
    job, (cell,) = scene.job(redundancy=1)
    first = Claim(job=job.id, cell=cell, until=scene.now + LEASE_MS)
    scene.hear(first)
    scene.tick(LEASE_MS + 1)
    assert cell in scene.protocol.mine
    assert runs(scene.tick(SETTLE_MS)) == [Run(job.id, cell)]
    scene.hear(replace(first, until=scene.now + LEASE_MS))
    assert [type(e) for e in scene.tick() if isinstance(e, Stop)] == [Stop]


def test_a_run_that_turns_out_to_be_one_too_many_is_stopped_while_it_is_young(scene):
    job, (cell,) = scene.job(redundancy=1)
    scene.tick()
    scene.tick(SETTLE_MS)
    earlier = Claim(job=job.id, cell=cell, until=scene.now + LEASE_MS - SETTLE_MS - 1)
    scene.hear(earlier)
    assert [e.cell for e in scene.tick(1000) if isinstance(e, Stop)] == [cell]


def test_a_tick_leaves_nothing_that_is_due_at_once(scene):
    # Whoever comes back as soon as something is due would come back for ever.
    job, (cell,) = scene.job(redundancy=1, own=True)
    scene.tick()
    scene.tick(SETTLE_MS)
    assert scene.protocol.due > scene.now
    scene.hear(Claim(job=job.id, cell=cell, until=scene.now + LEASE_MS - 5_000))
    for after in (1, 1_000, 1_000, FIRM_MS):
        scene.tick(after)
        assert scene.protocol.due > scene.now


def test_a_run_that_is_no_longer_young_goes_on_whoever_else_is_at_it(scene):
    job, (cell,) = scene.job(redundancy=1)
    scene.tick()
    scene.tick(SETTLE_MS)
    scene.now += FIRM_MS
    scene.hear(Claim(job=job.id, cell=cell, until=scene.now - 2 * FIRM_MS))
    assert not [e for e in scene.tick(1000) if isinstance(e, Stop)]


def test_who_claims_a_cell_that_we_run_hears_at_once_that_we_do(scene):
    job, (cell,) = scene.job(redundancy=1)
    scene.tick()
    for _ in range(10):
        scene.tick(1000)
    scene.hear(Claim(job=job.id, cell=cell, until=scene.now + LEASE_MS))
    assert [claim.cell for claim in scene.claims(scene.tick(1))] == [cell]
    # And not again for each further claim of that moment.
    scene.hear(Claim(job=job.id, cell=cell, until=scene.now + LEASE_MS), OTHER)
    assert scene.claims(scene.tick(1)) == []


def test_a_claim_is_said_again_before_others_step_in(scene):
    scene.job(redundancy=1)
    said = [at for at in range(0, 6_000, 100) for _ in scene.claims(scene.tick(100))]
    assert said == [0, *AGAIN_MS]


def test_who_gives_a_cell_back_after_long_keeps_nobody_away_a_second_time(scene):
    job, (cell,) = scene.job(redundancy=1)
    scene.hear(Claim(job=job.id, cell=cell, until=scene.now + LEASE_MS))
    scene.now += GIVE_WAY_MS + 1
    scene.hear(Claim(job=job.id, cell=cell, until=0))
    scene.hear(Claim(job=job.id, cell=cell, until=scene.now + LEASE_MS))
    assert [claim.cell for claim in scene.claims(scene.tick())] == [cell]


def test_who_makes_way_a_second_time_keeps_nobody_away_a_third(scene):
    """It could otherwise push others off a cell for ever."""
    job, (cell,) = scene.job(redundancy=1)
    for _ in range(2):
        scene.hear(Claim(job=job.id, cell=cell, until=scene.now + LEASE_MS))
        assert not scene.claims(scene.tick(GIVE_WAY_MS - 1))
        scene.hear(Claim(job=job.id, cell=cell, until=0))
    scene.hear(Claim(job=job.id, cell=cell, until=scene.now + LEASE_MS))
    assert [claim.cell for claim in scene.claims(scene.tick())] == [cell]


def test_one_project_does_not_starve_another(scene):
    """Each has work without end; the slots go round."""
    other = Author(2).project(name="other")
    scene.protocol.follow(other.id, trusted=True, genesis=other, now=scene.now)
    scene.job(spec=many_cells(40))
    scene.admit(Author(2).sign(announce(spec=many_cells(40)), other.id))
    served: Counter[bytes] = Counter()
    for _ in range(24):
        scene.tick()
        scene.tick(SETTLE_MS)
        cell, mine = next(iter(scene.protocol.mine.items()))
        served[mine.project] += 1
        scene.now += 5_000
        scene.protocol.finished(cell, scene.now, published=True)
    assert set(served) == {scene.project, other.id}
    assert min(served.values()) >= 10


def test_nothing_is_due_before_the_time_that_it_names(scene):
    """What performs the effects may sleep until then."""
    scene.protocol.connected(PEER, scene.now)
    scene.job(spec=many_cells(5))
    scene.tick()
    for _ in range(200):
        due = scene.protocol.due
        assert due > scene.now
        assert scene.protocol.tick(due - 1) == []
        scene.now = due
        scene.tick()


# --- runs ----------------------------------------------------------------------------------------


def test_a_cell_is_claimed_settles_runs_and_is_renewed(scene):
    job, (cell,) = scene.job(redundancy=1)
    effects = scene.tick()
    assert scene.claims(effects) == [Claim(job=job.id, cell=cell, until=scene.now + LEASE_MS)]
    assert runs(effects) == runs(scene.tick(SETTLE_MS - 1)) == []
    assert runs(scene.tick(1)) == [Run(job.id, cell)]
    assert runs(scene.tick(1)) == []
    first = scene.now - SETTLE_MS - 1
    renewed = scene.claims(scene.tick(RENEW_MS))
    assert [claim.until for claim in renewed] == [first + LEASE_MS], "it says when it was made"
    for _ in range(20):
        renewed = scene.claims(scene.tick(RENEW_MS))
    assert [claim.until for claim in renewed] == [scene.now - OLDEST_MS], "and that it is fresh"
    scene.protocol.finished(cell, scene.now, published=True)
    assert scene.claims(scene.tick(RENEW_MS)) == []


def test_a_claim_gives_way_to_one_that_was_made_before(scene):
    job, (cell,) = scene.job(redundancy=1)
    scene.tick()
    scene.hear(Claim(job=job.id, cell=cell, until=scene.now + LEASE_MS - 1))
    effects = scene.tick(SETTLE_MS)
    assert runs(effects) == []
    assert [claim.until for claim in scene.claims(effects)] == [0]
    assert scene.protocol.mine == {}


def test_a_claim_that_was_made_later_gives_way_to_ours(scene):
    job, (cell,) = scene.job(redundancy=1)
    scene.tick()
    scene.hear(Claim(job=job.id, cell=cell, until=scene.now + LEASE_MS + 1))
    assert runs(scene.tick(SETTLE_MS)) == [Run(job.id, cell)]


def test_who_holds_nothing_gives_nothing_back(scene):
    """Otherwise a stranger could make everybody wait again and again."""
    scene.hear(peers_offer(), OTHER)
    scene.hear(peers_offer(), PEER)
    job, cells = scene.job(redundancy=1, python=("3.12",), spec=many_cells(12))
    scene.tick()
    claimed = set(scene.protocol.mine)
    waiting = [cell for cell in cells if cell not in claimed]
    for cell in claimed:
        scene.protocol.finished(cell, scene.now, published=True)
    for _ in range(30):
        scene.now += 500
        for cell in waiting:
            scene.hear(Claim(job=job.id, cell=cell, until=0), Author(77).public)
        scene.tick()
    assert scene.protocol.mine


def many_cells(count: int) -> Spec:
    values = {str(number): () for number in range(count)}
    return Spec(python=("3.12",), redundancy=1, factors={"n": values})


def test_no_more_runs_than_slots(scene):
    scene.job(spec=many_cells(9))
    claimed = {c.cell for after in (0, 1000, 9000, 90_000) for c in scene.claims(scene.tick(after))}
    assert len(claimed) == CAPACITY.slots


def test_a_run_that_could_not_start_is_given_back_and_not_tried_at_once(scene):
    job, (cell,) = scene.job(redundancy=1)
    scene.tick()
    scene.tick(SETTLE_MS)
    effects = scene.protocol.finished(cell, scene.now, published=False)
    assert scene.claims(effects) == [Claim(job=job.id, cell=cell, until=0)]
    assert scene.claims(scene.tick(GIVE_UP_MS - 1000)) == []
    assert [c.cell for c in scene.claims(scene.tick(2000))] == [cell]


@pytest.mark.parametrize(
    "facts",
    [{"python": ("3.9",)}, {"spec": Spec(python=("3.12",), services=("postgresql",))}],
    ids=["another python", "a service that is not here"],
)
def test_what_does_not_fit_is_not_claimed_and_why_is_said(scene, facts):
    job, _ = scene.job(**facts)
    assert scene.claims(scene.tick(10_000)) == []
    assert "no interpreter or service" in scene.protocol.why_idle(scene.now)[job.id]


def test_an_untrusted_projects_jobs_do_not_run():
    scene = Scene(trusted=False)
    job, _ = scene.job()
    assert scene.claims(scene.tick(10_000)) == []
    assert "not trusted" in scene.protocol.why_idle(scene.now)[job.id]


def test_a_node_without_capacity_and_a_paused_one_run_nothing(scene):
    reader = Scene(capacity=None)
    reader.job()
    assert reader.claims(reader.tick(10_000)) == []
    scene.protocol.rest("paused by its owner", scene.now)
    job, _ = scene.job()
    assert scene.claims(scene.tick(10_000)) == []
    assert "paused" in scene.protocol.why_idle(scene.now)[job.id]
    scene.protocol.rest("", scene.now)
    assert len(scene.claims(scene.tick())) == 1


def test_an_expired_job_does_not_run(scene):
    scene.job(expires=scene.now)
    assert scene.claims(scene.tick(10_000)) == []


def test_a_withdrawal_stops_its_runs_and_comes_before_or_after(scene):
    job, (cell,) = scene.job(redundancy=1)
    scene.tick()
    scene.tick(SETTLE_MS)
    effects = scene.admit(scene.maintainer.withdraw(scene.project, job.id))
    assert [(type(e), e.cell) for e in effects] == [(Stop, cell)]
    payload = announce(title="withdrawn before it came")
    entry = scene.maintainer.sign(payload, scene.project)
    scene.admit(scene.maintainer.withdraw(scene.project, entry.id))
    scene.protocol.finished(cell, scene.now, published=False)
    scene.admit(entry)
    assert scene.claims(scene.tick(10_000)) == []


def test_a_withdrawal_in_another_project_withdraws_nothing(scene):
    rival = Author(2)
    theirs = rival.project(name="rival")
    scene.protocol.follow(theirs.id, trusted=True, genesis=theirs, now=scene.now)
    payload = announce(redundancy=1)
    job = scene.maintainer.sign(payload, scene.project)
    scene.admit(rival.withdraw(theirs.id, job.id))
    scene.admit(job)
    assert len(scene.claims(scene.tick())) == 1


def test_what_the_ledger_says_ended_has_ended_until_it_says_otherwise(scene):
    job, (cell,) = scene.job(redundancy=1)
    scene.tick()
    effects = scene.protocol.ended(scene.project, {job.id}, scene.now)
    assert [e.cell for e in effects] == [cell]
    assert runs(scene.tick(SETTLE_MS)) == []
    # A withdrawal that the ledger gave no force does nothing.
    scene.protocol.ended(scene.project, (), scene.now)
    scene.admit(scene.maintainer.withdraw(scene.project, job.id))
    assert [claim.cell for claim in scene.claims(scene.tick(10_000))] == [cell]


def test_a_result_may_come_before_its_job(scene):
    payload = announce(redundancy=1)
    job = scene.maintainer.sign(payload, scene.project)
    (cell,) = cell_ids(job, payload)
    scene.admit(Author(5).result(scene.project, job.id, cell))
    scene.admit(job)
    assert scene.claims(scene.tick(10_000)) == []


def test_a_copied_digest_with_other_counts_is_a_disagreement(scene):
    job, (cell,) = scene.job(redundancy=2)
    honest = result(job.id, cell, passed=3, failed=1)
    scene.admit(Author(5).sign(honest, scene.project))
    copied = result(job.id, cell, passed=4, digest=honest.digest, environment=environment())
    scene.admit(Author(6).sign(copied, scene.project))
    assert [claim.cell for claim in scene.claims(scene.tick())] == [cell]


def test_blobs_of_trusted_jobs_are_fetched_and_of_others_results(scene):
    payload = announce(locks=digest("locks"), locks_size=9)
    effects = scene.admit(scene.maintainer.sign(payload, scene.project))
    fetched = [(e.blob.hash, e.peers) for e in effects if isinstance(e, Fetch)]
    assert fetched == [(digest("source"), (PEER,)), (digest("locks"), (PEER,))]
    untrusted = Scene(trusted=False)
    assert untrusted.admit(untrusted.maintainer.announce(untrusted.project)) == []


def test_offers_are_told_when_they_change_and_now_and_then(scene):
    def told(effects: list[Effect]) -> list[Offer]:
        said = [decode_gossip(e.data) for e in effects if isinstance(e, Publish)]
        return [message for message in said if isinstance(message, Offer)]

    (first,) = told(scene.tick())
    assert (first.slots, first.interpreters) == (2, CAPACITY.interpreters)
    assert told(scene.tick(1000)) == []
    scene.job(redundancy=1)
    (second,) = told(scene.tick(1000))
    assert second.slots == 1
    again = [offer for _ in range(480) for offer in told(scene.tick(1000))]
    assert 1 <= len(again) <= 3


def test_jobs_that_ended_are_forgotten(scene):
    job, _ = scene.job(expires=scene.now + 1000)
    assert scene.protocol.job(job.id) is not None
    scene.now += 2000
    scene.protocol.prune(scene.now)
    assert scene.protocol.job(job.id) is None
