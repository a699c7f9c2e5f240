"""From outcomes to a verdict: the cases of ``docs/verdicts.md``, and what holds of all."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from authors import digest
from hypothesis import given
from hypothesis import strategies as st

from ponyswarm.agreement import Sealed, chance, is_spared, more_wanted
from ponyswarm.ledger.verdicts import (
    CONFIRMED,
    Finding,
    Record,
    Run,
    Verdict,
    agreement_of,
    by_test,
    count,
    judge,
)
from ponyswarm.policy import ReaderPolicy, Standing

PAGE = (Path(__file__).parent.parent.parent / "docs" / "verdicts.md").read_text("utf-8")
KEYS = {name: bytes([number]) * 32 for number, name in enumerate("ABCDE", 1)}
A, B, C, D, E = KEYS.values()
RUN = re.compile(r"(\w)(?::(\w+)(?:/(\w))?(?:\(([!A-E]*)\))?|!(\w+)|(\?))")


# --- the page's own notation ------------------------------------------------------------------


def cases(title: str) -> list:
    """The rows of the page's table whose header has this column."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if line.startswith("|")
    ]
    start = next(at for at, row in enumerate(rows) if row[0] == "case" and title in row)
    found = []
    for row in rows[start + 2 :]:
        if row[0] == "case":
            break
        found.append(pytest.param(dict(zip(rows[start], row, strict=True)), id=row[0]))
    return found


def commit_of(key: bytes) -> bytes:
    return digest(f"commit {key.hex()}")


def ran(
    author: bytes,
    outcome: str = "pass",
    *,
    env: str = "",
    opens: bytes | None = None,
    seen: frozenset[bytes] = frozenset(),
) -> Run:
    return Run(
        author=author,
        completed=True,
        digest=digest(outcome),
        comparable=digest(f"environment {env}"),
        failed=1 if "fail" in outcome else 0,
        total=5,
        opens=opens,
        seen=seen,
    )


def broke(author: bytes, reason: str = "timeout") -> Run:
    run = ran(author, reason)
    return replace(run, completed=False, reason=reason, failed=0, total=0)


def told(text: str) -> tuple[list[Run], list[Sealed]]:
    """The runs and commits that a row of the table has."""
    runs, commits = [], []
    for part in text.split():
        match = RUN.fullmatch(part)
        assert match, part
        name, outcome, env, seen, reason, unopened = match.groups()
        key = KEYS[name]
        if unopened:
            commits.append(
                Sealed(id=digest(f"{name} unopened"), author=key, commitment=digest("secret"))
            )
        elif reason:
            runs.append(broke(key, reason))
        elif seen is None:
            runs.append(ran(key, outcome, env=env or ""))
        else:
            opens = digest(f"{name} opens {outcome}")
            named = frozenset(commit_of(KEYS[other]) for other in seen if other != "!")
            runs.append(ran(key, outcome, env=env or "", opens=opens, seen=named))
            if seen != "!":
                commits.append(Sealed(id=commit_of(key), author=key, commitment=opens))
    return runs, commits


def known(text: str, k: str) -> tuple[Standing, ReaderPolicy]:
    operators, before, forked, ended = {}, {}, set(), {}
    policy = ReaderPolicy(agreeing=int(k))
    for part in text.split():
        if ">" in part:
            old, new = part.split(">")
            before[KEYS[new]] = KEYS[old]
            continue
        name, value = part.split("=")
        if part == "only=vouched":
            policy = replace(policy, vouched_only=True)
        elif name == "only":
            policy = replace(policy, keys=frozenset(KEYS[one] for one in value))
        elif name == "forked":
            forked |= {KEYS[one] for one in value}
        elif name == "ended":
            ended |= {KEYS[one]: 0 for one in value}
        else:
            operators |= {KEYS[one]: name for one in value}
    standing = Standing(operators=operators, before=before, forked=frozenset(forked), revoked=ended)
    return standing, policy


@pytest.mark.parametrize("row", cases("runs"))
def test_a_case_of_the_page(row):
    runs, commits = told(row["runs"])
    standing, policy = known(row["known"], row["k"])
    finding = judge(runs, policy, standing, commits=commits, is_blind=row["job"] == "blind")
    said = {
        "verdict": str(finding.verdict),
        "agree": f"{finding.agree} of {finding.of}",
        "blind": str(finding.blind),
    }
    assert said == {name: row[name] for name in said}


