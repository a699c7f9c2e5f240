"""Outcomes that were committed to and are not told yet: a secret of this home, on its disk.

Kept with ``synchronous = FULL`` before the commit is signed, so that whatever ends a node it
can open what it published. A result leaves when it has been told.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ponyswarm.codec import commitment, convert, pack, unpack
from ponyswarm.ledger.database import connect, transaction
from ponyswarm.messages import Result

_SCHEMA = """
CREATE TABLE IF NOT EXISTS seal (
    commitment BLOB PRIMARY KEY,
    project BLOB NOT NULL,
    job BLOB NOT NULL,
    cell BLOB NOT NULL,
    result BLOB NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Seal:
    """A result with its nonce, and what was, or is to be, published of it."""

    commitment: bytes
    project: bytes
    result: Result


class Seals:
    """The secrets of one key."""

    def __init__(self, path: Path, key: bytes) -> None:
        self._key = key
        self._db = connect(path, synchronous="FULL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    def keep(self, result: Result, project: bytes) -> Seal:
        """Keep a result, which has its nonce; durable when this returns.

        Raises `InfraError` when the disk does not take it; then nothing must be published.
        """
        seal = Seal(commitment(result.nonce, result.digest, self._key), project, result)
        with transaction(self._db):
            self._db.execute(
                "INSERT OR REPLACE INTO seal VALUES (?, ?, ?, ?, ?)",
                (seal.commitment, project, result.job, result.cell, pack(result)),
            )
        return seal

    def of_cell(self, job: bytes, cell: bytes) -> list[Seal]:
        return self._read("job = ? AND cell = ?", (job, cell))

    def of_project(self, project: bytes) -> list[Seal]:
        return self._read("project = ?", (project,))

    def count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM seal").fetchone()[0])

    def drop(self, seal: Seal) -> None:
        """Its result has been told."""
        with transaction(self._db):
            self._db.execute("DELETE FROM seal WHERE commitment = ?", (seal.commitment,))

    def _read(self, where: str, values: tuple[bytes, ...]) -> list[Seal]:
        rows = self._db.execute(
            f"SELECT commitment, project, result FROM seal WHERE {where}",  # noqa: S608
            values,
        )
        return [
            Seal(bound, project, convert(unpack(result), Result, "bad-payload"))
            for bound, project, result in rows.fetchall()
        ]
