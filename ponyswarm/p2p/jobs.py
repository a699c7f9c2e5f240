"""The open jobs and their cells: what the ledger and everybody's claims say of them.

State without decisions, and all of it can be lost: jobs and results are fed from the
ledger, at the start and as entries are admitted; leases come by gossip and expire.
`protocol` keeps one of these and decides by it what this node claims.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from ponyswarm.codec import cell_id, comparable
from ponyswarm.matrix import cells
from ponyswarm.messages import BAD_STATUSES, Announce, Cell, Claim, Entry, Result
from ponyswarm.p2p.scheduling import LEASE_MS, RENEW_MS, CellState, Done

# No lease of a peer is believed for longer, whatever it says.
LONGEST_LEASE_MS = 360_000
MAX_LEASES_PER_CELL = 64
MAX_ORPHANS = 2_000
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


class Jobs:
    """Methods that change what a choice rests on say whether they did."""

    def __init__(self) -> None:
        self._jobs: dict[bytes, Job] = {}
        self._orphans: dict[bytes, list[tuple[bytes, bytes, Done]]] = {}
        self._withdrawn: set[tuple[bytes, bytes]] = set()

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
        states = {
            id_: CellState(
                id=id_,
                job=entry.id,
                python=cell.python,
                services=cell.services,
                wanted=announce.spec.redundancy,
                vacant_since=now,
                order=entry.header.time,
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
        )
        for cell, project, done in self._orphans.pop(entry.id, ()):
            if project == job.project and cell in states:
                _keep_done(job, cell, done, now)
        return job

    def resulted(self, entry: Entry, result: Result, now: int) -> bool:
        """Count a run of a cell."""
        done = Done(
            entry.header.author,
            result.state == "completed",
            comparable(result.environment),
            _outcome(result),
        )
        project = entry.namespace
        job = self._jobs.get(result.job)
        if job is not None and job.project == project and result.cell in job.cells:
            _keep_done(job, result.cell, done, now)
            return True
        if job is None and sum(map(len, self._orphans.values())) < MAX_ORPHANS:
            # A result can arrive before its job: they are of different feeds.
            self._orphans.setdefault(result.job, []).append((result.cell, project, done))
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

    def claimed(self, project: bytes, origin: bytes, claim: Claim, now: int) -> bool:
        """Take up a claim, or one that is given back."""
        job = self._jobs.get(claim.job)
        cell = None if job is None or job.project != project else job.cells.get(claim.cell)
        if job is None or cell is None:
            return False
        leases = dict(cell.leases)
        if claim.until > now:
            if job.first_claim is None:
                job.first_claim = now
            leases = {key: until for key, until in leases.items() if until > now}
            if origin not in leases and len(leases) >= MAX_LEASES_PER_CELL:
                return False
            claimed = {key: at for key, at in cell.claimed.items() if key in leases}
            claimed.setdefault(origin, claim.until - LEASE_MS)
            leases[origin] = min(claim.until, now + LONGEST_LEASE_MS)
            job.cells[cell.id] = replace(cell, leases=leases, claimed=claimed)
            return True
        if leases.get(origin, 0) > now:
            # Who holds nothing gives nothing back: it would only make the others wait again.
            del leases[origin]
            job.cells[cell.id] = replace(cell, leases=leases, vacant_since=now)
            return True
        return False

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


def _keep_done(job: Job, cell_key: bytes, done: Done, now: int) -> None:
    cell = job.cells[cell_key]
    leases = {key: until for key, until in cell.leases.items() if key != done.author}
    job.cells[cell_key] = replace(cell, done=(*cell.done, done), leases=leases, vacant_since=now)


def _outcome(result: Result) -> bytes:
    """What two runs must share to agree, as verdicts see it: the digest *and* the counts."""
    bad = sum(result.counts.get(status, 0) for status in BAD_STATUSES)
    total = sum(result.counts.values())
    return result.digest + bad.to_bytes(8, "big") + total.to_bytes(8, "big")
