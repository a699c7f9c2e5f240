"""What this node keeps of others' files, and for how long: the shell around `ledger.retention`.

It notes in the ledger what each blob that comes is for, feeds the messages of failed tests
to the full-text index, and drops what `retention` names: blobs, and payloads of old results.
The rest of each entry and the journal stay. What is dropped can be fetched again.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio

from ponyswarm.codec import decode_payload, decode_tests
from ponyswarm.errors import InfraError, PeerError
from ponyswarm.ledger.retention import (
    FULL,
    MOST_PRESSURE,
    ROOMY,
    Held,
    is_spent,
    payload_age,
    victims,
)
from ponyswarm.messages import BAD_STATUSES, Announce, Blob, Entry, Payload, Result

if TYPE_CHECKING:
    from ponyswarm.ledger.payloads import JobEnd
    from ponyswarm.ledger.store import Store
    from ponyswarm.p2p.blobs import BlobStore

log = logging.getLogger("ponyswarm")

# Files that are expected and have not come; what is forgotten has no known use when it comes.
MAX_EXPECTED = 20_000
# Part of a blob that nothing was added to for so long is given up.
PARTIAL_SECONDS = 6 * 3600.0
# Of each run so many failed tests, and so much of their messages, can be searched for.
MAX_FAILURES = 200
MAX_MESSAGE = 2_000


# Entries that are looked at together, some ten milliseconds, and how often in one sweep.
STRETCH = 1_000
STRETCHES_A_SWEEP = 20


@dataclass(frozen=True, slots=True)
class _Use:
    role: str
    job: bytes
    failing: bool
    result: bytes | None


class Keeping:
    """``budget`` is in bytes; ``keep_ms`` None keeps everything, whatever its age and size."""

    def __init__(self, store: Store, blobs: BlobStore, *, budget: int, keep_ms: int | None) -> None:
        self._store = store
        self._notes = store.notes
        self._blobs = blobs
        self._budget = budget
        self._keep_ms = keep_ms
        self._expected: OrderedDict[bytes, _Use] = OrderedDict()
        # Where the round over the entries is, and how hard the ledger's limit presses.
        self._after = 0
        self._pressure = 0
        if keep_ms is not None:
            blobs.make_room = self._make_room

    def expect(self, entry: Entry, payload: Payload | None, now: int) -> None:
        """An entry names blobs: remember what they are for, and note those that are here."""
        for hash_, use in _uses(entry, payload):
            if hash_ in self._blobs:
                if not self._notes.has_blob(hash_):
                    self._note(hash_, use, now)
            else:
                self._expected[hash_] = use
                self._expected.move_to_end(hash_)
        while len(self._expected) > MAX_EXPECTED:
            self._expected.popitem(last=False)

    async def kept(self, blob: Blob, now: int) -> None:
        """A blob came. Its messages become searchable when it is a failing run's list."""
        use = self._expected.pop(blob.hash, None)
        if use is None:
            return
        self._note(blob.hash, use, now)
        if use.role == "tests" and use.failing and use.result is not None:
            data = self._blobs.read(blob.hash)
            failures = await trio.to_thread.run_sync(_failures, data)
            if failures:
                self._notes.explain(use.result, failures)

    def _note(self, hash_: bytes, use: _Use, now: int) -> None:
        size = self._blobs.size(hash_)
        if size is not None:
            self._notes.keep_blob(
                Held(
                    hash=hash_,
                    size=size,
                    role=use.role,
                    job=use.job,
                    failing=use.failing,
                    kept=now,
                )
            )

    async def sweep(self, now: int) -> None:
        """Drop what is too old or too much, and what is left of fetches that never ended."""
        here = await trio.to_thread.run_sync(self._blobs.held)
        await trio.to_thread.run_sync(self._blobs.sweep_partial, time.time() - PARTIAL_SECONDS)
        noted = {held.hash: held for held in self._notes.blobs()}
        self._notes.drop_blobs(noted.keys() - {blob.hash for blob in here})
        if self._keep_ms is None:
            return
        found = [
            replace(noted[blob.hash], size=blob.size)
            if blob.hash in noted
            else Held(hash=blob.hash, size=blob.size, kept=blob.kept)
            for blob in here
        ]
        self._drop(victims(found, budget=self._budget, keep_ms=self._keep_ms, now=now))
        self._notes.forget_messages(now - self._keep_ms)
        await self._sweep_payloads(now, self._keep_ms)

    def payloads_since(self, now: int) -> int:
        """From which time on all entries should have their payloads here."""
        return 0 if self._keep_ms is None else now - payload_age(self._keep_ms, self._pressure)

    async def _sweep_payloads(self, now: int, keep_ms: int) -> None:
        """Drop payloads of old results, some entries at a time; of all while space is short."""
        dropped, turn = 0, 0
        jobs: dict[bytes, JobEnd] = {}
        while True:
            fullness = self._store.fullness
            start = self._after
            self._after, entries = self._store.payloads.stretch(start, STRETCH)
            gone = {e.id for e in entries if self._is_spent(e, jobs, now, keep_ms)}
            if gone:
                self._store.payloads.drop(start, self._after, gone)
                dropped += len(gone)
            turn += 1
            if self._after == start:
                # The round is over.
                self._after = 0
                self._pressure = self._next_pressure(fullness)
                if not self._pressure:
                    break
            if fullness <= FULL and turn >= STRETCHES_A_SWEEP:
                break
            await trio.lowlevel.checkpoint()
        if dropped:
            log.info("dropped the payloads of %d old results; their headers stay", dropped)

    def _is_spent(self, entry: Entry, jobs: dict[bytes, JobEnd], now: int, keep_ms: int) -> bool:
        payload = decode_payload(entry)
        if not isinstance(payload, Result):
            return False
        if payload.job not in jobs:
            jobs[payload.job] = self._store.payloads.job(payload.job)
        job = jobs[payload.job]
        return is_spent(
            age=now - entry.header.time,
            failing=_is_failing(payload),
            over=job.expires <= now,
            latest=job.latest,
            keep_ms=keep_ms,
            pressure=self._pressure,
        )

    def _next_pressure(self, fullness: float) -> int:
        if fullness > FULL:
            # A round that was as hard as can be is the last one of this sweep.
            return 0 if self._pressure == MOST_PRESSURE else self._pressure + 1
        return self._pressure if fullness > ROOMY else 0

    def _make_room(self, size: int) -> None:
        """Now, for a blob of this size: of what is noted, the least missed goes."""
        budget = self._budget - int(size / FULL)
        now = int(time.time() * 1000)
        self._drop(victims(self._notes.blobs(), budget=budget, keep_ms=1 << 62, now=now))

    def _drop(self, gone: Iterable[Held]) -> None:
        dropped = list(gone)
        for blob in dropped:
            self._blobs.drop(blob.hash)
        if dropped:
            size = sum(blob.size for blob in dropped)
            log.info("dropped %d files of old jobs, %d bytes", len(dropped), size)
            self._notes.drop_blobs([blob.hash for blob in dropped])


def _is_failing(result: Result) -> bool:
    return result.state == "broken" or any(result.counts.get(bad, 0) for bad in BAD_STATUSES)


def _uses(entry: Entry, payload: Payload | None) -> Iterable[tuple[bytes, _Use]]:
    match payload:
        case Announce():
            yield payload.source, _Use("source", entry.id, False, None)
            if payload.locks is not None:
                yield payload.locks, _Use("locks", entry.id, False, None)
        case Result():
            failing = _is_failing(payload)
            if payload.tests is not None:
                yield payload.tests.hash, _Use("tests", payload.job, failing, entry.id)
            if payload.log is not None:
                yield payload.log.hash, _Use("log", payload.job, failing, entry.id)
        case _:
            return


def _failures(data: bytes) -> list[tuple[str, str]]:
    """(test, message) of the first failed tests in a list; none when it is no list."""
    try:
        tests = decode_tests(data)
    except (PeerError, InfraError):
        return []
    bad = [test for test in tests if test.status in BAD_STATUSES]
    return [(test.id, test.message[-MAX_MESSAGE:]) for test in bad[:MAX_FAILURES]]
