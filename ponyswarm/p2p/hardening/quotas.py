"""Whose gossip is taken and passed on, and how much of it; no libp2p in here.

The rule, of which `docs/network.md` tells owners: **content is its author's, pace its
forwarder's.** What is validly signed and well formed, but too much, is dropped at its author's
expense; whoever passed it on only waits, as it may be as honest as we are. Keys cost nothing,
so all authors whom a project does not name share one bucket, whatever their number, and a
node relays no more of them in a second than that. So a flood is cut at its first honest node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ponyswarm.p2p.hardening.limits import Buckets, NetworkLimits, TokenBucket


class Quotas:
    """Gossip messages by (topic, author, forwarder); ``now`` is in seconds.

    ``named`` says whether an author is known to a topic's project: it then pays from its own
    bucket alone. Of strangers each pays from its own, the topic's and the node's. The lower
    half of those two is kept for forwarders that bring few strangers' messages: one who brings
    a flood leaves room for what honest peers bring meanwhile.
    """

    def __init__(self, limits: NetworkLimits, named: Callable[[str, bytes], bool]) -> None:
        self._named = named
        rate, burst = limits.strangers_rate, limits.strangers_burst
        self._authors = Buckets(limits.author_rate, limits.author_burst)
        self._shares = Buckets(limits.share_rate, limits.share_burst)
        self._topics = Buckets(rate, burst)
        self._all_topics = Buckets(2 * rate, 2 * burst)

    def refusal(self, topic: str, author: bytes, forwarder: bytes, now: float) -> str | None:
        """Why one more message is too much: ``author-quota`` or ``strangers-quota``.

        To be asked before the signature is checked, which is what costs. So it takes nothing
        in an author's name, but of one that brings its message itself: that pays for each.
        """
        own = self._authors.of((topic, author), now)
        if not (own.take(1, now) if author == forwarder else own.level(now) >= 1):
            return "author-quota"
        if self._named(topic, author):
            return None
        is_light = self._shares.of((topic, forwarder), now).level(now) >= 1
        for bucket in self._strangers(topic, now):
            if bucket.level(now) < 1 + (0 if is_light else bucket.burst / 2):
                return "strangers-quota"
        return None

    def spend(self, topic: str, author: bytes, forwarder: bytes, now: float) -> None:
        """Take what a message costs, which `refusal` let in."""
        if author != forwarder:
            self._authors.of((topic, author), now).take(1, now)
        if not self._named(topic, author):
            self._shares.of((topic, forwarder), now).take(1, now)
            for bucket in self._strangers(topic, now):
                bucket.take(1, now)

    def _strangers(self, topic: str, now: float) -> Iterator[TokenBucket]:
        yield self._topics.of(topic, now)
        yield self._all_topics.of(None, now)
