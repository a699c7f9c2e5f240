"""What a node does about what it hears: sans-IO, (event, now) in, effects out.

The state here is small and can be lost: offers, which come by gossip and expire, and what
`jobs` keeps. Nothing here reads a clock, a socket or a file: every method takes ``now`` in
milliseconds and returns `effects` for `node` to perform. The tests in ``tests/sim`` run
many of these against each other on a virtual clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from ponyswarm.agreement import Voice
from ponyswarm.codec import encode_gossip
from ponyswarm.errors import LocalError
from ponyswarm.matrix import matches, service_matches
from ponyswarm.messages import (
    Announce,
    Blob,
    Cell,
    Claim,
    Commit,
    Entry,
    Ephemeral,
    Interpreter,
    Later,
    Offer,
    Payload,
    Result,
    Withdraw,
)
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
from ponyswarm.p2p.jobs import Job, Jobs
from ponyswarm.p2p.scheduling import (
    AGAIN_MS,
    FIRM_MS,
    LEASE_MS,
    OFFER_EVERY_MS,
    OFFER_MS,
    OLDEST_MS,
    RENEW_MS,
    SETTLE_MS,
    CellState,
    Fits,
    choose,
    commits_seen,
    live_leases,
    may_join,
    next_end,
    renewals,
    share,
    should_yield,
    still_wanted,
    unexpired,
)
from ponyswarm.policy import ProjectState, run_refusal

if TYPE_CHECKING:
    import random

DIRECTORY = "/ponyswarm/1/directory"
_PROJECT_TOPIC = "/ponyswarm/1/p/"

PULL_EVERY_MS = 60_000
# A peer is asked again about a project at the earliest after this.
PULL_PAUSE_MS = 1_000
# A peer that has just followed a project asks others first: it is asked again after this.
CATCH_UP_MS = 3_000
DIRECTORY_EVERY_MS = 600_000
# A change of our offer is told at once, but not more often than this.
OFFER_PAUSE_MS = 500
# How long gossipsub takes to graft a new peer into its meshes: a heartbeat and a half.
MESH_MS = 1_500
# No offer of a peer is believed for longer, whatever it says.
LONGEST_OFFER_MS = 600_000
MAX_OFFERS = 2_000
# After this node could not even start a cell (no source, disk full), it lets others try.
GIVE_UP_MS = 60_000
# Who committed to an outcome tells it after so long if nobody else is there to run the cell,
# and tries again after so long if telling it failed.
ALONE_MS = 15_000
TELL_AGAIN_MS = 30_000
# What a project used counts half after so long, when projects share the slots.
FORGET_MS = 3_600_000


def project_topic(project: bytes) -> str:
    return _PROJECT_TOPIC + project.hex()


@lru_cache(maxsize=1024)
def topic_project(topic: str) -> bytes | None:
    """The project of a project topic; None for the directory and foreign topics."""
    if not topic.startswith(_PROJECT_TOPIC):
        return None
    try:
        project = bytes.fromhex(topic[len(_PROJECT_TOPIC) :])
    except ValueError:
        return None
    return project if len(project) == 32 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What this machine can run: its offer without the moment."""

    interpreters: tuple[Interpreter, ...]
    services: tuple[str, ...]
    system: str
    machine: str
    slots: int


@dataclass(slots=True)
class _Project:
    trusted: bool
    genesis: Entry | None = None
    offers: dict[bytes, Offer] = field(default_factory=dict)
    offer_due: bool = True
    knows_ended: bool = False


@dataclass(frozen=True, slots=True)
class Mine:
    """A cell this node is at: claimed and settling, or running.

    ``told`` is how often its claim was said again so far; ``yields`` when it is to be stopped
    because others were before us.
    """

    job: bytes
    project: bytes
    until: int
    since: int
    runs: bool = False
    told: int = 0
    yields: bool = False


@dataclass(slots=True)
class _Secret:
    """An outcome this node has committed to and not told; ``asked`` when it last should."""

    job: bytes
    commit: bytes
    since: int
    asked: int | None = None


