"""The peers a node knows of: where they were reached, and where others say they are.

The table is a hint, kept in a small file: when it is damaged or lost, the node starts
from the bootstrap list. Two halves keep a stranger from filling it. Addresses that were
*reached* are proved, and only time and failures push them out. Addresses that were only
*heard* of have few places for each teller and for each address range, so that somebody
who owns one network, or a thousand keys, owns a small part of them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ponyswarm.errors import LocalError
from ponyswarm.p2p.discovery import Address, Circuit, parse_target, range_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """One address of one peer. Times are seconds since the epoch; ``reached`` 0 is never."""

    address: str
    peer: bytes
    where: str  # its `range_of`
    reached: float = 0.0
    failures: int = 0
    told: float = 0.0
    teller: str = ""
    projects: frozenset[bytes] = frozenset()


class PeerTable:
    """All times are given by the caller; nothing is written before `save`."""

    KEPT = 1000  # reached addresses
    HEARD = 1000  # addresses that were only heard of
    PER_PEER = 4
    PER_TELLER = 64  # heard of from one address range
    PER_RANGE = 32  # heard of in one address range
    ANCHORS = 3
    GIVEN_UP = 8  # failures after which an address that was only heard of is forgotten

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, Known] = {}
        self.anchors: tuple[str, ...] = ()
        """Peers that were connected longest when the node last ran, to be called first.

        A node that forgot all its peers at each start could be caught by whoever answers
        first; these keep a part of the old surroundings.
        """
        if path is not None:
            self._load(path)

    def reached(self, address: str, now: float) -> None:
        text, peer = _named(address)
        before = self._known.get(text, Known(address=text, peer=peer, where=range_of(text)))
        self._known[text] = replace(before, reached=now, failures=0)
        self._shrink()

    def failed(self, address: str) -> None:
        before = self._known.get(address)
        if before is None:
            return
        self._known[address] = after = replace(before, failures=before.failures + 1)
        if not after.reached and after.failures >= self.GIVEN_UP:
            del self._known[address]

    def heard(
        self,
        peer: bytes,
        addresses: Iterable[str],
        projects: frozenset[bytes],
        *,
        teller: str,
        now: float,
    ) -> None:
        """Take what a signed record says of a peer. ``teller`` is who brought it, by range."""
        for address in addresses:
            text, named = _named(address)
            if named != peer:
                continue
            before = self._known.get(text)
            if before is not None:
                self._known[text] = replace(before, told=now, projects=projects)
            elif self._room(where := range_of(text), teller):
                self._known[text] = Known(
                    address=text,
                    peer=peer,
                    where=where,
                    told=now,
                    teller=teller,
                    projects=projects,
                )
        self._shrink()

    def follows(self, peer: bytes, projects: frozenset[bytes]) -> None:
        """What a connected peer follows, by its own word."""
        for address, known in self._known.items():
            if known.peer == peer and known.projects != projects:
                self._known[address] = replace(known, projects=projects)

    def known(self) -> tuple[Known, ...]:
        return tuple(self._known.values())

    def addresses(self) -> tuple[str, ...]:
        """Least failures first, then the most recently reached."""
        return tuple(known.address for known in sorted(self._known.values(), key=_rank))

    def save(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".new")
        stored = {
            "anchors": list(self.anchors),
            "peers": [
                {
                    "address": known.address,
                    "reached": known.reached,
                    "failures": known.failures,
                    "told": known.told,
                    "teller": known.teller,
                    "projects": [project.hex() for project in sorted(known.projects)],
                }
                for known in self._known.values()
            ],
        }
        draft.write_text(json.dumps(stored), "utf-8")
        os.replace(draft, self._path)

    def _room(self, where: str, teller: str) -> bool:
        heard = [known for known in self._known.values() if not known.reached]
        if len(heard) >= self.HEARD:
            return False
        if sum(known.teller == teller for known in heard) >= self.PER_TELLER:
            return False
        return sum(known.where == where for known in heard) < self.PER_RANGE

    def _shrink(self) -> None:
        places: Counter[bytes] = Counter()
        kept: dict[str, Known] = {}
        counts = Counter[bool]()
        for known in sorted(self._known.values(), key=_rank):
            proved = known.reached > 0
            places[known.peer] += 1
            if places[known.peer] > self.PER_PEER:
                continue
            if counts[proved] >= (self.KEPT if proved else self.HEARD):
                continue
            counts[proved] += 1
            kept[known.address] = known
        self._known = kept

    def _load(self, path: Path) -> None:
        try:
            stored = json.loads(path.read_text("utf-8"))
            for item in stored["peers"]:
                address, peer = _named(item["address"])
                self._known[address] = Known(
                    address=address,
                    peer=peer,
                    where=range_of(address),
                    reached=float(item["reached"]),
                    failures=int(item["failures"]),
                    told=float(item["told"]),
                    teller=str(item["teller"]),
                    projects=frozenset(bytes.fromhex(project) for project in item["projects"]),
                )
            anchors = [_named(address)[0] for address in stored["anchors"]]
            self.anchors = tuple(anchors[: self.ANCHORS])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, LocalError):
            self._known, self.anchors = {}, ()
        self._shrink()


def _named(address: str) -> tuple[str, bytes]:
    """An address in its one form, and the peer that it names. Raises `LocalError`."""
    target = parse_target(address)
    if not isinstance(target, Address | Circuit) or target.peer is None:
        raise LocalError(f"{address} does not name its peer: add /p2p/ and its key at the end")
    return str(target), target.peer


def _rank(known: Known) -> tuple[bool, int, float, float]:
    return (not known.reached, known.failures, -known.reached, -known.told)
