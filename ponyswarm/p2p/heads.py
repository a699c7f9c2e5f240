"""Whether peers confirm our own feeds: asked before anything is signed into them.

A snapshot of a whole machine that is rolled back takes journal and fence with it: only
peers still know what was signed after it. So a node that starts extends none of its
feeds until peers were asked for them. A completed pull is the question and the answer,
for it brings every entry of ours that a peer has and we lack. Pure: `node` tells what
happened and asks for the verdict; ``now`` is in milliseconds.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

# So many peers must have answered, when so many are there.
ENOUGH = 2
# After the first answer, others get so long to connect and answer.
OTHERS_MS = 3_000
# Without any answer: how long to wait for a first one.
WAIT_MS = 10_000
# A peer whose answer is under way (it may have much to send) is waited for no longer.
LONGEST_MS = 60_000


class Heads(Enum):
    """What is known of our feeds in a project."""

    WAITING = "waiting"
    CHECKED = "checked"
    ALONE = "alone"
    """Nobody could be asked: what is signed now belongs in a new feed."""


@dataclass(slots=True)
class _Asking:
    began: int
    first: int | None = None
    answers: set[bytes] = field(default_factory=set)
    cannot_say: set[bytes] = field(default_factory=set)


class HeadCheck:
    """The answers of peers, project by project."""

    def __init__(self) -> None:
        self._asking: dict[bytes, _Asking] = {}

    def __contains__(self, project: object) -> bool:
        return project in self._asking

    def begin(self, project: bytes, now: int) -> None:
        """Doubt our feeds in a project from now on."""
        self._asking[project] = _Asking(now)

    def answered(self, project: bytes, peer: bytes, now: int, *, knows: bool) -> None:
        """A pull from a peer ended; ``knows`` when it follows the project and gave all."""
        asking = self._asking.get(project)
        if asking is None:
            return
        if not knows:
            asking.cannot_say.add(peer)
            return
        if asking.first is None:
            asking.first = now
        asking.answers.add(peer)

    def verdict(self, project: bytes, peers: Collection[bytes], now: int) -> Heads:
        """What the answers of so far come to; ``peers`` are the connected ones."""
        asking = self._asking.get(project)
        if asking is None:
            return Heads.WAITING
        expected = set(peers) - asking.answers - asking.cannot_say
        if expected and now - asking.began < LONGEST_MS:
            return Heads.WAITING
        if asking.first is None:
            return Heads.ALONE if now - asking.began >= WAIT_MS else Heads.WAITING
        if len(asking.answers) >= ENOUGH or now - asking.first >= OTHERS_MS:
            return Heads.CHECKED
        return Heads.WAITING