def fits(cell: CellState, offer: Offer) -> bool:
    """Whether an offer can run a cell."""
    for service in cell.services:
        if not any(service_matches(service, offered) for offered in offer.services):
            return False
    try:
        return any(
            matches(cell.python, i.implementation, i.version, i.free_threaded)
            for i in offer.interpreters
        )
    except LocalError:
        # A maintainer may ask for a Python that only a later version of us can name.
        return False


def _remembering_fits() -> Fits:
    """`fits` for one choice, which asks for the same few kinds of cells again and again."""
    known: dict[tuple[str, tuple[str, ...], int], bool] = {}

    def remembered(cell: CellState, offer: Offer) -> bool:
        kind = (cell.python, cell.services, id(offer))
        found = known.get(kind)
        if found is None:
            found = known[kind] = fits(cell, offer)
        return found

    return remembered


class Protocol:
    """One node's decisions. ``capacity`` is None for a node that only reads and serves."""

    def __init__(self, me: bytes, capacity: Capacity | None, chance: random.Random) -> None:
        self.me = me
        self._capacity = capacity
        self._chance = chance
        self._peers: dict[bytes, int] = {}
        self._projects: dict[bytes, _Project] = {}
        self._jobs = Jobs()
        self._pull_later: dict[tuple[bytes, bytes], int] = {}
        self._mine: dict[bytes, Mine] = {}
        self._secrets: dict[bytes, _Secret] = {}
        self._blocked: dict[bytes, int] = {}
        self._pulled: dict[tuple[bytes, bytes], int] = {}
        # (peer, project) of pulls that gave no answer, and of who said to follow a project.
        self._unanswered: set[tuple[bytes, bytes]] = set()
        self._followers: set[tuple[bytes, bytes]] = set()
        self._directory_at = 0
        self._offer_at = 0
        self._retell_at: int | None = None
        self._choose_at: int | None = None
        self._free_since = 0
        # By project, when its last run here ended, and what it had used by then.
        self._used: dict[bytes, tuple[int, float]] = {}
        # When `tick` has something to do whatever is heard until then.
        self._due = 0
        self._rest = ""

    # --- what the node asks about -----------------------------------------------------

    @property
    def mine(self) -> Mapping[bytes, Mine]:
        """Cells this node has claimed or runs, by cell id."""
        return self._mine

    @property
    def sealed(self) -> frozenset[bytes]:
        """Cells whose outcome this node has committed to and not told yet."""
        return frozenset(self._secrets)

    @property
    def followed(self) -> frozenset[bytes]:
        return frozenset(self._projects)

    def is_trusted(self, project: bytes) -> bool:
        return project in self._projects and self._projects[project].trusted

    def offers(self, project: bytes, now: int) -> dict[bytes, Offer]:
        """The live offers of a project's volunteers."""
        found = self._projects.get(project)
        return {} if found is None else unexpired(found.offers, now)

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

    def waiting(self, now: int) -> int:
        """How many cells this node could run next: open, allowed here, and nobody's yet."""
        offer = self._offer(now)
        if offer is None:
            return 0
        return sum(
            fits(cell, offer)
            for project, known in self._projects.items()
            if known.trusted
            for cell in self._open_cells(project, now)
        )

    def why_idle(self, now: int) -> dict[bytes, str]:
        """For each open job that this node does not serve: why, in words for its owner."""
        reasons: dict[bytes, str] = {}
        for job in self._jobs:
            if any(still_wanted(cell) for cell in job.cells.values()):
                reason = self._why_not(job, now)
                if reason is not None:
                    reasons[job.id] = reason
        return reasons

    def _why_not(self, job: Job, now: int) -> str | None:
        refused = self._refusal(job, now)
        if refused is not None:
            return refused
        offer = self._offer(now)
        if offer is None:
            return "this node runs no jobs"
        if self._rest:
            return self._rest
        missing = [cell for cell in job.cells.values() if not fits(cell, offer)]
        if len(missing) == len(job.cells):
            wants = ", ".join(sorted({" + ".join([c.python, *c.services]) for c in missing}))
            return f"no interpreter or service here fits its cells ({wants})"
        return None

    def _refusal(self, job: Job, now: int) -> str | None:
        """The one question before a job of a stranger is served: may it run here?"""
        return run_refusal(
            job.project,
            trusted={id_ for id_, known in self._projects.items() if known.trusted},
            expires=job.announce.expires,
            now=now,
            withdrawn=job.withdrawn,
        )

    # --- projects ------------------------------------------------------------------------

    def follow(
        self, project: bytes, *, trusted: bool, genesis: Entry | None, now: int
    ) -> list[Effect]:
        """Replicate a project from now on; with ``trusted``, also run its jobs."""
        known = self._projects.get(project)
        self._due = 0
        if known is not None:
            known.trusted, known.offer_due = trusted, True
            self._choose_at = now
            effects: list[Effect] = []
            if not trusted:
                effects += self._drop_runs(project, "its project is trusted no more")
            else:
                effects += self._fetch_sources(project)
            return effects
        self._projects[project] = _Project(trusted, genesis=genesis)
        self._choose_at = now
        return [
            Subscribe(project_topic(project)),
            *(effect for peer in self._peers for effect in self._pull(peer, project, now)),
        ]

    def unfollow(self, project: bytes) -> list[Effect]:
        """Replicate a project no more, and stop what runs of it."""
        if self._projects.pop(project, None) is None:
            return []
        effects = self._drop_runs(project, "its project is followed no more")
        self._jobs.forget(project)
        return [*effects, Unsubscribe(project_topic(project))]

    def _drop_runs(self, project: bytes, why: str) -> list[Effect]:
        return [Stop(cell, why) for cell, mine in self._mine.items() if mine.project == project]

    def _fetch_sources(self, project: bytes) -> list[Effect]:
        effects: list[Effect] = []
        for job in self._jobs.of(project):
            if not job.withdrawn:
                effects += _source_blobs(job.announce, ())
        return effects

    # --- peers ---------------------------------------------------------------------------

    def connected(self, peer: bytes, now: int) -> list[Effect]:
        self._peers[peer] = now + self._jittered(PULL_EVERY_MS)
        # The newcomer hears gossip only when it is in the mesh: tell it then what stands.
        self._retell_at = now + MESH_MS
        self._due = 0
        self._directory_at = min(self._directory_at, now + self._jittered(3_000))
        return [effect for project in self._projects for effect in self._pull(peer, project, now)]

    def disconnected(self, peer: bytes, now: int) -> list[Effect]:
        self._peers.pop(peer, None)
        for key in [key for key in self._pulled if key[0] == peer]:
            del self._pulled[key]
        self._unanswered = {key for key in self._unanswered if key[0] != peer}
        self._followers = {key for key in self._followers if key[0] != peer}
        if self._jobs.doubt(peer, now):
            self._choose_at = now
        return []

    def peer_follows(self, peer: bytes, project: bytes, now: int) -> list[Effect]:
        """A connected peer says that it follows a project of ours, as it may have just begun to.

        Once a connection, it is told what stands, and asked if it had no answer before: now,
        and when it has had time to ask its own peers.
        """
        key = (peer, project)
        if peer not in self._peers or project not in self._projects or key in self._followers:
            return []
        self._followers.add(key)
        if self._retell_at is None:
            self._retell_at = now + MESH_MS
            self._due = min(self._due, self._retell_at)
        if key not in self._unanswered:
            return []
        effects = self._pull(peer, project, now)
        self._pull_later[key] = now + CATCH_UP_MS
        self._due = min(self._due, now + CATCH_UP_MS)
        return effects

    def pulled(self, peer: bytes, project: bytes, *, knows: bool) -> None:
        """A pull ended; the peer followed the project, or had no answer."""
        if not knows and peer in self._peers:
            self._unanswered.add((peer, project))
        else:
            self._unanswered.discard((peer, project))

    def _pull(self, peer: bytes, project: bytes, now: int) -> list[Effect]:
        # A peer that makes us see gaps on purpose must not keep us pulling without pause.
        last = self._pulled.get((peer, project))
        if last is not None and now - last < PULL_PAUSE_MS:
            self._pull_later[peer, project] = last + PULL_PAUSE_MS
            self._due = min(self._due, last + PULL_PAUSE_MS)
            return []
        self._pull_later.pop((peer, project), None)
        self._pulled[peer, project] = now
        return [Pull(peer, project)]

    def _jittered(self, period: int) -> int:
        return int(period * self._chance.uniform(0.75, 1.25))

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
        known = self._projects.get(project)
        if known is None:
            return []
        match message:
            case Entry():
                if message.namespace != project:
                    return [Penalise(forwarder, "wrong-topic")]
                return [Admit(message, forwarder)]
            case Offer():
                if origin not in known.offers and len(known.offers) >= MAX_OFFERS:
                    known.offers = unexpired(known.offers, now)
                    if len(known.offers) >= MAX_OFFERS:
                        return []
                before = known.offers.get(origin)
                latest = now + LONGEST_OFFER_MS
                is_long = message.until > latest
                known.offers[origin] = replace(message, until=latest) if is_long else message
                if before is not None and _frees_others(before, message):
                    self._choose_at = now
                return []
            case Claim():
                self._take_claim(project, origin, message, now)
                return []
            case Later():
                return []

    def _take_claim(self, project: bytes, origin: bytes, claim: Claim, now: int) -> None:
        self._choose_by(self._jobs.claimed(project, origin, claim, now))
        if claim.cell in self._mine and origin != self.me and claim.until:
            self._contested(claim, origin, now)

    def _contested(self, claim: Claim, origin: bytes, now: int) -> None:
        """Another is at a cell of ours. It may have been before us, or lost what we said."""
        self._due = 0
        mine, job = self._mine[claim.cell], self._jobs.get(claim.job)
        if job is None or not mine.runs or mine.told < len(AGAIN_MS):
            return
        cell = job.cells[claim.cell]
        if should_yield(cell, origin, now) and now - mine.until > SETTLE_MS - LEASE_MS:
            # Said at once, so that it can stop while its run is young.
            self._mine[claim.cell] = replace(mine, until=now + LEASE_MS - RENEW_MS)

    def _choose_by(self, at: int | None) -> None:
        if at is not None and (self._choose_at is None or at < self._choose_at):
            self._choose_at = at

    # --- the ledger ----------------------------------------------------------------------

    def gap(self, entry: Entry, peer: bytes, now: int) -> list[Effect]:
        """An entry came whose predecessors are missing: its giver should have them."""
        if peer not in self._peers:
            return []
        return self._pull(peer, entry.namespace, now)

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
            self._due = 0
        if own:
            effects.append(Publish(project_topic(project), encode_gossip(entry)))
        givers = () if peer is None else (peer,)
        match payload:
            case Announce():
                effects += self._announced(entry, payload, givers, known.trusted, now)
            # Where the ledger tells what ended, it has judged whether this has force.
            case Withdraw() if not known.knows_ended:
                if self._jobs.withdraw(project, payload.job):
                    effects += self._stop_job(payload.job)
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
            self._choose_at = now
        return [effect for job in over for effect in self._stop_job(job)]

    def rights(
        self, project: bytes, state: ProjectState, forked: frozenset[bytes], now: int
    ) -> None:
        """The ledger says whose word counts in a project. To be told before `ended`."""
        if project in self._projects and self._jobs.rights(project, state, forked):
            self._choose_at, self._due = now, 0

    def records(self, project: bytes, chances: Mapping[Voice, float], now: int) -> None:
        """The ledger says which operators of a project are not always checked."""
        if project in self._projects and self._jobs.records(project, chances):
            self._choose_at, self._due = now, 0

    def to_name(self, job: bytes) -> tuple[bytes, ...]:
        """The commits that this node's next commit to a cell of a job should name."""
        found = self._jobs.get(job)
        return () if found is None else found.unnamed(self.me)

    def _stop_job(self, job: bytes) -> list[Effect]:
        return [
            Stop(cell, "its maintainer withdrew the job")
            for cell, mine in self._mine.items()
            if mine.job == job
        ]

    def _announced(
        self,
        entry: Entry,
        announce: Announce,
        givers: tuple[bytes, ...],
        trusted: bool,
        now: int,
    ) -> list[Effect]:
        job = self._jobs.announced(entry, announce, now)
        if job is None:
            return []
        self._choose_at = now
        if not trusted or job.withdrawn:
            return []
        return list(_source_blobs(announce, givers))

    def _resulted(
        self, entry: Entry, result: Result, givers: tuple[bytes, ...], now: int
    ) -> list[Effect]:
        if self._jobs.resulted(entry, result, now):
            self._choose_at = now
        if entry.header.author == self.me:
            self._secrets.pop(result.cell, None)
        effects: list[Effect] = []
        if entry.header.author != self.me:
            if result.tests is not None:
                effects.append(Fetch(result.tests, (entry.header.author, *givers)))
            if result.log is not None and (result.state == "broken" or result.bad):
                effects.append(Fetch(result.log, (entry.header.author, *givers)))
        return effects

    # --- what this node committed to -------------------------------------------------------

    def _committed(self, entry: Entry, commit: Commit, now: int) -> None:
        if self._jobs.committed(entry, commit, now):
            self._choose_at = now
        if entry.header.author == self.me:
            self._secrets[commit.cell] = _Secret(commit.job, entry.id, now)

    def _tell_secrets(self, now: int) -> list[Effect]:
        effects: list[Effect] = []
        for cell_id, secret in self._secrets.items():
            if secret.asked is not None and now - secret.asked < TELL_AGAIN_MS:
                continue
            if self._may_tell(cell_id, secret, now):
                secret.asked = now
                job = self._jobs.get(secret.job)
                cell = None if job is None else job.cells.get(cell_id)
                seen = () if cell is None else commits_seen(cell, self.me)
                effects.append(Reveal(secret.job, cell_id, seen))
        return effects

    def lost(self, cell: bytes) -> None:
        """This node cannot tell what it committed to: its nonce is not here."""
        self._secrets.pop(cell, None)

    def _may_tell(self, cell_id: bytes, secret: _Secret, now: int) -> bool:
        """Whether nobody is waited for: enough committed, the window ended, or none is there."""
        job = self._jobs.get(secret.job)
        cell = None if job is None else job.cells.get(cell_id)
        if job is None or cell is None or secret.commit in cell.lapsed:
            return True
        if self._refusal(job, now) is not None or not still_wanted(cell):
            return True
        if now - secret.since < ALONE_MS or live_leases(cell, now):
            return False
        offers = self.offers(job.project, now)
        others = {key: offer for key, offer in offers.items() if key != self.me}
        return not any(may_join(cell, key, offer, fits) for key, offer in others.items())

    # --- runs of this node -----------------------------------------------------------------

    def finished(self, cell: bytes, now: int, *, published: bool) -> list[Effect]:
        """A run of ours ended. Without a published result, the claim is given back."""
        mine = self._mine.pop(cell, None)
        if mine is None:
            return []
        self._used[mine.project] = (
            now,
            self._usage(now).get(mine.project, 0.0) + max(0, now - mine.since),
        )
        self._touch_offers()
        self._choose_at = self._free_since = now
        if published:
            return []
        self._blocked[cell] = now + GIVE_UP_MS
        return self._give_back(cell, mine, now)

    def rest(self, why: str, now: int) -> None:
        """Claim nothing from now on and offer no slot, for this reason; "" ends it."""
        if bool(why) != bool(self._rest):
            self._touch_offers()
            self._choose_at = now
        self._rest = why

    def _say_claim(self, cell: bytes, mine: Mine, now: int) -> list[Effect]:
        """Tell a claim of ours, the first time or again; it says when it was first made."""
        until = max(mine.since + LEASE_MS, now - OLDEST_MS)
        return self._tell(Claim(job=mine.job, cell=cell, until=until), mine.project, now)

    def _give_back(self, cell: bytes, mine: Mine, now: int) -> list[Effect]:
        return self._tell(Claim(job=mine.job, cell=cell, until=0), mine.project, now)

    def _tell(self, claim: Claim, project: bytes, now: int) -> list[Effect]:
        if claim.job not in self._jobs:
            return []
        self._take_claim(project, self.me, claim, now)
        return [Publish(project_topic(project), encode_gossip(claim))]

    def _touch_offers(self) -> None:
        self._due = 0
        for project in self._projects.values():
            project.offer_due = True

    def _offer(self, now: int) -> Offer | None:
        capacity = self._capacity
        if capacity is None:
            return None
        return Offer(
            interpreters=capacity.interpreters,
            services=capacity.services,
            system=capacity.system,
            machine=capacity.machine,
            slots=0 if self._rest else max(0, capacity.slots - len(self._mine)),
            until=now + OFFER_MS,
        )

    # --- time ---------------------------------------------------------------------------------

    def tick(self, now: int) -> list[Effect]:
        """Everything that is due. Call it after events and at least once a second."""
        if now < self.due:
            return []
        if self._retell_at is not None and self._retell_at <= now:
            self._retell_at = None
            self._touch_offers()
            soon = now + LEASE_MS - RENEW_MS
            self._mine = {c: replace(m, until=min(m.until, soon)) for c, m in self._mine.items()}
        effects = self._settle(now)
        if self._choose_at is not None and self._choose_at <= now:
            effects += self._choose(now)
        if self._jobs.lapse(now):
            self._choose_at = now
        effects += self._tell_secrets(now)
        effects += self._renew(now)
        effects += self._tell_offers(now)
        effects += self._tell_directory(now)
        effects += self._pull_due(now)
        self._due = self._next_due(now)
        return effects

    @property
    def due(self) -> int:
        """From when on `tick` has something to do, as far as is known; an event may change it."""
        return self._due if self._choose_at is None else min(self._due, self._choose_at)

    def _next_due(self, now: int) -> int:
        times = [self._peers[peer] for peer in self._peers] if self._projects else []
        times += self._pull_later.values()
        times += [now + OFFER_EVERY_MS, self._retell_at or now + OFFER_EVERY_MS]
        if self._peers:
            times.append(self._directory_at)
        for secret in self._secrets.values():
            alone = secret.since + ALONE_MS
            times.append(alone if alone > now else now + ALONE_MS)
        lapse = self._jobs.next_lapse()
        if lapse is not None:
            times.append(lapse)
        for mine in self._mine.values():
            times.append(mine.until - LEASE_MS + RENEW_MS)
            # As `_settle` has it: who yields, or is past yielding, says nothing again.
            if mine.told < len(AGAIN_MS) and not mine.yields and now - mine.since <= FIRM_MS:
                times.append(mine.since + AGAIN_MS[mine.told])
        if self._capacity is not None:
            for project in self._projects.values():
                told = project.offers.get(self.me)
                if project.trusted:
                    stale = 0 if told is None else told.until - OFFER_MS + OFFER_EVERY_MS
                    at = 0 if project.offer_due else stale
                    times.append(max(at, self._offer_at))
        return min(times)

    def _choose(self, now: int) -> list[Effect]:
        self._choose_at = None
        if self._capacity is None or self._rest:
            return []
        own = self._offer(now)
        # Without a free slot there is nothing to choose; `finished` asks again.
        if own is None or own.slots <= 0:
            return []
        due: dict[bytes, list[CellState]] = {}
        remembered = _remembering_fits()
        waits = [at for at in self._blocked.values() if at > now]
        for project_id, project in self._projects.items():
            open_cells = self._open_cells(project_id, now) if project.trusted else []
            if not open_cells:
                continue
            due[project_id], later = choose(
                open_cells,
                self.me,
                {**unexpired(project.offers, now), self.me: own},
                remembered,
                now=now,
                free_since=self._free_since,
            )
            ends = [next_end(cell, now) for cell in open_cells]
            waits += [at for at in (later, *ends) if at is not None]
        effects: list[Effect] = []
        held = Counter(mine.project for mine in self._mine.values())
        for project_id, cell in share(due, held, self._usage(now), own.slots):
            mine = self._mine[cell.id] = Mine(cell.job, project_id, now + LEASE_MS, since=now)
            effects += self._say_claim(cell.id, mine, now)
            self._touch_offers()
        if waits:
            self._choose_by(max(now, min(waits)) + 1)
        self._blocked = {cell: at for cell, at in self._blocked.items() if at > now}
        return effects

    def _open_cells(self, project: bytes, now: int) -> list[CellState]:
        return [
            cell
            for job in self._jobs.of(project)
            if (job.lacking or job.again) and self._refusal(job, now) is None
            for cell in job.open_to(self.me)
            if cell.id not in self._mine and self._blocked.get(cell.id, 0) <= now
        ]

    def _usage(self, now: int) -> dict[bytes, float]:
        """What each project had of this node's slots of late, in milliseconds."""
        return {
            project: used * 0.5 ** ((now - at) / FORGET_MS)
            for project, (at, used) in self._used.items()
        }

    def _settle(self, now: int) -> list[Effect]:
        """Start what has settled, and stop what others turn out to have claimed before."""
        effects: list[Effect] = []
        for cell_key, mine in list(self._mine.items()):
            age = now - mine.since
            if age < SETTLE_MS or age > FIRM_MS or mine.yields:
                continue
            job = self._jobs.get(mine.job)
            cell = None if job is None else job.cells.get(cell_key)
            gone = job is None or self._refusal(job, now) is not None
            comes_late = cell is not None and should_yield(cell, self.me, now)
            if not mine.runs:
                if gone or cell is None or comes_late:
                    effects += self._release(cell_key, mine, now)
                    continue
                mine = replace(mine, runs=True)
                effects.append(Run(mine.job, cell_key))
            elif comes_late:
                mine = replace(mine, yields=True)
                effects.append(Stop(cell_key, "others had claimed it before"))
            if mine.told < len(AGAIN_MS) and age >= AGAIN_MS[mine.told] and not mine.yields:
                # Said again as it was: who missed it the first time does not claim as well.
                mine = replace(mine, told=mine.told + 1)
                effects += self._say_claim(cell_key, mine, now)
            self._mine[cell_key] = mine
        return effects

    def _release(self, cell_key: bytes, mine: Mine, now: int) -> list[Effect]:
        del self._mine[cell_key]
        self._touch_offers()
        return self._give_back(cell_key, mine, now)

    def _renew(self, now: int) -> list[Effect]:
        effects: list[Effect] = []
        for cell in renewals([(cell, mine.until) for cell, mine in self._mine.items()], now):
            mine = self._mine[cell] = replace(self._mine[cell], until=now + LEASE_MS)
            effects += self._say_claim(cell, mine, now)
        return effects

    def _tell_offers(self, now: int) -> list[Effect]:
        if now < self._offer_at or self._capacity is None:
            return []
        effects: list[Effect] = []
        for project_id, project in self._projects.items():
            mine = project.offers.get(self.me)
            stale = mine is None or mine.until - now <= OFFER_MS - OFFER_EVERY_MS
            offer = self._offer(now)
            if project.trusted and offer is not None and (project.offer_due or stale):
                project.offer_due = False
                project.offers[self.me] = offer
                effects.append(Publish(project_topic(project_id), encode_gossip(offer)))
        if effects:
            self._offer_at = now + OFFER_PAUSE_MS
        return effects

    def _tell_directory(self, now: int) -> list[Effect]:
        if now < self._directory_at or not self._peers:
            return []
        self._directory_at = now + self._jittered(DIRECTORY_EVERY_MS)
        return [
            Publish(DIRECTORY, encode_gossip(project.genesis))
            for project in self._projects.values()
            if project.genesis is not None
        ]

    def _pull_due(self, now: int) -> list[Effect]:
        effects: list[Effect] = []
        for (peer, project), due in list(self._pull_later.items()):
            if due <= now:
                del self._pull_later[peer, project]
                if peer in self._peers and project in self._projects:
                    effects += self._pull(peer, project, now)
        for peer, due in self._peers.items():
            if due <= now:
                self._peers[peer] = now + self._jittered(PULL_EVERY_MS)
                for project in self._projects:
                    effects += self._pull(peer, project, now)
        return effects

    def pull_all(self, now: int) -> list[Effect]:
        """Ask every peer about every project now."""
        for peer in self._peers:
            self._peers[peer] = now
        return self._pull_due(now)

    def prune(self, now: int) -> None:
        """Forget jobs that ended long ago; the ledger keeps them."""
        self._jobs.prune(now, busy={mine.job for mine in self._mine.values()})


def _frees_others(before: Offer, after: Offer) -> bool:
    """Whether a changed offer may bring others forward: it takes on less than before."""
    less = after.slots <= 0 < before.slots
    same = after.interpreters == before.interpreters and after.services == before.services
    return less or not same


def _source_blobs(announce: Announce, givers: tuple[bytes, ...]) -> list[Fetch]:
    wanted = [Fetch(Blob(hash=announce.source, size=announce.source_size), givers)]
    if announce.locks is not None:
        wanted.append(Fetch(Blob(hash=announce.locks, size=announce.locks_size), givers))
    return wanted
