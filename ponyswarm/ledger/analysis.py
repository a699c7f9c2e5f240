"""Further questions to the ledger: what is flaky, who agrees, and any that SQL can ask.

Each works from outcomes as they are held here: from a run's list of tests where that blob
is here (``read`` gives its bytes, or None), else from the digest and the names of bad
tests in the entry. What is not known is said, never guessed.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ponyswarm.codec import comparable, decode_kept, decode_payload, decode_tests
from ponyswarm.errors import LocalError, PeerError
from ponyswarm.ledger import verdicts
from ponyswarm.ledger.database import open_to_read
from ponyswarm.ledger.queries import CellRow, Reader
from ponyswarm.ledger.verdicts import Record, TestFinding, add_cell
from ponyswarm.messages import Result
from ponyswarm.policy import ReaderPolicy, Standing, cross_check, window_ms

Read = Callable[[bytes], bytes | None]

BAD = "bad"
ABSENT = "not run"


# --- what a run gave, test by test -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tests:
    """Status by test id; ``whole`` when passed tests are among them, not the bad ones alone."""

    statuses: Mapping[str, str]
    whole: bool


def tests_of(result: Result, read: Read) -> Tests | None:
    """What is known here of a run's tests; None when only their number and digest are."""
    data = None if result.tests is None else read(result.tests.hash)
    if data is not None:
        try:
            return Tests({test.id: str(test.status) for test in decode_tests(data)}, whole=True)
        except PeerError:
            pass  # Whoever published it named a blob that is no list of tests.
    bad = sum(n for status, n in result.counts.items() if status in ("failed", "error"))
    if bad == len(result.bad):
        return Tests(dict.fromkeys(result.bad, BAD), whole=False)
    return None


def differing(one: Tests, other: Tests) -> dict[str, tuple[str, str]]:
    """The tests whose status differs. Where one list names bad tests alone, only those count."""
    if one.whole and other.whole:
        ids = one.statuses.keys() | other.statuses.keys()
        pairs = {
            id_: (one.statuses.get(id_, ABSENT), other.statuses.get(id_, ABSENT)) for id_ in ids
        }
    else:
        left, right = _bad(one), _bad(other)
        pairs = {
            id_: (BAD if id_ in left else "good", BAD if id_ in right else "good")
            for id_ in left | right
        }
    return {id_: pair for id_, pair in sorted(pairs.items()) if pair[0] != pair[1]}


def _bad(tests: Tests) -> set[str]:
    return {id_ for id_, status in tests.statuses.items() if status in (BAD, "failed", "error")}


# --- flaky -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Flaky:
    """A test that gave different statuses in runs that compare."""

    test: str
    statuses: dict[str, int] = field(default_factory=dict)
    places: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class FlakyReport:
    """The tests, most places first; how many sets of runs differ, and in how many of them it
    is not known here which tests do."""

    tests: list[Flaky]
    differing: int
    unknown: int


def flaky(reader: Reader, project: bytes, read: Read, most: int = -1) -> FlakyReport:
    """Tests whose status differs between comparable runs of the same source, among the
    latest ``most`` jobs of a project (-1: all).
    """
    forked = reader.forked(project)
    groups = reader.select(
        "SELECT job.source, cell.python, cell.services, cell.factors, comparable"
        " FROM (SELECT job FROM job WHERE project = ? ORDER BY announced DESC LIMIT ?)"
        " JOIN job USING (job) JOIN result USING (job) JOIN cell ON cell.job = result.job"
        " AND cell.cell = result.cell JOIN environment USING (environment)"
        " WHERE state = 'completed'"
        " GROUP BY 1, 2, 3, 4, 5 HAVING count(DISTINCT digest) > 1",
        (project, most),
    )
    found: dict[str, Flaky] = {}
    differ, unknown = 0, 0
    for source, python, services, factors, set_ in groups:
        rows = reader.select(
            "SELECT frame FROM (SELECT job FROM job WHERE project = ? ORDER BY announced DESC"
            " LIMIT ?) JOIN job USING (job) JOIN cell USING (job) JOIN result"
            " ON result.job = job.job AND result.cell = cell.cell JOIN entry USING (arrival)"
            " JOIN feed USING (feed) JOIN author ON author.author = result.author"
            " JOIN environment USING (environment)"
            " WHERE source = ? AND python = ? AND services = ?"
            " AND factors = ? AND comparable = ? AND state = 'completed'"
            " AND (forked_at IS NULL OR entry.seq < forked_at)",
            (project, most, source, python, services, factors, set_),
        )
        entries = [decode_kept(frame) for (frame,) in rows]
        runs = [
            payload
            for entry in entries
            if entry.header.author not in forked
            and isinstance(payload := decode_payload(entry), Result)
        ]
        if len({run.digest for run in runs}) < 2:
            continue
        differ += 1
        known = [tests for run in runs if (tests := tests_of(run, read)) is not None]
        if len(known) < len(runs):
            unknown += 1
        where = " ".join(part for part in (python, services, factors) if part)
        # Where one list has bad tests alone, all are compared by that.
        whole = all(tests.whole for tests in known)
        for id_ in {id_ for tests in known for id_ in tests.statuses}:
            seen = [
                tests.statuses.get(id_, ABSENT)
                if whole
                else (BAD if id_ in _bad(tests) else "good")
                for tests in known
            ]
            if len(set(seen)) > 1:
                test = found.setdefault(id_, Flaky(id_))
                test.places.add(where)
                for status in seen:
                    test.statuses[status] = test.statuses.get(status, 0) + 1
    order = sorted(found.values(), key=lambda test: (-len(test.places), test.test))
    return FlakyReport(order, differ, unknown)


