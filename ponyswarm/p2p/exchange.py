"""Peer exchange: asks connected peers for others, tells them of those we know.

Now and then it also searches, as `p2p.lookup` says, for the peers of each project that we
follow: to find them while we have few, and to be found by them always.

Handed on are only records that their peer gave us itself over a connection, and only
while that is fresh, so that a node vouches for having met whom it names. What comes is
held in `p2p.table` under the teller's address range; whom to call is decided elsewhere.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from random import Random

import trio

from ponyswarm.errors import PeerError
from ponyswarm.keys import SecretKey, peer_id
from ponyswarm.p2p import peers
from ponyswarm.p2p.dialer import Followers
from ponyswarm.p2p.discovery import is_dialable, range_of
from ponyswarm.p2p.hardening import TokenBucket
from ponyswarm.p2p.lookup import Search
from ponyswarm.p2p.network import Network
from ponyswarm.p2p.peers import Answer, Question, Record, Signed
from ponyswarm.p2p.stream import Stream
from ponyswarm.p2p.table import PeerTable

log = logging.getLogger("ponyswarm")

LOOK_EVERY = 2.0
ASK_EVERY = 600.0
# A peer is asked sooner while we have too few peers, but not more often than it would answer.
ASK_WHEN_SHORT = 45.0
# Full answers to one peer: so many a second, so many at once.
ANSWERS = (0.1, 3.0)
# Connected followers of a project with which we ask for no more.
ENOUGH = 4
SEARCH_LOOK = 5.0
FIRST_SEARCH = 10.0
SEARCH_WHEN_SHORT = 120.0
SEARCH_EVERY = 1800.0
# With more peers than these, those that were called for a search alone are let go.
CROWD = 12
ANSWER_TIMEOUT = 10.0
MAX_MET = 1000
# Seconds for which we tell of a peer after we last heard from it.
TELL_FOR = 3600.0
RENEW_EVERY = 3600.0
SHORT = 6


class Exchange:
    """``addresses`` and ``projects`` are what our own record says."""

    def __init__(
        self,
        key: SecretKey,
        table: PeerTable,
        network: Network,
        *,
        addresses: Callable[[], tuple[str, ...]],
        followers: Followers,
        refuse: Callable[[str, bytes | None], None],
        random: Random,
    ) -> None:
        self._key = key
        self._table = table
        self._network = network
        self._addresses = addresses
        self._followers = followers
        self._refuse = refuse
        self._random = random
        # Who gave us a record, where it was then, and when.
        self._met: OrderedDict[bytes, tuple[Signed, str, float]] = OrderedDict()
        self._asked: dict[bytes, float] = {}
        self._buckets: OrderedDict[bytes, TokenBucket] = OrderedDict()
        self._searched: dict[bytes, float] = {}
        self._own: tuple[Signed, float] | None = None

    async def run(self) -> None:
        """Ask peers, one at a time, for ever."""
        self._network.serve(
            peers.PROTOCOL, self._serve, concurrent_per_peer=1, timeout=ANSWER_TIMEOUT
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_around)
            nursery.start_soon(self._search_all)

    async def _ask_around(self) -> None:
        while True:
            await trio.sleep(LOOK_EVERY)
            links = self._network.links()
            followers = self._followers()
            short = len(links) < SHORT or any(len(some) < 2 for some in followers.values())
            pause = ASK_WHEN_SHORT if short else ASK_EVERY
            now = trio.current_time()
            self._asked = {peer: at for peer, at in self._asked.items() if peer in links}
            due = [peer for peer in links if now - self._asked.get(peer, -ASK_EVERY) >= pause]
            if due:
                await self._ask(self._random.choice(due))

    async def _search_all(self) -> None:
        """Search for each project: soon while it has few peers, seldom when it has enough."""
        while True:
            await trio.sleep(SEARCH_LOOK)
            followers = self._followers()
            self._searched = {one: due for one, due in self._searched.items() if one in followers}
            for project, some in followers.items():
                now = trio.current_time()
                if now < self._searched.setdefault(project, now + FIRST_SEARCH):
                    continue
                await self._search(project)
                pause = SEARCH_EVERY if len(some) >= ENOUGH else SEARCH_WHEN_SHORT
                self._searched[project] = now + self._random.uniform(pause / 2, pause)

    async def _search(self, project: bytes) -> None:
        """Show our record to the peers nearest to a project, and learn whom they know."""
        known = {one.peer for one in self._table.known()} | set(self._network.peers())
        search = Search(project, known, self._key.public)
        while (peer := search.next()) is not None:
            was_connected = peer in self._network.peers()
            if not was_connected and not await self._reach(peer):
                search.failed(peer)
                continue
            search.named(await self._ask(peer, (project,)))
            crowded = len(self._network.peers()) > CROWD
            if crowded and not was_connected and not self._shares_project(peer):
                await self._network.disconnect(peer)

    def _shares_project(self, peer: bytes) -> bool:
        met = self._met.get(peer)
        return met is not None and not set(self._followers()).isdisjoint(met[0].record.projects)

    async def _reach(self, peer: bytes) -> bool:
        addresses = [one.address for one in self._table.known() if one.peer == peer]
        for address in addresses[:2]:
            try:
                await self._network.dial(address)
            except PeerError:
                self._table.failed(address)
                continue
            self._table.reached(address, time.time())
            return True
        return False

    async def _ask(self, peer: bytes, projects: tuple[bytes, ...] | None = None) -> list[bytes]:
        """Exchange records with a peer; the peers that it named."""
        self._asked[peer] = trio.current_time()
        if projects is None:
            few = (one for one, some in self._followers().items() if len(some) < ENOUGH)
            projects = tuple(few)[: peers.MAX_PROJECTS]
        question = Question(own=self._own_record().raw, projects=projects)
        named: list[bytes] = []
        try:
            async with await self._network.open(peer, peers.PROTOCOL) as stream:
                await stream.send(peers.encode(question))
                answer = peers.decode_answer(await stream.receive(peers.MAX_ANSWER))
            for raw in filter(None, (answer.own, *answer.peers)):
                try:
                    named.append(self._take(raw, peer))
                except PeerError as fault:
                    if fault.reason != "stale-record":  # It was of today when the teller got it.
                        raise
        except PeerError as fault:
            if fault.reason not in ("no-stream", "not-connected", "stream-closed", "timeout"):
                self._refuse(fault.reason, peer)
            log.debug("%s told of no peers: %s", peer_id(peer), fault)
        return named

    async def _serve(self, stream: Stream) -> None:
        question = peers.decode_question(await stream.receive(peers.MAX_QUESTION))
        now = trio.current_time()
        chosen: Iterable[Signed] = ()
        if self._may_answer(stream.peer, now):
            if question.own:
                self._take(question.own, stream.peer)
            self._forget(now)
            known = ((signed, where) for signed, where, _ in self._met.values())
            chosen = peers.select(known, question, stream.peer, self._random)
        answer = Answer(own=self._own_record().raw, peers=tuple(one.raw for one in chosen))
        await stream.send(peers.encode(answer))

    def _may_answer(self, peer: bytes, now: float) -> bool:
        bucket = self._buckets.pop(peer, None) or TokenBucket(*ANSWERS, now)
        self._buckets[peer] = bucket
        while len(self._buckets) > MAX_MET:
            self._buckets.popitem(last=False)
        return bucket.take(1, now)

    def _take(self, raw: bytes, teller: bytes) -> bytes:
        """Judge one record that a connected peer handed us; of whom. Raises `PeerError`."""
        signed = peers.read(raw, int(time.time() * 1000))
        record = signed.record
        if record.peer == self._key.public:
            return record.peer
        from_ = self._network.remote_address(teller)
        addresses = [one for one in record.addresses if is_dialable(one, from_=from_)]
        projects = frozenset(record.projects)
        where = range_of(from_) if from_ is not None else ""
        self._table.heard(record.peer, addresses, projects, teller=where, now=time.time())
        if record.peer != teller:
            return record.peer
        before = self._met.pop(teller, None)
        if before is None or before[0].record.time <= record.time:
            self._met[teller] = (signed, where, trio.current_time())
            self._table.follows(teller, projects)
        else:
            self._met[teller] = before
        while len(self._met) > MAX_MET:
            self._met.popitem(last=False)
        return record.peer

    def _forget(self, now: float) -> None:
        live = set(self._network.peers())
        for peer, (signed, where, at) in list(self._met.items()):
            if peer in live:
                self._met[peer] = (signed, where, now)
            elif now - at > TELL_FOR:
                del self._met[peer]

    def _own_record(self) -> Signed:
        """Our own record, signed anew when it changed or is old."""
        addresses = self._addresses()[: peers.MAX_ADDRESSES]
        projects = tuple(sorted(self._followers()))[: peers.MAX_PROJECTS]
        now = trio.current_time()
        if self._own is not None:
            signed, at = self._own
            same = (signed.record.addresses, signed.record.projects) == (addresses, projects)
            if same and now - at < RENEW_EVERY:
                return signed
        record = Record(
            peer=self._key.public,
            time=int(time.time() * 1000),
            addresses=addresses,
            projects=projects,
        )
        signed = peers.sign(record, self._key)
        self._own = (signed, now)
        return signed
