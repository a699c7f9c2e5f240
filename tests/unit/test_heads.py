"""When peers have confirmed our own feeds."""

from __future__ import annotations

import pytest

from ponyswarm.p2p.heads import LONGEST_MS, OTHERS_MS, WAIT_MS, HeadCheck, Heads

P = b"project"
A, B, C = b"a", b"b", b"c"
T = 1_000_000


@pytest.fixture
def check() -> HeadCheck:
    made = HeadCheck()
    made.begin(P, T)
    return made


def test_two_answers_are_enough_when_nobody_else_is_there(check):
    assert check.verdict(P, [], T) is Heads.WAITING
    assert check.verdict(P, [A, B], T) is Heads.WAITING
    check.answered(P, A, T + 10, knows=True)
    assert check.verdict(P, [A, B], T + 10) is Heads.WAITING
    check.answered(P, B, T + 20, knows=True)
    assert check.verdict(P, [A, B], T + 20) is Heads.CHECKED


def test_everyone_who_is_connected_is_heard(check):
    for peer in (A, B):
        check.answered(P, peer, T, knows=True)
    assert check.verdict(P, [A, B, C], T + WAIT_MS) is Heads.WAITING
    check.answered(P, C, T + WAIT_MS, knows=True)
    assert check.verdict(P, [A, B, C], T + WAIT_MS) is Heads.CHECKED


def test_one_answer_counts_after_others_had_time_to_come(check):
    check.answered(P, A, T + 100, knows=True)
    assert check.verdict(P, [A], T + OTHERS_MS) is Heads.WAITING
    assert check.verdict(P, [A], T + 100 + OTHERS_MS) is Heads.CHECKED


def test_a_peer_that_is_silent_is_not_waited_for_for_ever(check):
    check.answered(P, A, T, knows=True)
    assert check.verdict(P, [A, B], T + LONGEST_MS - 1) is Heads.WAITING
    assert check.verdict(P, [A, B], T + LONGEST_MS) is Heads.CHECKED


def test_alone_it_goes_on_and_knows_that_nobody_was_asked(check):
    assert check.verdict(P, [], T + WAIT_MS - 1) is Heads.WAITING
    assert check.verdict(P, [], T + WAIT_MS) is Heads.ALONE
    # A peer that does not follow the project, or gave up, is no answer.
    check.answered(P, A, T, knows=False)
    assert check.verdict(P, [A], T + WAIT_MS) is Heads.ALONE
    # Who comes later still counts.
    check.answered(P, B, T + 2 * WAIT_MS, knows=True)
    assert check.verdict(P, [B], T + 2 * WAIT_MS + OTHERS_MS) is Heads.CHECKED


def test_doubt_begins_anew(check):
    for peer in (A, B):
        check.answered(P, peer, T, knows=True)
    check.begin(P, T + 5)
    assert check.verdict(P, [A, B], T + 5) is Heads.WAITING


def test_a_project_that_nobody_asked_about_is_never_checked(check):
    check.answered(b"other", A, T, knows=True)
    assert check.verdict(b"other", [], T + LONGEST_MS) is Heads.WAITING
    assert b"other" not in check
