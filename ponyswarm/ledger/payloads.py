"""Payloads of old results: dropped to make room, found missing, given back by peers.

An entry without its payload is bare: header and signature stay, so its feed can be verified
and its place is taken. What was derived from it stays as well, and verdicts with it.
`keeping` says what goes (`retention.is_spent`); a peer that still has a payload gives it back
by sync, when it is asked for the feed as if it ended before (`Store.whole_frontier`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass

from ponyswarm.codec import PAYLOAD_OFFSET, decode_frame
from ponyswarm.ledger.database import transaction
from ponyswarm.messages import DROPPABLE, Entry


@dataclass(frozen=True, slots=True)
class JobEnd:
    """When a job ends (0 when it is unknown here), and if it is its project's newest."""

    expires: int
    latest: bool


class Payloads:
    """The payloads in the database of a `Store`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def stretch(self, after: int, most: int) -> tuple[int, list[Entry]]:
        """The next entries by arrival: the last one's, and those that could lose a payload."""
        rows = self._db.execute(
            "SELECT arrival, kind, CASE WHEN length(frame) > 224 THEN frame END FROM entry"
            " WHERE arrival > ? ORDER BY arrival LIMIT ?",
            (after, most),
        ).fetchall()
        found = [decode_frame(frame) for _, kind, frame in rows if frame and kind in DROPPABLE]
        return (rows[-1][0] if rows else after), found

    def job(self, id_: bytes) -> JobEnd:
        """How the job that an entry is about ends."""
        expires, latest = self._db.execute(
            "SELECT ifnull(max(expires), 0), ifnull(max(announced) = (SELECT max(announced)"
            " FROM job AS other WHERE other.project = job.project), 0) FROM job WHERE job = ?",
            (id_,),
        ).fetchone()
        return JobEnd(expires, bool(latest))

    def drop(self, after: int, last: int, gone: Collection[bytes]) -> None:
        """Drop the payloads of the entries with these ids in a stretch."""
        with transaction(self._db):
            rows = self._db.execute(
                "SELECT arrival, feed, seq, kind, time, prefix, auth, id, frame FROM entry"
                " WHERE arrival > ? AND arrival <= ? ORDER BY arrival",
                (after, last),
            ).fetchall()
            # All anew: rows that only became shorter would leave their pages half empty.
            self._db.execute("DELETE FROM entry WHERE arrival > ? AND arrival <= ?", (after, last))
            self._db.executemany(
                "INSERT INTO entry (arrival, feed, seq, kind, time, prefix, auth, id, frame)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (*row, frame[:PAYLOAD_OFFSET] if row[-1] in gone else frame)
                    for *row, frame in rows
                ],
            )

    def missing(self, project: bytes, since: int) -> list[tuple[int, int]]:
        """(feed, seq of the first bare entry from a time on) where there is one."""
        return self._db.execute(
            "SELECT entry.feed, min(seq) FROM entry JOIN feed USING (feed)"
            " WHERE length(frame) = 224 AND time >= ? AND project = ? AND forked_at IS NULL"
            " GROUP BY entry.feed",
            (since, project),
        ).fetchall()
