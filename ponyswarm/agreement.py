"""Who agrees with whom, and whether they could have copied: the rule under every verdict.

Pure. Scheduling asks it whether a cell needs a further run, and verdicts ask it what a
cell's runs, or one test's, amount to; so what is run and what is believed never part.

A *voice* is an operator, or a key that nobody vouched for. Each voice gave one outcome or
several. One that gave several *wavers*: it supports none of them. An outcome *stands*
when the voices that gave it and nothing else are more than half of all, more than those of
any other outcome, and their support is enough.

In an open job each of them is one support. In a blind one a voice may have copied what
another had told, so only those that committed before any of the others told count whole
(`blind_together`); of the rest, two count as one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

Voice = bytes | str
# For each voice those that it told nothing before they had committed, and the reverse.
Pairs = Mapping[Voice, frozenset[Voice]]

T = TypeVar("T", bound=Hashable)


class State(StrEnum):
    """What outcomes amount to."""

    STANDS = "stands"
    FLAKY = "flaky"
    DISPUTED = "disputed"
    ALONE = "alone"


@dataclass(frozen=True, slots=True)
class Weighed(Generic[T]):
    """Outcomes that compare, weighed.

    ``first`` has the most steady voices, ``agree`` of all ``of``; ``blind`` of those could
    not have copied from each other. ``support`` is what they weigh together.
    """

    state: State
    first: T
    agree: int
    of: int
    blind: int
    support: int
    wavering: frozenset[Voice]


def weigh(
    said: Mapping[T, Collection[Voice]],
    order: Sequence[T],
    *,
    needed: int,
    is_blind: bool,
    pairs: Pairs,
) -> Weighed[T]:
    """Weigh outcomes of runs that compare, by who gave each in any of its runs.

    ``order`` has the outcomes in an order that everybody has, to choose between equals.
    Flaky: none stands, and a voice wavers, or two outcomes each have as many voices as were
    needed (two at least). Otherwise disputed, if there is more than one.
    """
    wavering = _wavering(said)
    steady = {outcome: set(voices) - wavering for outcome, voices in said.items()}
    ranked = sorted(order, key=lambda outcome: -len(steady[outcome]))
    first = ranked[0]
    agree, of = len(steady[first]), len(set().union(*said.values()))
    blind = len(blind_together(steady[first], pairs))
    support = blind + (agree - blind) // 2 if is_blind else agree
    is_tie = len(ranked) > 1 and len(steady[ranked[1]]) == agree
    if support >= needed and 2 * agree > of and not is_tie:
        state = State.STANDS
    elif wavering or _both_seen(said, needed):
        state = State.FLAKY
    elif len(said) > 1:
        state = State.DISPUTED
    else:
        state = State.ALONE
    return Weighed(state, first, agree, of, blind, support, wavering)


def _both_seen(said: Mapping[T, Collection[Voice]], needed: int) -> bool:
    """Whether two outcomes each have as many voices as were needed, two at least."""
    return sum(len(set(voices)) >= max(2, needed) for voices in said.values()) > 1


def _wavering(said: Mapping[T, Collection[Voice]]) -> frozenset[Voice]:
    times = Counter(voice for voices in said.values() for voice in set(voices))
    return frozenset(voice for voice, count in times.items() if count > 1)


def blind_together(voices: Collection[Voice], pairs: Pairs) -> set[Voice]:
    """As many of these as committed before any other of them told; one where none did.

    Found greedily, those with most partners first: an exact answer could be made to take
    exponential time, and honest voices of one round are all each other's partners.
    """
    here = set(voices)
    if not here:
        return set()
    partners = {voice: pairs.get(voice, frozenset()) & here for voice in here}
    found: set[Voice] = set()
    for voice in sorted(here, key=lambda voice: (-len(partners[voice]), _name(voice))):
        if found <= partners[voice]:
            found.add(voice)
    return found


def _name(voice: Voice) -> tuple[bool, bytes]:
    """An order of voices that everybody has."""
    return (True, voice.encode()) if isinstance(voice, str) else (False, voice)


# --- who could have copied --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Told:
    """A completed run's outcome was told: by whom, opening which commit, having seen which.

    ``commit`` is the id of the author's own commit that it opens; None where it opens none.
    """

    voice: Voice
    commit: bytes | None
    seen: frozenset[bytes]


def blind_pairs(told: Iterable[Told]) -> dict[Voice, frozenset[Voice]]:
    """Who could not have copied from whom, proved by ids alone and not by clocks.

    An entry that names a commit by its id was made after it. So when each of two voices
    names a commit of the other in *all* that it told of a cell, both had committed before
    the other told anything.
    """
    seen: dict[Voice, frozenset[bytes]] = {}
    commits: dict[bytes, Voice] = {}
    for one in told:
        before = seen.get(one.voice)
        seen[one.voice] = one.seen if before is None else before & one.seen
        if one.commit is not None:
            commits[one.commit] = one.voice
    sees = {voice: {commits[id_] for id_ in ids if id_ in commits} for voice, ids in seen.items()}
    return {
        voice: frozenset(o for o in others if o != voice and voice in sees.get(o, ()))
        for voice, others in sees.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A commit to a cell: its entry's id and time, who signed it, and what it binds it to.

    ``named`` are the commits to other cells of the job that name it, with their authors.
    """

    id: bytes
    author: bytes
    commitment: bytes
    time: int = 0
    named: tuple[tuple[bytes, bytes], ...] = ()


