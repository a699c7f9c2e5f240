"""Who runs what: pure decisions over offers, leases and results. No coordinator.

Every node ranks the volunteers whose offers fit a cell by rendezvous hashing, SHA-256 of
cell id and key, weighted by the slots that they have free. The first ones claim at once,
the others after a delay that grows with their rank, if a run is still missing then. A
claim is a lease: renewed while the run lives, void soon after its node dies. Under a
partition both sides go on; the price is a few runs more than asked for, never fewer.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ponyswarm.agreement import Opened, Sealed, Voice, doubted, more_wanted, open_commits
from ponyswarm.messages import MAX_NAMED, CrossCheck, Offer
from ponyswarm.policy import Standing

EVERYONE = Standing()
OPEN = CrossCheck()

LEASE_MS = 90_000
RENEW_MS = 30_000
# A renewed claim says when it was first made, or at least how long ago: its `until`, which
# is that time and `LEASE_MS`, lies no further back than this.
OLDEST_MS = 120_000
# A claim stands this long before its run starts, so that simultaneous claims can meet:
# gossip was measured to take 310 ms at worst, and both must have heard of each other.
SETTLE_MS = 500
# A claim is said again at these ages: at the start of its run, and before others step in.
AGAIN_MS = (SETTLE_MS, 1_500)
# A run that turns out to be one too many is stopped only while it is younger than this.
FIRM_MS = 10_000
# How much longer each further rank waits before it steps in.
STEP_MS = 2_000
OFFER_MS = 600_000
OFFER_EVERY_MS = 240_000
# A cell that breaks rests after this many broken runs beyond what was asked, for longer
# after each further one. Were it given up, a few keys that report broken runs would do.
SPARE_RUNS = 2
REST_MS = 600_000
LONGEST_REST_MS = 6 * 3_600_000
# How long a commit of one with a long record waits to be named by another commit.
LOT_MS = 20_000
# How long others get to decide what two volunteers differ on before those look again.
LOOK_MS = 300_000
# What a run may take beside its tests before its lease is respected no more.
PREPARE_MS = 900_000
# With results of so many authors, a lease is respected for so many times their median.
TYPICAL_OF, TYPICAL_TIMES, SHORTEST_PATIENCE_MS = 3, 4, 300_000
# Who offers more free slots gets that many times more of the cells, up to this.
MOST_WEIGHT = 8


@dataclass(frozen=True, slots=True)
class Done:
    """A result of a cell, as far as scheduling looks at it; ``time`` is its entry's."""

    author: bytes
    completed: bool
    comparable: bytes
    digest: bytes
    seconds: float = 0.0
    time: int = 0
    opens: bytes | None = None
    seen: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class CellState:
    """What is known of one cell. ``vacant_since`` is when the last change asked for a run.

    ``leases`` say until when each claim holds, ``claimed`` when it was first made. Of the
    keys in ``let_down`` one claim ended without a result: further ones keep nobody away;
    those in ``gave_way`` made way for others once, as they should.
    ``patience`` is how long a lease may be renewed (milliseconds). ``sealed`` are the
    commits to it, ``lapsed`` those of them that nobody waits for any more; ``standing``
    says whose word counts, and ``check`` how the job is checked; ``chances`` are those of
    operators that are not always checked.
    """

    id: bytes
    job: bytes
    python: str
    services: tuple[str, ...]
    wanted: int
    vacant_since: int
    order: int = 0
    done: tuple[Done, ...] = ()
    leases: Mapping[bytes, int] = field(default_factory=dict)
    claimed: Mapping[bytes, int] = field(default_factory=dict)
    let_down: frozenset[bytes] = frozenset()
    gave_way: frozenset[bytes] = frozenset()
    patience: int = 1 << 62
    sealed: tuple[Sealed, ...] = ()
    lapsed: frozenset[bytes] = frozenset()
    standing: Standing = EVERYONE
    check: CrossCheck = OPEN
    chances: Mapping[Voice, float] = field(default_factory=dict)

    def hears(self, author: bytes, time: int = 0) -> bool:
        """Whether what a key says fills this cell's redundancy."""
        only_vouched = self.check.counts == "vouched"
        return self.standing.stands(author, time) and (
            not only_vouched or self.standing.is_vouched(author)
        )

    def is_trusted(self, key: bytes) -> bool:
        """Whether a key's runs are not always checked by others."""
        is_blind = self.check.mode == "blind"
        return is_blind and self.chances.get(self.standing.voice(key), 1.0) < 1

    @property
    def spoken(self) -> set[Voice]:
        """Who needs no further run: it told what it found, or that it broke, or committed."""
        authors = {run.author for run in self.done} | {seal.author for seal in self.sealed}
        return {self.standing.voice(author) for author in authors}


