"""What this node takes on: its offers, its claims and runs, and what it committed to.

Sans-IO, and a part of `protocol`, which tells it what is heard and hands out what it wants
done. It keeps the state that `scheduling` decides over, and asks one question of its own
before anything of a job runs: may it run here (`policy.run_refusal`). Times are
milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ponyswarm.codec import encode_gossip
from ponyswarm.messages import Claim, Commit, Entry, Offer
from ponyswarm.p2p.effects import Effect, Publish, Reveal, Run, Stop
from ponyswarm.p2p.jobs import Job, Jobs
from ponyswarm.p2p.offers import Capacity, fits, frees_others, remembering_fits
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
from ponyswarm.p2p.topics import project_topic
from ponyswarm.policy import run_refusal

# A change of our offer is told at once, but not more often than this.
OFFER_PAUSE_MS = 500
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


@dataclass(slots=True)
class _Project:
    trusted: bool
    offers: dict[bytes, Offer] = field(default_factory=dict)
    offer_due: bool = True


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


class Claims:
    """``capacity`` is None for a node that only reads and serves."""

    def __init__(self, me: bytes, capacity: Capacity | None, jobs: Jobs) -> None:
        self._me = me
        self._capacity = capacity
        self._jobs = jobs
        self._projects: dict[bytes, _Project] = {}
        self._mine: dict[bytes, Mine] = {}
        self._secrets: dict[bytes, _Secret] = {}
        self._blocked: dict[bytes, int] = {}
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

    def is_trusted(self, project: bytes) -> bool:
        return project in self._projects and self._projects[project].trusted

    def offers(self, project: bytes, now: int) -> dict[bytes, Offer]:
        """The live offers of a project's volunteers."""
        found = self._projects.get(project)
        return {} if found is None else unexpired(found.offers, now)

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

    # --- what changes -----------------------------------------------------------------

    def follow(self, project: bytes, *, trusted: bool, now: int) -> list[Effect]:
        """Run a project's jobs from now on, or no longer."""
        self._due = 0
        self._choose_at = now
        known = self._projects.get(project)
        if known is None:
            self._projects[project] = _Project(trusted)
            return []
        known.trusted, known.offer_due = trusted, True
        return [] if trusted else self._drop_runs(project, "its project is trusted no more")

    def unfollow(self, project: bytes) -> list[Effect]:
        """Know a project no more, and stop what runs of it."""
        del self._projects[project]
        return self._drop_runs(project, "its project is followed no more")

    def _drop_runs(self, project: bytes, why: str) -> list[Effect]:
        return [Stop(cell, why) for cell, mine in self._mine.items() if mine.project == project]

    def stop(self, job: bytes) -> list[Effect]:
        """A job is over: stop what runs of it."""
        why = "its maintainer withdrew the job"
        return [Stop(cell, why) for cell, mine in self._mine.items() if mine.job == job]

    def choose_by(self, at: int | None) -> None:
        """Look at this time at the latest whether to claim something."""
        if at is not None and (self._choose_at is None or at < self._choose_at):
            self._choose_at = at

    def wake(self, now: int) -> None:
        """What is known of jobs changed: all that may be due is looked at again."""
        self._choose_at, self._due = now, 0

    def retell(self, at: int, *, later: bool = True) -> None:
        """Say then what stands, for one who hears us from then on."""
        if later or self._retell_at is None:
            self._retell_at = at
            self._due = min(self._due, at)

    def offered(self, project: bytes, origin: bytes, offer: Offer, now: int) -> None:
        """Somebody offers to run cells of a project."""
        known = self._projects[project]
        if origin not in known.offers and len(known.offers) >= MAX_OFFERS:
            known.offers = unexpired(known.offers, now)
            if len(known.offers) >= MAX_OFFERS:
                return
        before = known.offers.get(origin)
        latest = now + LONGEST_OFFER_MS
        known.offers[origin] = replace(offer, until=latest) if offer.until > latest else offer
        if before is not None and frees_others(before, offer):
            self._choose_at = now

    def claimed(self, project: bytes, origin: bytes, claim: Claim, now: int) -> None:
        """Somebody, this node too, claims a cell or gives it back."""
        self.choose_by(self._jobs.claimed(project, origin, claim, now))
        if claim.cell in self._mine and origin != self._me and claim.until:
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

    # --- what this node committed to -------------------------------------------------------

    def committed(self, entry: Entry, commit: Commit, now: int) -> None:
        """This node's own commit is in the ledger."""
        self._secrets[commit.cell] = _Secret(commit.job, entry.id, now)

    def told(self, cell: bytes) -> None:
        """This node's own result is in the ledger, or what it committed to is lost."""
        self._secrets.pop(cell, None)

    def _tell_secrets(self, now: int) -> list[Effect]:
        effects: list[Effect] = []
        for cell_id, secret in self._secrets.items():
            if secret.asked is not None and now - secret.asked < TELL_AGAIN_MS:
                continue
            if self._may_tell(cell_id, secret, now):
                secret.asked = now
                job = self._jobs.get(secret.job)
                cell = None if job is None else job.cells.get(cell_id)
                seen = () if cell is None else commits_seen(cell, self._me)
                effects.append(Reveal(secret.job, cell_id, seen))
        return effects

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
        others = {key: offer for key, offer in offers.items() if key != self._me}
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
        self.claimed(project, self._me, claim, now)
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

    @property
    def due(self) -> int:
        """From when on `tick` has something to do, as far as is known; an event may change it."""
        return self._due if self._choose_at is None else min(self._due, self._choose_at)

    def tick(self, now: int) -> list[Effect]:
        """Everything that is due."""
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
        self._due = self._next_due(now)
        return effects

    def _next_due(self, now: int) -> int:
        times = [now + OFFER_EVERY_MS, self._retell_at or now + OFFER_EVERY_MS]
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
                told = project.offers.get(self._me)
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
        remembered = remembering_fits()
        waits = [at for at in self._blocked.values() if at > now]
        for project_id, project in self._projects.items():
            open_cells = self._open_cells(project_id, now) if project.trusted else []
            if not open_cells:
                continue
            due[project_id], later = choose(
                open_cells,
                self._me,
                {**unexpired(project.offers, now), self._me: own},
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
            self.choose_by(max(now, min(waits)) + 1)
        self._blocked = {cell: at for cell, at in self._blocked.items() if at > now}
        return effects

    def _open_cells(self, project: bytes, now: int) -> list[CellState]:
        return [
            cell
            for job in self._jobs.of(project)
            if (job.lacking or job.again) and self._refusal(job, now) is None
            for cell in job.open_to(self._me)
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
            comes_late = cell is not None and should_yield(cell, self._me, now)
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
            mine = project.offers.get(self._me)
            stale = mine is None or mine.until - now <= OFFER_MS - OFFER_EVERY_MS
            offer = self._offer(now)
            if project.trusted and offer is not None and (project.offer_due or stale):
                project.offer_due = False
                project.offers[self._me] = offer
                effects.append(Publish(project_topic(project_id), encode_gossip(offer)))
        if effects:
            self._offer_at = now + OFFER_PAUSE_MS
        return effects
