"""A whole ledger as one file of frames, for other programs: ids, chains and verdicts in it.

``ponyswarm/frames/1`` and a line feed, then each frame behind its length as four bytes,
big-endian; genesis feeds first, then feed by feed in seq order. The bytes are those that
were received.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

from ponyswarm.codec import decode_kept, is_authentic

MAGIC = b"ponyswarm/frames/1\n"


def frames(ledger: Path, project: bytes | None = None) -> Iterator[bytes]:
    """The frames of a ledger or of one project. One whose own signature does not hold, or
    whose payload was dropped, ends its feed here: a reader of the file could not tell that a
    later one stands for it.
    """
    db = sqlite3.connect(f"{ledger.absolute().as_uri()}?mode=ro", uri=True)
    try:
        ended: set[int] = set()
        for feed, frame in db.execute(
            "SELECT feed, frame FROM entry JOIN feed USING (feed)"
            " WHERE :project IS NULL OR project = :project"
            " ORDER BY project, genesis DESC, feed, seq",
            {"project": project},
        ):
            if feed in ended:
                continue
            entry = decode_kept(frame)
            if entry.is_bare or not is_authentic(entry):
                ended.add(feed)
                continue
            yield frame
    finally:
        db.close()


def write(path: Path, ledger: Path, project: bytes | None = None) -> int:
    """Write the file; how many frames it holds. Raises `OSError`."""
    count = 0
    with path.open("wb") as file:
        file.write(MAGIC)
        for frame in frames(ledger, project):
            file.write(struct.pack("!I", len(frame)) + frame)
            count += 1
    return count