# Whether an offer can run a cell.
Fits = Callable[[CellState, Offer], bool]


@lru_cache(maxsize=1 << 18)
def _score(cell: bytes, key: bytes) -> bytes:
    return hashlib.sha256(cell + key).digest()


@lru_cache(maxsize=1 << 18)
def _distance(cell: bytes, key: bytes) -> float:
    """How far a key is from a cell: drawn from the exponential distribution by their hash."""
    return -math.log((int.from_bytes(_score(cell, key)[:8], "big") + 1) / (1 << 64))


def rank(cell: bytes, weights: Mapping[bytes, int]) -> list[bytes]:
    """Keys in rendezvous order for a cell: the same list on every node with equal weights.

    A key is first for a share of the cells that is proportional to its weight; a change of
    one weight moves only cells of that key. Those with none come last.
    """

    def place(key: bytes) -> tuple[bool, float, bytes]:
        weight = weights[key]
        return weight <= 0, _distance(cell, key) / max(1, min(MOST_WEIGHT, weight)), key

    return sorted(weights, key=place)


def still_wanted(cell: CellState) -> int:
    """How many runs a cell lacks, whoever may be at it now (`agreement.more_wanted`).

    Broken runs do not count, nor what keys say that are not heard. A commit counts as a
    run whose outcome is not known yet, until it lapses.
    """
    if not cell.done and not cell.sealed:
        return cell.wanted
    heard = _heard(cell)
    return more_wanted(
        heard.sets,
        redundancy=cell.wanted,
        sealed=heard.awaited,
        is_blind=cell.check.mode == "blind",
        pairs=heard.opened.pairs,
        spared=heard.opened.spared,
    )


def look_again(cell: CellState) -> frozenset[bytes]:
    """The keys that should run a cell once more, since others differ (`agreement.doubted`).

    Only those with one run of it, whatever became of that, and not while somebody has
    committed to an outcome that may decide.
    """
    if len({(run.comparable, run.digest) for run in cell.done if run.completed}) < 2:
        return frozenset()
    heard = _heard(cell)
    if heard.awaited:
        return frozenset()
    voice = cell.standing.voice
    turns = Counter(voice(run.author) for run in cell.done)
    turns |= Counter(voice(seal.author) for seal in cell.sealed)
    voices = set().union(*(doubted(said, needed=cell.wanted) for said in heard.sets))
    once = {one for one in voices if turns[one] == 1}
    return frozenset(run.author for run in cell.done if voice(run.author) in once)


@dataclass(frozen=True, slots=True)
class _Heard:
    """What counts of what was said of a cell: voices by outcome, for each set that compares.

    ``awaited`` is how many voices committed and are expected to tell.
    """

    sets: Sequence[Mapping[bytes, set[Voice]]]
    opened: Opened
    awaited: int


def _heard(cell: CellState) -> _Heard:
    done = [run for run in cell.done if cell.hears(run.author, run.time)]
    seals = [seal for seal in cell.sealed if cell.hears(seal.author, seal.time)]
    authors = {run.author for run in done} | {seal.author for seal in seals}
    speakers = {author: cell.standing.voice(author) for author in authors}
    opened = open_commits(done, seals, speakers, cell.chances)
    sets: dict[bytes, dict[bytes, set[Voice]]] = {}
    told: set[Voice] = set()
    for place, run in enumerate(done):
        if run.completed and place not in opened.void:
            voice = speakers[run.author]
            told.add(voice)
            sets.setdefault(run.comparable, {}).setdefault(run.digest, set()).add(voice)
    # Who was waited for in vain is waited for no more, however often it commits again.
    vain = {seal.author for seal in seals if seal.id in cell.lapsed}
    waiting = {speakers[author] for author in opened.sealed if author not in vain}
    broken = {speakers[run.author] for run in done if not run.completed}
    return _Heard(list(sets.values()), opened, len(waiting - told - broken))


