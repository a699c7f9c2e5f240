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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import ParamSpec

import trio
from anyio import CapacityLimiter
from msgspec import UNSET

from ponyswarm.codec import decode_payload
from ponyswarm.errors import InfraError, PeerError
from ponyswarm.frontier import Frontier
from ponyswarm.intake import Intake
from ponyswarm.keeping import Keeping
from ponyswarm.keys import SecretKey, peer_id
from ponyswarm.ledger.journal import Journal
from ponyswarm.ledger.queries import chances
from ponyswarm.ledger.seals import Seals
from ponyswarm.ledger.signatures import check_some
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Blob, Entry, Fork, Kind, Payload
from ponyswarm.notary import Notary
from ponyswarm.p2p import blobs as blob_protocol
from ponyswarm.p2p import replication, sync, witness
from ponyswarm.p2p.blobs import BlobStore
from ponyswarm.p2p.connectivity import Connectivity
from ponyswarm.p2p.effects import (
    Admit,
    Effect,
    Fetch,
    Heard,
    Penalise,
    Publish,
    Pull,
    Reveal,
    Run,
    Stop,
    Subscribe,
    Unsubscribe,
)
from ponyswarm.p2p.fetcher import Fetcher
from ponyswarm.p2p.network import (
    Connected,
    Disconnected,
    Followed,
    Gossip,
    Network,
    open_network,
)
from ponyswarm.p2p.offers import Capacity
from ponyswarm.p2p.protocol import Protocol
from ponyswarm.p2p.topics import DIRECTORY, project_topic, topic_project
from ponyswarm.pulling import Pulls
from ponyswarm.refusals import Refusals
from ponyswarm.runs import Execute, Runs
from ponyswarm.sealing import Sealing
from ponyswarm.witnessing import Witnessing

log = logging.getLogger("ponyswarm")

Arguments = ParamSpec("Arguments")