# --- volunteers ------------------------------------------------------------------------------


def records(reader: Reader, project: bytes, now: int, most: int = -1) -> dict[bytes, Record]:
    """How each key's runs in a project compare with what others gave (`verdicts.add_cell`), in
    its latest ``most`` jobs (-1: all).

    Disputed runs are left out; those of a forked author are shown, and speak against nobody.
    A commit that its author left unopened counts as stalled once its window has ended.
    """
    state = reader.project(project)
    standing = reader.standing(project, state)
    found: dict[bytes, Record] = {}
    for job in reader.jobs(project, most=most):
        announce = reader.announce(job.id)
        if announce is None:
            continue
        runs, commits = reader.runs(job, standing)
        for cell in {*runs, *commits}:
            add_cell(
                runs.get(cell, ()),
                commits.get(cell, ()),
                found,
                standing=standing,
                is_blind=cross_check(state, announce, job.announced).mode == "blind",
                due=now - window_ms(announce),
            )
    return found


def by_test(
    cell: CellRow, policy: ReaderPolicy, standing: Standing, read: Read
) -> dict[str, TestFinding] | None:
    """The tests that a cell's comparable runs differ on, each with a verdict of its own.

    None when it is not known here what each of the runs gave.
    """
    rows = [
        row
        for row in cell.results
        if not row.ignored
        and row.state == "completed"
        and comparable(row.result.environment) == cell.finding.comparable
    ]
    told = [(row.author, tests_of(row.result, read)) for row in rows]
    known = [(author, tests) for author, tests in told if tests is not None]
    if len(known) < len(told):
        return None
    whole = all(tests.whole for _, tests in known)
    return verdicts.by_test(
        [
            (author, tests.statuses if whole else dict.fromkeys(_bad(tests), BAD))
            for author, tests in known
        ],
        policy,
        absent=ABSENT if whole else "good",
        speakers=standing.speakers,
        pairs=cell.pairs,
        is_blind=cell.mode == "blind",
    )


# --- free questions ----------------------------------------------------------------------------

_ALLOWED = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
# FTS5 asks for data_version itself, to see whether another process wrote.
_PRAGMAS = frozenset({"table_info", "table_xinfo", "table_list", "index_list", "data_version"})
_FORBIDDEN_FUNCTIONS = frozenset({"load_extension", "fts3_tokenizer", "readfile", "writefile"})


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of a free question; ``cut`` when there were more than were asked for."""

    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    cut: bool


def sql(path: Path, query: str, *, seconds: float, most: int) -> Answer:
    """Ask the ledger in SQL, reading only, within a time and a number of rows.

    `LocalError` when the question is no single SELECT, or takes too long.
    """
    db = open_to_read(path)
    try:
        db.execute("PRAGMA query_only = ON")
        with contextlib.suppress(sqlite3.Error):
            # FTS5 declares its columns when it is first used: before that is forbidden.
            db.execute("SELECT rowid FROM failure_text LIMIT 0")
        db.set_authorizer(_may)
        deadline = time.monotonic() + seconds
        db.set_progress_handler(lambda: int(time.monotonic() > deadline), 10_000)
        try:
            cursor = db.execute(query)
            rows = cursor.fetchmany(most + 1)
        except (sqlite3.Error, sqlite3.Warning) as fault:
            if "interrupted" in str(fault):
                raise LocalError(
                    f"the query took longer than {seconds:g} s and was ended: narrow it, or allow "
                    "more with --timeout"
                ) from fault
            raise LocalError(
                f"the query is refused: {fault}; 'ponyswarm sql --schema' shows what there is"
            ) from fault
        if cursor.description is None:
            raise LocalError(
                "the query gives no rows: only SELECT is taken here; 'ponyswarm sql --schema' "
                "shows what there is"
            )
        columns = tuple(column[0] for column in cursor.description)
        return Answer(columns, rows[:most], len(rows) > most)
    finally:
        db.close()


def _may(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    if action == sqlite3.SQLITE_PRAGMA:
        good = first in _PRAGMAS
    else:
        good = action in _ALLOWED and second not in _FORBIDDEN_FUNCTIONS
    return sqlite3.SQLITE_OK if good else sqlite3.SQLITE_DENY


def tables(path: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    """(kind, name, columns) of what a person may ask about, views first."""
    with Reader(path) as reader:
        found = reader.select(
            "SELECT type, name FROM sqlite_schema WHERE type IN ('table', 'view')"
            " AND name NOT LIKE 'sqlite_%' AND name NOT LIKE 'failure_text_%'"
            " ORDER BY type DESC, name"
        )
        return [
            (
                kind,
                name,
                tuple(
                    r[0] for r in reader.select("SELECT name FROM pragma_table_info(?)", (name,))
                ),
            )
            for kind, name in found
        ]
