"""Whom to ask, and when, for what is missing of the projects that this node follows.

Sans-IO: `protocol` tells it of peers and gaps, and hands out the pulls it wants. Gossip
may lose anything, so every peer is asked about every project again and again; at once when
it is met, when it turns out to follow a project it had no answer about, and when an entry
comes whose predecessors are missing.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from ponyswarm.p2p.effects import Pull

if TYPE_CHECKING:
    import random

PULL_EVERY_MS = 60_000
# A peer is asked again about a project at the earliest after this.
PULL_PAUSE_MS = 1_000
# A peer that has just followed a project asks others first: it is asked again after this.
CATCH_UP_MS = 3_000
# Who has no answer is left out of twice as many rounds each time, but is asked in each fifth.
MOST_ROUNDS = 5
# When nothing else is due.
_FAR = 1 << 62


def jittered(period: int, chance: random.Random) -> int:
    """A period made longer or shorter by up to a quarter, so that nodes do not march in step."""
    return int(period * chance.uniform(0.75, 1.25))


class Following:
    """The connected peers, and when each is asked about which project. Times are milliseconds."""

    def __init__(self, chance: random.Random) -> None:
        self.due = _FAR
        """From when on `tick` has pulls."""
        self._chance = chance
        self._peers: dict[bytes, int] = {}
        self._later: dict[tuple[bytes, bytes], int] = {}
        self._pulled: dict[tuple[bytes, bytes], int] = {}
        # How many pulls in a row gave no answer, and how many rounds leave the peer out for that.
        self._misses: dict[tuple[bytes, bytes], int] = {}
        self._skips: dict[tuple[bytes, bytes], int] = {}
        self._followers: set[tuple[bytes, bytes]] = set()

    @property
    def peers(self) -> Collection[bytes]:
        return self._peers.keys()

    def connected(self, peer: bytes, projects: Collection[bytes], now: int) -> list[Pull]:
        self._peers[peer] = now + jittered(PULL_EVERY_MS, self._chance)
        self.due = min(self.due, self._peers[peer])
        return [pull for project in projects for pull in self.pull(peer, project, now)]

    def disconnected(self, peer: bytes) -> None:
        self._peers.pop(peer, None)
        for known in (self._pulled, self._misses, self._skips):
            for key in [key for key in known if key[0] == peer]:
                del known[key]
        self._followers = {key for key in self._followers if key[0] != peer}

    def begin(self, project: bytes, now: int) -> list[Pull]:
        """Ask everybody about a project that is followed from now on."""
        return [pull for peer in self._peers for pull in self.pull(peer, project, now)]

    def peer_follows(self, peer: bytes, project: bytes, now: int) -> list[Pull] | None:
        """A peer says that it follows a project of ours; None when that is no news.

        It is asked if it had no answer before: now, and when it has had time to ask its own
        peers. Once a connection: it cannot make us ask by saying so again and again.
        """
        key = (peer, project)
        if peer not in self._peers or key in self._followers:
            return None
        self._followers.add(key)
        if key not in self._misses:
            return []
        self._answers(key)
        pulls = self.pull(peer, project, now)
        self._ask_at(key, now + CATCH_UP_MS)
        return pulls

    def pulled(self, peer: bytes, project: bytes, *, knows: bool) -> None:
        """A pull ended; the peer followed the project, or had no answer."""
        key = (peer, project)
        if knows or peer not in self._peers:
            self._answers(key)
            return
        misses = self._misses[key] = self._misses.get(key, 0) + 1
        self._skips[key] = min(1 << min(misses - 1, 8), MOST_ROUNDS) - 1

    def _answers(self, key: tuple[bytes, bytes]) -> None:
        self._misses.pop(key, None)
        self._skips.pop(key, None)

    def pull(self, peer: bytes, project: bytes, now: int) -> list[Pull]:
        """Ask a peer now, or a little later if it was asked a moment ago."""
        if peer not in self._peers:
            return []
        # A peer that makes us see gaps on purpose must not keep us pulling without pause.
        last = self._pulled.get((peer, project))
        if last is not None and now - last < PULL_PAUSE_MS:
            self._ask_at((peer, project), last + PULL_PAUSE_MS)
            return []
        self._later.pop((peer, project), None)
        self._pulled[peer, project] = now
        return [Pull(peer, project)]

    def _ask_at(self, key: tuple[bytes, bytes], at: int) -> None:
        self._later[key] = at
        self.due = min(self.due, at)

    def tick(self, projects: Collection[bytes], now: int) -> list[Pull]:
        """The pulls that are due."""
        pulls: list[Pull] = []
        for (peer, project), due in list(self._later.items()):
            if due <= now:
                del self._later[peer, project]
                if project in projects:
                    pulls += self.pull(peer, project, now)
        for peer, due in self._peers.items():
            if due <= now:
                self._peers[peer] = now + jittered(PULL_EVERY_MS, self._chance)
                pulls += [pull for p in projects for pull in self._in_turn(peer, p, now)]
        self.due = min((*self._peers.values(), *self._later.values()), default=_FAR)
        return pulls

    def _in_turn(self, peer: bytes, project: bytes, now: int) -> list[Pull]:
        """The pull of this round, if the peer is not left out of it."""
        skips = self._skips.get((peer, project), 0)
        if not skips:
            return self.pull(peer, project, now)
        self._skips[peer, project] = skips - 1
        return []

    def ask_all(self, projects: Collection[bytes], now: int) -> list[Pull]:
        """Ask every peer about every project now."""
        self._skips.clear()
        for peer in self._peers:
            self._peers[peer] = now
        return self.tick(projects, now)
