"""What this node keeps of others' files, and for how long: the shell around `ledger.retention`.

It notes in the ledger what each blob that comes is for, feeds the messages of failed tests
to the full-text index, and drops what `retention.victims` names. Entries and the journal
stay. What is dropped is fetched again when it is needed.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio

from ponyswarm.codec import decode_tests
from ponyswarm.errors import InfraError, PeerError
from ponyswarm.ledger.retention import FULL, Held, victims
from ponyswarm.messages import BAD_STATUSES, Announce, Blob, Entry, Payload, Result

if TYPE_CHECKING:
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


@dataclass(frozen=True, slots=True)
class _Use:
    role: str
    job: bytes
    failing: bool
    result: bytes | None


class Keeping:
    """``budget`` is in bytes; ``keep_ms`` None keeps everything, whatever its age and size."""

    def __init__(self, store: Store, blobs: BlobStore, *, budget: int, keep_ms: int | None) -> None:
        self._notes = store.notes
        self._blobs = blobs
        self._budget = budget
        self._keep_ms = keep_ms
        self._expected: OrderedDict[bytes, _Use] = OrderedDict()
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


def _uses(entry: Entry, payload: Payload | None) -> Iterable[tuple[bytes, _Use]]:
    match payload:
        case Announce():
            yield payload.source, _Use("source", entry.id, False, None)
            if payload.locks is not None:
                yield payload.locks, _Use("locks", entry.id, False, None)
        case Result():
            failing = payload.state == "broken" or any(
                payload.counts.get(status, 0) for status in BAD_STATUSES
            )
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