@pytest.mark.parametrize("row", cases("statuses"))
def test_a_case_of_one_test(row):
    runs, commits = told(row["statuses"])
    standing, policy = known(row["known"], row["k"])
    statuses = re.findall(r":(\w+)", row["statuses"])
    found = by_test(
        [(run.author, {"t": status}) for run, status in zip(runs, statuses, strict=True)],
        policy,
        absent="not run",
        speakers=standing.speakers,
        pairs=count(runs, commits, standing.speakers).opened.pairs,
        is_blind=row["job"] == "blind",
    )["t"]
    assert str(found.verdict) == row["verdict"]
    assert f"{found.agree} of {found.of}" == row["agree"]


def test_every_verdict_has_cases():
    assert {param.values[0]["verdict"] for param in cases("runs")} == set(Verdict)


# --- what a finding says ----------------------------------------------------------------------

TWO = ReaderPolicy(agreeing=2)
NOBODY = Standing()


def test_a_finding_names_who_supports_who_dissents_and_who_wavers():
    runs = [ran(C), ran(A, "fail"), ran(B), ran(D), ran(D, "fail")]
    finding = judge(runs, TWO, NOBODY)
    assert finding.supporters == (B, C)
    assert finding.dissent == (A,)
    assert finding.wavering == (D,)
    assert (finding.tests, finding.failed, finding.digest) == (5, 0, digest("pass"))


def test_a_finding_names_who_has_committed_and_not_told():
    runs, commits = told("A:pass(B) B?")
    assert judge(runs, TWO, NOBODY, commits=commits, is_blind=True).sealed == (B,)


def test_broken_runs_are_counted_by_reason():
    runs = [broke(A), broke(B), broke(C, "install"), ran(D)]
    assert judge(runs, TWO, NOBODY).broken == {"timeout": 2, "install": 1}


def test_a_copied_digest_with_other_counts_is_no_support():
    """Otherwise a liar could turn a confirmed failure into a pass without knowing the tests."""
    honest = [ran(B, "fail"), ran(C, "fail")]
    lie = replace(ran(A, "fail"), failed=0)
    finding = judge([lie, *honest], TWO, NOBODY)
    assert (finding.verdict, finding.failed) == (Verdict.CONFIRMED_FAIL, 1)
    assert finding.dissent == (A,)
    assert judge([lie, honest[0]], TWO, NOBODY).verdict == Verdict.DISPUTED


def test_a_key_is_heard_until_it_ended():
    standing = Standing(revoked={B: 100})
    before, after = replace(ran(B), time=99), replace(ran(B), time=100)
    assert judge([ran(A), before], TWO, standing).verdict is Verdict.CONFIRMED_PASS
    assert judge([ran(A), after], TWO, standing).verdict is Verdict.UNCONFIRMED


def test_only_tests_that_differ_are_named():
    runs = [(A, {"a": "passed", "b": "passed"}), (B, {"a": "passed", "b": "failed"})]
    found = by_test(runs, TWO, absent="not run", speakers={})
    assert set(found) == {"b"}
    assert found["b"].statuses == {"failed": (B,), "passed": (A,)}


def test_a_test_that_a_run_does_not_have_differs_too():
    found = by_test([(A, {"a": "passed"}), (B, {})], TWO, absent="not run", speakers={})
    assert found["a"].statuses == {"not run": (B,), "passed": (A,)}


# --- what holds of all ------------------------------------------------------------------------

authors = st.sampled_from([A, B, C, D, E])
outcomes = st.sampled_from(["pass", "fail", "fail2"])
seen = st.frozensets(authors.map(commit_of), max_size=4)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Run], list[Sealed]]:
    """Runs and commits of a cell, honest or not."""
    runs, commits = [], []
    for _ in range(draw(st.integers(0, 8))):
        author, outcome = draw(authors), draw(outcomes)
        env = draw(st.sampled_from(["", "B"]))
        how = draw(st.sampled_from(["open", "sealed", "unopened", "mismatch", "broken"]))
        opens = digest(f"{author.hex()} opens {outcome}")
        if how == "broken":
            runs.append(broke(author))
        elif how == "open":
            runs.append(ran(author, outcome, env=env))
        elif how == "unopened":
            commits.append(Sealed(id=digest("x"), author=author, commitment=digest("secret")))
        else:
            runs.append(ran(author, outcome, env=env, opens=opens, seen=draw(seen)))
            if how == "sealed":
                commits.append(Sealed(id=commit_of(author), author=author, commitment=opens))
    return runs, commits


