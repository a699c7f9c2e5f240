"""Finding the peers of a project in a swarm where nobody knows everybody.

Peers and projects have points: the SHA-256 of a peer's key, and of a project's id. Their
distance is the exclusive or, as in Kademlia. A node that follows a project shows its
record to the peers nearest to the project's point, and asks the same ones who else did;
each names whom it knows still nearer, so a few questions lead there from anywhere. The
question is that of `p2p.peers`, the record proves itself, and a peer that lies can hide
others but invent none. Why not libp2p's own table: docs/adr/0018-own-lookup.md.

Pure: `Search` says whom to ask next, `Exchange` asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

# So many of the nearest peers must have answered before a search ends.
BREADTH = 8
MOST_ASKED = 24


def distance(peer: bytes, project: bytes) -> int:
    """How far a peer is from a project's point."""
    ours, theirs = hashlib.sha256(peer).digest(), hashlib.sha256(project).digest()
    return int.from_bytes(ours, "big") ^ int.from_bytes(theirs, "big")


def nearest(peers: Iterable[bytes], project: bytes, most: int) -> list[bytes]:
    """The peers nearest to a project's point, the nearest first."""
    return sorted(set(peers), key=lambda peer: distance(peer, project))[:most]


class Search:
    """One search, from the peers that are known at its start."""

    def __init__(self, project: bytes, known: Iterable[bytes], own: bytes) -> None:
        self.project = project
        self._known = set(known) - {own}
        self._own = own
        self._asked: set[bytes] = set()

    def next(self) -> bytes | None:
        """Whom to ask now; None when the nearest that can be reached were asked."""
        if len(self._asked) >= MOST_ASKED:
            return None
        for peer in nearest(self._known, self.project, BREADTH):
            if peer not in self._asked:
                self._asked.add(peer)
                return peer
        return None

    def named(self, peers: Iterable[bytes]) -> None:
        """An answer named these."""
        self._known |= set(peers) - {self._own}

    def failed(self, peer: bytes) -> None:
        """The peer cannot be reached: one that is farther takes its place."""
        self._known.discard(peer)
