"""Pulls from peers, a few at a time, and what they say of our own feeds.

A pull brings what a peer has of a project and we have not (`p2p.replication`). When this
node starts, or its clock jumps, it signs nothing into a feed of its own before pulls
answered for it (`p2p.heads`); `known` waits for that.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol
from weakref import WeakValueDictionary

import trio

from ponyswarm.errors import InfraError, PeerError
from ponyswarm.ledger.journal import Journal
from ponyswarm.p2p import replication
from ponyswarm.p2p.blobs import Open
from ponyswarm.p2p.heads import HeadCheck, Heads

log = logging.getLogger("ponyswarm")

TIMEOUT = 120.0
AT_ONCE = 4


class Pulled(Protocol):
    """Told of each pull that ended, and whether the peer follows the project."""

    def __call__(self, peer: bytes, project: bytes, *, knows: bool) -> None: ...


class Pulls:
    """``heads`` says, by followed project, what peers said of our own feeds."""

    def __init__(
        self,
        journal: Journal,
        *,
        open_: Open,
        frontier_of: replication.FrontierOf,
        take: replication.Take,
        peers: Callable[[], tuple[bytes, ...]],
        followed: Callable[[], frozenset[bytes]],
        refuse: Callable[[str, bytes | None], None],
        clock: Callable[[], int],
        pulled: Pulled,
    ) -> None:
        self.heads: dict[bytes, Heads] = {}
        self._journal = journal
        self._open = open_
        self._frontier_of = frontier_of
        self._take = take
        self._peers = peers
        self._followed = followed
        self._refuse = refuse
        self._clock = clock
        self._pulled = pulled
        self._check = HeadCheck()
        self._slots = trio.CapacityLimiter(AT_ONCE)
        # One pull from each peer at a time, or a slow one of several projects takes all slots.
        self._turns: WeakValueDictionary[bytes, trio.Lock] = WeakValueDictionary()
        self._under_way: set[tuple[bytes, bytes]] = set()
        self._turn = 0

    @property
    def idle(self) -> bool:
        return not self._under_way

    async def run(self, peer: bytes, project: bytes) -> None:
        """Pull when a slot is free, unless this very pull waits already. Faults are counted."""
        if (peer, project) in self._under_way:
            return
        self._under_way.add((peer, project))
        try:
            async with self._slot(peer):
                await self.pull(peer, project)
        except PeerError as fault:
            self._refuse(fault.reason, peer)
        except InfraError as fault:
            log.warning("%s", fault)
        finally:
            self._under_way.discard((peer, project))

    @asynccontextmanager
    async def _slot(self, peer: bytes) -> AsyncIterator[None]:
        """One of the slots, when nothing else is pulled from this peer."""
        turn = self._turns.get(peer)
        if turn is None:
            turn = self._turns[peer] = trio.Lock()
        async with turn, self._slots:
            yield

    async def complete(self, project: bytes, frontier_of: replication.FrontierOf) -> None:
        """Ask the next peer once more for entries that are here without their payloads.

        ``frontier_of`` says where the first of each feed is (`Store.whole_frontier`).
        """
        peers = self._peers()
        if not peers or frontier_of(project) is None:
            return
        self._turn += 1
        peer = peers[self._turn % len(peers)]
        try:
            async with self._slot(peer):
                with trio.move_on_after(TIMEOUT):
                    pulled = await replication.pull(
                        self._open, peer, project, frontier_of, self._take
                    )
                    if pulled.new:
                        log.info("got the payloads of %d entries again", pulled.new)
        except PeerError as fault:
            self._refuse(fault.reason, peer)
        except InfraError as fault:
            log.warning("%s", fault)

    async def pull(self, peer: bytes, project: bytes) -> replication.Pulled:
        """Get what a peer has of a project and we have not. Raises `PeerError`."""
        knows = False
        try:
            with trio.move_on_after(TIMEOUT):
                pulled = await replication.pull(
                    self._open, peer, project, self._frontier_of, self._take
                )
                knows = pulled.state != "unknown"
                return pulled
            raise PeerError("timeout", "a pull took too long")
        finally:
            self._check.answered(project, peer, self._clock(), knows=knows)
            self._pulled(peer, project, knows=knows)
            self.judge()

    # --- our own heads ------------------------------------------------------------------

    def begin(self, project: bytes) -> None:
        """A project is followed from now on."""
        self._check.begin(project, self._clock())
        self.heads[project] = Heads.WAITING

    def doubt(self) -> None:
        """Extend none of our feeds until peers were asked for them (`p2p.heads`)."""
        self._journal.doubt()
        for project in self._followed():
            self.begin(project)

    def judge(self) -> None:
        """Take up what the answers of so far come to."""
        for project in self._followed():
            before = self.heads.get(project)
            if before is Heads.CHECKED:
                continue
            after = self._check.verdict(project, self._peers(), self._clock())
            self.heads[project] = after
            if after is Heads.CHECKED:
                self._journal.confirm(project)
            elif after is Heads.ALONE and before is not Heads.ALONE:
                log.info("no peer could be asked for our own entries: the next opens a new feed")

    async def known(self, project: bytes) -> None:
        """Wait until something may be signed into a project."""
        while project in self._followed() and self.heads.get(project, Heads.WAITING) is (
            Heads.WAITING
        ):
            await trio.sleep(0.1)
