"""Finds out whether others can call this node, and has it relayed or punched through if not.

`p2p.reach` judges; this asks, answers, keeps places at relays, offers one when this node
is open, and turns relayed connections into direct ones. What it found stands in `reach`
and `addresses`, for our record and for the owner.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from random import Random
from typing import Literal

import trio

from ponyswarm.errors import LocalError, PeerError
from ponyswarm.keys import peer_id
from ponyswarm.p2p import reach
from ponyswarm.p2p.discovery import is_loopback, parse_address, range_of
from ponyswarm.p2p.hardening import TokenBucket
from ponyswarm.p2p.network import Network, RelayLimits
from ponyswarm.p2p.reach import Answer, Question, Reach, Report
from ponyswarm.p2p.stream import Stream

log = logging.getLogger("ponyswarm")

LOOK_EVERY = 1.0
KNOCK_TIMEOUT = 5.0
ANSWER_TIMEOUT = 15.0
# Seconds between questions: while we do not know, when we are closed, when we are open.
ASK_EVERY = {Reach.UNKNOWN: 3.0, Reach.CLOSED: 120.0, Reach.OPEN: 600.0}
# The same peer is asked again after so many seconds at the soonest.
ASK_AGAIN = 30.0
ANSWER_AGAIN = 20.0
# All calls that we make for others: so many a second, so many at once.
CALLS = (0.5, 10.0)
WANTED_RELAYS = 2
RELAY_TIMEOUT = 8.0
NO_RELAY_FOR = 300.0
# Seconds before its end at which a place is asked for anew.
RENEW_BEFORE = 900.0
PUNCH_AGAIN = 300.0
MAX_ASKERS = 1000


class Reachability:
    """``carry`` says whether to relay for others: ``auto`` does while others can call us."""

    def __init__(
        self,
        network: Network,
        *,
        announced: tuple[str, ...],
        carry: Literal["auto", "yes", "no"],
        limits: RelayLimits,
        refuse: Callable[[str, bytes | None], None],
        random: Random,
    ) -> None:
        self._network = network
        self._announced = announced
        self._carry = carry
        self._limits = limits
        self._refuse = refuse
        self._random = random
        self.reach = Reach.UNKNOWN
        self.mapped = ""
        """The address that the router opened for us, if it did."""
        self._reports: list[Report] = []
        self._seen: OrderedDict[str, str] = OrderedDict()
        self._asked: dict[bytes, float] = {}
        self._answered: OrderedDict[bytes, float] = OrderedDict()
        self._calls = TokenBucket(*CALLS, trio.current_time())
        self._no_relay: dict[bytes, float] = {}
        self._renewed: dict[bytes, float] = {}
        self._punched: dict[bytes, float] = {}
        self._due = trio.current_time()
        if network.addresses and all(is_loopback(one) for one in network.addresses):
            self.reach = Reach.LOCAL
        if carry == "yes":
            network.relay.open(limits)

    async def run(self) -> None:
        """Ask, answer, be relayed, punch: for ever."""
        self._network.serve(
            reach.PROTOCOL, self._serve, concurrent_per_peer=1, timeout=ANSWER_TIMEOUT
        )
        async with trio.open_nursery() as nursery:
            while True:
                now = trio.current_time()
                if self.reach is not Reach.LOCAL and now >= self._due:
                    await self._ask_somebody(now)
                if self.reach is Reach.CLOSED:
                    await self._keep_places(now)
                for peer, called in self._network.relayed().items():
                    if not called and now - self._punched.get(peer, -PUNCH_AGAIN) >= PUNCH_AGAIN:
                        if peer not in self._punched:
                            log.info("%s comes through a relay", peer_id(peer))
                        self._punched[peer] = now
                        nursery.start_soon(self._punch, peer)
                await trio.sleep(LOOK_EVERY)

    # What we are

    def addresses(self) -> tuple[str, ...]:
        """Where others may call us, with our key, the most certain first."""
        own = peer_id(self._network.peer)
        listening = self._network.addresses
        if self.reach is not Reach.LOCAL:
            listening = tuple(one for one in listening if not is_loopback(one))
        outside = [f"{one}/p2p/{own}" for one in self._outside()]
        relays = []
        for relay in self._network.relays():
            where = self._network.remote_address(relay)
            if where is not None:
                relays.append(f"{where}/p2p/{peer_id(relay)}/p2p-circuit/p2p/{own}")
        named = [f"{one}/p2p/{own}" for one in self._announced]
        if self.reach is Reach.CLOSED:
            return tuple(dict.fromkeys([*named, *relays, *listening]))
        reached = outside if self.reach is Reach.OPEN else []
        return tuple(dict.fromkeys([*named, *reached, *listening]))

    def words(self) -> str:
        """The state in a sentence for the owner."""
        return reach.words(
            self.reach,
            asked=len(self._reports),
            relays=len(self._network.relays()),
            carrying=self._network.relay.offered,
            mapped=bool(self.mapped),
        )

    def _outside(self) -> list[str]:
        """Our addresses as most peers see them, with the port where we listen."""
        port = self._network.port
        hosts = Counter(self._seen.values()).most_common(2)
        found = [f"{host}/tcp/{port}" for host, _ in hosts if port is not None]
        return [self.mapped, *found] if self.mapped else found

    def map(self, address: str) -> None:
        """The router opened a port, or no longer: others are asked anew whether it is true."""
        if address != self.mapped:
            self.mapped = address
            self._reports.clear()
            self._asked.clear()
            self._due = trio.current_time()

    # Asking

    async def _ask_somebody(self, now: float) -> None:
        own = {range_of(one) for one in self._network.addresses if not is_loopback(one)}
        port = self._network.port
        links = self._network.links()
        self._asked = {peer: at for peer, at in self._asked.items() if now - at < ASK_AGAIN}
        relayed = self._network.relayed()
        askable = [
            peer
            for peer, link in links.items()
            if link.where not in own and peer not in relayed and peer not in self._asked
        ]
        if port is None or not askable:
            return
        heard = {report.where for report in self._reports}
        fresh = [peer for peer in askable if links[peer].where not in heard]
        peer = self._random.choice(fresh or askable)
        self._asked[peer] = now
        try:
            await self._ask(peer, links[peer].where, port)
        except PeerError as fault:
            if fault.reason.startswith("bad-"):
                self._refuse(fault.reason, peer)
        before = self.reach
        self.reach = reach.judge(self._reports, trio.current_time())
        pause = ASK_EVERY[self.reach]
        self._due = trio.current_time() + self._random.uniform(pause / 2, pause)
        self._network.punch_candidates = tuple(self._outside())
        if self.reach is not before:
            log.info("%s", self.words())
            self._changed()

    async def _ask(self, peer: bytes, where: str, port: int) -> None:
        asked = trio.current_time()
        async with await self._network.open(peer, reach.PROTOCOL) as stream:
            stream.timeout = ANSWER_TIMEOUT
            await stream.send(reach.encode(Question(ports=(port,))))
            answer = reach.decode_answer(await stream.receive(reach.MAX_MESSAGE))
        self._note_seen(answer.seen, where)
        if port not in answer.tried:
            return
        arrived = self._network.knocked(peer) >= asked
        self._reports.append(Report(peer, where, arrived, trio.current_time()))
        del self._reports[: -reach.KEPT]

    def _note_seen(self, seen: str, where: str) -> None:
        try:
            address = parse_address(seen)
        except LocalError:
            return
        if address.kind in ("ip4", "ip6") and not is_loopback(str(address)):
            self._seen[where] = f"/{address.kind}/{address.host}"
            self._seen.move_to_end(where)
            while len(self._seen) > reach.KEPT:
                self._seen.popitem(last=False)

    def _changed(self) -> None:
        if self._carry == "auto":
            self._network.relay.open(self._limits if self.reach is Reach.OPEN else None)
        own = [one.partition("/p2p/")[0] for one in self.addresses() if "p2p-circuit" not in one]
        self._network.announce(own)

    # Answering

    async def _serve(self, stream: Stream) -> None:
        question = reach.decode_question(await stream.receive(reach.MAX_MESSAGE))
        now = trio.current_time()
        remote = self._network.remote_address(stream.peer)
        direct = remote is not None and stream.peer not in self._network.relayed()
        tried: tuple[int, ...] = ()
        if direct and question.ports and self._may_call(stream.peer, now):
            tried = question.ports[:1]
            await self._network.knock(stream.peer, tried[0], timeout=KNOCK_TIMEOUT)
        seen = remote if direct and remote is not None else ""
        await stream.send(reach.encode(Answer(seen=seen, tried=tried)))

    def _may_call(self, peer: bytes, now: float) -> bool:
        if now - self._answered.get(peer, -ANSWER_AGAIN) < ANSWER_AGAIN:
            return False
        if not self._calls.take(1, now):
            return False
        self._answered[peer] = now
        self._answered.move_to_end(peer)
        while len(self._answered) > MAX_ASKERS:
            self._answered.popitem(last=False)
        return True

    # Being relayed, and no more

    async def _keep_places(self, now: float) -> None:
        """Hold places at two relays in different ranges, as far as there are any."""
        places = self._network.relays()
        links = self._network.links()
        relayed = self._network.relayed()
        self._renewed = {relay: at for relay, at in self._renewed.items() if relay in places}
        self._no_relay = {peer: until for peer, until in self._no_relay.items() if until > now}
        taken = {links[relay].where for relay in places if relay in links}
        order = list(links)
        self._random.shuffle(order)
        order.sort(key=lambda peer: links[peer].where in taken)
        due = [
            relay
            for relay, end in places.items()
            if end - time.time() < RENEW_BEFORE and now - self._renewed.get(relay, 0.0) > 60
        ]
        new = [
            peer
            for peer in order
            if peer not in places and peer not in relayed and peer not in self._no_relay
        ][: max(0, WANTED_RELAYS - len(places))]
        for relay in [*due, *new]:
            try:
                await self._network.reserve(relay, timeout=RELAY_TIMEOUT)
            except PeerError:
                self._no_relay[relay] = now + self._random.uniform(NO_RELAY_FOR / 2, NO_RELAY_FOR)
                continue
            self._renewed[relay] = now
            if relay in new:
                log.info("relayed by %s", peer_id(relay))

    async def _punch(self, peer: bytes) -> None:
        try:
            if await self._network.punch(peer):
                log.info("reached %s directly, without a relay", peer_id(peer))
        except PeerError as fault:
            log.debug("%s stays behind its relay: %s", peer_id(peer), fault)
