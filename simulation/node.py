"""One node of the simulated swarm: it performs what its protocol wants, and decides nothing.

What `ponyswarm.node` is to the real thing. How it behaves where it could cheat is a
`behaviour`'s affair; everything else is as honest as the code it runs.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import UNSET
from msgspec.structs import replace

from ponyswarm.agreement import Voice
from ponyswarm.codec import (
    ZERO,
    check_segment,
    commitment,
    decode_payload,
    outcome_digest,
    sign_entry,
)
from ponyswarm.frontier import Frontier
from ponyswarm.keys import SecretKey
from ponyswarm.ledger.chain import Accept, Diverges, Forked, Gap, Judgement, Refused
from ponyswarm.ledger.journal import Journal
from ponyswarm.ledger.queries import Reader, chances
from ponyswarm.ledger.store import Store
from ponyswarm.messages import (
    Announce,
    Cell,
    Claim,
    Commit,
    Entry,
    Environment,
    Fork,
    Interpreter,
    Kind,
    Payload,
    Result,
    Spec,
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
from ponyswarm.p2p.offers import Capacity
from ponyswarm.p2p.protocol import Protocol
from ponyswarm.p2p.topics import topic_project
from ponyswarm.policy import Directing, ReaderPolicy, refusal
from simulation.behaviours import Honest
from simulation.world import NOW, RunLog, World

if TYPE_CHECKING:
    from ponyswarm.ledger.verdicts import Finding

# A peer that sent so much rubbish is shut out, as `p2p.network` does at 100 points.
SHUN_AFTER = 4


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class Pen:
    """Signs as a journal does, but only in memory."""

    def __init__(self, key: SecretKey, nonce: bytes) -> None:
        self._key = key
        self._nonce = nonce
        self._heads: dict[bytes, tuple[int, bytes, int]] = {}

    def sign(self, payload: Payload, *, project: bytes, now: int) -> Entry:
        seq, prev, time = self._heads.get(project, (0, ZERO, 0))
        entry = sign_entry(
            self._key,
            payload,
            project=project,
            nonce=self._nonce if project != ZERO else digest(f"{payload}")[:8],
            seq=seq,
            prev=prev,
            time=max(now, time),
        )
        if project != ZERO:
            self._heads[project] = (seq + 1, entry.id, max(now, time))
        return entry

    def close(self) -> None:
        """There is nothing to close."""


class Node:
    """``seconds`` is how long its runs take; ``two_faces`` maps what it says to a twin."""

    def __init__(
        self,
        world: World,
        number: int,
        *,
        pythons: Sequence[str] = ("3.12.1",),
        slots: int = 2,
        seconds: tuple[float, float] = (5, 40),
        reads_only: bool = False,
        behaviour: Honest | None = None,
    ) -> None:
        self.world = world
        self.number = number
        self.key = SecretKey(digest(f"node {number}"))
        self.me = self.key.public
        self.chance = random.Random(f"{world.seed} {number}")
        self.skew = self.chance.randint(-world.weather.skew, world.weather.skew)
        self.seconds = seconds
        self.behaviour = behaviour or Honest()
        self.two_faces: dict[bytes, bytes] = {}
        self.alive = True
        self.topics: set[str] = set()
        self.peers: dict[bytes, Node] = {}
        self.shunned: Counter[int] = Counter()
        self.refused: Counter[str] = Counter()
        self.penalties: list[Penalise] = []
        self.tasks: dict[bytes, RunLog] = {}
        # What it has committed to and not told: on its disk, whatever ends it.
        self.secrets: dict[tuple[bytes, bytes], tuple[Result, bytes]] = {}
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
        self.home = None if world.folder is None else world.folder / str(number)
        self.store = self._store()
        self.pen: Pen | Journal = Pen(self.key, self.chance.randbytes(8))
        self._life = 0
        self._planned = 0
        self._open()

    def _store(self) -> Store:
        return Store(Path(":memory:") if self.home is None else self.home / "ledger")

    def _open(self) -> None:
        if self.home is not None:
            self.pen = Journal(
                self.home / "journal",
                fence=self.home / "fence",
                key=self.key,
                machine="sim",
                nonce=lambda: self.chance.randbytes(8),
            )
        self.protocol = Protocol(self.me, self.capacity, self.chance)
        self._planned = 0
        self._plan()

    def close(self) -> None:
        if self.home is None or self.alive:
            self.store.close()
            self.pen.close()

    @property
    def now(self) -> int:
        return self.world.now + self.skew

    # --- life -------------------------------------------------------------------------

    def _plan(self) -> None:
        """Do what is due now, and come back when the protocol says so."""
        while self.protocol.due <= self.now:
            effects = self.protocol.tick(self.now)
            self.perform(effects)
        due = self.protocol.due - self.skew
        if not self.world.now < self._planned <= due:
            self._planned = due
            self.world.at(due - self.world.now, self._wake, self._life, due)

    def _wake(self, life: int, planned: int) -> None:
        if self.alive and life == self._life and planned == self._planned:
            self._planned = 0
            self._plan()

    def die(self) -> None:
        """Power off: nothing is said to anyone; what is on disk stays."""
        if self.home is not None:
            self.store.close()
            self.pen.close()
        self.alive = False
        self._life += 1
        for topic in list(self.topics):
            self._unsubscribe(topic)
        self.tasks = {}
        for other in list(self.peers.values()):
            self.disconnect(other)

    def revive(self, projects: Sequence[bytes]) -> None:
        self.alive = True
        if self.home is not None:
            self.store = self._store()
        self._open()
        for project in projects:
            self.follow(project)

    def shuns(self, other: Node) -> bool:
        return (
            self.shunned[other.number] >= SHUN_AFTER or other.shunned[self.number] >= SHUN_AFTER
            if self.shunned or other.shunned
            else False
        )

    def connect(self, other: Node) -> None:
        if other is not self and other.me not in self.peers and self.world.reach(self, other):
            for one, two in ((self, other), (other, self)):
                one.peers[two.me] = two
                one.perform(one.protocol.connected(two.me, one.now))
                one._plan()
            for topic in self.topics & other.topics:
                self._told_of(topic, other)
                other._told_of(topic, self)

    def disconnect(self, other: Node) -> None:
        for one, two in ((self, other), (other, self)):
            if one.peers.pop(two.me, None) is not None and one.alive:
                one.perform(one.protocol.disconnected(two.me, one.now))
                one._plan()

    def follow(self, project: bytes, *, trusted: bool = True) -> None:
        genesis = self.store.entry(project)
        self.perform(self.protocol.follow(project, trusted=trusted, genesis=genesis, now=self.now))
        self._rights(project)
        for entry in self.store.entries(
            project, (Kind.ANNOUNCE, Kind.WITHDRAW, Kind.COMMIT, Kind.RESULT)
        ):
            self._took(entry, None, own=False)
        self._plan()

    # --- saying and hearing ---------------------------------------------------------------

    def say(self, payload: Payload, project: bytes = ZERO) -> Entry:
        entry = self.pen.sign(payload, project=project, now=self.now)
        judgement = self.store.append(entry, self.now)
        assert judgement == Accept(), judgement
        if project != ZERO:
            self.behaviour.signed(self, entry, payload)
            self._took(entry, None, own=True)
            self._plan()
        return entry

    def hear(self, sender: Node, topic: str, data: bytes) -> None:
        if not self.alive or topic not in self.topics:
            return
        message = self.world.decode(data)
        if message is None or not self._may_say(message, topic):
            self.refused["gossip"] += 1
            self.shunned[sender.number] += 1
            if self.shuns(sender):
                self.disconnect(sender)
            return
        project = topic_project(topic)
        if isinstance(message, Claim) and project is not None:
            self.behaviour.heard(self, sender.me, project, message)
        self.perform(self.protocol.gossip(project, sender.me, sender.me, message, self.now))
        if self.protocol.due <= self.now or self.protocol.due - self.skew < self._planned:
            self._plan()

    def _may_say(self, message: object, topic: str) -> bool:
        """What `intake.validate` asks before anything is relayed."""
        if not isinstance(message, Entry):
            return True
        project = topic_project(topic)
        if project is None:
            return True
        state = self.store.state(project)
        return state is None or refusal(state, message, decode_payload(message)) is None

    def perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Publish(topic, data):
                    self.world.gossip(self, topic, data)
                case Admit(entry, peer):
                    self._judged([entry], [self.store.append(entry, self.now)], peer)
                case Pull(peer, project):
                    self._pull(peer, project)
                case Run(job, cell):
                    self.behaviour.run(self, job, cell)
                case Reveal(job, cell, seen):
                    self.behaviour.reveal(self, job, cell, seen)
                case Stop(cell):
                    if self.tasks.pop(cell, None) is not None:
                        self.perform(self.protocol.finished(cell, self.now, published=False))
                case Subscribe(topic):
                    self.topics.add(topic)
                    self.world.subscribers[topic][self.number] = self
                    for other in self.peers.values():
                        self.world.at(self.world.latency(), other._told_of, topic, self)
                case Unsubscribe(topic):
                    self._unsubscribe(topic)
                case Penalise():
                    self.penalties.append(effect)
                case _:
                    pass

    def _told_of(self, topic: str, follower: Node) -> None:
        """A peer says that it follows a topic."""
        project = topic_project(topic)
        if self.alive and project is not None and topic in self.topics:
            self.perform(self.protocol.peer_follows(follower.me, project, self.now))
            self._plan()

    def _unsubscribe(self, topic: str) -> None:
        self.topics.discard(topic)
        self.world.subscribers[topic].pop(self.number, None)

    def admit(self, entry: Entry, peer: bytes) -> None:
        """An entry came from a peer, by whatever way."""
        self._judged([entry], [self.store.append(entry, self.now)], peer)
        self._plan()

    def _judged(
        self, entries: Sequence[Entry], judgements: Sequence[Judgement], peer: bytes
    ) -> int:
        new = 0
        for entry, judgement in zip(entries, judgements, strict=True):
            match judgement:
                case Accept():
                    new += 1
                    self._took(entry, peer, own=False)
                case Gap() | Diverges():
                    self.perform(self.protocol.gap(entry, peer, self.now))
                case Forked():
                    self._forked(entry)
                case Refused(reason):
                    self.refused[reason] += 1
                case _:
                    pass
        return new

    def _took(self, entry: Entry, peer: bytes | None, *, own: bool) -> None:
        payload = decode_payload(entry)
        if isinstance(payload, Announce | Withdraw | Fork | Directing):
            self._rights(entry.namespace)
        self.perform(self.protocol.admitted(entry, payload, self.now, peer=peer, own=own))
        if not own:
            self.behaviour.took(self, entry, payload)

    def _rights(self, project: bytes) -> None:
        state = self.store.state(project)
        if state is not None:
            self.protocol.rights(project, state, self.store.forked(project), self.now)
        self.perform(self.protocol.ended(project, self.store.ended(project), self.now))

    def _forked(self, entry: Entry) -> None:
        self._rights(entry.namespace)
        self.world.at(self.chance.randint(200, 3000), self._tell_forks, entry.namespace)

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
        if other is not None:
            delay = 3 * self.world.latency()
            self.world.at(delay, self._pulled, other, project, round_, doubted, self._life)

    def _pulled(
        self, other: Node, project: bytes, round_: int, doubted: frozenset[int], life: int
    ) -> None:
        if life != self._life or other.me not in self.peers or not self.world.reach(self, other):
            return
        self.world.sent["pulls"] += 1
        asking = sync.Asking(project, self.store.live_frontier(project), doubted)
        reply, serving = sync.answer(asking.ask(), other.frontier_of)
        wish = asking.want(reply)
        self.protocol.pulled(other.me, project, knows=wish != "unknown")
        if serving is None or isinstance(wish, str):
            return
        new = 0
        for message in serving.serve(wish, other.store.segment):
            part = sync.read(message, project)
            if isinstance(part, sync.End):
                break
            for segment in part.segments:
                check_segment(segment)
                self.world.sent["synced"] += len(segment)
                new += self._judged(segment, self.store.append_segment(segment, self.now), other.me)
        alike, doubt = asking.settle(part, self.store.live_frontier(project))
        self._plan()
        if (doubt or (new and not alike)) and round_ < 8:
            self._pull(other.me, project, round_ + 1, doubt)

    def frontier_of(self, project: bytes) -> Frontier | None:
        followed = project in self.protocol.followed
        return self.store.live_frontier(project) if followed else None

    # --- runs -----------------------------------------------------------------------------

    def begin(self, job: bytes, cell: bytes, seconds: float) -> None:
        """Start a run that ends after so long with what this node then says of it."""
        log = RunLog(self.number, job, cell, self.world.now)
        self.world.runs.append(log)
        self.tasks[cell] = log
        self.world.at(int(seconds * 1000), self._end, log, self._life)

    def _end(self, log: RunLog, life: int) -> None:
        if not self.alive or life != self._life or self.tasks.get(log.cell) is not log:
            return
        del self.tasks[log.cell]
        found = self.protocol.job(log.job)
        published = found is not None
        if found is not None:
            self._give(self.behaviour.outcome(self, log.job, log.cell), found[0])
        log.ended, log.published = self.world.now, published
        self.perform(self.protocol.finished(log.cell, self.now, published=published))
        self._plan()

    def _give(self, result: Result, project: bytes) -> None:
        """Say what a run gave, or commit to it where the job is blind (`ponyswarm.sealing`)."""
        if not self.protocol.is_blind(result.job):
            self.say(result, project)
            return
        sealed = replace(result, nonce=self.chance.randbytes(32))
        self.secrets[result.job, result.cell] = (sealed, project)
        bound = commitment(sealed.nonce, sealed.digest, self.me)
        seen = self.protocol.to_name(result.job) or UNSET
        self.say(Commit(job=result.job, cell=result.cell, commitment=bound, seen=seen), project)

    def reveal(self, job: bytes, cell: bytes, seen: tuple[bytes, ...]) -> None:
        """Tell what was committed to."""
        result, project = self.secrets.pop((job, cell))
        self.say(replace(result, seen=seen or UNSET), project)

    # --- questions ------------------------------------------------------------------------

    def learn(self, project: bytes) -> dict[Voice, float]:
        """Look up who has a long record, as a node does every minute. For ledgers on a disk."""
        assert self.home is not None
        found = chances(self.home / "ledger", project)
        self.perform(self.protocol.tick(self.now))
        self.protocol.records(project, found, self.now)
        return found

    def root(self, project: bytes) -> bytes:
        return self.store.live_frontier(project).root

    def findings(
        self, policy: ReaderPolicy | None = None, project: bytes | None = None
    ) -> dict[bytes, Finding]:
        """The verdict on each cell of every job, or of a project's, as this ledger gives it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ledger" if self.home is None else self.home / "ledger"
            if self.home is None:
                self.store._db.execute("VACUUM INTO ?", (str(path),))
            with Reader(path) as read:
                return {
                    cell.id: cell.finding
                    for job in read.jobs()
                    if project in (None, job.project)
                    for cell in read.matrix(job, policy or ReaderPolicy())
                }


