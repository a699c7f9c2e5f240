"""What the pages read from: a ledger, the blobs beside it, and what a node says of itself.

Every request opens the ledger for itself, sees one moment of it, and is ended when it takes
too long. What was worked out for a job is kept until something about that job arrives.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

from ponyswarm import status
from ponyswarm.ledger.queries import CellRow, JobRow, Reader
from ponyswarm.policy import ReaderPolicy
from ponyswarm.status import NodeStatus
from ponyswarm.web.tail import Tail

Kept = TypeVar("Kept")

# A question that takes longer is ended: it would hold a processor for one reader.
SECONDS = 5.0
# What is kept: so many things, of so many cells in all.
MAX_KEPT = 1_000
MAX_CELLS = 60_000
# A node that runs writes its status at least every fifteen seconds.
STATUS_SECONDS = 60.0
MAX_BLOB = 4 << 20


class Site:
    """The files of one home, for reading."""

    def __init__(self, *, ledger: Path, blobs: Path, status_file: Path) -> None:
        self.tail = Tail(ledger, status_file)
        self.ledger = ledger
        self._blobs = blobs
        self._status = status_file
        self._lock = threading.Lock()
        self._kept: OrderedDict[object, tuple[object, Sequence[object]]] = OrderedDict()

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """The ledger as of now, for one request."""
        with Reader(self.ledger) as reader:
            reader.limit(SECONDS)
            reader.snapshot()
            yield reader

    def matrix(self, reader: Reader, job: JobRow, policy: ReaderPolicy) -> Sequence[CellRow]:
        """A job's cells with their verdicts."""
        return self.remember(job, policy, lambda: reader.matrix(job, policy))

    def remember(
        self, job: JobRow, what: object, work: Callable[[], Sequence[Kept]]
    ) -> Sequence[Kept]:
        """The list that ``work`` gives about a job, worked out again only after a change.

        ``what`` tells it from other lists about that job.
        """
        # The mark is taken before the ledger is asked: what arrives meanwhile changes it.
        mark = (self.tail.mark(job.id, job.project), job.withdrawn)
        key = (job.id, what)
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None and kept[0] == mark:
            return cast(Sequence[Kept], kept[1])
        found = work()
        with self._lock:
            self._kept[key] = (mark, found)
            self._kept.move_to_end(key)
            size = sum(len(value) for _, value in self._kept.values())
            while len(self._kept) > 1 and (len(self._kept) > MAX_KEPT or size > MAX_CELLS):
                size -= len(self._kept.popitem(last=False)[1][1])
        return found

    def status(self) -> NodeStatus | None:
        """What the node on this home says of itself; None when none runs."""
        now = status.read(self._status)
        return now if now is not None and time.time() - now.updated < STATUS_SECONDS else None

    def blob(self, hash_: bytes, most: int = MAX_BLOB) -> bytes | None:
        """A blob that is here and not larger than ``most``."""
        name = hash_.hex()
        path = self._blobs / name[:2] / name[2:]
        try:
            return path.read_bytes() if path.stat().st_size <= most else None
        except OSError:
            return None
