"""Counts and rates that strangers may not exceed; no libp2p in here."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkLimits:
    """How much of anything strangers may use. All times are seconds."""

    inbound: int = 250  # live inbound connections, handshakes included
    inbound_per_address: int = 12  # of those, from one IP address (loopback is exempt)
    inbound_per_range: int = 48  # of those, from one /24 of IPv4 or /48 of IPv6 (likewise)
    call_rate: float = 10.0  # new ones a second, from one such range; more wait, or are refused
    call_burst: float = 30.0  # (three times that and the rate from everywhere)
    call_wait: float = 2.0
    connections: int = 300  # in both directions
    connections_per_peer: int = 3
    handshake_timeout: float = 5.0
    streams_per_peer: int = 64  # open at once, opened by the peer
    stream_rate: float = 50.0  # new ones a second; more wait for their turn
    stream_burst: float = 30.0
    window: int = 1024 * 1024  # bytes a peer may send ahead of our reading, a stream
    stall: float = 30.0  # a writer waits this long for a reader
    liveness_interval: float = 10.0
    liveness_timeout: float = 10.0
    message: int = 16 * 1024  # bytes of one gossip message
    rpc: int = 256 * 1024  # bytes of one pubsub frame
    message_rate: float = 200.0  # gossip messages a second, a forwarder; more wait
    message_burst: float = 200.0
    author_rate: float = 50.0  # of those, by one author in one topic
    author_burst: float = 300.0
    strangers_rate: float = 60.0  # by all whom its project does not name; twice that in all topics
    strangers_burst: float = 600.0
    share_rate: float = 5.0  # what of the strangers' a forwarder brings and is none that floods
    share_burst: float = 100.0
    topic_length: int = 200
    topics_per_peer: int = 2000
    gossip_queue: int = 1024  # outbound frames waiting for one peer
    events: int = 4096  # gossip events waiting for the node
    ban_points: float = 100.0
    ban_time: float = 600.0
    score_half_life: float = 600.0


class TokenBucket:
    """``rate`` tokens a second, at most ``burst`` at once."""

    __slots__ = ("_at", "_rate", "_tokens", "burst")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self.burst, self._tokens, self._at = rate, burst, burst, now

    def level(self, now: float) -> float:
        """How many there are."""
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        return self._tokens

    def take(self, cost: float, now: float) -> bool:
        """Whether there were enough, which are then gone."""
        if self.level(now) < cost:
            return False
        self._tokens -= cost
        return True

    def lack(self, cost: float, now: float) -> float:
        """In how many seconds there will be enough."""
        return max(0.0, (cost - self.level(now)) / self._rate)

    def queue(self, cost: float, now: float) -> float:
        """Take them in any case; how many seconds to wait until they are there."""
        pause = self.lack(cost, now)
        self._tokens -= cost
        return pause


class Buckets:
    """A bucket for each of many; who was not seen for longest is forgotten, and begins anew."""

    _KEPT = 4096

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()

    def of(self, key: Hashable, now: float) -> TokenBucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(self._rate, self._burst, now)
            if len(self._buckets) > self._KEPT:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket


class Doorkeeper:
    """Counts live inbound connections, in all and by address, and frees their slots.

    libp2p takes an inbound slot for each connection and gives it back only when
    the host stops, so after 250 inbound connections, however short, nobody else
    gets in. Its default resource manager adds a cap of 256 and a circuit breaker
    that a stranger can trip for everybody. Both are replaced by this. And a handshake
    costs some milliseconds of CPU, so that a stranger who calls and hangs up all the
    time fills a core: those of one neighbourhood wait for their turn. Seen with 0.8.1.
    """

    def __init__(self, limits: NetworkLimits) -> None:
        self._limits = limits
        self._calls = Buckets(limits.call_rate, limits.call_burst)
        self._all_calls = Buckets(3 * limits.call_rate, 3 * limits.call_burst)
        self._addresses: dict[str, int] = defaultdict(int)
        self._ranges: dict[str, int] = defaultdict(int)
        self.inside = 0

    def enter(self, address: str) -> bool:
        if self.inside >= self._limits.inbound:
            return False
        range_ = _range(address)
        local = address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1")
        if not local and (
            self._addresses[address] >= self._limits.inbound_per_address
            or self._ranges[range_] >= self._limits.inbound_per_range
        ):
            self._forget(address, range_)
            return False
        self.inside += 1
        self._addresses[address] += 1
        self._ranges[range_] += 1
        return True

    def turn(self, address: str, now: float) -> float | None:
        """How many seconds a caller is to wait for its handshake; None if it would be too long."""
        buckets = (self._calls.of(_range(address), now), self._all_calls.of(None, now))
        if any(bucket.lack(1, now) > self._limits.call_wait for bucket in buckets):
            return None
        return max(bucket.queue(1, now) for bucket in buckets)

    def leave(self, address: str) -> None:
        range_ = _range(address)
        self.inside -= 1
        self._addresses[address] -= 1
        self._ranges[range_] -= 1
        self._forget(address, range_)

    def _forget(self, address: str, range_: str) -> None:
        if self._addresses[address] <= 0:
            del self._addresses[address]
        if self._ranges[range_] <= 0:
            del self._ranges[range_]


def _range(address: str) -> str:
    """The neighbourhood of an address, or of whatever else a caller is known by."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return str(ipaddress.ip_network(f"{ip}/{24 if ip.version == 4 else 48}", strict=False))


class StreamQuota:
    """At most ``per_peer`` streams of a protocol at once from one peer.

    libp2p starts a task for every stream a peer opens, without limit. Seen with
    0.8.1.
    """

    def __init__(self, per_peer: int) -> None:
        self._per_peer = per_peer
        self._open: dict[bytes, int] = defaultdict(int)

    @contextmanager
    def slot(self, peer: bytes) -> Iterator[bool]:
        """Yield whether there is room; hold the slot meanwhile."""
        if self._open[peer] >= self._per_peer:
            yield False
            return
        self._open[peer] += 1
        try:
            yield True
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]
