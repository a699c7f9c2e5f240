"""Who runs what: ranks, claims, yields, renewals, and enough but few runs."""

from __future__ import annotations

import heapq
import random
from dataclasses import replace

import pytest
from authors import NOW, digest
from hypothesis import given
from hypothesis import strategies as st

from ponyswarm.agreement import Sealed
from ponyswarm.messages import Offer
from ponyswarm.p2p.scheduling import (
    LEASE_MS,
    LONGEST_REST_MS,
    LOOK_MS,
    MOST_WEIGHT,
    PREPARE_MS,
    RENEW_MS,
    REST_MS,
    SETTLE_MS,
    SPARE_RUNS,
    STEP_MS,
    CellState,
    Done,
    choose,
    claim_at,
    live_leases,
    look_again,
    patience,
    rank,
    renewals,
    rests_until,
    share,
    should_yield,
    still_wanted,
    unexpired,
)

KEYS = [digest(f"key {n}") for n in range(8)]
A, B, C, D = KEYS[:4]
ENV, OTHER = digest("env"), digest("other env")


def cell(name: str = "cell", wanted: int = 2, **more: object) -> CellState:
    return CellState(
        id=digest(name),
        job=digest("job"),
        python="3.12",
        services=(),
        wanted=wanted,
        vacant_since=NOW,
        **more,
    )


def offer(slots: int = 1, until: int = NOW + 60_000) -> Offer:
    return Offer(interpreters=(), system="linux", machine="x86_64", slots=slots, until=until)


def ok(author: bytes, outcome: str = "pass", env: bytes = ENV) -> Done:
    return Done(author, True, env, digest(outcome))


def bad(author: bytes) -> Done:
    return Done(author, False, ENV, digest("broken"))


def any_fits(cell: CellState, offer: Offer) -> bool:
    return True


def ranked(cell: bytes, keys: list[bytes]) -> list[bytes]:
    return rank(cell, dict.fromkeys(keys, 1))


OFFERS = {key: offer() for key in KEYS}


# --- how many runs --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("done", "wanted"),
    [
        ([], 2),
        ([ok(A)], 1),
        ([ok(A), ok(B)], 0),
        ([ok(A), ok(A)], 1),
        ([ok(A), ok(B, "fail")], 1),
        ([ok(A), ok(B, "fail"), ok(C)], 0),
        ([ok(A), ok(B, "fail"), ok(C, "third")], 0),
        ([ok(A), ok(B, env=OTHER)], 1),
        ([ok(A), ok(B, env=OTHER), ok(C, env=digest("third"))], 0),
        ([bad(A)], 2),
        ([bad(A), ok(A)], 1),
        ([ok(A), bad(B), bad(C), bad(D)], 1),
        ([bad(key) for key in KEYS[: 2 + SPARE_RUNS - 1]], 2),
        ([bad(key) for key in KEYS[: 2 + SPARE_RUNS]], 2),
        ([bad(A)] * 9, 2),
    ],
)
def test_how_many_runs_a_cell_lacks(done, wanted):
    assert still_wanted(cell(done=tuple(done))) == wanted


@given(st.permutations(KEYS))
def test_the_rank_is_the_same_on_all_nodes(keys):
    assert ranked(digest("cell"), keys) == ranked(digest("cell"), KEYS)


def test_the_rank_spreads_cells_over_keys():
    first = [ranked(digest(str(n)), KEYS)[0] for n in range(400)]
    assert all(20 < first.count(key) < 90 for key in KEYS)


def test_who_has_more_free_slots_gets_more_and_nobody_all():
    weights = {A: 1, B: 3, C: 0, D: 1000}
    first = [rank(digest(str(n)), weights)[0] for n in range(1200)]
    shares = [first.count(key) / 100 for key in KEYS[:4]]
    assert shares == pytest.approx([1, 3, 0, MOST_WEIGHT], abs=0.7)


def test_a_change_of_one_weight_moves_only_cells_of_that_key():
    ids = [digest(str(n)) for n in range(200)]
    before = {id_: rank(id_, {A: 2, B: 2, C: 2})[0] for id_ in ids}
    after = {id_: rank(id_, {A: 1, B: 2, C: 2})[0] for id_ in ids}
    assert {before[id_] for id_ in ids if before[id_] != after[id_]} == {A}


# --- claims -----------------------------------------------------------------------------


def test_the_first_ranks_claim_at_once_and_the_others_step_in_later():
    order = ranked(digest("cell"), KEYS)
    times = [claim_at(cell(), key, OFFERS, any_fits, NOW) for key in order]
    assert times == [NOW, NOW] + [NOW + n * STEP_MS for n in range(1, 7)]