policies = st.builds(
    ReaderPolicy,
    agreeing=st.integers(1, 4),
    keys=st.none() | st.frozensets(authors),
    vouched_only=st.booleans(),
)
standings = st.builds(
    Standing,
    operators=st.dictionaries(authors, st.sampled_from(["x", "y", "z"])),
    before=st.dictionaries(authors, authors, max_size=2),
    forked=st.frozensets(authors, max_size=2),
    revoked=st.dictionaries(authors, st.just(0), max_size=1),
)


def judged(history, policy, standing, is_blind) -> Finding:
    runs, commits = history
    return judge(runs, policy, standing, commits=commits, is_blind=is_blind)


@given(histories(), policies, standings, st.booleans(), st.randoms())
def test_the_order_of_arrival_never_matters(history, policy, standing, is_blind, chance):
    runs, commits = [list(part) for part in history]
    expected = judged((runs, commits), policy, standing, is_blind)
    chance.shuffle(runs)
    chance.shuffle(commits)
    assert judged((runs, commits), policy, standing, is_blind) == expected


@given(histories(), histories(), policies, standings, st.booleans())
def test_whom_the_policy_does_not_hear_changes_nothing(history, more, policy, standing, is_blind):
    def silent(author: bytes) -> bool:
        return not policy.counts(author, standing) or not standing.stands(author, 0)

    runs = [*history[0], *(run for run in more[0] if silent(run.author))]
    commits = [*history[1], *(c for c in more[1] if not policy.counts(c.author, standing))]
    expected = judged(history, policy, standing, is_blind)
    assert judged((runs, commits), policy, standing, is_blind) == expected


@given(histories(), policies, standings, st.booleans())
def test_fewer_than_the_asked_operators_never_confirm(history, policy, standing, is_blind):
    finding = judged(history, policy, standing, is_blind)
    heard = {
        standing.voice(run.author)
        for run in history[0]
        if run.completed and policy.counts(run.author, standing)
    }
    if len(heard) < policy.agreeing:
        assert finding.verdict not in CONFIRMED
    if finding.verdict in CONFIRMED:
        assert finding.agree >= policy.agreeing
        assert 2 * finding.agree > finding.of
        assert len({standing.voice(key) for key in finding.supporters}) == finding.agree
        assert not set(finding.supporters) & standing.forked
        assert not set(finding.supporters) & set(finding.wavering)


@given(histories(), policies, standings)
def test_what_a_blind_job_confirms_an_open_one_does_too(history, policy, standing):
    blind = judged(history, policy, standing, True)
    if blind.verdict in CONFIRMED:
        assert judged(history, policy, standing, False).verdict is blind.verdict


@given(st.integers(2, 5), st.integers(1, 6), outcomes)
def test_copies_of_one_result_never_look_blind(k, copies, outcome):
    """One tells early; any number repeat it, whatever commits they name of its and each other."""
    keys = [bytes([n]) * 32 for n in range(1, copies + 2)]
    first, *others = keys
    everyone = frozenset(map(commit_of, keys))
    runs = [ran(first, outcome, opens=digest(first.hex()))]
    runs += [ran(key, outcome, opens=digest(key.hex()), seen=everyone) for key in others]
    commits = [Sealed(id=commit_of(key), author=key, commitment=digest(key.hex())) for key in keys]
    finding = judge(runs, ReaderPolicy(agreeing=k), NOBODY, commits=commits, is_blind=True)
    # The copies may be blind to each other, and never to the one that told first.
    assert finding.blind <= copies
    if copies < k:
        assert finding.verdict is Verdict.UNCONFIRMED


