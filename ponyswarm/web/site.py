"""What the pages read from: a ledger, the blobs beside it, and what a node says of itself.

Every request opens the ledger for itself, sees one moment of it, and is ended when it takes
too long. Matrices that were worked out are kept until their job changes.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ponyswarm import status
from ponyswarm.ledger.queries import CellRow, JobRow, Reader
from ponyswarm.policy import ReaderPolicy
from ponyswarm.status import NodeStatus
from ponyswarm.web.tail import Tail

# A question that takes longer is ended: it would hold a processor for one reader.
SECONDS = 5.0
MAX_MATRICES = 200
# Cells in all kept matrices: a matrix of ten thousand volunteers' runs is small, one of two
# thousand cells is not.
MAX_CELLS = 40_000
# A node that runs writes its status at least every fifteen seconds.
STATUS_SECONDS = 60.0
MAX_BLOB = 4 << 20


class Site:
    """The files of one home, for reading."""

    def __init__(self, *, ledger: Path, blobs: Path, status_file: Path) -> None:
        self.tail = Tail(ledger)
        self.ledger = ledger
        self._blobs = blobs
        self._status = status_file
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[bytes, ReaderPolicy], tuple[object, list[CellRow]]] = (
            OrderedDict()
        )

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """The ledger as of now, for one request."""
        with Reader(self.ledger) as reader:
            reader.limit(SECONDS)
            reader.snapshot()
            yield reader

    def matrix(self, reader: Reader, job: JobRow, policy: ReaderPolicy) -> list[CellRow]:
        """A job's cells with their verdicts, worked out again only when something changed."""
        # The mark is taken before the ledger is asked: what arrives meanwhile changes it.
        mark = (self.tail.mark(job.id, job.project), job.withdrawn)
        with self._lock:
            kept = self._kept.get((job.id, policy))
        if kept is not None and kept[0] == mark:
            return kept[1]
        cells = reader.matrix(job, policy)
        with self._lock:
            self._kept[job.id, policy] = (mark, cells)
            self._kept.move_to_end((job.id, policy))
            while len(self._kept) > MAX_MATRICES or (
                len(self._kept) > 1 and sum(len(c) for _, c in self._kept.values()) > MAX_CELLS
            ):
                self._kept.popitem(last=False)
        return cells

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
