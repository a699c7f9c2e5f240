"""A simulated network: real protocols, ledgers and sync on a virtual clock and a fake bus.

One heap of events, one random source; the same seed gives the same history. The bus
delays, loses and repeats gossip, splits into parts, and its nodes die and come back. What
is faked is only what takes real time: sockets, clocks and the running of tests.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from authors import NOW, digest, environment
from msgspec import UNSET

from ponyswarm.codec import (
    ZERO,
    commitment,
    decode_gossip,
    decode_payload,
    encode_gossip,
    outcome_digest,
    sign_entry,
)
from ponyswarm.frontier import Frontier
from ponyswarm.keys import SecretKey
from ponyswarm.ledger.chain import Accept, Diverges, Forked, Gap, Refused
from ponyswarm.ledger.journal import Journal
from ponyswarm.ledger.queries import Reader
from ponyswarm.ledger.store import Store
from ponyswarm.messages import (
    Announce,
    Commit,
    Entry,
    Fork,
    Interpreter,
    Kind,
    Payload,
    Project,
    Result,
    Status,
    Withdraw,
)
from ponyswarm.p2p import sync
from ponyswarm.p2p.effects import (
    Admit,
    Effect,
    Penalise,
    Publish,
    Pull,
    Reveal,
    Run,
    Stop,
    Subscribe,
    Unsubscribe,
)
from ponyswarm.p2p.protocol import Capacity, Protocol, topic_project
from ponyswarm.policy import Directing, ReaderPolicy

TICK_MS = 250
SEED = int(os.environ.get("PONYSWARM_SEED", "1"))


@dataclass(kw_only=True)
class Weather:
    """How the network treats messages."""

    latency: tuple[int, int] = (20, 300)
    loss: float = 0.0
    repeat: float = 0.02
    skew: int = 500


@dataclass
class RunLog:
    """One run that was started somewhere."""

    node: int
    job: bytes
    cell: bytes
    began: int
    ended: int | None = None
    published: bool = False


@dataclass
class World:
    folder: Path
    seed: int = SEED
    weather: Weather = field(default_factory=Weather)

    def __post_init__(self) -> None:
        self.now = NOW
        self.chance = random.Random(self.seed)
        self.nodes: list[Node] = []
        self.runs: list[RunLog] = []
        self.sent: Counter[str] = Counter()
        self.parts: dict[int, int] = {}
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def at(self, delay: int, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + max(0, delay), next(self._number), act))

    def latency(self) -> int:
        return self.chance.randint(*self.weather.latency)

    def reach(self, one: Node, other: Node) -> bool:
        together = self.parts.get(one.number, 0) == self.parts.get(other.number, 0)
        return together and one.alive and other.alive

    def add(self, **facts: object) -> Node:
        node = Node(self, len(self.nodes), **facts)
        self.nodes.append(node)
        return node

    def connect_all(self, degree: int = 6) -> None:
        """A ring with random chords: everyone is reached by someone."""
        count = len(self.nodes)
        for index, node in enumerate(self.nodes):
            node.connect(self.nodes[(index + 1) % count])
            for other in self.chance.sample(self.nodes, min(count, degree // 2)):
                if other is not node:
                    node.connect(other)

    def gossip(self, sender: Node, topic: str, data: bytes) -> None:
        for node in self.nodes:
            if node is sender or topic not in node.topics or not self.reach(sender, node):
                continue
            if self.chance.random() < self.weather.loss:
                self.sent["lost"] += 1
                continue
            told = sender.two_faces.get(data, data) if node.number % 2 else data
            copies = 2 if self.chance.random() < self.weather.repeat else 1
            for _ in range(copies):
                self.sent["gossip"] += 1
                self.at(self.latency(), lambda node=node, told=told: node.hear(sender, topic, told))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> float:
        """Let time pass; returns the seconds that did, fewer when ``until`` came true."""
        began, end = self.now, self.now + int(seconds * 1000)
        checked = self.now
        while self._heap and self._heap[0][0] <= end:
            self.now, _, act = heapq.heappop(self._heap)
            act()
            if until is not None and self.now - checked >= 1000:
                checked = self.now
                if until():
                    return (self.now - began) / 1000
        if self._heap:
            self.now = end
        return (self.now - began) / 1000

    def close(self) -> None:
        for node in self.nodes:
            node.close()


class Node:
    """What `ponyswarm.node` is to the real thing: performs effects, decides nothing."""

    def __init__(
        self,
        world: World,
        number: int,
        *,
        pythons: Sequence[str] = ("3.12.1",),
        slots: int = 2,
        seconds: tuple[float, float] = (5, 40),
        lies: bool = False,
        equivocates: bool = False,
        stalls: bool = False,
        reads_only: bool = False,
    ) -> None:
        self.world = world
        self.number = number
        self.key = SecretKey(bytes([number + 1]) * 32)
        self.me = self.key.public
        self.chance = random.Random(f"{world.seed} {number}")
        self.skew = self.chance.randint(-world.weather.skew, world.weather.skew)
        self.seconds = seconds
        self.lies = lies
        self.equivocates = equivocates
        self.stalls = stalls
        # What it has committed to and not told: on its disk, whatever ends it.
        self.secrets: dict[tuple[bytes, bytes], tuple[Result, bytes]] = {}
        # What it gossips, and what it tells every second node instead.
        self.two_faces: dict[bytes, bytes] = {}
        self.alive = True
        self.topics: set[str] = set()
        self.peers: dict[bytes, Node] = {}
        self.refused: Counter[str] = Counter()
        self.penalties: list[Penalise] = []
        self.tasks: dict[bytes, RunLog] = {}
        self.capacity = (
            None
            if reads_only
            else Capacity(
                interpreters=tuple(
                    Interpreter(implementation="cpython", version=version) for version in pythons
                ),
                services=(),
                system="linux",
                machine="x86_64",
                slots=slots,
            )
        )
        self.home = world.folder / str(number)
        self._life = 0
        self._open()

    def _open(self) -> None:
        self.store = Store(self.home / "ledger")
        self.journal = Journal(
            self.home / "journal",
            fence=self.home / "fence",
            key=self.key,
            machine="sim",
            nonce=lambda: self.chance.randbytes(8),
        )
        self.protocol = Protocol(self.me, self.capacity, self.chance)
        self._tick(self._life)

    def close(self) -> None:
        if self.alive:
            self.store.close()
            self.journal.close()

    @property
    def now(self) -> int:
        return self.world.now + self.skew

    # --- life -------------------------------------------------------------------------

    def _tick(self, life: int) -> None:
        if self.alive and life == self._life:
            self.perform(self.protocol.tick(self.now))
            self.world.at(TICK_MS, lambda: self._tick(life))

    def die(self) -> None:
        """Power off: nothing is said to anyone; what is on disk stays."""
        self.close()
        self.alive = False
        self._life += 1
        self.topics, self.tasks = set(), {}
        for other in list(self.peers.values()):
            self.disconnect(other)

    def revive(self, projects: Sequence[bytes]) -> None:
        self.alive = True
        self._open()
        for project in projects:
            self.follow(project)

    def connect(self, other: Node) -> None:
        if other.me not in self.peers and self.world.reach(self, other):
            for one, two in ((self, other), (other, self)):
                one.peers[two.me] = two
                one.perform(one.protocol.connected(two.me, one.now))

    def disconnect(self, other: Node) -> None:
        for one, two in ((self, other), (other, self)):
            if one.peers.pop(two.me, None) is not None and one.alive:
                one.perform(one.protocol.disconnected(two.me, one.now))

    def follow(self, project: bytes, *, trusted: bool = True) -> None:
        genesis = self.store.entry(project)
        self.perform(self.protocol.follow(project, trusted=trusted, genesis=genesis, now=self.now))
        for entry in self.store.entries(
            project, (Kind.ANNOUNCE, Kind.WITHDRAW, Kind.COMMIT, Kind.RESULT)
        ):
            self._took(entry, None, own=False)
        self._rights(project)

    # --- saying and hearing ---------------------------------------------------------------

    def say(self, payload: Payload, project: bytes = ZERO) -> Entry:
        entry = self.journal.sign(payload, project=project, now=self.now)
        if isinstance(payload, Project) and project == ZERO:
            assert self.store.append(entry, self.now) == Accept()
            return entry
        judgement = self.store.append(entry, self.now)
        assert judgement == Accept(), judgement
        if self.equivocates and isinstance(payload, Result):
            header = entry.header
            twin = sign_entry(
                self.key,
                replace(payload, seconds=2.0),
                project=project,
                nonce=header.nonce,
                seq=header.seq,
                prev=header.prev,
                time=header.time,
            )
            self.two_faces[encode_gossip(entry)] = encode_gossip(twin)
        self._took(entry, None, own=True)
        return entry

    def hear(self, sender: Node, topic: str, data: bytes) -> None:
        if self.alive and topic in self.topics:
            message = decode_gossip(data)
            self.perform(
                self.protocol.gossip(topic_project(topic), sender.me, sender.me, message, self.now)
            )
            self.perform(self.protocol.tick(self.now))

    def perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Subscribe(topic):
                    self.topics.add(topic)
                case Unsubscribe(topic):
                    self.topics.discard(topic)
                case Publish(topic, data):
                    self.world.gossip(self, topic, data)
                case Admit(entry, peer):
                    self._admit(entry, peer)
                case Pull(peer, project):
                    self._pull(peer, project)
                case Run(job, cell):
                    self._run(job, cell)
                case Reveal(job, cell, seen):
                    self._reveal(job, cell, seen)
                case Stop(cell):
                    if self.tasks.pop(cell, None) is not None:
                        self.perform(self.protocol.finished(cell, self.now, published=False))
                case Penalise():
                    self.penalties.append(effect)
                case _:
                    pass

    def _admit(self, entry: Entry, peer: bytes) -> int:
        judgement = self.store.append(entry, self.now)
        match judgement:
            case Accept():
                self._took(entry, peer, own=False)
                return 1
            case Gap() | Diverges():
                self.perform(self.protocol.gap(entry, peer, self.now))
            case Forked():
                self._forked(entry)
            case Refused(reason):
                self.refused[reason] += 1
            case _:
                pass
        return 0

    def _took(self, entry: Entry, peer: bytes | None, *, own: bool) -> None:
        payload = decode_payload(entry)
        if isinstance(payload, Announce | Withdraw | Fork | Directing):
            self._rights(entry.namespace)
        self.perform(self.protocol.admitted(entry, payload, self.now, peer=peer, own=own))

    def _rights(self, project: bytes) -> None:
        state = self.store.state(project)
        if state is not None:
            self.protocol.rights(project, state, self.store.forked(project), self.now)
        self.perform(self.protocol.ended(project, self.store.ended(project), self.now))

    def _forked(self, entry: Entry) -> None:
        self._rights(entry.namespace)
        self.world.at(self.chance.randint(200, 3000), lambda: self._tell_forks(entry.namespace))

    def _tell_forks(self, project: bytes) -> None:
        for proof in self.store.untold_forks(project) if self.alive else ():
            self.say(proof, project)

    # --- sync -----------------------------------------------------------------------------

    def _pull(
        self,
        peer: bytes,
        project: bytes,
        round_: int = 0,
        doubted: frozenset[int] = frozenset(),
    ) -> None:
        other = self.peers.get(peer)
        if other is None:
            return

        def arrive() -> None:
            if not self.world.reach(self, other) or peer not in self.peers:
                return
            asking = sync.Asking(project, self.store.live_frontier(project), doubted)

            def frontier_of(project: bytes) -> Frontier | None:
                followed = project in other.protocol.followed
                return other.store.live_frontier(project) if followed else None

            reply, serving = sync.answer(asking.ask(), frontier_of)
            self.world.sent["pulls"] += 1
            wish = asking.want(reply)
            if serving is None or isinstance(wish, str):
                return
            new = 0
            for message in serving.serve(wish, other.store.segment):
                part = sync.read(message, project)
                if isinstance(part, sync.End):
                    break
                for segment in part.segments:
                    self.world.sent["synced"] += len(segment)
                    new += sum(self._admit(entry, peer) for entry in segment)
            alike, doubt = asking.settle(part, self.store.live_frontier(project))
            self.perform(self.protocol.tick(self.now))
            if (doubt or (new and not alike)) and round_ < 8:
                self._pull(peer, project, round_ + 1, doubt)

        self.world.at(3 * self.world.latency(), arrive)

    # --- runs -----------------------------------------------------------------------------

    def _run(self, job: bytes, cell: bytes) -> None:
        log = RunLog(self.number, job, cell, self.world.now)
        self.world.runs.append(log)
        self.tasks[cell] = log
        life = self._life

        def end() -> None:
            if self.alive and life == self._life and self.tasks.get(cell) is log:
                del self.tasks[cell]
                found = self.protocol.job(job)
                published = found is not None
                if found is not None:
                    self._give(self._outcome(job, cell), found[0])
                log.ended, log.published = self.world.now, published
                self.perform(self.protocol.finished(cell, self.now, published=published))
                self.perform(self.protocol.tick(self.now))

        self.world.at(int(self.chance.uniform(*self.seconds) * 1000), end)

    def _give(self, result: Result, project: bytes) -> None:
        """Say what a run gave, or commit to it where the job is blind."""
        if not self.protocol.is_blind(result.job):
            self.say(result, project)
            return
        sealed = replace(result, nonce=self.chance.randbytes(32))
        self.secrets[result.job, result.cell] = (sealed, project)
        bound = commitment(sealed.nonce, sealed.digest, self.me)
        self.say(Commit(job=result.job, cell=result.cell, commitment=bound), project)

    def _reveal(self, job: bytes, cell: bytes, seen: tuple[bytes, ...]) -> None:
        if not self.stalls:
            result, project = self.secrets.pop((job, cell))
            self.say(replace(result, seen=seen or UNSET), project)

    def _outcome(self, job: bytes, cell: bytes) -> Result:
        status = Status.FAILED if self.lies else Status.PASSED
        tests = [(f"{cell.hex()[:8]}::{i}", status) for i in range(5)]
        return Result(
            job=job,
            cell=cell,
            state="completed",
            counts={status: 5},
            digest=outcome_digest("completed", None, tests),
            environment=environment(),
            started=self.now,
            seconds=1.0,
        )

    # --- questions ------------------------------------------------------------------------

    def root(self, project: bytes) -> bytes:
        return self.store.live_frontier(project).root

    def findings(self, policy: ReaderPolicy | None = None) -> dict[bytes, object]:
        read = Reader(self.home / "ledger")
        try:
            return {
                cell.id: cell.finding
                for job in read.jobs()
                for cell in read.cells(job, policy or ReaderPolicy())
            }
        finally:
            read.close()


def job_for(
    pythons: Sequence[str], variants: int, redundancy: int, *, cross_check: str = "open"
) -> Announce:
    """A matrix of ``len(pythons) x variants`` cells."""
    from ponyswarm.messages import Spec

    return Announce(
        title="demo",
        source=digest("source"),
        source_size=1000,
        source_name="demo.tar.gz",
        spec=Spec(
            python=tuple(pythons),
            redundancy=redundancy,
            cross_check=cross_check,
            factors={"variant": {str(i): () for i in range(variants)}},
        ),
        resolve_before=NOW,
        expires=NOW + 86_400_000,
    )
