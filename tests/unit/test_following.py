"""Whom a node asks for what is missing, and how often when it gets no answer."""

from __future__ import annotations

import itertools
import random

from authors import NOW, digest

from ponyswarm.p2p.effects import Pull
from ponyswarm.p2p.following import MOST_ROUNDS, PULL_EVERY_MS, Following

PEER, PROJECT, OTHER = digest("peer"), digest("project"), digest("other project")
HOUR = 3_600_000
LONGEST_ROUND = PULL_EVERY_MS * 5 // 4


def asked(following: Following, projects: set[bytes], knows: set[bytes], until: int) -> list[int]:
    """When the peer is asked about `PROJECT`; it has an answer about the projects it knows."""
    times = []
    pulls = following.connected(PEER, projects, NOW)
    now = NOW
    while now < until:
        for pull in pulls:
            assert pull == Pull(PEER, pull.project)
            following.pulled(PEER, pull.project, knows=pull.project in knows)
            times += [now] if pull.project == PROJECT else []
        now = following.due
        pulls = following.tick(projects, now)
    return times


def gaps(times: list[int]) -> list[int]:
    return [after - before for before, after in itertools.pairwise(times)]


def test_who_answers_is_asked_in_every_round():
    found = gaps(asked(Following(random.Random(1)), {PROJECT}, {PROJECT}, NOW + HOUR))
    assert max(found) <= LONGEST_ROUND
    assert len(found) >= 45


def test_who_has_no_answer_is_asked_ever_less_often_but_always_again():
    found = gaps(asked(Following(random.Random(1)), {PROJECT, OTHER}, {OTHER}, NOW + 2 * HOUR))
    assert found[0] <= LONGEST_ROUND < found[1] < found[2]
    assert max(found) <= MOST_ROUNDS * LONGEST_ROUND
    assert len(found) <= 35


def test_nodes_that_met_at_one_moment_do_not_ask_at_one_moment():
    histories = [asked(Following(random.Random(n)), {PROJECT}, set(), NOW + HOUR) for n in range(9)]
    later = [time for times in histories for time in times[1:]]
    assert len(set(later)) == len(later)


def test_an_answer_or_word_that_it_follows_brings_a_peer_back_into_every_round():
    following = Following(random.Random(1))
    asked(following, {PROJECT}, set(), NOW + HOUR)
    now = following.due
    assert following.peer_follows(PEER, PROJECT, now) == [Pull(PEER, PROJECT)]
    following.pulled(PEER, PROJECT, knows=True)
    following.tick({PROJECT}, following.due)
    times = []
    for _ in range(5):
        now = following.due
        times += [now for _ in following.tick({PROJECT}, now)]
    assert len(times) == 5


def test_all_are_asked_at_once_when_that_is_wanted():
    following = Following(random.Random(1))
    asked(following, {PROJECT}, set(), NOW + HOUR)
    assert following.ask_all({PROJECT}, following.due) == [Pull(PEER, PROJECT)]
