"""The open jobs and their cells: what the ledger and everybody's claims say of them.

State without decisions, and all of it can be lost: jobs and results are fed from the
ledger, at the start and as entries are admitted; leases come by gossip and expire.
`protocol` keeps one of these and decides by it what this node claims.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from msgspec import UNSET

from ponyswarm.agreement import Sealed, Voice
from ponyswarm.codec import cell_id, commitment, comparable
from ponyswarm.matrix import cells
from ponyswarm.messages import BAD_STATUSES, MAX_NAMED, Announce, Cell, Claim, Commit, Entry, Result
from ponyswarm.p2p.scheduling import (
    EVERYONE,
    FIRM_MS,
    LEASE_MS,
    OLDEST_MS,
    RENEW_MS,
    CellState,
    Done,
    look_again,
    next_end,
    patience,
    still_wanted,
)
from ponyswarm.policy import ProjectState, Standing, cross_check, window_ms

# Clocks of honest nodes may be so far apart. So a claim counts from when it is heard, and
# its own time only says which was first, and tells one that is fresh from one that somebody
# kept and sends again.
CLOCK_MS = 120_000
STALE_MS = OLDEST_MS + CLOCK_MS + 60_000
# Claims that came before their job, and for how long they are kept.
MAX_EARLY = 2_000
EARLY_MS = 120_000
MAX_LEASES_PER_CELL = 64
MAX_ORPHANS = 2_000
# So many commits that name one are kept.
MAX_NAMING = 64
# Who gives a cell back sooner than this after its claim made way for others, as it should.
GIVE_WAY_MS = FIRM_MS + 5_000
# Once another has told and named a commit, or enough have committed, it is waited for so long.
TELL_MS = 180_000
# How much later than due a renewal of a peer that we lost may come by way of others.
DOUBT_MS = 5_000


@dataclass(slots=True)
class Job:
    """An announcement that has not expired; ``points`` are the cells as it names them."""

    id: bytes
    project: bytes
    announce: Announce
    time: int
    cells: dict[bytes, CellState]
    points: dict[bytes, Cell]
    withdrawn: bool = False
    first_claim: int | None = None
    # The cells that lack runs: what is done costs nothing when a choice is made.
    lacking: set[bytes] = field(default_factory=set)
    # Who should run which cell once more, since others differ.
    again: dict[bytes, frozenset[bytes]] = field(default_factory=dict)
    seconds: dict[bytes, float] = field(default_factory=dict)
    # Which cell each commit is to, and the commits that name it, with their authors.
    places: dict[bytes, bytes] = field(default_factory=dict)
    named: dict[bytes, tuple[tuple[bytes, bytes], ...]] = field(default_factory=dict)
    # Until when each (cell, commit) is waited for.
    lapses: dict[tuple[bytes, bytes], int] = field(default_factory=dict)

    @property
    def open_cells(self) -> list[CellState]:
        """The cells that lack runs, whoever is at them."""
        return [self.cells[id_] for id_ in self.lacking]

    def put(self, cell: CellState) -> None:
        """Replace what is known of a cell."""
        self.cells[cell.id] = cell
        if still_wanted(cell):
            self.lacking.add(cell.id)
        else:
            self.lacking.discard(cell.id)
        doubted = look_again(cell)
        if doubted:
            self.again[cell.id] = doubted
        else:
            self.again.pop(cell.id, None)

    def open_to(self, me: bytes) -> list[CellState]:
        """The cells that lack runs, and those that a key should run once more."""
        again = (id_ for id_, keys in self.again.items() if me in keys and id_ not in self.lacking)
        return [*self.open_cells, *(self.cells[id_] for id_ in again)]

    def count(self, cell: CellState, done: Done, now: int) -> None:
        """A run of a cell ended, and so did its lease."""
        leases = {key: until for key, until in cell.leases.items() if key != done.author}
        self.put(replace(cell, done=(*cell.done, done), leases=leases, vacant_since=now))
        for id_ in done.seen:
            if (cell.id, id_) in self.lapses:
                self.lapses[cell.id, id_] = min(self.lapses[cell.id, id_], now + TELL_MS)
        self.note(done)

    def note(self, done: Done) -> None:
        """The length of a run tells what is usual."""
        if done.completed and done.author not in self.seconds:
            self.seconds[done.author] = done.seconds
            bound = patience(self.announce.spec.timeout, self.seconds)
            for other in self.open_cells:
                if other.patience != bound:
                    self.cells[other.id] = replace(other, patience=bound)

    def name(self, id_: bytes, by: bytes, author: bytes) -> None:
        """A commit to another cell names this one."""
        if len(self.named.get(id_, ())) >= MAX_NAMING:
            return
        self.named[id_] = (*self.named.get(id_, ()), (by, author))
        place = self.places.get(id_)
        if place is not None:
            cell = self.cells[place]
            seals = tuple(
                replace(seal, named=self.named[id_]) if seal.id == id_ else seal
                for seal in cell.sealed
            )
            self.put(replace(cell, sealed=seals))

    def unnamed(self, me: bytes) -> tuple[bytes, ...]:
        """Commits whose lot is not drawn yet, for this node's next commit to name."""
        found = []
        for id_, place in self.places.items():
            cell = self.cells[place]
            voice = cell.standing.voice
            found += [
                id_
                for seal in cell.sealed
                if seal.id == id_ and not seal.named and not cell.done
                if cell.is_trusted(seal.author) and voice(seal.author) != voice(me)
            ]
        return tuple(found[:MAX_NAMED])

    def seal(self, cell: CellState, sealed: Sealed, now: int) -> None:
        """A run of a cell ended, and its author committed to what it gave."""
        self.places[sealed.id] = cell.id
        sealed = replace(sealed, named=self.named.get(sealed.id, ()))
        leases = {key: until for key, until in cell.leases.items() if key != sealed.author}
        # An author's clock may be ahead: its window does not last longer for that.
        self.lapses[cell.id, sealed.id] = min(sealed.time, now) + window_ms(self.announce)
        self.put(replace(cell, sealed=(*cell.sealed, sealed), leases=leases, vacant_since=now))
        if cell.id not in self.lacking:
            # Enough have committed, so all of them tell now. Who does not keeps others waiting
            # no longer: two keys that never tell could hold every cell up for a window.
            for place, end in self.lapses.items():
                if place[0] == cell.id:
                    self.lapses[place] = min(end, now + TELL_MS)

    def lapse(self, now: int) -> bool:
        """Wait no more for commits whose window has ended; whether there were any."""
        over = [place for place, end in self.lapses.items() if end <= now]
        for place in over:
            del self.lapses[place]
            cell, id_ = self.cells[place[0]], place[1]
            self.put(replace(cell, lapsed=cell.lapsed | {id_}, vacant_since=now))
        return bool(over)


