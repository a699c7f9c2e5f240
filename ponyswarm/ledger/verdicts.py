"""From outcomes to a verdict: pure, so that any reader can compute it again.

A cell's runs are grouped by what may be compared at all (`codec.comparable`: equal
interpreter patch version, installed set and service versions) and, within that, by the
outcome. What the runs of one group amount to, for the cell and for each test, is
`agreement.weigh`. A forked author counts for nothing. Broken runs say something about a
machine and nothing about the tests. ``docs/verdicts.md`` has the rules with a table of cases.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from ponyswarm import agreement
from ponyswarm.agreement import Opened, Pairs, Sealed, State, Voice, Weighed, open_commits
from ponyswarm.messages import BAD_STATUSES
from ponyswarm.policy import ReaderPolicy, Standing


class Verdict(StrEnum):
    CONFIRMED_PASS = "confirmed pass"  # noqa: S105
    CONFIRMED_FAIL = "confirmed fail"
    FLAKY = "flaky"
    DISPUTED = "disputed"
    UNCONFIRMED = "unconfirmed"
    BROKEN = "broken"
    PENDING = "pending"


CONFIRMED = frozenset({Verdict.CONFIRMED_PASS, Verdict.CONFIRMED_FAIL})

NOTHING_OPENED = Opened(void=frozenset(), pairs={}, sealed=())

_OPEN = {
    State.FLAKY: Verdict.FLAKY,
    State.DISPUTED: Verdict.DISPUTED,
    State.ALONE: Verdict.UNCONFIRMED,
}


class Outcome(NamedTuple):
    """What a completed run says. The counts are part of it: a copied digest is no support."""

    comparable: bytes
    digest: bytes
    failed: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One outcome as a verdict sees it.

    ``opens`` is the commitment that its nonce gives, None where it has no nonce; ``seen``
    are the commits that it names. ``time`` is its entry's.
    """

    author: bytes
    completed: bool
    digest: bytes
    comparable: bytes
    failed: int
    total: int
    reason: str = ""
    time: int = 0
    opens: bytes | None = None
    seen: frozenset[bytes] = frozenset()

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.comparable, self.digest, self.failed, self.total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A verdict and what it rests on.

    ``agree`` of ``of`` independent operators gave the outcome ``digest`` and no other;
    ``blind`` of those had all committed before any of them told. ``supporters`` are their
    keys, ``wavering`` those of operators that gave several outcomes, ``dissent`` all others.
    ``differ`` names tests that comparable runs disagree on, as far as the entries name them.
    ``sealed`` have committed to an outcome and not told it. With ``on_record`` it is
    confirmed by one operator's word, whose long record lets it be checked less often.
    """

    verdict: Verdict
    agree: int = 0
    of: int = 0
    blind: int = 0
    tests: int = 0
    failed: int = 0
    digest: bytes | None = None
    comparable: bytes | None = None
    supporters: tuple[bytes, ...] = ()
    dissent: tuple[bytes, ...] = ()
    wavering: tuple[bytes, ...] = ()
    differ: tuple[str, ...] = ()
    sealed: tuple[bytes, ...] = ()
    on_record: bool = False
    broken: Mapping[str, int] = field(default_factory=dict)


# --- the verdict -----------------------------------------------------------------------------


def judge(
    runs: Iterable[Run],
    policy: ReaderPolicy,
    standing: Standing,
    *,
    commits: Sequence[Sealed] = (),
    is_blind: bool = False,
    chances: Mapping[Voice, float] | None = None,
) -> Finding:
    """The verdict on one cell, from everything that was said of it in any order.

    ``is_blind`` is how the job asked to be checked (`policy.cross_check`); ``chances`` are
    those of voices that are checked less often there (`agreement.chance`).
    """
    counted = [
        run
        for run in runs
        if policy.counts(run.author, standing) and standing.stands(run.author, run.time)
    ]
    sealed = [commit for commit in commits if policy.counts(commit.author, standing)]
    speakers = {
        key: standing.voice(key)
        for key in {run.author for run in counted} | {commit.author for commit in sealed}
    }
    tally = count(counted, sealed, speakers, chances if is_blind else None)
    return weigh(
        tally.voices,
        tally.broken,
        policy,
        speakers=speakers,
        opened=tally.opened,
        is_blind=is_blind,
    )


@dataclass(frozen=True, slots=True)
class Tally:
    """Who gave which outcome in any of its runs, how many runs broke and why."""

    voices: Mapping[Outcome, Sequence[bytes]]
    broken: Mapping[str, int]
    opened: Opened


def count(
    runs: Sequence[Run],
    commits: Sequence[Sealed],
    speakers: Mapping[bytes, Voice],
    chances: Mapping[Voice, float] | None = None,
) -> Tally:
    """Count a cell's runs, of keys that a reader listens to."""
    opened = open_commits(runs, commits, speakers, chances)
    broken: dict[str, int] = {}
    voices: dict[Outcome, list[bytes]] = {}
    for place, run in enumerate(runs):
        if place in opened.void:
            continue
        if not run.completed:
            broken[run.reason] = broken.get(run.reason, 0) + 1
            continue
        authors = voices.setdefault(run.outcome, [])
        if run.author not in authors:
            authors.append(run.author)
    return Tally(voices, broken, opened)