def rests_until(cell: CellState) -> int:
    """Before when nobody needs to try a cell again that broke in several hands."""
    completed = {run.author for run in cell.done if run.completed}
    broken = {run.author for run in cell.done if not run.completed} - completed
    further = len(broken) - cell.wanted - SPARE_RUNS
    if further < 0:
        return 0
    return cell.vacant_since + min(LONGEST_REST_MS, REST_MS << min(further, 16))


def patience(timeout: int, seconds: Mapping[bytes, float]) -> int:
    """How long a lease is respected (milliseconds), however often it is renewed.

    ``timeout`` is the job's own, in seconds; ``seconds`` is what runs of the job took, by
    author. Who claims and never ends would otherwise keep a cell for good. A slow machine
    that loses its lease goes on, and what it gives counts.
    """
    most = 1000 * timeout + PREPARE_MS
    if len(seconds) < TYPICAL_OF:
        return most
    typical = statistics.median(seconds.values())
    return min(most, max(SHORTEST_PATIENCE_MS, int(TYPICAL_TIMES * 1000 * typical)))


def live_leases(cell: CellState, now: int) -> list[bytes]:
    """Who is at a cell now: leases that run, of keys without a result, the first made first.

    One that was renewed for too long, or of a key that let the cell down before, is no
    reason to wait. Whoever claimed first may be running already and gives way to nobody;
    claims of the same moment go by rank. Both are in the claims, so all who heard them agree.
    """
    spoken = cell.spoken
    live = [
        key
        for key, until in cell.leases.items()
        if until > now
        and cell.hears(key)
        and cell.standing.voice(key) not in spoken
        and key not in cell.let_down
        and now - cell.claimed.get(key, now) <= cell.patience
    ]
    live.sort(key=lambda key: (cell.claimed.get(key, 0), _distance(cell.id, key)))
    # Of an operator's keys one is enough.
    first: dict[Voice, bytes] = {}
    for key in live:
        first.setdefault(cell.standing.voice(key), key)
    return list(first.values())


def claim_at(
    cell: CellState,
    me: bytes,
    offers: Mapping[bytes, Offer],
    fits: Fits,
    now: int,
    *,
    free_since: int = 0,
) -> int | None:
    """When this node should claim a cell (milliseconds); None when it has no part in it.

    ``offers`` are the unexpired ones, this node's own among them. Who ranks behind waits
    from the latest of: the cell asked for a run, a lease on it ran out, this node had a
    slot free. Without the last two, all would step in at once after a node's death, and
    for the last cells of a matrix that kept everybody busy.
    """
    voice = cell.standing.voice
    spoken = cell.spoken
    if cell.leases.get(me, 0) > now or not cell.hears(me):
        return None
    if me not in offers or not fits(cell, offers[me]):
        return None
    at_it = live_leases(cell, now)
    missing = still_wanted(cell) - len(at_it)
    if voice(me) in spoken:
        if at_it or me not in look_again(cell):
            return None
        others = any(may_join(cell, key, offer, fits) for key, offer in offers.items())
        return cell.vacant_since + (LOOK_MS if missing > 0 and others else 0)
    spoken |= {voice(key) for key in at_it}
    if missing <= 0 or voice(me) in spoken:
        return None
    # Those with a free slot go first: a busy node would only hold the cell up.
    able = {
        key: offer.slots
        for key, offer in offers.items()
        if voice(key) not in spoken and cell.hears(key) and fits(cell, offer)
    }
    order = rank(cell.id, able)
    place = order.index(me)
    rest = rests_until(cell)
    if not cell.done and not cell.sealed:
        # Whose record is long goes alone first: it may be that nobody need check it.
        first = at_it[0] if at_it else order[0]
        if cell.is_trusted(first):
            missing = 1 - len(at_it)
    elif not cell.done and all(
        cell.is_trusted(seal.author) and not seal.named for seal in cell.sealed
    ):
        # Let another's commit name this one, which draws the lot.
        rest = max(rest, cell.vacant_since + LOT_MS)
    if place < missing:
        return max(cell.vacant_since, rest)
    ended = [until for until in cell.leases.values() if until <= now]
    since = max(cell.vacant_since, free_since, *ended)
    return max(rest, since + (place - missing + 1) * STEP_MS)


