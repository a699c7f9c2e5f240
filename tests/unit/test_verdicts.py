"""From outcomes to a verdict."""

from __future__ import annotations

import pytest
from authors import digest
from hypothesis import given
from hypothesis import strategies as st

from ponyswarm.ledger.verdicts import Run, Verdict, judge
from ponyswarm.policy import ReaderPolicy

A, B, C, D, E = (bytes([n]) * 32 for n in range(1, 6))
ENV = digest("environment")
OTHER_ENV = digest("another environment")


def ran(author: bytes, outcome: str = "pass", *, env: bytes = ENV, order: int = 0) -> Run:
    failed = 1 if "fail" in outcome else 0
    return Run(
        author=author,
        order=order,
        completed=True,
        digest=digest(outcome),
        comparable=env,
        failed=failed,
        total=5,
    )


def broke(author: bytes, reason: str = "timeout", order: int = 0) -> Run:
    return Run(
        author=author,
        order=order,
        completed=False,
        reason=reason,
        digest=digest(reason),
        comparable=ENV,
        failed=0,
        total=0,
    )


TWO = ReaderPolicy(agreeing=2)
ONE = ReaderPolicy(agreeing=1)
THREE = ReaderPolicy(agreeing=3)

CASES = {
    "nothing yet": ([], TWO, {}, (), Verdict.PENDING, 0, 0),
    "one run": ([ran(A)], TWO, {}, (), Verdict.UNCONFIRMED, 1, 1),
    "one run is enough for one": ([ran(A)], ONE, {}, (), Verdict.CONFIRMED_PASS, 1, 1),
    "two agree": ([ran(A), ran(B)], TWO, {}, (), Verdict.CONFIRMED_PASS, 2, 2),
    "two agree that it fails": (
        [ran(A, "fail"), ran(B, "fail")], TWO, {}, (), Verdict.CONFIRMED_FAIL, 2, 2
    ),
    "two of three asked": ([ran(A), ran(B)], THREE, {}, (), Verdict.UNCONFIRMED, 2, 2),
    "two differ": ([ran(A), ran(B, "fail")], TWO, {}, (), Verdict.DISPUTED, 1, 2),
    "two differ, one asked": ([ran(A), ran(B, "fail")], ONE, {}, (), Verdict.DISPUTED, 1, 2),
    "a third run decides": (
        [ran(A), ran(B, "fail"), ran(C)], TWO, {}, (), Verdict.CONFIRMED_PASS, 2, 3
    ),
    "two against two": (
        [ran(A), ran(B, "fail"), ran(C), ran(D, "fail")], TWO, {}, (), Verdict.DISPUTED, 2, 4
    ),
    "two against two singles is no majority": (
        [ran(A), ran(B, "fail"), ran(C), ran(D, "fail2")], TWO, {}, (), Verdict.DISPUTED, 2, 4
    ),
    "keys of one operator are one": (
        [ran(A), ran(B)], TWO, {A: "x", B: "x"}, (), Verdict.UNCONFIRMED, 1, 1
    ),
    "an operator and a stranger are two": (
        [ran(A), ran(B), ran(C)], TWO, {A: "x", B: "x"}, (), Verdict.CONFIRMED_PASS, 2, 2
    ),
    "an operator that contradicts itself confirms nothing": (
        [ran(A), ran(B, "fail")], ONE, {A: "x", B: "x"}, (), Verdict.DISPUTED, 1, 1
    ),
    "a forked author counts for nothing": (
        [ran(A), ran(B)], TWO, {}, (B,), Verdict.UNCONFIRMED, 1, 1
    ),
    "only forked authors": ([ran(A)], ONE, {}, (A,), Verdict.PENDING, 0, 0),
    "broken only": ([broke(A), broke(B)], TWO, {}, (), Verdict.BROKEN, 0, 0),
    "a broken run does not contradict": (
        [ran(A), broke(B), ran(C)], TWO, {}, (), Verdict.CONFIRMED_PASS, 2, 2
    ),
    "what does not compare does not contradict": (
        [ran(A), ran(B, "fail", env=OTHER_ENV)], TWO, {}, (), Verdict.UNCONFIRMED, 1, 1
    ),
    "what does not compare does not agree": (
        [ran(A), ran(B, env=OTHER_ENV)], TWO, {}, (), Verdict.UNCONFIRMED, 1, 1
    ),
    "a confirmed failure goes before a confirmed pass elsewhere": (
        [ran(A), ran(B), ran(C, "fail", env=OTHER_ENV), ran(D, "fail", env=OTHER_ENV)],
        TWO, {}, (), Verdict.CONFIRMED_FAIL, 2, 2,
    ),
    "the latest run of an author counts": (
        [ran(A, "fail", order=0), ran(A, order=1), ran(B)],
        TWO, {}, (), Verdict.CONFIRMED_PASS, 2, 2,
    ),
    "a later broken run takes nothing back": (
        [ran(A, order=0), broke(A, order=1), ran(B)], TWO, {}, (), Verdict.CONFIRMED_PASS, 2, 2
    ),
    "only listed keys": (
        [ran(A), ran(B), ran(C, "fail")],
        ReaderPolicy(agreeing=1, keys=frozenset([C])), {}, (), Verdict.CONFIRMED_FAIL, 1, 1,
    ),
    "only vouched keys": (
        [ran(A), ran(B), ran(C)],
        ReaderPolicy(agreeing=2, vouched_only=True), {A: "x", B: "y"}, (),
        Verdict.CONFIRMED_PASS, 2, 2,
    ),
    "unvouched keys do not fill up": (
        [ran(A), ran(B), ran(C)],
        ReaderPolicy(agreeing=2, vouched_only=True), {A: "x"}, (), Verdict.UNCONFIRMED, 1, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_verdict(name):
    runs, policy, operators, forked, verdict, agree, of = CASES[name]
    finding = judge(runs, policy, operators=operators, forked=forked)
    assert (finding.verdict, finding.agree, finding.of) == (verdict, agree, of)


def test_a_finding_names_who_supports_and_who_dissents():
    finding = judge([ran(C), ran(A, "fail"), ran(B)], TWO, operators={}, forked=())
    assert finding.supporters == (B, C)
    assert finding.dissent == (A,)
    assert (finding.tests, finding.failed, finding.digest) == (5, 0, digest("pass"))


def test_broken_runs_are_counted_by_reason():
    runs = [broke(A), broke(B), broke(C, "install"), ran(D)]
    finding = judge(runs, TWO, operators={}, forked=())
    assert finding.broken == {"timeout": 2, "install": 1}


def test_a_copied_digest_with_other_counts_is_no_support():
    """Otherwise a liar could turn a confirmed failure into a pass without knowing the tests."""
    honest = [ran(B, "fail"), ran(C, "fail")]
    lie = Run(
        author=A,
        order=0,
        completed=True,
        digest=digest("fail"),
        comparable=ENV,
        failed=0,
        total=5,
    )
    finding = judge([lie, *honest], TWO, operators={}, forked=())
    assert (finding.verdict, finding.failed) == (Verdict.CONFIRMED_FAIL, 1)
    assert finding.dissent == (A,)
    assert judge([lie, honest[0]], TWO, operators={}, forked=()).verdict == Verdict.DISPUTED


authors = st.sampled_from([A, B, C, D, E])
runs_strategy = st.lists(
    st.builds(
        ran, authors, st.sampled_from(["pass", "fail"]), env=st.sampled_from([ENV, OTHER_ENV])
    )
    | st.builds(broke, authors, st.sampled_from(["timeout", "install"])),
    max_size=8,
    # An author's place in its feed tells its runs apart.
).map(
    lambda runs: [
        Run(**{f: getattr(run, f) for f in Run.__slots__ if f != "order"}, order=i)
        for i, run in enumerate(runs)
    ]
)
policies = st.builds(
    ReaderPolicy,
    agreeing=st.integers(1, 4),
    keys=st.none() | st.frozensets(authors),
    vouched_only=st.booleans(),
)
operator_maps = st.dictionaries(authors, st.sampled_from(["x", "y", "z"]))


@given(runs_strategy, policies, operator_maps, st.frozensets(authors), st.randoms())
def test_the_order_of_runs_never_matters(runs, policy, operators, forked, chance):
    expected = judge(runs, policy, operators=operators, forked=forked)
    shuffled = list(runs)
    chance.shuffle(shuffled)
    assert judge(shuffled, policy, operators=operators, forked=forked) == expected


@given(runs_strategy, policies, operator_maps, st.frozensets(authors))
def test_fewer_than_the_asked_operators_never_confirm(runs, policy, operators, forked):
    finding = judge(runs, policy, operators=operators, forked=forked)
    counting = {
        operators.get(run.author, run.author.hex())
        for run in runs
        if run.completed and run.author not in forked and policy.counts(run.author, operators)
    }
    if len(counting) < policy.agreeing:
        assert finding.verdict not in (Verdict.CONFIRMED_PASS, Verdict.CONFIRMED_FAIL)
    if finding.verdict in (Verdict.CONFIRMED_PASS, Verdict.CONFIRMED_FAIL):
        assert finding.agree >= policy.agreeing
        assert 2 * finding.agree > finding.of
        supporters = {operators.get(key, key.hex()) for key in finding.supporters}
        assert len(supporters) == finding.agree
        assert not set(finding.supporters) & forked
