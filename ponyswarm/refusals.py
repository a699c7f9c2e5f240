"""What this node refused, under which word, and what that costs the peer it came from.

Every stage that turns something down counts it here; `status` shows the counts. The points
go to the network, which shuts a peer out for a while when it has 100 of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

# Reasons that a mere delay between honest nodes can cause cost nothing.
_POINTS = {
    "bad-signature": 25.0,
    "bad-frame": 25.0,
    "bad-msgpack": 25.0,
    "bad-gossip": 25.0,
    "bad-payload": 25.0,
    "bad-genesis": 25.0,
    "bad-matrix": 10.0,
    "bad-fork": 25.0,
    "bad-sync": 25.0,
    "bad-blob": 50.0,
    "bad-directory": 25.0,
    "wrong-topic": 10.0,
    "wrong-project": 25.0,
    "time-falls": 10.0,
    "bad-peers": 10.0,
    "bad-witness": 25.0,
    "bad-checkpoint": 25.0,
    "bad-consistency": 25.0,
    "bad-cosignature": 25.0,
    "two-trees": 25.0,
}


class Refusals:
    """``penalise`` is told of (peer, points)."""

    def __init__(self, penalise: Callable[[bytes, float], None]) -> None:
        self.counted: Counter[str] = Counter()
        self._penalise = penalise

    def refuse(self, reason: str, peer: bytes | None) -> None:
        """Count a refusal, and hold it against the peer it came from."""
        self.counted[reason] += 1
        points = _POINTS.get(reason)
        if points is not None and peer is not None:
            self._penalise(peer, points)

    def count(self, reason: str, peer: bytes | None) -> None:
        """What the network itself refused; it keeps the score of those."""
        self.counted[reason] += 1