def test_who_has_no_free_slot_goes_last():
    order = ranked(digest("cell"), KEYS)
    busy = {**OFFERS, order[0]: offer(slots=0)}
    assert claim_at(cell(), order[2], busy, any_fits, NOW) == NOW
    assert claim_at(cell(), order[0], busy, any_fits, NOW) == NOW + 6 * STEP_MS


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (cell(done=(ok(A),)), "it has a result already"),
        (cell(done=(bad(A),)), "it broke there already"),
        (cell(leases={A: NOW + 1}), "it is at it"),
        (cell(leases={B: NOW + 1, C: NOW + 1}), "enough others are at it"),
        (cell(done=(ok(B), ok(C))), "there is enough"),
        (cell(wanted=1, leases={B: NOW + 1}), "one was asked for and one is at it"),
    ],
)
def test_a_node_has_no_part_in_a_cell_when(state, why):
    assert claim_at(state, A, OFFERS, any_fits, NOW) is None, why


def test_a_node_has_no_part_in_what_it_cannot_run_or_does_not_offer():
    assert claim_at(cell(), A, {B: offer()}, any_fits, NOW) is None
    assert claim_at(cell(), A, OFFERS, lambda *_: False, NOW) is None


def test_who_cannot_run_a_cell_holds_nobody_up():
    order = ranked(digest("cell"), KEYS)
    able = {order[5], order[6]}
    offers = {key: offer(slots=1 if key in able else 2) for key in KEYS}
    times = [claim_at(cell(), key, offers, lambda c, o: o.slots == 1, NOW) for key in order]
    assert times == [None] * 5 + [NOW, NOW, None]


def test_a_lease_that_ran_out_asks_the_ranks_in_turn_again():
    """And not all at once, though the cell has been vacant for long."""
    ended = NOW + 500_000
    state = cell(leases={A: ended, B: NOW + 10**9})
    others = ranked(state.id, [key for key in KEYS if key != B])
    times = [claim_at(state, key, OFFERS, any_fits, ended + 1) for key in others]
    assert times == [NOW] + [ended + n * STEP_MS for n in range(1, 7)]


def test_who_just_ended_a_run_waits_its_turn_from_then_on():
    order = ranked(digest("cell"), KEYS)
    since = NOW + 100_000
    assert claim_at(cell(), order[0], OFFERS, any_fits, since, free_since=since) == NOW
    assert claim_at(cell(), order[4], OFFERS, any_fits, since, free_since=since) == (
        since + 3 * STEP_MS
    )


def test_live_leases_are_those_that_run_of_keys_without_a_result():
    state = cell(
        leases={A: NOW + 1, B: NOW, C: NOW + 5, D: NOW + 9},
        claimed={A: NOW - 5, C: NOW - 9, D: NOW},
        done=(ok(D),),
    )
    assert live_leases(state, NOW) == [C, A]


def test_who_claimed_later_yields_whatever_its_rank():
    first, last = ranked(digest("cell"), [A, B])
    state = cell(wanted=1, leases={A: NOW + 9, B: NOW + 9}, claimed={first: NOW + 1, last: NOW})
    assert should_yield(state, first, NOW)
    assert not should_yield(state, last, NOW)


def test_claims_of_one_moment_yield_by_rank():
    order = ranked(digest("cell"), [A, B, C])
    state = cell(leases=dict.fromkeys(order, NOW + 9), claimed=dict.fromkeys(order, NOW))
    assert [should_yield(state, key, NOW) for key in order] == [False, False, True]
    assert not should_yield(state, D, NOW)


@given(
    st.dictionaries(st.sampled_from(KEYS), st.integers(NOW, NOW + 3), min_size=1),
    st.integers(1, 4),
)
def test_exactly_the_wanted_number_stays_when_all_have_heard_all(claimed, wanted):
    state = cell(wanted=wanted, leases=dict.fromkeys(claimed, NOW + 9), claimed=claimed)
    staying = [key for key in claimed if not should_yield(state, key, NOW)]
    assert len(staying) == min(wanted, len(claimed))