# --- what is run -----------------------------------------------------------------------------


def environment(version: str = "3.12.1") -> Environment:
    return Environment(
        implementation="cpython",
        version=version,
        system="linux",
        machine="x86_64",
        packages=digest("packages"),
    )


def told(
    node: Node, job: bytes, cell: bytes, statuses: Sequence[Status], seconds: float = 1.0
) -> Result:
    """A result that says these statuses of a cell's tests."""
    tests = [(f"{cell.hex()[:8]}::{i}", status) for i, status in enumerate(statuses)]
    found = node.protocol.cell(job, cell)
    return Result(
        job=job,
        cell=cell,
        state="completed",
        counts=dict(Counter(statuses)),
        digest=outcome_digest("completed", None, tests),
        environment=environment("3.12.1" if found is None else f"{_short(found)}.1"),
        started=node.now,
        seconds=seconds,
    )


def _short(cell: Cell) -> str:
    return ".".join(cell.python.split(".")[:2])


def job_for(
    pythons: Sequence[str], variants: int, redundancy: int, *, now: int = NOW, **more: object
) -> Announce:
    """A matrix of ``len(pythons) x variants`` cells."""
    return Announce(
        title="demo",
        source=digest("source"),
        source_size=1000,
        source_name="demo.tar.gz",
        spec=Spec(
            python=tuple(pythons),
            redundancy=redundancy,
            factors={"variant": {str(i): () for i in range(variants)}},
            **more,  # type: ignore[arg-type]
        ),
        resolve_before=now,
        expires=now + 86_400_000,
    )


def twin_of(node: Node, entry: Entry, payload: Result) -> Entry:
    """Another entry at the same place of the same feed: the author's second history."""
    header = entry.header
    return sign_entry(
        node.key,
        replace(payload, seconds=payload.seconds + 1),
        project=entry.namespace,
        nonce=header.nonce,
        seq=header.seq,
        prev=header.prev,
        time=header.time,
    )
