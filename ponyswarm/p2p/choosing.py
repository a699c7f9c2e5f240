"""Whom to call next: a pure function of what is known, what is connected, and chance.

The rules, in their order: the owner's own addresses always; the anchors of the last run;
peers of a project that has too few; anybody while there are too few in all. Peers that
were only heard of take their turn with those that were reached before, so that neither a
table full of old friends nor one full of strangers decides alone. And no address range
gets more than a few of the calls: whoever wants to surround a node needs addresses all
over, and not just many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ponyswarm.p2p.table import Known

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How many connections a node wants."""

    peers: int = 8  # in all, whoever called
    project: int = 4  # connected followers of each project
    calls: int = 24  # made by us and alive, at most
    in_range: int = 2  # made by us, in one address range
    lonely: int = 3  # below so many peers, the range does not matter
    at_once: int = 4  # calls begun in one round


@dataclass(frozen=True, slots=True)
class Link:
    """A connected peer: in which address range it is, and whether we called."""

    where: str
    called: bool


def choose(
    *,
    own: Sequence[str],
    anchors: Sequence[str],
    known: Sequence[Known],
    links: Mapping[bytes, Link],
    followers: Mapping[bytes, frozenset[bytes]],
    resting: frozenset[str],
    wanted: Wanted,
    random: Random,
) -> tuple[str, ...]:
    """The addresses to call now, at most one a peer, in the order of their worth.

    ``own`` are the owner's addresses that are not connected, ``followers`` the connected
    peers of each project that this node follows, ``resting`` the addresses whose last
    failure is too recent. A peer that is connected is never chosen.
    """
    chosen: dict[str, None] = dict.fromkeys(one for one in own if one not in resting)
    ranges = Counter(link.where for link in links.values() if link.called)
    calls = sum(link.called for link in links.values())
    taken = set(links)

    def take(candidates: Sequence[Known], most: int) -> int:
        nonlocal calls
        count = 0
        for one in candidates:
            if count >= most or len(chosen) >= len(own) + wanted.at_once or calls >= wanted.calls:
                break
            if one.peer in taken or one.address in resting or one.address in chosen:
                continue
            if ranges[one.where] >= wanted.in_range and len(taken) >= wanted.lonely:
                continue
            ranges[one.where] += 1
            calls += 1
            count += 1
            taken.add(one.peer)
            chosen[one.address] = None
        return count

    missing = wanted.peers - len(links)
    lacking = {
        project: wanted.project - len(connected)
        for project, connected in followers.items()
        if len(connected) < wanted.project
    }
    if missing <= 0 and not lacking:
        return tuple(chosen)
    free = [one for one in known if one.peer not in links and one.address not in resting]
    order = _mixed(free, random)
    if missing > 0:
        missing -= take([one for one in order if one.address in anchors], missing)
    for project, count in lacking.items():
        missing -= take([one for one in order if project in one.projects], count)
    if missing > 0:
        take(order, missing)
    return tuple(chosen)


def _mixed(known: Sequence[Known], random: Random) -> list[Known]:
    """Reached and only heard of in turn by the toss of a coin, each half shuffled by worth."""
    # A failure moves an address back by about a third of the list, so that one that is
    # gone for good is still tried now and then.
    worth = {one.address: random.random() + one.failures / 3 for one in known}
    proved = sorted((one for one in known if one.reached), key=lambda one: worth[one.address])
    heard = sorted((one for one in known if not one.reached), key=lambda one: worth[one.address])
    mixed: list[Known] = []
    while proved and heard:
        mixed.append((proved if random.random() < 0.5 else heard).pop(0))
    return [*mixed, *proved, *heard]


def pause(failures: int, random: Random) -> float:
    """Seconds until an address that failed so often may be called again."""
    longest = min(300.0, 2.0 ** min(failures, 10))
    return random.uniform(longest / 2, longest)