def test_newer_jobs_go_first():
    cells = [cell(str(n), order=n // 5) for n in range(10)]
    due, _ = choose(cells, A, {A: offer(9)}, any_fits, now=NOW)
    assert [c.order for c in due] == [1] * 5 + [0] * 5


def test_free_slots_go_round_the_projects_and_no_more_are_given_than_are_free():
    due = {A: [cell(f"a{n}") for n in range(9)], B: [cell(f"b{n}") for n in range(2)], C: []}
    got = share(due, {}, {}, 3)
    assert sorted(project for project, _ in got) == sorted([A, A, B] if A < B else [A, B, B])
    assert [project for project, _ in share(due, {}, {}, 9)].count(B) == 2
    assert share(due, {}, {}, 0) == []


def test_a_project_that_holds_slots_or_had_them_of_late_waits_for_the_others():
    due = {A: [cell(f"a{n}") for n in range(9)], B: [cell(f"b{n}") for n in range(9)]}
    assert share(due, {A: 2}, {}, 1) == [(B, due[B][0])]
    assert share(due, {A: 1, B: 1}, {B: 9.0}, 1) == [(A, due[A][0])]
    assert share({A: due[A]}, {A: 5}, {A: 9.0}, 1) == [(A, due[A][0])]


# --- who looks again --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("done", "again"),
    [
        ([ok(A), ok(B)], ""),
        ([ok(A), ok(B, "fail")], "AB"),
        ([ok(A), ok(B, "fail"), ok(C)], "B"),
        ([ok(A), ok(B, "fail"), ok(C, "third")], "ABC"),
        ([ok(A), ok(B, "fail"), ok(C), ok(D, "third")], "BD"),
        ([ok(A), ok(B, "fail"), ok(C), ok(D, "fail")], ""),
        ([ok(A), ok(B, env=OTHER)], ""),
        ([ok(A), ok(B, "fail", env=OTHER)], ""),
        ([ok(A), bad(B)], ""),
        ([ok(A), ok(B, "fail"), ok(B)], ""),
        ([ok(A), ok(B, "fail"), ok(A), ok(B, "fail")], ""),
        ([ok(A), ok(B, "fail"), ok(A)], "B"),
        ([ok(A), ok(B, "fail"), bad(B)], "A"),
    ],
)
def test_who_does_not_lead_looks_again_once(done, again):
    assert look_again(cell(done=tuple(done))) == {
        dict(zip("ABCD", KEYS, strict=False))[k] for k in again
    }


def test_a_second_look_comes_after_those_who_did_not_run_the_cell():
    state = cell(done=(ok(A), ok(B, "fail")))
    assert claim_at(state, C, OFFERS, any_fits, NOW) is not None
    assert claim_at(state, A, OFFERS, any_fits, NOW) == NOW + LOOK_MS
    assert claim_at(state, A, {A: offer(), B: offer()}, any_fits, NOW) == NOW
    taken = replace(state, leases={C: NOW + 1})
    assert claim_at(taken, A, OFFERS, any_fits, NOW) is None


def test_a_second_look_gives_way_to_nobody_and_keeps_nobody_away():
    state = cell(done=(ok(A), ok(B, "fail")), leases={A: NOW + 9}, claimed={A: NOW})
    assert not should_yield(state, A, NOW)
    assert live_leases(state, NOW) == []
    decided = replace(state, done=(*state.done, ok(C)))
    assert should_yield(decided, A, NOW)
    assert not should_yield(decided, B, NOW)


def test_nobody_looks_again_while_a_commit_may_decide():
    seal = Sealed(id=digest("commit"), author=C, commitment=digest("secret"))
    state = cell(done=(ok(A), ok(B, "fail")), sealed=(seal,))
    assert look_again(state) == frozenset()
    assert look_again(replace(state, lapsed=frozenset({seal.id}))) == {A, B}
    own = replace(seal, author=A)
    opened = (replace(ok(A), opens=own.commitment), ok(B, "fail"))
    second = replace(own, id=digest("again"), commitment=digest("another secret"))
    assert look_again(replace(state, done=opened, sealed=(own,))) == {A, B}
    assert look_again(replace(state, done=opened, sealed=(own, second))) == {B}


def test_who_was_waited_for_in_vain_is_waited_for_no_more_however_often_it_commits():
    seal = Sealed(id=digest("commit"), author=C, commitment=digest("secret"))
    again = replace(seal, id=digest("again"), commitment=digest("another"))
    assert still_wanted(cell(sealed=(seal,))) == 1
    assert still_wanted(cell(sealed=(seal, again), lapsed=frozenset({seal.id}))) == 2


# --- who stands in the way ----------------------------------------------------------------


def test_a_cell_that_broke_in_many_hands_rests_and_is_tried_again():
    """Were it given up, a few keys that report broken runs could end any cell."""
    few = cell(done=tuple(bad(key) for key in KEYS[: 1 + SPARE_RUNS]))
    many = cell(done=tuple(bad(key) for key in KEYS[: 2 + SPARE_RUNS]))
    more = cell(done=tuple(bad(key) for key in KEYS[: 3 + SPARE_RUNS]))
    assert rests_until(few) == 0
    assert rests_until(many) == NOW + REST_MS
    assert rests_until(more) == NOW + 2 * REST_MS
    endless = cell(done=tuple(bad(digest(str(n))) for n in range(99)))
    assert rests_until(endless) == NOW + LONGEST_REST_MS
    fresh = KEYS[-1]
    assert claim_at(many, fresh, {fresh: offer()}, any_fits, NOW) == NOW + REST_MS


def test_who_let_a_cell_down_keeps_nobody_away_from_it():
    state = cell(wanted=1, leases={A: NOW + 9}, claimed={A: NOW}, let_down=frozenset({A}))
    assert live_leases(state, NOW) == []
    assert claim_at(state, B, {B: offer()}, any_fits, NOW) == NOW


def test_a_lease_that_is_renewed_without_end_is_respected_only_so_long():
    state = cell(wanted=1, leases={A: NOW + 9}, claimed={A: NOW - 1000}, patience=1000)
    assert live_leases(state, NOW) == [A]
    assert live_leases(state, NOW + 1) == []


def test_patience_is_the_jobs_own_time_until_it_is_known_what_a_run_takes():
    assert patience(600, {A: 10.0, B: 10.0}) == 600_000 + PREPARE_MS
    assert patience(600, {A: 10.0, B: 12.0, C: 1e7}) == 300_000
    assert patience(36_000, {A: 500.0, B: 700.0, C: 600.0}) == 4 * 600_000


def test_choose_says_when_to_look_again():
    order = ranked(digest("cell"), KEYS)
    chosen, later = choose([cell()], order[3], OFFERS, any_fits, now=NOW)
    assert (chosen, later) == ([], NOW + 2 * STEP_MS)


def test_a_lease_is_renewed_well_before_it_ends():
    fresh, due = NOW + LEASE_MS, NOW + LEASE_MS - RENEW_MS
    assert renewals([(A, fresh), (B, due), (C, NOW)], NOW) == [B, C]


def test_an_offer_ends():
    assert unexpired({A: offer(until=NOW), B: offer(until=NOW + 1)}, NOW) == {
        B: offer(until=NOW + 1)
    }


# --- a small swarm in which everybody hears everything at once ------------------------------


@given(
    st.integers(1, 8), st.integers(1, 12), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99)
)
def test_with_all_offers_known_and_no_failures_exactly_the_wanted_runs_happen(
    nodes, count, wanted, slots, seed
):
    keys, chance = KEYS[:nodes], random.Random(seed)
    states = {c.id: c for c in (cell(str(n), wanted=wanted) for n in range(count))}
    busy = dict.fromkeys(keys, 0)
    free_since = dict.fromkeys(keys, 0)
    runs: list[tuple[bytes, bytes]] = []
    events: list[tuple[int, int, str, bytes, bytes]] = [(NOW, -1, "look", key, b"") for key in keys]
    heapq.heapify(events)
    number = 0
    while events and number < 20_000:
        now, _, what, key, id_ = heapq.heappop(events)
        number += 1
        if what == "end":
            state = states[id_]
            leases = {k: until for k, until in state.leases.items() if k != key}
            states[id_] = replace(
                state, done=(*state.done, ok(key)), leases=leases, vacant_since=now
            )
            busy[key] -= 1
            free_since[key] = now
            events += [(now, number * 100 + i, "look", k, b"") for i, k in enumerate(keys)]
            heapq.heapify(events)
            continue
        offers = {k: offer(slots - busy[k]) for k in keys}
        chosen, later = choose(
            states.values(),
            key,
            offers,
            any_fits,
            now=now,
            free_since=free_since[key],
        )
        for state in chosen[: slots - busy[key]]:
            busy[key] += 1
            runs.append((state.id, key))
            states[state.id] = replace(
                state,
                leases={**state.leases, key: now + 10**9},
                claimed={**state.claimed, key: now},
            )
            end = now + SETTLE_MS + chance.randint(1000, 30_000)
            heapq.heappush(events, (end, number, "end", key, state.id))
        if later is not None and busy[key] < slots:
            heapq.heappush(events, (later, number, "look", key, b""))
    assert number < 20_000
    assert len(runs) == len(set(runs)) == count * min(wanted, nodes)