def weigh(
    voices: Mapping[Outcome, Sequence[bytes]],
    broken: Mapping[str, int],
    policy: ReaderPolicy,
    *,
    speakers: Mapping[bytes, Voice],
    opened: Opened = NOTHING_OPENED,
    is_blind: bool = False,
) -> Finding:
    """The verdict, from the keys that count and what each of them said in any of its runs.

    ``voices`` names them by outcome. ``speakers`` gives the voice of a key; a key that is
    not in it is its own.
    """
    if not voices:
        verdict = Verdict.BROKEN if broken else Verdict.PENDING
        return Finding(verdict=verdict, broken=broken, sealed=opened.sealed)
    groups: dict[bytes, dict[Outcome, Sequence[bytes]]] = {}
    for outcome, authors in voices.items():
        groups.setdefault(outcome.comparable, {})[outcome] = authors
    best: Finding | None = None
    for comparable in sorted(groups):
        finding = _weigh_comparable(groups[comparable], policy, speakers, opened, is_blind)
        if best is None or _weight(finding, policy) > _weight(best, policy):
            best = finding
    assert best is not None
    return replace(best, broken=broken, sealed=opened.sealed)


def _independent(authors: Iterable[bytes], speakers: Mapping[bytes, Voice]) -> set[Voice]:
    """Who speaks through these keys."""
    return {speakers.get(author, author) for author in authors} if speakers else set(authors)


def _through(
    voices: Collection[Voice], said: Iterable[Iterable[bytes]], speakers: Mapping[bytes, Voice]
) -> set[bytes]:
    """The keys through which these spoke."""
    if not voices:
        return set()
    return {key for keys in said for key in keys if speakers.get(key, key) in voices}


def _weigh_comparable(
    voices: Mapping[Outcome, Sequence[bytes]],
    policy: ReaderPolicy,
    speakers: Mapping[bytes, Voice],
    opened: Opened,
    is_blind: bool,
) -> Finding:
    found = agreement.weigh(
        {outcome: _independent(authors, speakers) for outcome, authors in voices.items()},
        # Between equals the digest decides, only to have one answer everywhere.
        sorted(voices, key=lambda outcome: outcome[1:]),
        needed=policy.agreeing,
        is_blind=is_blind,
        pairs=opened.pairs,
    )
    first = found.first
    voices_first = _independent(voices[first], speakers)
    on_record = found.state is State.ALONE and bool(voices_first & opened.spared)
    if found.state is State.STANDS or on_record:
        verdict = Verdict.CONFIRMED_FAIL if first.failed > 0 else Verdict.CONFIRMED_PASS
    else:
        verdict = _OPEN[found.state]
    wavering = _through(found.wavering, voices.values(), speakers)
    return Finding(
        verdict=verdict,
        agree=found.agree,
        of=found.of,
        blind=found.blind if found.blind > 1 else 0,
        tests=first.total,
        failed=first.failed,
        digest=first.digest,
        comparable=first.comparable,
        supporters=tuple(sorted(set(voices[first]) - wavering)),
        dissent=tuple(sorted({a for o in voices if o != first for a in voices[o]} - wavering)),
        wavering=tuple(sorted(wavering)),
        on_record=on_record,
    )


def _weight(finding: Finding, policy: ReaderPolicy) -> tuple[bool, int, int, int]:
    """Which of several incomparable groups speaks for the cell: a failure before a pass.

    A group of fewer operators than were asked for never speaks before one that is confirmed:
    anyone can make up an environment to be alone in.
    """
    rank = {
        Verdict.CONFIRMED_FAIL: 5,
        Verdict.FLAKY: 4,
        Verdict.DISPUTED: 3,
        Verdict.CONFIRMED_PASS: 2,
        Verdict.UNCONFIRMED: 1,
    }
    return finding.of >= policy.agreeing, rank[finding.verdict], finding.agree, finding.of


# --- test by test ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TestFinding:
    """What comparable runs amount to for one test that they differ on.

    ``statuses`` has who gave which; ``status`` is the one with most steady operators;
    ``wavering`` are the keys of operators that gave several.
    """

    verdict: Verdict
    status: str
    agree: int
    of: int
    statuses: Mapping[str, tuple[bytes, ...]]
    wavering: tuple[bytes, ...] = ()


