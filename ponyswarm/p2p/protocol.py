"""What a node does about what it hears: sans-IO, (event, now) in, effects out.

It has three parts, and passes each event to those it concerns: `jobs` knows what is to be
run, `claims` what this node takes on of it, `following` whom to ask for what is missing.
All their state is small and can be lost. Nothing here reads a clock, a socket or a file:
every method takes ``now`` in milliseconds and returns `effects` for `node` to perform. The
tests in ``tests/sim`` run many of these against each other on a virtual clock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ponyswarm.agreement import Voice
from ponyswarm.codec import encode_gossip
from ponyswarm.messages import (
    Announce,
    Blob,
    Cell,
    Claim,
    Commit,
    Entry,
    Ephemeral,
    Later,
    Offer,
    Payload,
    Result,
    Withdraw,
)
from ponyswarm.p2p.claims import Claims, Mine
from ponyswarm.p2p.effects import (
    Admit,
    Effect,
    Fetch,
    Heard,
    Penalise,
    Publish,
    Subscribe,
    Unsubscribe,
)
from ponyswarm.p2p.following import Following, jittered
from ponyswarm.p2p.jobs import Jobs
from ponyswarm.p2p.offers import Capacity
from ponyswarm.p2p.scheduling import live_leases
from ponyswarm.p2p.topics import DIRECTORY, project_topic
from ponyswarm.policy import ProjectState

if TYPE_CHECKING:
    import random

DIRECTORY_EVERY_MS = 600_000
# The directory is told to a newcomer within about so long.
DIRECTORY_SOON_MS = 3_000
# How long gossipsub takes to graft a new peer into its meshes: a heartbeat and a half.
MESH_MS = 1_500


@dataclass(slots=True)
class _Project:
    genesis: Entry | None = None
    knows_ended: bool = False


class Protocol:
    """One node's decisions. ``capacity`` is None for a node that only reads and serves."""

    def __init__(self, me: bytes, capacity: Capacity | None, chance: random.Random) -> None:
        self.me = me
        self._chance = chance
        self._projects: dict[bytes, _Project] = {}
        self._jobs = Jobs()
        self._claims = Claims(me, capacity, self._jobs)
        self._following = Following(chance)
        self._directory_at = 0

    # --- what the node asks about -----------------------------------------------------

    @property
    def mine(self) -> Mapping[bytes, Mine]:
        """Cells this node has claimed or runs, by cell id."""
        return self._claims.mine

    @property
    def sealed(self) -> frozenset[bytes]:
        """Cells whose outcome this node has committed to and not told yet."""
        return self._claims.sealed

    @property
    def followed(self) -> frozenset[bytes]:
        return frozenset(self._projects)

    def is_trusted(self, project: bytes) -> bool:
        return self._claims.is_trusted(project)

    def offers(self, project: bytes, now: int) -> dict[bytes, Offer]:
        """The live offers of a project's volunteers."""
        return self._claims.offers(project, now)

    def job(self, id_: bytes) -> tuple[bytes, Announce] | None:
        """(project, announcement) of an open job."""
        job = self._jobs.get(id_)
        return None if job is None else (job.project, job.announce)

    def is_blind(self, id_: bytes) -> bool:
        """Whether volunteers of an open job commit before they tell."""
        job = self._jobs.get(id_)
        return job is not None and any(c.check.mode == "blind" for c in job.cells.values())

    def first_claims(self) -> dict[bytes, int]:
        """When the first claim of each open job was heard here."""
        return {job.id: job.first_claim for job in self._jobs if job.first_claim is not None}

    def at_work(self, now: int) -> dict[bytes, dict[bytes, int]]:
        """Who is at which cell of the open jobs, and since when at the latest, by cell id."""
        found: dict[bytes, dict[bytes, int]] = {}
        for job in self._jobs:
            for cell in job.open_cells:
                if keys := live_leases(cell, now):
                    found[cell.id] = {key: cell.claimed.get(key, now) for key in keys}
        return found

    def cell(self, job: bytes, cell: bytes) -> Cell | None:
        found = self._jobs.get(job)
        return None if found is None else found.points.get(cell)

    def to_name(self, job: bytes) -> tuple[bytes, ...]:
        """The commits that this node's next commit to a cell of a job should name."""
        found = self._jobs.get(job)
        return () if found is None else found.unnamed(self.me)

    def waiting(self, now: int) -> int:
        """How many cells this node could run next: open, allowed here, and nobody's yet."""
        return self._claims.waiting(now)

    def why_idle(self, now: int) -> dict[bytes, str]:
        """For each open job that this node does not serve: why, in words for its owner."""
        return self._claims.why_idle(now)

    # --- projects ------------------------------------------------------------------------

    def follow(
        self, project: bytes, *, trusted: bool, genesis: Entry | None, now: int
    ) -> list[Effect]:
        """Replicate a project from now on; with ``trusted``, also run its jobs."""
        effects = self._claims.follow(project, trusted=trusted, now=now)
        if project in self._projects:
            return [*effects, *(self._fetch_sources(project) if trusted else ())]
        self._projects[project] = _Project(genesis)
        return [Subscribe(project_topic(project)), *self._following.begin(project, now)]

    def unfollow(self, project: bytes) -> list[Effect]:
        """Replicate a project no more, and stop what runs of it."""
        if self._projects.pop(project, None) is None:
            return []
        effects = self._claims.unfollow(project)
        self._jobs.forget(project)
        return [*effects, Unsubscribe(project_topic(project))]

    def _fetch_sources(self, project: bytes) -> list[Effect]:
        effects: list[Effect] = []
        for job in self._jobs.of(project):
            if not job.withdrawn:
                effects += _source_blobs(job.announce, ())
        return effects

    # --- peers ---------------------------------------------------------------------------

    def connected(self, peer: bytes, now: int) -> list[Effect]:
        # The newcomer hears gossip only when it is in the mesh: tell it then what stands.
        self._claims.retell(now + MESH_MS)
        soon = now + jittered(DIRECTORY_SOON_MS, self._chance)
        self._directory_at = min(self._directory_at, soon)
        return [*self._following.connected(peer, self._projects, now)]

    def disconnected(self, peer: bytes, now: int) -> list[Effect]:
        self._following.disconnected(peer)
        if self._jobs.doubt(peer, now):
            self._claims.choose_by(now)
        return []

    def peer_follows(self, peer: bytes, project: bytes, now: int) -> list[Effect]:
        """A connected peer says that it follows a project of ours, as it may have just begun to.

        Once a connection, it is told what stands, and asked if it had no answer before.
        """
        if project not in self._projects:
            return []
        pulls = self._following.peer_follows(peer, project, now)
        if pulls is None:
            return []
        self._claims.retell(now + MESH_MS, later=False)
        return [*pulls]

    def pulled(self, peer: bytes, project: bytes, *, knows: bool) -> None:
        """A pull ended; the peer followed the project, or had no answer."""
        self._following.pulled(peer, project, knows=knows)

    # --- gossip --------------------------------------------------------------------------

    def gossip(
        self,
        project: bytes | None,
        origin: bytes,
        forwarder: bytes,
        message: Entry | Ephemeral,
        now: int,
    ) -> list[Effect]:
        """A decoded, authentic gossip message on a project's topic, or the directory's (None)."""
        if project is None:
            if isinstance(message, Entry) and message.is_genesis:
                return [Heard(message)]
            return [Penalise(forwarder, "bad-directory")]
        if project not in self._projects:
            return []
        match message:
            case Entry():
                if message.namespace != project:
                    return [Penalise(forwarder, "wrong-topic")]
                return [Admit(message, forwarder)]
            case Offer():
                self._claims.offered(project, origin, message, now)
                return []
            case Claim():
                self._claims.claimed(project, origin, message, now)
                return []
            case Later():
                return []

    # --- the ledger ----------------------------------------------------------------------

    def gap(self, entry: Entry, peer: bytes, now: int) -> list[Effect]:
        """An entry came whose predecessors are missing: its giver should have them."""
        return [*self._following.pull(peer, entry.namespace, now)]

    def admitted(
        self, entry: Entry, payload: Payload | None, now: int, *, peer: bytes | None, own: bool
    ) -> list[Effect]:
        """The ledger took an entry (or holds it, at start). Own new ones are gossiped."""
        project = entry.namespace
        known = self._projects.get(project)
        if known is None:
            return []
        effects: list[Effect] = []
        if entry.is_genesis:
            known.genesis = entry
            self._directory_at = min(self._directory_at, now)
        if own:
            effects.append(Publish(project_topic(project), encode_gossip(entry)))
        givers = () if peer is None else (peer,)
        match payload:
            case Announce():
                effects += self._announced(entry, payload, givers, now)
            # Where the ledger tells what ended, it has judged whether this has force.
            case Withdraw() if not known.knows_ended:
                if self._jobs.withdraw(project, payload.job):
                    effects += self._claims.stop(payload.job)
            case Commit():
                self._committed(entry, payload, now)
            case Result():
                effects += self._resulted(entry, payload, givers, now)
            case _:
                pass
        return effects

    def ended(self, project: bytes, jobs: Collection[bytes], now: int) -> list[Effect]:
        """The ledger says which jobs of a project are over: withdrawn, or without force.

        To be told at the start, and before `admitted` gets an announcement, a withdrawal, a
        record, a revocation or a proven fork. A job that is not among ``jobs`` is open.
        """
        known = self._projects.get(project)
        if known is None:
            return []
        known.knows_ended = True
        changed, over = self._jobs.ended(project, jobs)
        if changed:
            self._claims.choose_by(now)
        return [effect for job in over for effect in self._claims.stop(job)]

    def rights(
        self, project: bytes, state: ProjectState, forked: frozenset[bytes], now: int
    ) -> None:
        """The ledger says whose word counts in a project. To be told before `ended`."""
        if project in self._projects and self._jobs.rights(project, state, forked):
            self._claims.wake(now)

    def records(self, project: bytes, chances: Mapping[Voice, float], now: int) -> None:
        """The ledger says which operators of a project are not always checked."""
        if project in self._projects and self._jobs.records(project, chances):
            self._claims.wake(now)

    def _announced(
        self, entry: Entry, announce: Announce, givers: tuple[bytes, ...], now: int
    ) -> list[Effect]:
        job = self._jobs.announced(entry, announce, now)
        if job is None:
            return []
        self._claims.choose_by(now)
        if not self.is_trusted(entry.namespace) or job.withdrawn:
            return []
        return list(_source_blobs(announce, givers))

    def _resulted(
        self, entry: Entry, result: Result, givers: tuple[bytes, ...], now: int
    ) -> list[Effect]:
        if self._jobs.resulted(entry, result, now):
            self._claims.choose_by(now)
        if entry.header.author == self.me:
            self._claims.told(result.cell)
        effects: list[Effect] = []
        if entry.header.author != self.me:
            if result.tests is not None:
                effects.append(Fetch(result.tests, (entry.header.author, *givers)))
            if result.log is not None and (result.state == "broken" or result.bad):
                effects.append(Fetch(result.log, (entry.header.author, *givers)))
        return effects

    def _committed(self, entry: Entry, commit: Commit, now: int) -> None:
        if self._jobs.committed(entry, commit, now):
            self._claims.choose_by(now)
        if entry.header.author == self.me:
            self._claims.committed(entry, commit, now)

    # --- this node's own runs ----------------------------------------------------------------

    def finished(self, cell: bytes, now: int, *, published: bool) -> list[Effect]:
        """A run of ours ended. Without a published result, the claim is given back."""
        return self._claims.finished(cell, now, published=published)

    def rest(self, why: str, now: int) -> None:
        """Claim nothing from now on and offer no slot, for this reason; "" ends it."""
        self._claims.rest(why, now)

    def lost(self, cell: bytes) -> None:
        """This node cannot tell what it committed to: its nonce is not here."""
        self._claims.told(cell)

    # --- time ---------------------------------------------------------------------------------

    def tick(self, now: int) -> list[Effect]:
        """Everything that is due. Call it after events and at least once a second."""
        effects: list[Effect] = []
        if self._claims.due <= now:
            effects += self._claims.tick(now)
        effects += self._tell_directory(now)
        if self._following.due <= now:
            effects += self._following.tick(self._projects, now)
        return effects

    @property
    def due(self) -> int:
        """From when on `tick` has something to do, as far as is known; an event may change it."""
        due = min(self._claims.due, self._following.due)
        return min(due, self._directory_at) if self._following.peers else due

    def _tell_directory(self, now: int) -> list[Effect]:
        if now < self._directory_at or not self._following.peers:
            return []
        self._directory_at = now + jittered(DIRECTORY_EVERY_MS, self._chance)
        return [
            Publish(DIRECTORY, encode_gossip(project.genesis))
            for project in self._projects.values()
            if project.genesis is not None
        ]

    def pull_all(self, now: int) -> list[Effect]:
        """Ask every peer about every project now."""
        return [*self._following.ask_all(self._projects, now)]

    def prune(self, now: int) -> None:
        """Forget jobs that ended long ago; the ledger keeps them."""
        self._jobs.prune(now, busy={mine.job for mine in self.mine.values()})


def _source_blobs(announce: Announce, givers: tuple[bytes, ...]) -> list[Fetch]:
    wanted = [Fetch(Blob(hash=announce.source, size=announce.source_size), givers)]
    if announce.locks is not None:
        wanted.append(Fetch(Blob(hash=announce.locks, size=announce.locks_size), givers))
    return wanted
