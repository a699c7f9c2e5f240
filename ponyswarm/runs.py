"""The runs of this node: from a claimed cell to a result that is ready to be signed.

What a job did ends as an `Outcome` and so as a `Result`. What kept this machine from even
starting it (no source, disk full) gives no result: the claim goes back and others may try.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from ponyswarm.codec import TestRecord, decode_locks, encode_tests, outcome_digest
from ponyswarm.errors import InfraError, PonySwarmError
from ponyswarm.exec.outcome import Outcome, Progress
from ponyswarm.messages import BAD_STATUSES, Announce, Blob, Cell, Lock, Result, Status

if TYPE_CHECKING:
    from ponyswarm.p2p.blobs import BlobStore
    from ponyswarm.p2p.fetcher import Fetcher

log = logging.getLogger("ponyswarm")

SOURCE_SECONDS = 300.0
# How often the log tells how far a long suite is.
SAY_EVERY = 300.0
MAX_BAD_IDS = 50
MAX_BAD_BYTES = 3_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A run to be executed: everything about it, with its source here and checked."""

    job: bytes
    cell_id: bytes
    cell: Cell
    announce: Announce
    source: Path
    locks: tuple[Lock, ...]


# Runs one task on this machine and says what it gave.
Execute = Callable[[Task, Callable[[Progress], None]], Awaitable[Outcome]]


@dataclass(slots=True)
class Running:
    """A run under way, for those who watch."""

    job: bytes
    title: str
    cell: Cell
    scope: trio.CancelScope
    started: float
    progress: Progress
    why_stopped: str = ""


class Runs:
    """``execute`` is None on a node that runs nothing."""

    def __init__(self, execute: Execute | None, fetcher: Fetcher, blobs: BlobStore) -> None:
        self.running: dict[bytes, Running] = {}
        self.ended = 0
        self.tests = 0
        self._execute = execute
        self._fetcher = fetcher
        self._blobs = blobs

    def stop(self, cell: bytes, why: str) -> None:
        """Cancel a run, if it is under way."""
        running = self.running.get(cell)
        if running is not None:
            running.why_stopped = why
            running.scope.cancel()

    async def run(
        self, job: bytes, cell_id: bytes, cell: Cell, announce: Announce
    ) -> Result | None:
        """Run one cell; None when it was stopped or could not be started here. Never raises."""
        if self._execute is None:
            return None
        running = Running(
            job,
            announce.title,
            cell,
            trio.CancelScope(),
            time.time(),
            Progress(step="fetching the source"),
        )
        self.running[cell_id] = running
        name = f"{announce.title} on {describe_cell(cell)}"
        try:
            with running.scope:
                log.debug("%s: %s", name, running.progress.step)
                task = await self._task(job, cell_id, cell, announce)
                return await self._perform(task, name, running, self._execute)
        except PonySwarmError as fault:
            log.warning("gave up %s: %s", name, fault)
        except Exception:
            log.exception("gave up %s: a fault of PonySwarm itself", name)
        finally:
            del self.running[cell_id]
        if running.why_stopped:
            log.info("stopped %s: %s", name, running.why_stopped)
        return None

    async def _task(self, job: bytes, cell_id: bytes, cell: Cell, announce: Announce) -> Task:
        source = Blob(hash=announce.source, size=announce.source_size)
        if not await self._fetcher.need(source, SOURCE_SECONDS):
            raise InfraError("no peer gave its source; another volunteer may have it")
        locks: tuple[Lock, ...] = ()
        if announce.locks is not None:
            wanted = Blob(hash=announce.locks, size=announce.locks_size)
            if not await self._fetcher.need(wanted, SOURCE_SECONDS):
                raise InfraError("no peer gave its locks; another volunteer may have them")
            locks = tuple(decode_locks(self._blobs.read(announce.locks)))
        return Task(
            job=job,
            cell_id=cell_id,
            cell=cell,
            announce=announce,
            source=self._blobs.path(announce.source),
            locks=locks,
        )

    async def _perform(self, task: Task, name: str, running: Running, execute: Execute) -> Result:
        said = time.monotonic()

        def watch(progress: Progress) -> None:
            nonlocal said
            if progress.step != running.progress.step:
                log.debug("%s: %s", name, progress.step)
            running.progress = progress
            if progress.done and time.monotonic() - said >= SAY_EVERY:
                said = time.monotonic()
                log.info("%s: %s", name, far(progress, time.time() - running.started))

        started = int(time.time() * 1000)
        log.info("running %s", name)
        outcome = await execute(task, watch)
        watch(Progress(step="collect"))
        self.ended += 1
        self.tests += len(outcome.tests)
        log.info("%s: %s in %.1f s", name, summary(outcome), outcome.seconds)
        # A suite of 200,000 tests takes seconds, in which the node's peers must not wait.
        packed = await trio.to_thread.run_sync(_pack, outcome)
        return self._as_result(task, outcome, packed, started)

    def _as_result(self, task: Task, outcome: Outcome, packed: _Packed, started: int) -> Result:
        counts: Counter[Status] = Counter(test.status for test in outcome.tests)
        bad = [test.id for test in outcome.tests if test.status in BAD_STATUSES]
        tests = self._blobs.put(packed.tests) if packed.tests else None
        text = self._blobs.put(packed.log) if packed.log else None
        return Result(
            job=task.job,
            cell=task.cell_id,
            state=outcome.state,
            reason=outcome.reason,
            detail=outcome.detail[:500],
            counts=dict(counts),
            digest=packed.digest,
            bad=tuple(_within(bad, MAX_BAD_BYTES)),
            tests=tests,
            log=text,
            environment=outcome.environment,
            started=started,
            seconds=round(outcome.seconds, 3),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    """The bytes of an outcome's blobs, empty where there is nothing, and its digest."""

    tests: bytes
    log: bytes
    digest: bytes


def _pack(outcome: Outcome) -> _Packed:
    records = [TestRecord(t.id, t.status, t.seconds, t.message) for t in outcome.tests]
    pairs = [(t.id, t.status) for t in outcome.tests]
    return _Packed(
        tests=encode_tests(records) if records else b"",
        log=zlib.compress(outcome.log, 6) if outcome.log else b"",
        digest=outcome_digest(outcome.state, outcome.reason, pairs),
    )


def _within(ids: Sequence[str], most: int) -> Iterable[str]:
    """The first ids that fit in an entry."""
    size = 0
    for id_ in ids[:MAX_BAD_IDS]:
        size += len(id_.encode()) + 4
        if size > most:
            return
        yield id_[:500]


def describe_cell(cell: Cell) -> str:
    """A cell in a few words: its Python, services and factors."""
    factors = [f"{name}={value}" for name, value in cell.factors]
    return " ".join([cell.python, *cell.services, *factors])


def far(progress: Progress, seconds: float) -> str:
    """How far a run is, in a few words."""
    of = "" if progress.total is None else f" of {progress.total:,}"
    return f"{progress.done:,}{of} tests after {seconds / 60:.0f} min"


def summary(outcome: Outcome) -> str:
    """An outcome in a few words."""
    if outcome.state == "broken":
        return f"broken ({outcome.reason}: {outcome.detail})"
    counts = Counter(str(test.status) for test in outcome.tests)
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no tests"