TICK = 0.25
SERVE_TIMEOUT = 60.0
# Seconds by which wall clock and running time may part before we call it a jump.
CLOCK_JUMP = 30.0
# Seconds between looks for signatures that nobody checked yet.
CHECK_EVERY = 5.0
# Seconds between looks for files to drop.
KEEP_FIRST, KEEP_EVERY = 5.0, 300.0
# Seconds between looks at who agreed with others for long.
RECORDS_EVERY = 60.0
MAX_WISHES = 100


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
        connectivity: Connectivity,
        nursery: trio.Nursery,
        notary: Notary | None = None,
        keeping: Keeping | None = None,
        wishes: Path | None = None,
        seals: Seals | None = None,
    ) -> None:
        self.key = key
        self.store = store
        self.journal = journal
        self.blobs = blobs
        self.protocol = protocol
        self.refusals = Refusals(self._penalise)
        self.connectivity = connectivity
        self._nursery = nursery
        self._network: Network | None = None
        # What was signed while no node ran is in the ledger, and peers pull it on connect.
        self._position = journal.position
        self._fetcher = Fetcher(
            blobs,
            open_=partial(self.open_stream, blob_protocol.PROTOCOL),
            peers=lambda: self.network.peers(),
            refuse=self.refusals.refuse,
            kept=self._kept,
        )
        self._keeping = keeping or Keeping(store, blobs, budget=0, keep_ms=None)
        self.intake = Intake(
            store=store,
            journal=journal,
            protocol=protocol,
            keeping=self._keeping,
            refuse=self.refusals.refuse,
            perform=self.perform,
            clock=now_ms,
        )
        self.pulls = Pulls(
            journal,
            open_=partial(self.open_stream, sync.PROTOCOL),
            frontier_of=self._frontier,
            take=self._take,
            peers=lambda: self.network.peers(),
            followed=lambda: protocol.followed,
            refuse=self.refusals.refuse,
            clock=now_ms,
            pulled=protocol.pulled,
        )
        self.runs = Runs(execute, self._fetcher, blobs)
        self._witnessing: Witnessing | None = None
        if notary is not None:
            self._witnessing = Witnessing(
                notary,
                open_=partial(self.open_stream, witness.PROTOCOL),
                peers=lambda: self.network.peers(),
                refuse=self.refusals.refuse,
            )
        self._sealing: Sealing | None = None
        if seals is not None:
            self._sealing = Sealing(seals, store, key.public, self.publish)
        self._wake = trio.Event()
        self._wishes = wishes

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
            self._keep_in_touch,
            self._fetcher.run,
            self._keep,
            self._learn_records,
            self._check_signatures,
        ):
            self._nursery.start_soon(self._forever, loop)

    async def _keep_in_touch(self) -> None:
        await self.connectivity.run(self.key, self.network, self._followers, self.refusals.refuse)

    def _followers(self) -> dict[bytes, frozenset[bytes]]:
        """The connected peers that follow each project that we follow."""
        return {
            project: frozenset(self.network.topic_peers(project_topic(project)))
            for project in self.protocol.followed
        }

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

    def _spawn(
        self,
        task: Callable[Arguments, Awaitable[None]],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> None:
        """Start a task whose faults are logged: none of them may end the node."""

        async def fenced() -> None:
            try:
                await task(*arguments, **named)
            except Exception:
                log.exception("a fault of PonySwarm itself; the node goes on")

        self._nursery.start_soon(fenced)

    async def follow(self, project: bytes, *, trusted: bool) -> None:
        """Replicate a project; with ``trusted``, run its jobs. Known entries are taken up."""
        is_new = project not in self.protocol.followed
        if is_new:
            self.pulls.begin(project)
        genesis = self.store.entry(project)
        now = now_ms()
        effects = self.protocol.follow(project, trusted=trusted, genesis=genesis, now=now)
        if is_new:
            effects += self.intake.tell_rights(project, now)
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
        if is_new and self._sealing is not None:
            self._spawn(self._sealing.resume, project)

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
                case Followed(topic, peer):
                    followed = topic_project(topic)
                    if followed is not None:
                        await self.perform(self.protocol.peer_follows(peer, followed, now))
                case Gossip(topic, origin, forwarder, data):
                    message = self.intake.decoded(data)
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
            self.pulls.judge()
            if abs((time.time() - time.monotonic()) - offset) > CLOCK_JUMP:
                log.warning("the clock jumped: peers are asked again for our own entries")
                offset = time.time() - time.monotonic()
                self.pulls.doubt()
                await self.perform(self.protocol.pull_all(now))
            for proof, project in self.intake.forks_due():
                self._spawn(self._publish_fork, proof, project)
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
            while self.pulls.idle and await check_some(self.store, one):
                pass

    async def _take_own(self, now: int) -> None:
        """Publish what was signed on this home since: by this node, or by a command beside it."""
        for position, entry in self.journal.since(self._position):
            if position <= self._position:
                continue  # Taken meanwhile: a run's end and the tick both come here.
            self._position = position
            await self.perform(self.intake.take_own(entry, now))

    async def _learn_records(self) -> None:
        """Tell the protocol now and then which operators have a long record."""
        while True:
            for project in self.protocol.followed:
                state = self.store.state(project)
                if state is not None and state.record.cross_check.floor is not UNSET:
                    found = await trio.to_thread.run_sync(chances, self.store.path, project)
                    self.protocol.records(project, found, now_ms())
            await trio.sleep(RECORDS_EVERY)

    async def _keep(self) -> None:
        """Drop what is too old or too much, soon and in the end every few minutes."""
        pause = KEEP_FIRST
        while True:
            await trio.sleep(pause)
            pause = min(2 * pause, KEEP_EVERY)
            now = now_ms()
            await self._keeping.sweep(now)
            # What a shorter setting dropped before, or what a peer kept from us.
            since = self._keeping.payloads_since(now)
            whole = partial(self.store.whole_frontier, since=since)
            for project in self.protocol.followed:
                await self.pulls.complete(project, whole)

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
                    todo += self.intake.admit(entry, peer, now_ms())
                case Pull(peer, project):
                    self._spawn(self.pulls.run, peer, project)
                case Fetch(blob, peers):
                    self._fetcher.want(blob, peers)
                case Run(job, cell):
                    self._spawn(self._run, job, cell)
                case Reveal(job, cell, seen):
                    self._spawn(self._reveal, job, cell, seen)
                case Stop(cell, why):
                    self.runs.stop(cell, why)
                case Penalise(peer, reason):
                    self.refusals.refuse(reason, peer)
                case Heard(entry):
                    self.intake.hear_of(entry)

    def _penalise(self, peer: bytes, points: float) -> None:
        if self._network is not None:
            self._network.penalise(peer, points)

    async def _publish_fork(self, proof: Fork, project: bytes) -> None:
        try:
            await self.pulls.known(project)
            if proof in self.store.untold_forks(project):
                await self.publish(proof, project)
        except (InfraError, PeerError) as fault:
            log.warning("the proof of a fork could not be published: %s", fault)

    async def publish(self, payload: Payload, project: bytes) -> Entry:
        """Sign an entry, make it durable, keep it, and tell the network.

        After a start it first waits until peers were asked for our own heads.
        """
        await self.pulls.known(project)
        now = now_ms()
        entry = self.journal.sign(payload, project=project, now=now)
        await self._take_own(now)
        return entry

    async def pull(self, peer: bytes, project: bytes) -> replication.Pulled:
        """Get what a peer has of a project and we have not. Raises `PeerError`."""
        return await self.pulls.pull(peer, project)

    async def _take(self, project: bytes, segments: Sequence[Sequence[Entry]], peer: bytes) -> int:
        return await self.intake.take(project, segments, peer, now_ms())

    async def open_stream(self, protocol: str, peer: bytes) -> blob_protocol.Stream:
        return await self.network.open(peer, protocol)

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
                if self._sealing is not None and self.protocol.is_blind(job):
                    await self._sealing.commit(result, found[0], self.protocol.to_name(job))
                else:
                    await self.publish(result, found[0])
                published = True
            except (InfraError, PeerError) as fault:
                log.warning("a result could not be published: %s", fault)
        await self.perform(self.protocol.finished(cell_id, now_ms(), published=published))
        self._wake.set()

    async def _reveal(self, job: bytes, cell: bytes, seen: tuple[bytes, ...]) -> None:
        """Tell what was committed to. What fails is tried again when the protocol asks again."""
        try:
            if self._sealing is None or not await self._sealing.tell(job, cell, seen):
                log.warning(
                    "what this key committed to of cell %s is not on this machine any more: "
                    "it cannot be told, and counts against the key",
                    cell.hex()[:16],
                )
                self.protocol.lost(cell)
        except (InfraError, PeerError) as fault:
            log.warning("a result could not be published: %s", fault)

    async def rest(self, why: str, *, gives_back: bool = False) -> None:
        """Take no jobs from now on, for this reason; "" ends it."""
        self.protocol.rest(why, now_ms())
        if gives_back and self.protocol.mine:
            await self.release_all(why)
        self._wake.set()

    async def release_all(self, why: str = "this node stops") -> None:
        """Give every claim back, so that others need not wait for the leases to run out."""
        for cell in list(self.protocol.mine):
            self.runs.stop(cell, why)
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
    connectivity: Connectivity,
    keeping: Keeping | None = None,
    wishes: Path | None = None,
    notary: Notary | None = None,
    seals: Seals | None = None,
) -> AsyncIterator[Node]:
    """Open a node and close it in good order: claims given back, peers told, files closed.

    ``capacity``, ``execute`` and ``seals`` are None for a node that runs nothing, ``notary``
    for one that neither makes checkpoints nor cosigns others'. Raises `InfraError`
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
            connectivity=connectivity,
            nursery=nursery,
            keeping=keeping,
            wishes=wishes,
            notary=notary,
            seals=seals,
        )
        async with open_network(
            key,
            listen=listen,
            validate=node.intake.validate,
            refused=node.refusals.count,
            named=node.intake.is_named,
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
