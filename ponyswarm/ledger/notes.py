"""What a ledger notes of this machine beside the entries: its blobs, and why tests failed.

Nothing of it is signed or synced, and losing it loses no entry. `keeping` writes it, as
blobs come and go; the messages of failed tests are for full-text search.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from ponyswarm.codec import decode_kept, decode_payload
from ponyswarm.ledger.database import id_prefix, transaction
from ponyswarm.ledger.retention import Held
from ponyswarm.messages import Result


class Notes:
    """The notes in the database of a `Store`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def explain(self, result: bytes, failures: Sequence[tuple[str, str]]) -> None:
        """Keep (test, message) of a result whose list of tests arrived, for full-text search."""
        row = self._db.execute(
            "SELECT arrival, frame FROM entry WHERE prefix = ? AND id = ?",
            (id_prefix(result), result),
        ).fetchone()
        payload = None if row is None else decode_payload(decode_kept(row[1]))
        if not isinstance(payload, Result):
            return
        with transaction(self._db):
            self._db.execute("DELETE FROM failure WHERE arrival = ?", (row[0],))
            self._db.executemany(
                "INSERT INTO failure (arrival, job, cell, test, message) VALUES (?, ?, ?, ?, ?)",
                [(row[0], payload.job, payload.cell, test, message) for test, message in failures],
            )

    def forget_messages(self, before: int, most: int = 2_000) -> None:
        """Empty the messages of tests that failed before a time; their names stay."""
        old = self._db.execute(
            "SELECT failure, arrival, job, cell, test FROM failure INDEXED BY failure_message"
            " JOIN entry USING (arrival) WHERE message != '' AND time < ?"
            " ORDER BY failure.arrival LIMIT ?",
            (before, most),
        ).fetchall()
        with transaction(self._db):
            for row in old:
                self._db.execute("DELETE FROM failure WHERE failure = ?", (row[0],))
                self._db.execute("INSERT INTO failure VALUES (?, ?, ?, ?, ?, '')", row)

    def keep_blob(self, blob: Held) -> None:
        """Note what a blob that is here is for."""
        with transaction(self._db):
            self._db.execute(
                "INSERT OR REPLACE INTO blob VALUES (?, ?, ?, ?, ?, ?)",
                (blob.hash, blob.size, blob.role, blob.job, blob.failing, blob.kept),
            )

    def has_blob(self, hash_: bytes) -> bool:
        """Whether it is noted what a blob is for."""
        return (
            self._db.execute("SELECT 1 FROM blob WHERE hash = ?", (hash_,)).fetchone() is not None
        )

    def drop_blobs(self, hashes: Iterable[bytes]) -> None:
        """Forget blobs that are here no more."""
        with transaction(self._db):
            self._db.executemany("DELETE FROM blob WHERE hash = ?", [(hash_,) for hash_ in hashes])

    def blobs(self) -> list[Held]:
        """What is noted of the blobs that are here, with how new their jobs are."""
        rows = self._db.execute(
            "SELECT hash, size, role, blob.job, failing, kept, ifnull(expires, 0), announced IS NOT"
            " NULL AND announced = (SELECT max(announced) FROM job AS other"
            " WHERE other.project = job.project) FROM blob LEFT JOIN job USING (job)"
        )
        return [
            Held(
                hash=row[0],
                size=row[1],
                role=row[2],
                job=row[3],
                failing=bool(row[4]),
                kept=row[5],
                expires=row[6],
                latest=bool(row[7]),
            )
            for row in rows
        ]

    def restore(
        self,
        blobs: Sequence[tuple[object, ...]],
        failures: Sequence[tuple[bytes, str, str]],
    ) -> None:
        """Take up rows of blobs, and (result, test, message) of failures, of another ledger."""
        with transaction(self._db):
            self._db.executemany("INSERT OR REPLACE INTO blob VALUES (?, ?, ?, ?, ?, ?)", blobs)
        messages: dict[bytes, list[tuple[str, str]]] = {}
        for id_, test, message in failures:
            messages.setdefault(id_, []).append((test, message))
        for id_, said in messages.items():
            self.explain(id_, said)
