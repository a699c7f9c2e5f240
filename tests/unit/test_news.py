"""What is news is a pure function of the verdicts before and after."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ponyswarm import news
from ponyswarm.ledger.verdicts import Verdict
from ponyswarm.news import What

PLACE = ("aa" * 32, "3.12")
PASS, FAIL, DISPUTED = Verdict.CONFIRMED_PASS, Verdict.CONFIRMED_FAIL, Verdict.DISPUTED


def story(*verdicts: Verdict) -> list[What]:
    """The news of one place whose verdict went through these."""
    known: dict[news.Place, str] = {}
    told = []
    for verdict in verdicts:
        known, said = news.told(known, [(PLACE, verdict)])
        told += [one.what for one in said]
    return told


def test_a_failure_is_told_once_and_told_again_when_it_is_fixed() -> None:
    assert story(PASS, FAIL, FAIL, Verdict.PENDING, FAIL, PASS, PASS) == [
        What.FIRST_FAILURE,
        What.FIXED,
    ]


def test_a_dispute_is_news_and_its_end_is_news_only_when_it_is_a_failure() -> None:
    assert story(PASS, DISPUTED, DISPUTED, PASS) == [What.DISPUTED]
    assert story(DISPUTED, FAIL) == [What.DISPUTED, What.FIRST_FAILURE]


def test_a_place_that_was_never_seen_is_news_only_when_it_is_bad() -> None:
    assert story(PASS) == []
    assert story(FAIL) == [What.FIRST_FAILURE]
    assert story(Verdict.BROKEN, Verdict.UNCONFIRMED, Verdict.PENDING) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(list(Verdict))), max_size=30))
def test_saying_the_same_again_is_never_news(steps) -> None:
    now = [((place, place), verdict) for place, verdict in steps]
    latest = list(dict(now).items())
    known, _ = news.told({}, latest)
    assert news.told(known, latest) == (known, [])