class Jobs:
    """Methods that change what a choice rests on say whether they did."""

    def __init__(self) -> None:
        self._jobs: dict[bytes, Job] = {}
        self._orphans: dict[bytes, list[tuple[bytes, bytes, Done | Sealed]]] = {}
        self._withdrawn: set[tuple[bytes, bytes]] = set()
        self._states: dict[bytes, ProjectState] = {}
        self._standings: dict[bytes, Standing] = {}
        self._early: OrderedDict[tuple[bytes, bytes], tuple[bytes, Claim, int]] = OrderedDict()
        self._chances: dict[bytes, Mapping[Voice, float]] = {}

    def __contains__(self, job: object) -> bool:
        return job in self._jobs

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def get(self, job: bytes) -> Job | None:
        return self._jobs.get(job)

    def of(self, project: bytes) -> list[Job]:
        """The open jobs of a project, in the order they came."""
        return [job for job in self._jobs.values() if job.project == project]

    # --- the ledger -----------------------------------------------------------------------

    def announced(self, entry: Entry, announce: Announce, now: int) -> Job | None:
        """Open a job; None when it is expired, or open already."""
        if announce.expires <= now or entry.id in self._jobs:
            return None
        points = {cell_id(entry.id, cell): cell for cell in cells(announce.spec)}
        project = entry.namespace
        standing = self._standings.get(project, EVERYONE)
        check = cross_check(self._states.get(project), announce, entry.header.time)
        states = {
            id_: CellState(
                id=id_,
                job=entry.id,
                python=cell.python,
                services=cell.services,
                wanted=announce.spec.redundancy,
                vacant_since=now,
                order=entry.header.time,
                patience=patience(announce.spec.timeout, {}),
                standing=standing,
                check=check,
                chances=self._chances.get(project, {}),
            )
            for id_, cell in points.items()
        }
        job = self._jobs[entry.id] = Job(
            entry.id,
            entry.namespace,
            announce,
            entry.header.time,
            states,
            points,
            withdrawn=(entry.namespace, entry.id) in self._withdrawn,
            lacking=set(states),
        )
        for cell, of, said in self._orphans.pop(entry.id, ()):
            if of == project and cell in states:
                self._take(job, cell, said, now)
        for (cell, origin), (of, claim, at) in list(self._early.items()):
            if claim.job == entry.id:
                del self._early[cell, origin]
                # Not the whole lease: who heard it then may be waiting for its end already.
                if now - at < EARLY_MS:
                    self.claimed(of, origin, claim, at)
        return job

    @staticmethod
    def _take(job: Job, cell: bytes, said: Done | Sealed, now: int) -> None:
        if isinstance(said, Sealed):
            job.seal(job.cells[cell], said, now)
        else:
            job.count(job.cells[cell], said, now)

    def rights(self, project: bytes, state: ProjectState, forked: frozenset[bytes]) -> bool:
        """Whose word counts in a project now; whether that changes what is to be run."""
        standing = state.standing(forked)
        self._states[project] = state
        if standing == self._standings.get(project):
            return False
        self._standings[project] = standing
        for job in self.of(project):
            check = cross_check(state, job.announce, job.time)
            for cell in list(job.cells.values()):
                job.put(replace(cell, standing=standing, check=check))
        return True

    def records(self, project: bytes, chances: Mapping[Voice, float]) -> bool:
        """Which operators are not always checked; whether that is news."""
        if chances == self._chances.get(project, {}):
            return False
        self._chances[project] = chances
        for job in self.of(project):
            for cell in list(job.cells.values()):
                job.put(replace(cell, chances=chances))
        return True

    def committed(self, entry: Entry, commit: Commit, now: int) -> bool:
        """Somebody committed to an outcome of a cell."""
        sealed = Sealed(
            id=entry.id,
            author=entry.header.author,
            commitment=commit.commitment,
            time=entry.header.time,
        )
        job = self._jobs.get(commit.job)
        if job is not None and job.project == entry.namespace and commit.seen is not UNSET:
            for id_ in commit.seen:
                job.name(id_, entry.id, entry.header.author)
        return self._said(entry.namespace, commit.job, commit.cell, sealed, now)

    def lapse(self, now: int) -> bool:
        """Wait no more for commits whose window has ended; whether there were any."""
        changed = [job.lapse(now) for job in self._jobs.values() if job.lapses]
        return any(changed)

    def next_lapse(self) -> int | None:
        return min((end for job in self for end in job.lapses.values()), default=None)

    def resulted(self, entry: Entry, result: Result, now: int) -> bool:
        """Count a run of a cell."""
        done = Done(
            entry.header.author,
            result.state == "completed",
            comparable(result.environment),
            _outcome(result),
            result.seconds,
            entry.header.time,
            commitment(result.nonce, result.digest, entry.header.author) if result.nonce else None,
            frozenset() if result.seen is UNSET else frozenset(result.seen),
        )
        return self._said(entry.namespace, result.job, result.cell, done, now)

    def _said(self, project: bytes, id_: bytes, cell: bytes, said: Done | Sealed, now: int) -> bool:
        job = self._jobs.get(id_)
        if job is not None and job.project == project and cell in job.cells:
            self._take(job, cell, said, now)
            return True
        if job is None and sum(map(len, self._orphans.values())) < MAX_ORPHANS:
            # It can arrive before its job: they are of different feeds.
            self._orphans.setdefault(id_, []).append((cell, project, said))
        return False

    def withdraw(self, project: bytes, id_: bytes) -> bool:
        """A job is over, whether it is known yet or not."""
        self._withdrawn.add((project, id_))
        job = self._jobs.get(id_)
        if job is None or job.project != project:
            return False
        job.withdrawn = True
        return True

    def ended(self, project: bytes, jobs: Collection[bytes]) -> tuple[bool, list[bytes]]:
        """Those of a project that are over, no others: (whether that is news, jobs to stop)."""
        self._withdrawn = {key for key in self._withdrawn if key[0] != project}
        self._withdrawn |= {(project, job) for job in jobs}
        changed = [job for job in self.of(project) if job.withdrawn != (job.id in jobs)]
        for job in changed:
            job.withdrawn = job.id in jobs
        return bool(changed), [job.id for job in changed if job.withdrawn]

    def forget(self, project: bytes) -> None:
        for job in self.of(project):
            del self._jobs[job.id]

    def prune(self, now: int, *, busy: Collection[bytes]) -> None:
        """Forget jobs that ended long ago, but not those this node is at."""
        for job in list(self._jobs.values()):
            if job.announce.expires <= now and job.id not in busy:
                del self._jobs[job.id]
        self._orphans.clear()

    # --- claims ---------------------------------------------------------------------------

    def claimed(self, project: bytes, origin: bytes, claim: Claim, now: int) -> int | None:
        """Take up a claim, or one that is given back: when a choice should be made for it.

        None for what changes nothing. A lease keeps others away until it ends, and only then
        is there something to choose. Who holds a cell for longer than it takes to give way
        to others, and then gives it back or lets it lapse, has let it down.
        """
        job = self._jobs.get(claim.job)
        cell = None if job is None or job.project != project else job.cells.get(claim.cell)
        if job is None:
            self._keep_early(project, origin, claim, now)
        if job is None or cell is None:
            return None
        if claim.until <= now - STALE_MS and (claim.until or cell.leases.get(origin, 0) <= now):
            # Stale; and who holds nothing gives nothing back: it would only make others wait.
            return None
        # One that ended a moment ago may only have lost its renewals on the way to us.
        lapsed = {key for key, until in cell.leases.items() if until <= now - LEASE_MS}
        leases = {key: until for key, until in cell.leases.items() if key not in lapsed}
        claimed = {key: at for key, at in cell.claimed.items() if key in leases}
        let_down = cell.let_down | (lapsed - {run.author for run in cell.done})
        if claim.until:
            if job.first_claim is None:
                job.first_claim = now
            if origin not in leases and len(leases) >= MAX_LEASES_PER_CELL:
                return None
            claimed.setdefault(origin, min(claim.until - LEASE_MS, now + CLOCK_MS))
            leases[origin] = now + LEASE_MS
            changed = replace(cell, leases=leases, claimed=claimed, let_down=let_down)
            job.cells[cell.id] = changed
            return now if origin in let_down else next_end(changed, now)
        # Nor does it make way a second time: it could push others off a cell for ever, by
        # claims that look older than theirs.
        if now - claimed.get(origin, now) > GIVE_WAY_MS or origin in cell.gave_way:
            let_down |= {origin}
        leases.pop(origin, None)
        job.cells[cell.id] = replace(
            cell,
            leases=leases,
            vacant_since=now,
            let_down=let_down,
            gave_way=cell.gave_way | {origin},
        )
        return now

    def _keep_early(self, project: bytes, origin: bytes, claim: Claim, now: int) -> None:
        """Gossip loses announcements: the claims on such a job are there when sync brings it."""
        self._early[claim.cell, origin] = (project, claim, now)
        self._early.move_to_end((claim.cell, origin))
        while len(self._early) > MAX_EARLY:
            self._early.popitem(last=False)

    def doubt(self, peer: bytes, now: int) -> bool:
        """A lost peer's leases end soon, unless it renews them by way of others."""
        soon = now + RENEW_MS + DOUBT_MS
        changed = False
        for job in self._jobs.values():
            for id_, cell in job.cells.items():
                if cell.leases.get(peer, 0) > soon:
                    job.cells[id_] = replace(cell, leases={**cell.leases, peer: soon})
                    changed = True
        return changed


def _outcome(result: Result) -> bytes:
    """What two runs must share to agree, as verdicts see it: the digest *and* the counts."""
    bad = sum(result.counts.get(status, 0) for status in BAD_STATUSES)
    total = sum(result.counts.values())
    return result.digest + bad.to_bytes(8, "big") + total.to_bytes(8, "big")
