"""From outcomes to a verdict: pure, so that any reader can compute it again.

A cell's runs are grouped by what may be compared at all (`codec.comparable`: equal
interpreter patch version, installed set and service versions) and, within that, by the
digest of the outcome. Keys of one operator count as one. A forked author counts for
nothing. Broken runs say something about a machine and nothing about the tests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ponyswarm.policy import ReaderPolicy


class Verdict(StrEnum):
    CONFIRMED_PASS = "confirmed pass"  # noqa: S105
    CONFIRMED_FAIL = "confirmed fail"
    DISPUTED = "disputed"
    UNCONFIRMED = "unconfirmed"
    BROKEN = "broken"
    PENDING = "pending"


CONFIRMED = frozenset({Verdict.CONFIRMED_PASS, Verdict.CONFIRMED_FAIL})


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One outcome as a verdict sees it. ``order`` is its place in the author's feed."""

    author: bytes
    order: int
    completed: bool
    reason: str = ""
    digest: bytes
    comparable: bytes
    failed: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A verdict and what it rests on.

    ``agree`` of ``of`` independent operators gave the majority's outcome ``digest``;
    ``dissent`` are the authors whose comparable outcome differs from it.
    """

    verdict: Verdict
    agree: int = 0
    of: int = 0
    tests: int = 0
    failed: int = 0
    digest: bytes | None = None
    supporters: tuple[bytes, ...] = ()
    dissent: tuple[bytes, ...] = ()
    broken: Mapping[str, int] = field(default_factory=dict)


def judge(
    runs: Iterable[Run],
    policy: ReaderPolicy,
    *,
    operators: Mapping[bytes, str],
    forked: Collection[bytes],
) -> Finding:
    """The verdict on one cell.

    ``operators`` names who runs a vouched key; an unvouched key is its own operator.
    Confirmed: at least ``policy.agreeing`` operators gave one outcome, and they are more
    than half of all whose runs compare with theirs. Disputed: outcomes that compare
    differ, and no such majority stands.
    """
    latest: dict[bytes, Run] = {}
    broken: dict[str, int] = {}
    for run in sorted(runs, key=lambda run: (run.author, run.order)):
        if run.author in forked or not policy.counts(run.author, operators):
            continue
        if run.completed:
            latest[run.author] = run
        else:
            broken[run.reason] = broken.get(run.reason, 0) + 1
    if not latest:
        return Finding(verdict=Verdict.BROKEN if broken else Verdict.PENDING, broken=broken)

    def operator(author: bytes) -> str:
        return operators.get(author, author.hex())

    best: Finding | None = None
    for comparable in sorted({run.comparable for run in latest.values()}):
        peers = [run for run in latest.values() if run.comparable == comparable]
        finding = _judge_comparable(peers, policy, operator_of={a: operator(a) for a in latest})
        if best is None or _weight(finding) > _weight(best):
            best = finding
    assert best is not None
    return Finding(
        verdict=best.verdict,
        agree=best.agree,
        of=best.of,
        tests=best.tests,
        failed=best.failed,
        digest=best.digest,
        supporters=best.supporters,
        dissent=best.dissent,
        broken=broken,
    )


def _judge_comparable(
    runs: list[Run], policy: ReaderPolicy, operator_of: Mapping[bytes, str]
) -> Finding:
    # The counts are part of what a run says: a copied digest with other counts is no support.
    by_outcome: dict[tuple[bytes, int, int], list[Run]] = {}
    for run in runs:
        by_outcome.setdefault((run.digest, run.failed, run.total), []).append(run)
    voices = {
        outcome: {operator_of[run.author] for run in group} for outcome, group in by_outcome.items()
    }
    # Ties are broken by digest only to have one answer everywhere; a tie is never confirmed.
    order = sorted(by_outcome, key=lambda outcome: (-len(voices[outcome]), outcome))
    group = by_outcome[order[0]]
    everyone = set().union(*voices.values())
    agree, of = len(voices[order[0]]), len(everyone)
    is_tie = len(order) > 1 and len(voices[order[1]]) == agree
    sample = group[0]
    if agree >= policy.agreeing and 2 * agree > of and not is_tie:
        bad = sample.failed > 0
        verdict = Verdict.CONFIRMED_FAIL if bad else Verdict.CONFIRMED_PASS
    elif len(by_outcome) > 1:
        verdict = Verdict.DISPUTED
    else:
        verdict = Verdict.UNCONFIRMED
    return Finding(
        verdict=verdict,
        agree=agree,
        of=of,
        tests=sample.total,
        failed=sample.failed,
        digest=sample.digest,
        supporters=tuple(sorted(run.author for run in group)),
        dissent=tuple(sorted(run.author for run in runs if run not in group)),
    )


def _weight(finding: Finding) -> tuple[int, int, int]:
    """Which of several incomparable groups speaks for the cell: a failure before a pass."""
    rank = {
        Verdict.CONFIRMED_FAIL: 4,
        Verdict.DISPUTED: 3,
        Verdict.CONFIRMED_PASS: 2,
        Verdict.UNCONFIRMED: 1,
    }
    return rank[finding.verdict], finding.agree, finding.of
