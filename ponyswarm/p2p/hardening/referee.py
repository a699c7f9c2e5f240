"""Who misbehaved, how often, and who is shut out for it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from ponyswarm.p2p.hardening.limits import Buckets, NetworkLimits


class Referee:
    """Counts refusals, keeps each peer's score, and says who is banned.

    libp2p's own scoring is inert by default, its blacklist does not disconnect,
    and forged messages cost their sender nothing. Seen with 0.8.1.
    """

    _KEPT = 4096  # Peers remembered; the least blamed are forgotten first.

    def __init__(
        self,
        limits: NetworkLimits,
        refused: Callable[[str, bytes | None], None],
        banned: Callable[[bytes], None],
    ) -> None:
        self._limits = limits
        self._refused = refused
        self._on_ban = banned
        self._scores: dict[bytes, tuple[float, float]] = {}
        self._banned: dict[bytes, float] = {}
        self._paces = Buckets(limits.message_rate, limits.message_burst)

    def refuse(self, reason: str, peer: bytes | None, points: float = 0.0) -> None:
        try:
            self._refused(reason, peer)
        except Exception:
            # The owner's counter is code of ours; a fault in it must not end the network.
            logging.getLogger(__name__).exception("the refusal callback failed")
        if peer is not None and points > 0:
            self.penalise(peer, points)

    def penalise(self, peer: bytes, points: float) -> None:
        now = trio.current_time()
        score, at = self._scores.get(peer, (0.0, now))
        score = score * 0.5 ** ((now - at) / self._limits.score_half_life) + points
        if score < self._limits.ban_points:
            self._scores[peer] = (score, now)
            self._forget_some()
            return
        self._scores.pop(peer, None)
        self._banned[peer] = now + self._limits.ban_time
        self._forget_some()
        self._on_ban(peer)

    def banned(self, peer: bytes) -> bool:
        until = self._banned.get(peer)
        if until is None:
            return False
        if until > trio.current_time():
            return True
        del self._banned[peer]
        return False

    async def pace(self, peer: bytes, cost: float) -> None:
        """Take ``cost`` gossip messages from the peer's token bucket; wait until they are there.

        Who waits reads nothing more of this peer, so that the peer comes to wait, too. It
        outlives the peer's connection: a reconnect brings no new tokens.
        """
        now = trio.current_time()
        await trio.sleep(self._paces.of(peer, now).queue(cost, now))

    def _forget_some(self) -> None:
        while len(self._scores) > self._KEPT:
            del self._scores[min(self._scores, key=lambda peer: self._scores[peer][0])]
        while len(self._banned) > self._KEPT:
            del self._banned[min(self._banned, key=lambda peer: self._banned[peer])]