@given(histories(), st.integers(2, 4), st.booleans())
def test_a_cell_that_needs_no_run_is_confirmed_or_called(history, redundancy, is_blind):
    """What is run and what is believed never part: more is wanted exactly until then."""
    runs, commits = history
    tally = count(runs, commits, {})
    sets: dict[bytes, dict] = {}
    for outcome, keys in tally.voices.items():
        sets.setdefault(outcome.comparable, {})[outcome] = keys
    told_by = {key for keys in tally.voices.values() for key in keys}
    more = more_wanted(
        sets.values(), redundancy=redundancy, sealed=0, is_blind=is_blind, pairs=tally.opened.pairs
    )
    finding = judged(history, ReaderPolicy(agreeing=redundancy), NOBODY, is_blind)
    assert len(told_by) + more <= max(len(told_by), redundancy + 2)
    if not told_by:
        assert more == redundancy
    if finding.verdict in CONFIRMED:
        assert more == 0
    elif finding.verdict is not Verdict.FLAKY:
        assert more > 0 or len(told_by) >= redundancy + (2 if is_blind else 1)


# --- records ----------------------------------------------------------------------------------


def record_of(key: bytes, text: str, *, is_blind: bool = False) -> Record:
    runs, commits = told(text)
    records: dict[bytes, Record] = {}
    agreement_of(
        [(run.author, run.outcome if run.completed else None) for run in runs],
        records,
        speakers={},
        pairs=count(runs, commits, {}).opened.pairs,
        is_blind=is_blind,
    )
    return records[key]


def test_to_repeat_what_was_told_earns_no_record():
    assert record_of(B, "A:pass B:pass").agreed == 1
    assert record_of(B, "A:pass(B) B:pass(A)", is_blind=True).agreed == 1
    late = record_of(B, "A:pass() B:pass(A)", is_blind=True)
    assert (late.agreed, late.late) == (0, 1)


def test_who_gave_what_most_did_not_give_dissented():
    assert record_of(C, "A:pass B:pass C:fail").dissented == 1
    assert record_of(A, "A:pass B:fail").open == 1
    assert record_of(A, "A:pass B:fail/B").alone == 1
    assert record_of(A, "A!timeout").broken == 1


# --- long records -----------------------------------------------------------------------------


def sealed(named: tuple[tuple[bytes, bytes], ...] = ()) -> Sealed:
    return Sealed(id=commit_of(A), author=A, commitment=digest("x"), named=named)


def test_ten_checked_runs_in_a_row_make_a_record_and_the_floor_bounds_it():
    assert [chance(streak, 5) for streak in (0, 9, 10, 20, 1000)] == [1, 1, 1 / 10, 1 / 20, 1 / 20]


def test_a_run_is_spared_only_after_another_voice_named_its_commit():
    odds, speakers = {"x": 1e-9}, {A: "x", B: "x", C: "y"}
    assert not is_spared(sealed(), speakers, odds)
    assert not is_spared(sealed(((digest("e"), B),)), speakers, odds)
    assert is_spared(sealed(((digest("e"), C),)), speakers, odds)
    assert not is_spared(sealed(((digest("e"), C),)), speakers, {})


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=6, unique=True))
def test_a_further_lot_only_ever_adds_a_check(lots):
    speakers, odds = {A: "x", C: "y"}, {"x": 0.3}
    spared = [
        is_spared(sealed(tuple((lot, C) for lot in lots[: n + 1])), speakers, odds)
        for n in range(len(lots))
    ]
    assert spared == sorted(spared, reverse=True)


def test_a_spared_outcome_is_confirmed_on_record_and_no_longer_when_the_record_is_gone():
    runs, (commit,) = told("A:pass()")
    standing = Standing(operators={A: "x", C: "y"})
    commits = [replace(commit, named=((digest("e"), C),))]
    facts = {"commits": commits, "is_blind": True}
    found = judge(runs, TWO, standing, chances={"x": 1e-9}, **facts)
    assert (found.verdict, found.on_record, found.agree) == (Verdict.CONFIRMED_PASS, True, 1)
    assert judge(runs, TWO, standing, **facts).verdict is Verdict.UNCONFIRMED
    differs = [*runs, ran(B, "fail")]
    found = judge(differs, TWO, standing, chances={"x": 1e-9}, **facts)
    assert (found.verdict, found.on_record) == (Verdict.DISPUTED, False)
