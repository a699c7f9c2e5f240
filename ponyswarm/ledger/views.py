"""Rows that are derived from entries, for queries: jobs, cells, results, what ends a job.

They can be built again from the frames at any time; `fsck` does. `Store` calls this inside
its transaction, and nobody else writes these tables.
"""

from __future__ import annotations

import sqlite3

from ponyswarm.codec import cell_id, comparable, decode_frame, decode_payload
from ponyswarm.matrix import cells
from ponyswarm.messages import (
    Announce,
    Entry,
    Environment,
    Kind,
    Result,
    Status,
    Withdraw,
)
from ponyswarm.policy import ProjectState, has_force

# Environments that are kept in memory between two appends.
MAX_KEPT = 65_536


class Views:
    """The derived rows in the database of a `Store`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._environments: dict[tuple[object, ...], int] = {}
        # Rows of the transaction that is open, written together by `flush`.
        self._results: list[tuple[object, ...]] = []
        self._failures: list[tuple[object, ...]] = []

    def flush(self) -> None:
        """Write the rows that wait."""
        if self._results:
            self._db.executemany(
                "INSERT INTO result VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._results
            )
            self._results.clear()
        if self._failures:
            self._db.executemany(
                "INSERT INTO failure (arrival, job, cell, test, message) VALUES (?, ?, ?, ?, '')",
                self._failures,
            )
            self._failures.clear()
        if len(self._environments) > MAX_KEPT:
            self._environments.clear()

    def forget(self) -> None:
        """Drop the rows that wait, and what is kept of the tables: they may be others now."""
        self._results.clear()
        self._failures.clear()
        self._environments.clear()

    # --- jobs -----------------------------------------------------------------------------

    def add_job(self, entry: Entry, announce: Announce, author: int) -> None:
        """A job and the cells of its matrix."""
        self._db.execute(
            "INSERT INTO job VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.id,
                entry.namespace,
                author,
                announce.title,
                announce.commit,
                announce.source,
                entry.header.time,
                announce.expires,
                announce.spec.redundancy,
            ),
        )
        self._db.executemany(
            "INSERT OR IGNORE INTO cell VALUES (?, ?, ?, ?, ?, ?)",
            [
                (
                    entry.id,
                    cell_id(entry.id, cell),
                    position,
                    cell.python,
                    " ".join(cell.services),
                    " ".join(f"{name}={value}" for name, value in cell.factors),
                )
                for position, cell in enumerate(cells(announce.spec))
            ],
        )

    def ended(self, project: bytes) -> frozenset[bytes]:
        """The jobs that nobody should run: withdrawn, or announced without the right to."""
        rows = self._db.execute("SELECT job FROM withdrawal WHERE project = ?", (project,))
        return frozenset(row[0] for row in rows)

    def end_job(
        self,
        state: ProjectState | None,
        entry: Entry,
        payload: Announce | Withdraw,
        *,
        disputed: bool,
    ) -> None:
        """What ends a job: its withdrawal, or that its announcement has no force."""
        force = not disputed and state is not None and has_force(state, entry, payload)
        if isinstance(payload, Withdraw) and force:
            job, reason = payload.job, payload.reason
        elif isinstance(payload, Announce) and not force:
            job, reason = entry.id, "the key that announced it had no right to"
        else:
            return
        self._db.execute(
            "INSERT OR IGNORE INTO withdrawal VALUES (?, ?, ?)", (entry.namespace, job, reason)
        )

    def derive_rights(self, project: bytes, state: ProjectState) -> None:
        """Derive again what rests on a project's rights: its record and what ends its jobs."""
        record = state.record
        updated = state.records[-1][0] or state.said[0].time
        self._db.execute(
            "INSERT OR REPLACE INTO project VALUES (?, ?, ?, ?)",
            (project, record.name, record.url, updated),
        )
        self._db.execute("DELETE FROM withdrawal WHERE project = ?", (project,))
        rows = self._db.execute(
            "SELECT frame, forked_at IS NOT NULL AND seq >= forked_at"
            " FROM entry JOIN feed USING (feed) WHERE project = ? AND kind != 5 AND kind IN (?, ?)"
            " ORDER BY time, id",
            (project, Kind.ANNOUNCE, Kind.WITHDRAW),
        ).fetchall()
        for frame, disputed in rows:
            entry = decode_frame(frame)
            payload = decode_payload(entry)
            assert isinstance(payload, Announce | Withdraw)
            self.end_job(state, entry, payload, disputed=bool(disputed))

    # --- results --------------------------------------------------------------------------

    def add_result(self, result: Result, author: int, arrival: int) -> None:
        """What a run gave, and the tests that its entry names as failed."""
        facts = _facts(result.environment)
        environment = self._environments.get(facts)
        if environment is None:
            environment = self._environments[facts] = self._environment(result.environment)
        counts = result.counts.get
        self._results.append(
            (
                result.job,
                result.cell,
                author,
                arrival,
                result.state,
                result.reason,
                counts(_PASSED, 0),
                counts(_FAILED, 0) + counts(_ERROR, 0),
                counts(_SKIPPED, 0),
                sum(result.counts.values()),
                result.digest,
                environment,
                result.seconds,
            )
        )
        self._failures += [(arrival, result.job, result.cell, test) for test in result.bad]

    def _environment(self, where: Environment | None) -> int:
        row = (describe(where), comparable(where))
        self._db.execute("INSERT OR IGNORE INTO environment (text, comparable) VALUES (?, ?)", row)
        found = self._db.execute(
            "SELECT environment FROM environment WHERE text = ? AND comparable = ?", row
        ).fetchone()
        return int(found[0])


_PASSED, _FAILED, _ERROR = Status.PASSED, Status.FAILED, Status.ERROR
_SKIPPED = Status.SKIPPED


def _facts(where: Environment | None) -> tuple[object, ...]:
    """What `describe` and `comparable` look at."""
    if where is None:
        return ()
    return (
        where.implementation,
        where.version,
        where.system,
        where.machine,
        where.packages,
        *where.services.items(),
    )


def describe(environment: Environment | None) -> str:
    """An environment in one short line for people."""
    if environment is None:
        return ""
    services = "".join(f" {name} {v}" for name, v in sorted(environment.services.items()))
    return (
        f"{environment.implementation} {environment.version}"
        f" {environment.system} {environment.machine}{services}"
    )