def may_join(cell: CellState, key: bytes, offer: Offer, fits: Fits) -> bool:
    """Whether a volunteer could still run a cell, as far as its offer says."""
    return cell.hears(key) and cell.standing.voice(key) not in cell.spoken and fits(cell, offer)


def commits_seen(cell: CellState, me: bytes) -> tuple[bytes, ...]:
    """The commits of others that a result names: those still unopened before the others.

    Those were surely made before this result is told, and so its author's could not be a
    copy; of any number of them, the ones of keys that are heard go first.
    """
    told = {run.author for run in cell.done}
    others = [seal for seal in cell.sealed if seal.author != me]
    others.sort(key=lambda seal: (not cell.hears(seal.author), seal.author in told, seal.id))
    return tuple(seal.id for seal in others[:MAX_NAMED])


def next_end(cell: CellState, now: int) -> int | None:
    """When the first lease on a cell ends or is respected no more."""
    ends = [
        min(until, cell.claimed.get(key, until) + cell.patience)
        for key, until in cell.leases.items()
        if until > now
    ]
    return min((end for end in ends if end >= now), default=None)


def should_yield(cell: CellState, me: bytes, now: int) -> bool:
    """Whether a claim that has not started yet gives way: enough others claimed before."""
    at_it = live_leases(cell, now)
    if me in at_it:
        return at_it.index(me) >= still_wanted(cell)
    # It may have come to light meanwhile that another key of this operator is at it, or done.
    voice = cell.standing.voice
    is_taken = voice(me) in cell.spoken | {voice(key) for key in at_it}
    return is_taken and me not in look_again(cell)


def choose(
    cells: Iterable[CellState],
    me: bytes,
    offers: Mapping[bytes, Offer],
    fits: Fits,
    *,
    now: int,
    free_since: int = 0,
) -> tuple[list[CellState], int | None]:
    """The cells of one project that are to be claimed now, and when to look again.

    Newer jobs go before older ones. Within a job cells go in the order of their rank for
    this node's key, so that nodes start at different ends of one matrix.
    """
    due: list[CellState] = []
    later: int | None = None
    for cell in cells:
        at = claim_at(cell, me, offers, fits, now, free_since=free_since)
        if at is None:
            continue
        if at <= now:
            due.append(cell)
        elif later is None or at < later:
            later = at
    due.sort(key=lambda cell: (-cell.order, _score(cell.id, me)))
    return due, later


def share(
    due: Mapping[bytes, Sequence[CellState]],
    held: Mapping[bytes, int],
    used: Mapping[bytes, float],
    free: int,
) -> list[tuple[bytes, CellState]]:
    """Which (project, cell) get the free slots, so that no project starves another.

    ``due`` has the cells of each project, best first. The next slot goes to the project
    that holds fewest of this node's slots (``held``), then to the one that ``used`` least.
    """
    queues = {project: deque(cells) for project, cells in due.items() if cells}
    holds = {project: held.get(project, 0) for project in queues}
    chosen: list[tuple[bytes, CellState]] = []
    while queues and len(chosen) < free:
        project = min(queues, key=lambda one: (holds[one], used.get(one, 0.0), one))
        chosen.append((project, queues[project].popleft()))
        holds[project] += 1
        if not queues[project]:
            del queues[project]
    return chosen


def unexpired(offers: Mapping[bytes, Offer], now: int) -> dict[bytes, Offer]:
    return {key: offer for key, offer in offers.items() if offer.until > now}


def renewals(mine: Collection[tuple[bytes, int]], now: int) -> list[bytes]:
    """Which of my leases, (cell, until) pairs, should be renewed now."""
    return [cell for cell, until in mine if until - now <= LEASE_MS - RENEW_MS]
