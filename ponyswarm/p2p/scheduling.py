"""Who runs what: pure decisions over offers, leases and results. No coordinator.

Every node ranks the volunteers whose offers fit a cell by rendezvous hashing, SHA-256 of
cell id and key. The first ones claim at once, the others after a delay that grows with
their rank, if a run is still missing then. A claim is a lease: renewed while the run
lives, void soon after its node dies. Under a partition both sides go on; the price is a
few runs more than asked for, never fewer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from ponyswarm.messages import Offer

LEASE_MS = 90_000
RENEW_MS = 30_000
# A claim stands this long before its run starts, so that simultaneous claims can meet:
# gossip was measured to take 310 ms at worst, and both must have heard of each other.
SETTLE_MS = 500
# How much longer each further rank waits before it steps in.
STEP_MS = 2_000
OFFER_MS = 150_000
OFFER_EVERY_MS = 60_000
# A cell that breaks everywhere is given up: this many broken runs beyond what was asked.
SPARE_RUNS = 2


@dataclass(frozen=True, slots=True)
class Done:
    """A result of a cell, as far as scheduling looks at it."""

    author: bytes
    completed: bool
    comparable: bytes
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CellState:
    """What is known of one cell. ``vacant_since`` is when the last change asked for a run.

    ``leases`` say until when each claim holds, ``claimed`` when it was first made.
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


# Whether an offer can run a cell.
Fits = Callable[[CellState, Offer], bool]


@lru_cache(maxsize=1 << 18)
def _score(cell: bytes, key: bytes) -> bytes:
    return hashlib.sha256(cell + key).digest()


def rank(cell: bytes, keys: Iterable[bytes]) -> list[bytes]:
    """Keys in rendezvous order for a cell: the same list on every node."""
    return sorted(keys, key=lambda key: _score(cell, key))


def still_wanted(cell: CellState) -> int:
    """How many runs a cell lacks, whoever may be at it now.

    A disagreement asks for one more run; broken runs do not count, but beyond a few of
    them the cell is given up.
    """
    completed = {run.author: run for run in cell.done if run.completed}
    broken = {run.author for run in cell.done if not run.completed} - completed.keys()
    if len(broken) >= cell.wanted + SPARE_RUNS:
        return 0
    groups: dict[bytes, dict[bytes, int]] = {}
    for run in completed.values():
        digests = groups.setdefault(run.comparable, {})
        digests[run.digest] = digests.get(run.digest, 0) + 1
    best = max((max(digests.values()) for digests in groups.values()), default=0)
    if best >= cell.wanted:
        return 0
    disagree = any(len(digests) > 1 for digests in groups.values())
    target = cell.wanted + (1 if disagree else 0)
    return max(0, target - len(completed))


def live_leases(cell: CellState, now: int) -> list[bytes]:
    """Who is at a cell now: leases that run, of keys without a result, the first made first.

    Whoever claimed first may be running already and gives way to nobody; claims of the
    same moment go by rank. Both are in the claims, so all who heard them agree.
    """
    finished = {run.author for run in cell.done}
    live = [key for key, until in cell.leases.items() if until > now and key not in finished]
    return sorted(live, key=lambda key: (cell.claimed.get(key, 0), _score(cell.id, key)))


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
    finished = {run.author for run in cell.done}
    if me in finished or cell.leases.get(me, 0) > now:
        return None
    if me not in offers or not fits(cell, offers[me]):
        return None
    at_it = live_leases(cell, now)
    missing = still_wanted(cell) - len(at_it)
    if missing <= 0:
        return None
    able = [
        key
        for key, offer in offers.items()
        if key not in finished and key not in at_it and fits(cell, offer)
    ]
    # Those with a free slot go first: a busy node would only hold the cell up.
    order = sorted(rank(cell.id, able), key=lambda key: offers[key].slots <= 0)
    place = order.index(me)
    if place < missing:
        return cell.vacant_since
    ended = [until for until in cell.leases.values() if until <= now]
    since = max(cell.vacant_since, free_since, *ended)
    return since + (place - missing + 1) * STEP_MS


def should_yield(cell: CellState, me: bytes, now: int) -> bool:
    """Whether a claim that has not started yet gives way: enough others claimed before."""
    at_it = live_leases(cell, now)
    return me in at_it and at_it.index(me) >= still_wanted(cell)


def choose(
    cells: Iterable[CellState],
    me: bytes,
    offers: Mapping[bytes, Offer],
    fits: Fits,
    *,
    free: int,
    now: int,
    free_since: int = 0,
) -> tuple[list[CellState], int | None]:
    """The cells to claim now, at most ``free`` of them, and when to look again.

    Cells that are due go in the order of their rank for this node's key, so that nodes
    start at different ends of one matrix; newer jobs go before older ones.
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
    return due[: max(0, free)], later


def unexpired(offers: Mapping[bytes, Offer], now: int) -> dict[bytes, Offer]:
    return {key: offer for key, offer in offers.items() if offer.until > now}


def renewals(mine: Collection[tuple[bytes, int]], now: int) -> list[bytes]:
    """Which of my leases, (cell, until) pairs, should be renewed now."""
    return [cell for cell, until in mine if until - now <= LEASE_MS - RENEW_MS]
