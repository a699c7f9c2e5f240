"""Rows that are derived from entries, for queries: jobs, cells, results, what ends a job.

They can be built again from the frames at any time; `fsck` does. `Store` calls this inside
its transaction, and nobody else writes these tables.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from msgspec import UNSET

from ponyswarm.codec import cell_id, commitment, comparable, decode_frame, decode_payload
from ponyswarm.matrix import cells
from ponyswarm.messages import (
    Announce,
    Commit,
    Entry,
    Environment,
    Kind,
    Result,
    Status,
    Withdraw,
)
from ponyswarm.policy import ProjectState, has_force

# Targets, outcomes and environments that are kept in memory, each, between two appends.
MAX_KEPT = 65_536


class Views:
    """The derived rows in the database of a `Store`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        # The rows that stand for what results have in common, by what they say.
        self._targets: dict[tuple[bytes, bytes], int] = {}
        self._outcomes: dict[tuple[object, ...], int] = {}
        self._environments: dict[tuple[object, ...], int] = {}
        self._numbers = (self._targets, self._outcomes, self._environments)
        # Rows of the transaction that is open, written together by `flush`.
        self._runs: list[tuple[object, ...]] = []
        self._failures: list[tuple[object, ...]] = []
        self._openings: list[tuple[object, ...]] = []
        # By author: how many results, completed ones, broken ones and tests they add.
        self._given: dict[int, list[int]] = {}

    def flush(self) -> None:
        """Write the rows that wait."""
        if self._runs:
            self._db.executemany(
                "INSERT INTO run (target, author, arrival, outcome, environment, seconds)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                self._runs,
            )
            self._runs.clear()
            self._db.executemany(
                "INSERT INTO volunteer VALUES (?, ?, ?, ?, ?) ON CONFLICT (author) DO UPDATE"
                " SET results = results + excluded.results,"
                " completed = completed + excluded.completed,"
                " broken = broken + excluded.broken, tests = tests + excluded.tests",
                [(author, *given) for author, given in self._given.items()],
            )
            self._given.clear()
        if self._failures:
            self._db.executemany(
                "INSERT INTO failure (arrival, job, cell, test, message) VALUES (?, ?, ?, ?, '')",
                self._failures,
            )
            self._failures.clear()
        if self._openings:
            self._db.executemany("INSERT INTO opening VALUES (?, ?, ?, ?, ?)", self._openings)
            self._openings.clear()
        for numbers in self._numbers:
            if len(numbers) > MAX_KEPT:
                numbers.clear()

    def forget(self) -> None:
        """Drop the rows that wait, and what is kept of the tables: they may be others now."""
        self._runs.clear()
        self._failures.clear()
        self._openings.clear()
        self._given.clear()
        for numbers in self._numbers:
            numbers.clear()

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
        target = (result.job, result.cell)
        counts = result.counts
        said = (
            result.digest,
            result.state,
            None if result.reason is None else result.reason.value,
            counts.get(_PASSED, 0),
            counts.get(_FAILED, 0) + counts.get(_ERROR, 0),
            counts.get(_SKIPPED, 0),
            sum(counts.values()),
        )
        facts = _facts(result.environment)
        self._add_run(
            self._targets.get(target) or self._target(target),
            author,
            arrival,
            said,
            self._environments.get(facts) or self._environment(facts, result.environment),
            result.seconds,
        )
        if result.bad:
            self._failures += [(arrival, *target, test) for test in result.bad]

    def _add_run(
        self,
        target: int,
        author: int,
        arrival: int,
        said: tuple[Any, ...],
        environment: int,
        seconds: float,
    ) -> None:
        """``said`` is a row of ``outcome`` without its number."""
        outcome = self._outcomes.get(said) or self._outcome(said)
        self._runs.append((target, author, arrival, outcome, environment, seconds))
        given = self._given.get(author)
        if given is None:
            given = self._given[author] = [0, 0, 0, 0]
        given[0] += 1
        given[1 if said[1] == "completed" else 2] += 1
        given[3] += said[6]

    def add_opening(self, result: Result, key: bytes, arrival: int) -> None:
        """Which commitment a result opens, and the commits of others that it names."""
        seen = b"" if result.seen is UNSET else b"".join(result.seen)
        opens = commitment(result.nonce, result.digest, key)
        self._openings.append((result.job, result.cell, arrival, opens, seen))

    def add_commit(self, entry: Entry, commit: Commit, author: int, arrival: int) -> None:
        """Who bound itself to an outcome of a cell."""
        self._db.execute(
            "INSERT INTO sealed VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                commit.job,
                commit.cell,
                author,
                arrival,
                entry.id,
                commit.commitment,
                entry.header.time,
                b"" if commit.seen is UNSET else b"".join(commit.seen),
            ),
        )

    def restore_result(self, result: Result, author: int, key: bytes, arrival: int) -> None:
        """`add_result` of an entry whose payload was gone; its rows may be here still."""
        known = self._db.execute(
            "SELECT 1 FROM target JOIN run USING (target)"
            " WHERE job = ? AND cell = ? AND author = ? AND arrival = ?",
            (result.job, result.cell, author, arrival),
        ).fetchone()
        if known is None:
            self.add_result(result, author, arrival)
            if result.nonce:
                self.add_opening(result, key, arrival)

    def restore_run(self, author: int, arrival: int, row: Sequence[Any], seconds: float) -> None:
        """A run as another ledger derived it: outcome (7), target (2) and environment (2)."""
        said, target, where = tuple(row[:7]), (row[7], row[8]), (row[9], row[10])
        self._add_run(
            self._target(target),
            author,
            arrival,
            said,
            self._number(*_ENVIRONMENT, where),
            seconds,
        )

    def restore_openings(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """(job, cell, arrival, opens, seen) as another ledger had them."""
        self._openings += rows

    def restore_failures(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """(arrival, job, cell, test, message) as another ledger had them."""
        self._db.executemany(
            "INSERT INTO failure (arrival, job, cell, test, message) VALUES (?, ?, ?, ?, ?)", rows
        )

    def _target(self, target: tuple[bytes, bytes]) -> int:
        self._targets[target] = number = self._number(
            "INSERT OR IGNORE INTO target (job, cell) VALUES (?, ?)",
            "SELECT target FROM target WHERE job = ? AND cell = ?",
            target,
        )
        return number

    def _outcome(self, said: tuple[object, ...]) -> int:
        self._outcomes[said] = number = self._number(
            "INSERT OR IGNORE INTO outcome (digest, state, reason, passed, failed, skipped, total)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            "SELECT outcome FROM outcome WHERE digest = ? AND state = ?"
            " AND ifnull(reason, '') = ifnull(?, '')"
            " AND passed = ? AND failed = ? AND skipped = ? AND total = ?",
            said,
        )
        return number

    def _environment(self, facts: tuple[object, ...], where: Environment | None) -> int:
        row = (describe(where), comparable(where))
        self._environments[facts] = number = self._number(*_ENVIRONMENT, row)
        return number

    def _number(self, insert: str, select: str, row: tuple[object, ...]) -> int:
        """The number of the row that says this, which is made when there is none."""
        self._db.execute(insert, row)
        return int(self._db.execute(select, row).fetchone()[0])


_ENVIRONMENT = (
    "INSERT OR IGNORE INTO environment (text, comparable) VALUES (?, ?)",
    "SELECT environment FROM environment WHERE text = ? AND comparable = ?",
)

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
