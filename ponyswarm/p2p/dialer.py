"""Keeps a node connected: performs what `p2p.choosing` decides, and remembers how it went."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random

import trio

from ponyswarm.errors import LocalError, PeerError
from ponyswarm.p2p.choosing import Link, Wanted, choose, pause
from ponyswarm.p2p.discovery import Address, Circuit, DnsAddress, parse_target, range_of
from ponyswarm.p2p.dnsaddr import resolve
from ponyswarm.p2p.network import Network
from ponyswarm.p2p.table import PeerTable

log = logging.getLogger("ponyswarm")

DIAL_EVERY = 2.0
DIAL_TIMEOUT = 8.0
SAVE_EVERY = 60.0
RESOLVE_EVERY = 600.0
# Seconds that a connection has lived before its address may become an anchor.
ANCHOR_AGE = 300.0

# The connected followers of each project that this node follows.
Followers = Callable[[], Mapping[bytes, frozenset[bytes]]]


class Dialer:
    """``addresses`` come from the owner; ``table`` remembers what worked before."""

    def __init__(
        self,
        addresses: Sequence[str],
        table: PeerTable,
        *,
        random: Random,
        wanted: Wanted | None = None,
    ) -> None:
        self._own = tuple(addresses)
        self._table = table
        self._random = random
        self._wanted = wanted or Wanted()
        # When a failed address may be called again, and how often it failed.
        self._rest: dict[str, tuple[float, int]] = {}
        # What stands behind each DNS name, and when that was asked.
        self._named: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._called: dict[bytes, tuple[str, float]] = {}
        self._saved = -SAVE_EVERY

    async def run(self, network: Network, followers: Followers) -> None:
        """Call whom it takes, for ever."""
        while True:
            now = trio.current_time()
            links = network.links()
            chosen = choose(
                own=await self._lacking(links, now),
                anchors=self._table.anchors,
                known=self._table.known(),
                links=links,
                followers=followers(),
                resting=frozenset(one for one, (until, _) in self._rest.items() if until > now),
                wanted=self._wanted,
                random=self._random,
            )
            async with trio.open_nursery() as nursery:
                for address in chosen:
                    nursery.start_soon(self._dial, network, address)
            self._remember(network.links(), trio.current_time())
            await trio.sleep(DIAL_EVERY)

    async def _dial(self, network: Network, address: str) -> None:
        try:
            peer = await network.dial(address, timeout=DIAL_TIMEOUT)
        except PeerError as fault:
            failures = self._rest.get(address, (0.0, 0))[1] + 1
            wait = pause(failures, self._random)
            if fault.reason == "own-address":
                wait = float("inf")
            else:
                self._table.failed(address)
                log.debug("could not reach %s: %s", address, fault)
            self._rest[address] = (trio.current_time() + wait, failures)
            return
        self._rest.pop(address, None)
        self._table.reached(address, time.time())
        self._called[peer] = (address, trio.current_time())
        self._saved = min(self._saved, trio.current_time() - SAVE_EVERY)

    async def _lacking(self, links: Mapping[bytes, Link], now: float) -> list[str]:
        """The owner's addresses whose peer is not connected; names are looked up."""
        lacking: list[str] = []
        for text in self._own:
            try:
                target = parse_target(text)
            except LocalError:
                continue  # A transport that is not spoken here.
            if not isinstance(target, DnsAddress):
                if target.peer not in links:
                    lacking.append(text)
                continue
            asked, found = self._named.get(text, (-RESOLVE_EVERY, ()))
            behind = [parse_target(one) for one in found]
            if any(one.peer in links for one in behind if isinstance(one, Address | Circuit)):
                continue  # One of those behind a name is enough.
            if now - asked >= (RESOLVE_EVERY if found else RESOLVE_EVERY / 10):
                found = await resolve(target)
                self._named[text] = (now, found)
            lacking += found
        return lacking

    def _remember(self, links: Mapping[bytes, Link], now: float) -> None:
        """Note the anchors, and save the table now and then."""
        self._called = {peer: called for peer, called in self._called.items() if peer in links}
        if len(self._rest) > 4 * PeerTable.KEPT:
            self._rest = {one: rest for one, rest in self._rest.items() if rest[0] > now}
        if now - self._saved < SAVE_EVERY:
            return
        self._saved = now
        # One anchor an address range, the longest connected first.
        oldest: dict[str, str] = {}
        for address, since in sorted(self._called.values(), key=lambda called: called[1]):
            if now - since >= ANCHOR_AGE:
                oldest.setdefault(range_of(address), address)
        if oldest:
            self._table.anchors = tuple(oldest.values())[: PeerTable.ANCHORS]
        try:
            self._table.save()
        except OSError as fault:
            log.warning("the table of peers cannot be written: %s", fault)