def by_test(
    runs: Iterable[tuple[bytes, Mapping[str, str]]],
    policy: ReaderPolicy,
    *,
    absent: str,
    speakers: Mapping[bytes, Voice],
    pairs: Pairs | None = None,
    is_blind: bool = False,
) -> dict[str, TestFinding]:
    """The tests on which comparable runs differ, each weighed like a cell, by name.

    ``runs`` are (author, status by test); ``absent`` is the status of a test that is not in
    a run. Only runs that count are to be given.
    """
    told = list(runs)
    found = {}
    for test in sorted({test for _, statuses in told for test in statuses}):
        said: dict[str, list[bytes]] = {}
        for author, statuses in told:
            said.setdefault(statuses.get(test, absent), []).append(author)
        if len(said) < 2:
            continue
        weighed: Weighed[str] = agreement.weigh(
            {status: _independent(authors, speakers) for status, authors in said.items()},
            sorted(said),
            needed=policy.agreeing,
            is_blind=is_blind,
            pairs=pairs or {},
        )
        if weighed.state is State.STANDS:
            is_bad = weighed.first in _BAD
            verdict = Verdict.CONFIRMED_FAIL if is_bad else Verdict.CONFIRMED_PASS
        else:
            verdict = _OPEN[weighed.state]
        found[test] = TestFinding(
            verdict=verdict,
            status=weighed.first,
            agree=weighed.agree,
            of=weighed.of,
            statuses={status: tuple(sorted(set(said[status]))) for status in sorted(said)},
            wavering=tuple(sorted(_through(weighed.wavering, said.values(), speakers))),
        )
    return found


# Lists that name bad tests alone say "bad" for failed and erred.
_BAD = frozenset({"bad", *(str(status) for status in BAD_STATUSES)})


def differing(bad: Iterable[Collection[str]]) -> tuple[str, ...]:
    """The tests that are bad in some of these runs and not in others."""
    lists = [frozenset(names) for names in bad]
    if not lists:
        return ()
    return tuple(sorted(frozenset[str]().union(*lists) - lists[0].intersection(*lists)))


# --- records of keys -------------------------------------------------------------------------


@dataclass(slots=True)
class Record:
    """How one key's runs compare with what others gave, over many cells."""

    runs: int = 0
    agreed: int = 0
    dissented: int = 0
    alone: int = 0
    open: int = 0
    late: int = 0
    stalled: int = 0
    void: int = 0
    broken: int = 0


def agreement_of(
    cell: Iterable[tuple[bytes, Outcome | None]],
    records: MutableMapping[bytes, Record],
    *,
    speakers: Mapping[bytes, Voice],
    pairs: Pairs | None = None,
    is_blind: bool = False,
) -> None:
    """Add one cell's runs, (author, outcome), to the records of their authors.

    A run agreed when most independent operators with comparable runs gave its outcome,
    dissented when most gave one other, is open when no outcome has most, and was alone
    when nobody else's run compares with it. ``None`` is a broken run. In a blind job, one
    that agreed but could have been copied from any of those it agrees with is late, and
    speaks for nobody's diligence.
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
        spoken = {o: _independent(authors, speakers) for o, authors in voices.items()}
        everyone = set().union(*spoken.values())
        most = max(voices, key=lambda outcome: (len(spoken[outcome]), outcome))
        stands = 2 * len(spoken[most]) > len(everyone)
        blind = agreement.blind_together(spoken[most], pairs or {}) if is_blind else spoken[most]
        if len(blind) == 1:
            blind = set()
        for outcome, authors in voices.items():
            for author in authors:
                record = records[author]
                if len(everyone) == 1:
                    record.alone += 1
                elif not stands:
                    record.open += 1
                elif outcome != most:
                    record.dissented += 1
                elif speakers.get(author, author) in blind:
                    record.agreed += 1
                else:
                    record.late += 1


def add_cell(
    runs: Sequence[Run],
    commits: Sequence[Sealed],
    records: MutableMapping[bytes, Record],
    *,
    standing: Standing,
    is_blind: bool,
    due: int = 0,
) -> None:
    """Add everything that was said of a cell to the records of who said it.

    What forked authors ran is counted, and speaks against nobody. A commit from before
    ``due`` (milliseconds) that its author left unopened has stalled; a run that is not
    what its author committed to is void.
    """
    speakers = standing.speakers
    for run in runs:
        if run.author in standing.forked:
            records.setdefault(run.author, Record()).runs += 1
    heard = [run for run in runs if run.author not in standing.forked]
    mine = [commit for commit in commits if commit.author not in standing.forked]
    opened = open_commits(heard, mine, speakers)
    overdue = {commit.author for commit in mine if commit.time < due}
    for author in overdue & set(opened.sealed):
        records.setdefault(author, Record()).stalled += 1
    for place in opened.void:
        records.setdefault(heard[place].author, Record()).void += 1
    agreement_of(
        [
            (run.author, run.outcome if run.completed else None)
            for place, run in enumerate(heard)
            if place not in opened.void
        ],
        records,
        speakers=speakers,
        pairs=opened.pairs,
        is_blind=is_blind,
    )