class Opening(Protocol):
    """What matching runs with commits looks at.

    ``opens`` is the commitment that a run's nonce gives, None where it has no nonce;
    ``seen`` are the commits that it names.
    """

    @property
    def author(self) -> bytes: ...
    @property
    def completed(self) -> bool: ...
    @property
    def opens(self) -> bytes | None: ...
    @property
    def seen(self) -> frozenset[bytes]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A cell's runs with commits: which of them say nothing, who could have copied.

    ``void`` are places among the runs, ``sealed`` the authors that left a commit unopened.
    ``spared`` are the voices that need nobody to check them here (`is_spared`).
    """

    void: frozenset[int]
    pairs: Pairs
    sealed: tuple[bytes, ...]
    spared: frozenset[Voice] = frozenset()


def open_commits(
    runs: Sequence[Opening],
    commits: Sequence[Sealed],
    speakers: Mapping[bytes, Voice],
    chances: Mapping[Voice, float] | None = None,
) -> Opened:
    """Match runs of a cell with the commits they open.

    ``chances`` are those of voices that are not always checked (`chance`).

    A run that opens no commit of its author, though it has a nonce or its author did
    commit, says nothing: otherwise one could commit to anything and tell what suits. Who
    left a commit unopened counts as one who could have copied: it might have had several.
    """
    mine: dict[bytes, dict[bytes, bytes]] = {}
    for commit in commits:
        mine.setdefault(commit.author, {})[commit.commitment] = commit.id
    void = set()
    unopened = {author: dict(held) for author, held in mine.items()}
    opened: list[tuple[Opening, bytes | None]] = []
    for place, run in enumerate(runs):
        held = mine.get(run.author, {})
        id_ = None if run.opens is None else held.get(run.opens)
        if id_ is None and (held or run.opens is not None):
            void.add(place)
            continue
        if run.opens is not None:
            unopened[run.author].pop(run.opens, None)
        if run.completed:
            opened.append((run, id_))
    told = []
    for run, id_ in opened:
        voice = speakers.get(run.author, run.author)
        told.append(Told(voice, None if unopened.get(run.author) else id_, run.seen))
    return Opened(
        void=frozenset(void),
        pairs=blind_pairs(told),
        sealed=tuple(sorted(author for author, left in unopened.items() if left)),
        spared=frozenset(
            speakers.get(commit.author, commit.author)
            for commit in commits
            if chances and len(mine[commit.author]) == 1 and is_spared(commit, speakers, chances)
        ),
    )


# --- who is checked less ----------------------------------------------------------------------

# So many runs in a row must have been checked and agreed with before one is spared.
LONG_RECORD = 10
_SAMPLE_DOMAIN = b"ponyswarm/sample/v1\0"


def chance(streak: int, floor: int) -> float:
    """How likely a run is checked whose author agreed in so many checked runs, the last ones.

    ``floor`` is the least, in percent.
    """
    return 1.0 if streak < LONG_RECORD else max(floor / 100, 1 / streak)


def is_spared(
    commit: Sealed, speakers: Mapping[bytes, Voice], chances: Mapping[Voice, float]
) -> bool:
    """Whether lot has it that nobody need check the run behind a commit.

    The lot is drawn from the ids of this commit and of each commit of another voice that
    names it. Those were signed later, by others: the author cannot choose by it what to
    commit to. Without any it is not drawn yet; each further one can only add a check.
    """
    voice = speakers.get(commit.author, commit.author)
    odds = chances.get(voice, 1.0)
    lots = [id_ for id_, author in commit.named if speakers.get(author, author) != voice]
    return odds < 1 and bool(lots) and not any(_is_drawn(commit.id, id_, odds) for id_ in lots)


def _is_drawn(commit: bytes, by: bytes, odds: float) -> bool:
    lot = hashlib.sha256(_SAMPLE_DOMAIN + commit + by).digest()
    return int.from_bytes(lot[:8], "big") < odds * (1 << 64)


# --- how much is enough -----------------------------------------------------------------------


def more_wanted(
    sets: Iterable[Mapping[T, Collection[Voice]]],
    *,
    redundancy: int,
    sealed: int,
    is_blind: bool,
    pairs: Pairs,
    spared: Collection[Voice] = (),
) -> int:
    """How many further voices a cell needs, from what was said in each set of comparable runs.

    ``sealed`` is how many others have committed and not told yet. A disagreement, or as many
    runs as were asked for without enough support, asks for one more before it is called. In
    a blind job it may ask for two: who comes later may copy, and would decide alone. A voice
    that is ``spared`` is enough while nobody differs.
    """
    told: set[Voice] = set()
    short = redundancy
    differ = False
    for said in sets:
        if not said:
            continue
        told.update(*said.values())
        differ = differ or len(said) > 1
        wavering = _wavering(said)
        for voices in said.values():
            here = set(voices) - wavering
            blind = len(blind_together(here, pairs)) if is_blind else len(here)
            lacks = redundancy - blind - (len(here) - blind) // 2
            if lacks <= 0:
                # Where as many say another the cell is called flaky, and that is an end too.
                return 0
            short = min(short, 2 * lacks - (len(here) - blind) % 2 if is_blind else lacks)
    if not differ and (told & set(spared) or (not told and spared)):
        return 0
    if not differ and len(told) < redundancy:
        return max(0, redundancy - len(told) - sealed)
    most = redundancy + (2 if is_blind else 1) - len(told)
    return max(0, min(short, most) - sealed)


# --- who looks again --------------------------------------------------------------------------


def doubted(said: Mapping[T, Collection[Voice]], *, needed: int) -> set[Voice]:
    """The voices that should run once more what they ran, of those whose runs compare.

    Steady ones whose outcome has no more of them than some other: if their second run
    differs from the first, it is a test that is flaky, and not a machine that is wrong. A
    majority need not: a lone liar would make all others work twice. Nor need anybody where
    both outcomes were seen often enough to call the tests flaky.
    """
    if len(said) < 2 or _both_seen(said, needed):
        return set()
    wavering = _wavering(said)
    steady = [set(voices) - wavering for voices in said.values()]
    most = max(len(voices) for voices in steady)
    ahead = [voices for voices in steady if len(voices) == most]
    leading = ahead[0] if len(ahead) == 1 else set()
    return set().union(*steady) - leading
