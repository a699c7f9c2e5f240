"""From outcomes to a verdict: pure, so that any reader can compute it again.

A cell's runs are grouped by what may be compared at all (`codec.comparable`: equal
interpreter patch version, installed set and service versions) and, within that, by the
digest of the outcome. Keys of one operator count as one. A forked author counts for
nothing. Broken runs say something about a machine and nothing about the tests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

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


class Outcome(NamedTuple):
    """What a completed run says. The counts are part of it: a copied digest is no support."""

    comparable: bytes
    digest: bytes
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
    voices: dict[Outcome, list[bytes]] = {}
    for author, run in latest.items():
        outcome = Outcome(run.comparable, run.digest, run.failed, run.total)
        voices.setdefault(outcome, []).append(author)
    return weigh(voices, broken, policy, operators=operators)


def weigh(
    voices: Mapping[Outcome, Sequence[bytes]],
    broken: Mapping[str, int],
    policy: ReaderPolicy,
    *,
    operators: Mapping[bytes, str],
) -> Finding:
    """The verdict, from the authors that count and what each of them said last.

    ``voices`` names them by outcome, each author once.
    """
    if not voices:
        return Finding(verdict=Verdict.BROKEN if broken else Verdict.PENDING, broken=broken)
    groups: dict[bytes, dict[Outcome, Sequence[bytes]]] = {}
    for outcome, authors in voices.items():
        groups.setdefault(outcome.comparable, {})[outcome] = authors
    best: Finding | None = None
    for comparable in sorted(groups):
        finding = _weigh_comparable(groups[comparable], policy, operators)
        if best is None or _weight(finding) > _weight(best):
            best = finding
    assert best is not None
    return replace(best, broken=broken)


def _independent(authors: Iterable[bytes], operators: Mapping[bytes, str]) -> set[str | bytes]:
    """Who speaks: operators where they are known, else the keys themselves."""
    return {operators.get(author, author) for author in authors} if operators else set(authors)


def _weigh_comparable(
    voices: Mapping[Outcome, Sequence[bytes]],
    policy: ReaderPolicy,
    operators: Mapping[bytes, str],
) -> Finding:
    speakers = {outcome: _independent(authors, operators) for outcome, authors in voices.items()}
    # Ties are broken by digest only to have one answer everywhere; a tie is never confirmed.
    order = sorted(voices, key=lambda outcome: (-len(speakers[outcome]), outcome[1:]))
    first = order[0]
    agree, of = len(speakers[first]), len(set().union(*speakers.values()))
    is_tie = len(order) > 1 and len(speakers[order[1]]) == agree
    if agree >= policy.agreeing and 2 * agree > of and not is_tie:
        verdict = Verdict.CONFIRMED_FAIL if first.failed > 0 else Verdict.CONFIRMED_PASS
    elif len(order) > 1:
        verdict = Verdict.DISPUTED
    else:
        verdict = Verdict.UNCONFIRMED
    return Finding(
        verdict=verdict,
        agree=agree,
        of=of,
        tests=first.total,
        failed=first.failed,
        digest=first.digest,
        supporters=tuple(sorted(voices[first])),
        dissent=tuple(sorted(a for other in order[1:] for a in voices[other])),
    )


@dataclass(slots=True)
class Record:
    """How one key's runs compare with what others gave, over many cells."""

    runs: int = 0
    agreed: int = 0
    dissented: int = 0
    alone: int = 0
    open: int = 0
    broken: int = 0


def agreement(
    cell: Iterable[tuple[bytes, Outcome | None]],
    records: MutableMapping[bytes, Record],
    *,
    operators: Mapping[bytes, str],
) -> None:
    """Add one cell's runs, (author, outcome), to the records of their authors.

    A run agreed when most independent operators with comparable runs gave its outcome,
    dissented when most gave one other, is open when no outcome has most, and was alone
    when nobody else's run compares with it. ``None`` is a broken run.
    """
    by_set: dict[bytes, dict[Outcome, list[bytes]]] = {}
    for author, outcome in cell:
        record = records.setdefault(author, Record())
        record.runs += 1
        if outcome is None:
            record.broken += 1
        else:
            by_set.setdefault(outcome.comparable, {}).setdefault(outcome, []).append(author)
    for voices in by_set.values():
        speakers = {o: _independent(authors, operators) for o, authors in voices.items()}
        everyone = set().union(*speakers.values())
        most = max(voices, key=lambda outcome: (len(speakers[outcome]), outcome))
        stands = 2 * len(speakers[most]) > len(everyone)
        for outcome, authors in voices.items():
            for author in authors:
                record = records[author]
                if len(everyone) == 1:
                    record.alone += 1
                elif not stands:
                    record.open += 1
                elif outcome == most:
                    record.agreed += 1
                else:
                    record.dissented += 1


def _weight(finding: Finding) -> tuple[int, int, int]:
    """Which of several incomparable groups speaks for the cell: a failure before a pass."""
    rank = {
        Verdict.CONFIRMED_FAIL: 4,
        Verdict.DISPUTED: 3,
        Verdict.CONFIRMED_PASS: 2,
        Verdict.UNCONFIRMED: 1,
    }
    return rank[finding.verdict], finding.agree, finding.of
