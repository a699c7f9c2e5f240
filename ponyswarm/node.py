"""The composition root: opens everything, runs one nursery, performs effects, decides nothing.

Decisions are elsewhere: `p2p.protocol` says what to do about what is heard, `ledger.store`
what an entry is worth, `exec.executor` what a run gave. This module moves values between
them and the outside, and keeps one rule of its own: whatever a peer sends ends here at the
latest, as a counted refusal and never as an exception that stops the node.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio
from anyio import CapacityLimiter

from ponyswarm.codec import (
    check_segment,
    decode_gossip,
    decode_payload,
)
from ponyswarm.errors import InfraError, PeerError
from ponyswarm.frontier import Frontier
from ponyswarm.keeping import Keeping
from ponyswarm.keys import SecretKey, peer_id
from ponyswarm.ledger.chain import (
    Accept,
    Diverges,
    Duplicate,
    Early,
    Forked,
    Gap,
    Judgement,
    Refused,
)
from ponyswarm.ledger.journal import Journal
from ponyswarm.ledger.signatures import check_some
from ponyswarm.ledger.store import Store
from ponyswarm.messages import (
    Announce,
    Blob,
    Entry,
    Ephemeral,
    Fork,
    Kind,
    Payload,
    Project,
    Revoke,
    Withdraw,
)
from ponyswarm.notary import Notary
from ponyswarm.p2p import blobs as blob_protocol
from ponyswarm.p2p import replication, sync, witness
from ponyswarm.p2p.blobs import BlobStore
from ponyswarm.p2p.dialer import Dialer
from ponyswarm.p2p.discovery import PeerTable
from ponyswarm.p2p.effects import (
    Admit,
    Effect,
    Fetch,
    Heard,
    Penalise,
    Publish,
    Pull,
    Run,
    Stop,
    Subscribe,
    Unsubscribe,
)
from ponyswarm.p2p.fetcher import Fetcher
from ponyswarm.p2p.heads import HeadCheck, Heads
from ponyswarm.p2p.network import Connected, Disconnected, Gossip, Network, open_network
from ponyswarm.p2p.protocol import DIRECTORY, Capacity, Protocol, topic_project
from ponyswarm.policy import refusal
from ponyswarm.runs import Execute, Runs
from ponyswarm.witnessing import Witnessing

log = logging.getLogger("ponyswarm")

TICK = 0.25
PULL_TIMEOUT = 120.0
SERVE_TIMEOUT = 60.0
MAX_HEARD = 1_000
# Seconds before a fork that was seen is told of, and between later looks for untold ones.
FORK_PAUSE = (0.2, 3.0)
FORKS_EVERY = 60.0
# Seconds by which wall clock and running time may part before we call it a jump.
CLOCK_JUMP = 30.0
# Seconds between looks for signatures that nobody checked yet.
CHECK_EVERY = 5.0
MAX_DECODED = 4_096
# Seconds between looks for files to drop.
KEEP_EVERY = 300.0
MAX_WISHES = 100

# What a refusal costs its sender; at 100 points `network` bans. Reasons that a mere delay
# between honest nodes can cause cost nothing.
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
    "bad-witness": 25.0,
    "bad-checkpoint": 25.0,
    "bad-consistency": 25.0,
    "bad-cosignature": 25.0,
    "two-trees": 25.0,
}


@dataclass(slots=True)
class Counts:
    """What this node did since it started."""

    entries: int = 0
    refused: Counter[str] = field(default_factory=Counter)


def now_ms() -> int:
    return int(time.time() * 1000)


class Node:
    """A running node. Made by `open_node`; its methods perform, `Protocol` decides."""

    def __init__(
        self,
        *,
        key: SecretKey,
        store: Store,
        journal: Journal,
        blobs: BlobStore,
        protocol: Protocol,
        execute: Execute | None,
        addresses: Sequence[str],
        table: PeerTable,
        nursery: trio.Nursery,
        notary: Notary | None = None,
        keeping: Keeping | None = None,
        wishes: Path | None = None,
    ) -> None:
        self.key = key
        self.store = store
        self.journal = journal
        self.blobs = blobs
        self.protocol = protocol
        self.counts = Counts()
        self.heard: OrderedDict[bytes, Project] = OrderedDict()
        self._dialer = Dialer(addresses, table)
        self._nursery = nursery
        self._network: Network | None = None
        # What was signed while no node ran is in the ledger, and peers pull it on connect.
        self._position = journal.position
        self._decoded: OrderedDict[bytes, Entry | Ephemeral] = OrderedDict()
        self._pulling: set[tuple[bytes, bytes]] = set()
        self._pull_slots = trio.CapacityLimiter(4)
        self._fetcher = Fetcher(
            blobs,
            open_=partial(self.open_stream, blob_protocol.PROTOCOL),
            peers=lambda: self.network.peers(),
            refuse=self.refuse,
            kept=self._kept,
        )
        self._keeping = keeping or Keeping(store, blobs, budget=0, keep_ms=None)
        self.runs = Runs(execute, self._fetcher, blobs)
        self._witnessing: Witnessing | None = None
        if notary is not None:
            self._witnessing = Witnessing(
                notary,
                open_=partial(self.open_stream, witness.PROTOCOL),
                peers=lambda: self.network.peers(),
                refuse=self.refuse,
            )
        self._wake = trio.Event()
        self._wishes = wishes
        self._heads = HeadCheck()
        self.heads: dict[bytes, Heads] = {}
        self._forks_due = trio.current_time()

    # --- opening ----------------------------------------------------------------------------

    @property
    def network(self) -> Network:
        if self._network is None:
            raise InfraError("the network is not open yet")
        return self._network

    async def start(self, network: Network) -> None:
        """Serve, follow what the ledger knows, and start the loops."""
        self._network = network
        self.journal.doubt()
        network.serve(sync.PROTOCOL, self._serve_sync, concurrent_per_peer=4, timeout=SERVE_TIMEOUT)
        network.serve(
            blob_protocol.PROTOCOL, self._serve_blob, concurrent_per_peer=8, timeout=SERVE_TIMEOUT
        )
        if self._witnessing is not None:
            network.serve(
                witness.PROTOCOL,
                self._witnessing.serve,
                concurrent_per_peer=1,
                timeout=SERVE_TIMEOUT,
            )
            self._nursery.start_soon(self._forever, self._witnessing.run)
        await network.subscribe(DIRECTORY)
        for loop in (
            self._hear,
            self._tick,
            partial(self._dialer.run, network),
            self._fetcher.run,
            self._keep,
            self._check_signatures,
        ):
            self._nursery.start_soon(self._forever, loop)

    async def _forever(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Keep a loop alive: a fault in it is logged and it starts again, it never ends us."""
        while True:
            try:
                await loop()
            except (PeerError, InfraError) as fault:
                log.warning("%s", fault)
            except Exception:
                log.exception("a fault of PonySwarm itself; the node goes on")
            await trio.sleep(1)

    def _spawn(self, task: Callable[[bytes, bytes], Awaitable[None]], *ids: bytes) -> None:
        """Start a task whose faults are logged: none of them may end the node."""

        async def fenced() -> None:
            try:
                await task(*ids)
            except Exception:
                log.exception("a fault of PonySwarm itself; the node goes on")

        self._nursery.start_soon(fenced)

    async def follow(self, project: bytes, *, trusted: bool) -> None:
        """Replicate a project; with ``trusted``, run its jobs. Known entries are taken up."""
        is_new = project not in self.protocol.followed
        if is_new:
            self._heads.begin(project, now_ms())
            self.heads[project] = Heads.WAITING
        genesis = self.store.entry(project)
        now = now_ms()
        effects = self.protocol.follow(project, trusted=trusted, genesis=genesis, now=now)
        if is_new:
            effects += self.protocol.ended(project, self.store.ended(project), now)
            held = self.store.entries(project, (Kind.ANNOUNCE, Kind.WITHDRAW))
            for entry in held:
                payload = decode_payload(entry)
                self._keeping.expect(entry, payload, now)
                effects += self.protocol.admitted(entry, payload, now, peer=None, own=False)
            for job in [entry.id for entry in held if self.protocol.job(entry.id) is not None]:
                for entry in self.store.results(job):
                    payload = decode_payload(entry)
                    self._keeping.expect(entry, payload, now)
                    effects += self.protocol.admitted(entry, payload, now, peer=None, own=False)
        await self.perform(effects)

    async def unfollow(self, project: bytes) -> None:
        await self.perform(self.protocol.unfollow(project))

    async def _serve_sync(self, stream: blob_protocol.Stream) -> None:
        await replication.serve(stream, self._frontier, self.store.segment)

    async def _serve_blob(self, stream: blob_protocol.Stream) -> None:
        await blob_protocol.serve(stream, self.blobs)

    def _frontier(self, project: bytes) -> Frontier | None:
        if project not in self.protocol.followed:
            return None
        return self.store.live_frontier(project)

    # --- loops ------------------------------------------------------------------------------

    async def _hear(self) -> None:
        async for event in self.network.events:
            now = now_ms()
            match event:
                case Connected(peer):
                    log.info("connected to %s", peer_id(peer))
                    await self.perform(self.protocol.connected(peer, now))
                case Disconnected(peer):
                    log.info("lost %s", peer_id(peer))
                    await self.perform(self.protocol.disconnected(peer, now))
                case Gossip(topic, origin, forwarder, data):
                    message = self._decoded.pop(data, None)
                    if message is not None:
                        project = topic_project(topic)
                        await self.perform(
                            self.protocol.gossip(project, origin, forwarder, message, now)
                        )
            await self.perform(self.protocol.tick(now))

    async def _tick(self) -> None:
        pruned = time.monotonic()
        # A machine that was asleep, or was rolled back while it ran, finds its clock set.
        offset = time.time() - time.monotonic()
        while True:
            now = now_ms()
            await self._take_own(now)
            await self.perform(self.protocol.tick(now))
            self._judge_heads()
            if abs((time.time() - time.monotonic()) - offset) > CLOCK_JUMP:
                log.warning("the clock jumped: peers are asked again for our own entries")
                offset = time.time() - time.monotonic()
                self._doubt_heads()
                await self.perform(self.protocol.pull_all(now))
            if trio.current_time() >= self._forks_due:
                await self._publish_forks()
            self._grant_wishes()
            if time.monotonic() - pruned > 600:
                pruned = time.monotonic()
                self.protocol.prune(now)
            with trio.move_on_after(TICK):
                await self._wake.wait()
                self._wake = trio.Event()

    async def _check_signatures(self) -> None:
        """While nothing is pulled, check what was taken by a later entry's signature."""
        one = CapacityLimiter(1)
        while True:
            await trio.sleep(CHECK_EVERY)
            while not self._pulling and await check_some(self.store, one):
                pass

    async def _take_own(self, now: int) -> None:
        """Publish what was signed on this home since: by this node, or by a command beside it."""
        for position, entry in self.journal.since(self._position):
            if position <= self._position:
                continue  # Taken meanwhile: a run's end and the tick both come here.
            self._position = position
            payload = decode_payload(entry)
            judgement = self.store.append(entry, now)
            if isinstance(judgement, Refused):
                log.warning("our own entry was refused: %s", judgement.reason)
                continue
            self._keeping.expect(entry, payload, now)
            effects = self._rights_changed(entry, payload, now)
            effects += self.protocol.admitted(entry, payload, now, peer=None, own=True)
            await self.perform(effects)

    async def _keep(self) -> None:
        """Drop what is too old or too much, now and every few minutes."""
        while True:
            await trio.sleep(KEEP_EVERY)
            await self._keeping.sweep(now_ms())

    async def _kept(self, blob: Blob) -> None:
        await self._keeping.kept(blob, now_ms())

    def _grant_wishes(self) -> None:
        """Fetch what commands beside this node ask for: lines of a hash and a size in a file."""
        if self._wishes is None or not self._wishes.exists():
            return
        try:
            taken = self._wishes.with_suffix(".taken")
            self._wishes.replace(taken)
            lines = taken.read_text("ascii").split("\n")[:MAX_WISHES]
            taken.unlink()
            for line in filter(None, lines):
                hash_, size = line.split()
                self._fetcher.want(Blob(hash=bytes.fromhex(hash_), size=int(size)), ())
        except (OSError, ValueError) as fault:
            log.warning("what a command asked for cannot be read: %s", fault)

    # --- performing ---------------------------------------------------------------------------

    async def perform(self, effects: Iterable[Effect]) -> None:
        """Do what the protocol wants done, in its order."""
        todo = list(effects)
        while todo:
            match todo.pop(0):
                case Subscribe(topic):
                    await self.network.subscribe(topic)
                case Unsubscribe(topic):
                    await self.network.unsubscribe(topic)
                case Publish(topic, data):
                    await self.network.publish(topic, data)
                case Admit(entry, peer):
                    todo += self._admit(entry, peer, now_ms())
                case Pull(peer, project):
                    self._spawn(self._pull, peer, project)
                case Fetch(blob, peers):
                    self._fetcher.want(blob, peers)
                case Run(job, cell):
                    self._spawn(self._run, job, cell)
                case Stop(cell, why):
                    self.runs.stop(cell, why)
                case Penalise(peer, reason):
                    self.refuse(reason, peer)
                case Heard(entry):
                    self._hear_of(entry)

    def refuse(self, reason: str, peer: bytes | None) -> None:
        """Count a refusal, and hold it against the peer it came from."""
        self.counts.refused[reason] += 1
        points = _POINTS.get(reason)
        if points is not None and peer is not None and self._network is not None:
            self._network.penalise(peer, points)

    def count_refusal(self, reason: str, peer: bytes | None) -> None:
        """What the network itself refused; it keeps the score of those."""
        self.counts.refused[reason] += 1

    def validate(self, topic: str, origin: bytes, forwarder: bytes, data: bytes) -> bool:
        """Whether a gossip message may be taken and relayed; runs for each one, first."""
        try:
            message = decode_gossip(data)
            self._check_gossiped(message, topic_project(topic))
        except PeerError as fault:
            self.refuse(fault.reason, forwarder)
            return False
        # What was dropped on the way from here to `_hear` must not stay for ever.
        self._decoded[data] = message
        while len(self._decoded) > MAX_DECODED:
            self._decoded.popitem(last=False)
        return True

    def _check_gossiped(self, message: Entry | Ephemeral, project: bytes | None) -> None:
        if project is None:
            if not isinstance(message, Entry) or not message.is_genesis:
                raise PeerError("bad-directory")
            state = None
        elif isinstance(message, Entry):
            if message.namespace != project:
                raise PeerError("wrong-topic")
            state = self.store.state(project)
            if state is None and not message.is_genesis:
                # Its record is on the way; a pull brings both.
                raise PeerError("unknown-project")
        else:
            return
        reason = refusal(state, message, decode_payload(message))
        if reason is not None:
            raise PeerError(reason)

    def _hear_of(self, entry: Entry) -> None:
        payload = decode_payload(entry)
        if isinstance(payload, Project):
            self.heard[entry.id] = payload
            self.heard.move_to_end(entry.id)
            while len(self.heard) > MAX_HEARD:
                self.heard.popitem(last=False)

    def _admit(self, entry: Entry, peer: bytes, now: int) -> list[Effect]:
        return self._admit_all([entry], peer, now)[1]

    def _admit_all(
        self, entries: Sequence[Entry], peer: bytes, now: int
    ) -> tuple[int, list[Effect]]:
        """Append entries of one peer; how many were new, and what follows from it."""
        self._look_for_own(entries)
        return self._judged(entries, self.store.append_all(entries, now), peer, now)

    def _look_for_own(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry.header.author == self.key.public and self.journal.seen(entry):
                log.warning(
                    "an entry of our own key came from elsewhere: a copy of this home runs, or it "
                    "was restored from a backup; we go on in a new feed"
                )

    def _judged(
        self, entries: Sequence[Entry], judgements: Sequence[Judgement], peer: bytes, now: int
    ) -> tuple[int, list[Effect]]:
        effects: list[Effect] = []
        new = 0
        for entry, judgement in zip(entries, judgements, strict=True):
            match judgement:
                case Accept():
                    new += 1
                    effects += self._taken(entry, decode_payload(entry), peer, now)
                case Gap() | Diverges():
                    effects += self.protocol.gap(entry, peer, now)
                case Forked(seq):
                    effects += self._forked(entry, seq, now)
                case Refused(reason):
                    self.refuse(reason, peer)
                case Duplicate() | Early():
                    pass
        self.counts.entries += new
        return new, effects

    def _taken(self, entry: Entry, payload: Payload | None, peer: bytes, now: int) -> list[Effect]:
        if isinstance(payload, Announce):
            log.info("heard of a job: %s", payload.title)
        self._keeping.expect(entry, payload, now)
        effects = self._rights_changed(entry, payload, now)
        return effects + self.protocol.admitted(entry, payload, now, peer=peer, own=False)

    def _rights_changed(self, entry: Entry, payload: Payload | None, now: int) -> list[Effect]:
        """Tell the protocol what ended, when an entry may have changed that."""
        if isinstance(payload, Fork):
            self._forks_due = min(self._forks_due, trio.current_time() + FORK_PAUSE[1])
        if not isinstance(payload, Announce | Withdraw | Project | Revoke | Fork):
            return []
        project = entry.namespace
        return self.protocol.ended(project, self.store.ended(project), now)

    def _forked(self, entry: Entry, seq: int, now: int) -> list[Effect]:
        """Somebody signed two histories: what it directed from there on has no force."""
        author, project = entry.header.author, entry.namespace
        log.warning("%s forked its feed at %d: its results count no more", peer_id(author), seq)
        pause = random.uniform(*FORK_PAUSE)  # noqa: S311
        self._forks_due = min(self._forks_due, trio.current_time() + pause)
        return self.protocol.ended(project, self.store.ended(project), now)

    async def _publish_forks(self) -> None:
        """Publish the proof of each fork that no `fork` entry here tells of yet.

        All who saw a fork wait for a moment of their own length, so that mostly one speaks.
        """
        self._forks_due = trio.current_time() + FORKS_EVERY
        for project in self.protocol.followed:
            for proof in self.store.untold_forks(project):
                self._nursery.start_soon(self._publish_fork, proof, project)

    async def _publish_fork(self, proof: Fork, project: bytes) -> None:
        try:
            await self._heads_known(project)
            if proof in self.store.untold_forks(project):
                await self.publish(proof, project)
        except (InfraError, PeerError) as fault:
            log.warning("the proof of a fork could not be published: %s", fault)

    async def publish(self, payload: Payload, project: bytes) -> Entry:
        """Sign an entry, make it durable, keep it, and tell the network.

        After a start it first waits until peers were asked for our own heads.
        """
        await self._heads_known(project)
        now = now_ms()
        entry = self.journal.sign(payload, project=project, now=now)
        await self._take_own(now)
        return entry

    # --- pulling ------------------------------------------------------------------------------

    async def _pull(self, peer: bytes, project: bytes) -> None:
        if (peer, project) in self._pulling:
            return
        self._pulling.add((peer, project))
        try:
            async with self._pull_slots:
                await self.pull(peer, project)
        except PeerError as fault:
            self.refuse(fault.reason, peer)
        except InfraError as fault:
            log.warning("%s", fault)
        finally:
            self._pulling.discard((peer, project))

    async def pull(self, peer: bytes, project: bytes) -> replication.Pulled:
        """Get what a peer has of a project and we have not. Raises `PeerError`."""
        knows = False
        try:
            with trio.move_on_after(PULL_TIMEOUT):
                pulled = await replication.pull(
                    partial(self.open_stream, sync.PROTOCOL),
                    peer,
                    project,
                    self._frontier,
                    self._take,
                )
                knows = pulled.state != "unknown"
                return pulled
            raise PeerError("timeout", "a pull took too long")
        finally:
            self._heads.answered(project, peer, now_ms(), knows=knows)
            self._judge_heads()

    # --- our own heads ------------------------------------------------------------------------

    def _doubt_heads(self) -> None:
        """Extend none of our feeds until peers were asked for them (`p2p.heads`)."""
        self.journal.doubt()
        self.heads.clear()
        for project in self.protocol.followed:
            self._heads.begin(project, now_ms())

    def _judge_heads(self) -> None:
        for project in self.protocol.followed:
            before = self.heads.get(project)
            if before is Heads.CHECKED:
                continue
            after = self._heads.verdict(project, self.network.peers(), now_ms())
            self.heads[project] = after
            if after is Heads.CHECKED:
                self.journal.confirm(project)
            elif after is Heads.ALONE and before is not Heads.ALONE:
                log.info("no peer could be asked for our own entries: the next opens a new feed")

    async def _heads_known(self, project: bytes) -> None:
        while project in self.protocol.followed and self.heads.get(project, Heads.WAITING) is (
            Heads.WAITING
        ):
            await trio.sleep(0.1)

    async def open_stream(self, protocol: str, peer: bytes) -> blob_protocol.Stream:
        return await self.network.open(peer, protocol)

    async def _take(self, project: bytes, segments: Sequence[Sequence[Entry]], peer: bytes) -> int:
        new = 0
        for segment in segments:
            if any(entry.namespace != project for entry in segment):
                raise PeerError("wrong-project")
            check_segment(segment)
            self._look_for_own(segment)
            await trio.lowlevel.checkpoint()
        now = now_ms()
        for segment, judged in zip(
            segments, self.store.append_segments(segments, now), strict=True
        ):
            fresh, effects = self._judged(segment, judged, peer, now)
            new += fresh
            await self.perform(effects)
        return new

    # --- runs ---------------------------------------------------------------------------------

    async def _run(self, job: bytes, cell_id: bytes) -> None:
        """Run a claimed cell and publish what it gave. Never raises."""
        found, cell = self.protocol.job(job), self.protocol.cell(job, cell_id)
        result = None
        if found is not None and cell is not None:
            result = await self.runs.run(job, cell_id, cell, found[1])
        published = False
        if found is not None and result is not None:
            try:
                await self.publish(result, found[0])
                published = True
            except (InfraError, PeerError) as fault:
                log.warning("a result could not be published: %s", fault)
        await self.perform(self.protocol.finished(cell_id, now_ms(), published=published))
        self._wake.set()

    async def release_all(self) -> None:
        """Give every claim back, so that others need not wait for the leases to run out."""
        for cell in list(self.protocol.mine):
            self.runs.stop(cell, "this node stops")
            await self.perform(self.protocol.finished(cell, now_ms(), published=False))


@asynccontextmanager
async def open_node(
    *,
    key: SecretKey,
    store: Store,
    journal: Journal,
    blobs: BlobStore,
    capacity: Capacity | None,
    execute: Execute | None,
    listen: Sequence[str],
    addresses: Sequence[str],
    table: PeerTable,
    keeping: Keeping | None = None,
    wishes: Path | None = None,
    notary: Notary | None = None,
) -> AsyncIterator[Node]:
    """Open a node and close it in good order: claims given back, peers told, files closed.

    ``capacity`` and ``execute`` are None for a node that runs nothing, ``notary`` for one
    that neither makes checkpoints nor cosigns others'. Raises `InfraError`
    when the listening address is taken.
    """
    protocol = Protocol(key.public, capacity, random.Random(secrets.randbits(64)))  # noqa: S311
    async with trio.open_nursery() as nursery:
        node = Node(
            key=key,
            store=store,
            journal=journal,
            blobs=blobs,
            protocol=protocol,
            execute=execute,
            addresses=addresses,
            table=table,
            nursery=nursery,
            keeping=keeping,
            wishes=wishes,
            notary=notary,
        )
        async with open_network(
            key, listen=listen, validate=node.validate, refused=node.count_refusal
        ) as network:
            await node.start(network)
            try:
                yield node
            finally:
                with trio.move_on_after(3) as farewell:
                    farewell.shield = True
                    await node.release_all()
                    # Gossip is handed to the peers' writers; give them a moment to write.
                    await trio.sleep(0.1)
                nursery.cancel_scope.cancel()
