"""Questions to the ledger, read only. Every answer is a frozen value, ready to print."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ponyswarm.codec import (
    comparable,
    decode_frame,
    decode_payload,
    is_authentic,
    unpack_header,
)
from ponyswarm.errors import LocalError, PeerError
from ponyswarm.keys import is_valid_key
from ponyswarm.ledger.chain import Head, Refused, judge
from ponyswarm.ledger.store import RIGHTS, id_prefix
from ponyswarm.ledger.verdicts import Finding, Run
from ponyswarm.ledger.verdicts import judge as judge_cell
from ponyswarm.messages import Announce, Entry, Kind, Project, Result
from ponyswarm.policy import ProjectState, ReaderPolicy, fold


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    id: bytes
    project: bytes
    project_name: str
    title: str
    commit: str
    announced: int
    expires: int
    redundancy: int
    withdrawn: bool
    announcer: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """One outcome, with the entry that says it."""

    author: bytes
    entry: bytes
    state: str
    reason: str
    passed: int
    failed: int
    skipped: int
    total: int
    digest: bytes
    environment: str
    seconds: float
    disputed: bool
    time: int
    result: Result


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRow:
    """One cell of a job with its finding and all its outcomes."""

    id: bytes
    python: str
    services: str
    factors: str
    finding: Finding
    results: tuple[ResultRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRow:
    arrival: int
    id: bytes
    kind: str
    author: bytes
    seq: int
    time: int
    project_name: str
    text: str


class Reader:
    """A ledger opened for reading; writers may go on meanwhile."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise LocalError(f"there is no ledger at {path} yet: start 'ponyswarm node'")
        self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    # --- names --------------------------------------------------------------------------

    def find_project(self, text: str) -> bytes:
        """The project of a name, an id, or an unambiguous beginning of an id."""
        rows = self._db.execute(
            "SELECT project, name FROM project WHERE name = ? OR lower(hex(project)) LIKE ? || '%'",
            (text, text.lower() if _is_hex(text) else "?"),
        ).fetchall()
        if not rows:
            raise LocalError(
                f"no project {text!r} in this ledger: 'ponyswarm project show' lists those that "
                "are; 'ponyswarm follow add ID' gets another one"
            )
        if len(rows) > 1:
            found = ", ".join(f"{name} {id_.hex()[:16]}" for id_, name in rows)
            raise LocalError(f"{text!r} could be several projects ({found}): give more of the id")
        return bytes(rows[0][0])

    def find_job(self, project: bytes | None, text: str | None, commit: str | None) -> JobRow:
        """A job by the beginning of its id, by commit, or the latest one of a project."""
        jobs = self.jobs(project)
        if text is not None:
            jobs = [job for job in jobs if job.id.hex().startswith(text.lower())]
        if commit is not None:
            jobs = [job for job in jobs if job.commit and job.commit.startswith(commit)]
        if not jobs:
            wish = f"job {text}" if text else f"job of commit {commit}" if commit else "job"
            raise LocalError(f"there is no {wish} in this ledger; 'ponyswarm log' shows what is")
        if text is not None and len(jobs) > 1:
            raise LocalError(f"{text!r} could be several jobs: give more of the id")
        return jobs[0]

    def find_cell(self, text: str) -> tuple[bytes, bytes]:
        """(job, cell) ids of the cell whose id begins with ``text``."""
        if not _is_hex(text):
            raise LocalError(f"{text!r} is not a cell's id: 'ponyswarm results PROJECT' shows ids")
        rows = self._db.execute(
            "SELECT job, cell FROM cell WHERE lower(hex(cell)) LIKE ? || '%' LIMIT 3",
            (text.lower(),),
        ).fetchall()
        if not rows:
            raise LocalError(f"no cell {text!r} here: 'ponyswarm results PROJECT' shows cell ids")
        if len(rows) > 1:
            raise LocalError(f"{text!r} could be several cells: give more of the id")
        return bytes(rows[0][0]), bytes(rows[0][1])

    def find_entries(self, text: str, most: int = 3) -> list[Entry]:
        """The entries whose id begins with ``text``, a few of them if they are many."""
        if not _is_hex(text) or len(text) > 64:
            return []
        low, high = (id_prefix(bytes.fromhex(text[:16].ljust(16, c))) for c in "0f")
        rows = self._db.execute(
            "SELECT frame FROM entry WHERE prefix BETWEEN ? AND ? AND lower(hex(id)) LIKE ? || '%'"
            " LIMIT ?",
            (low, high, text.lower(), most),
        )
        return [decode_frame(frame) for (frame,) in rows]

    def cell_results(self, job: bytes, cell: bytes) -> list[Entry]:
        """The entries that hold a cell's results, in the order in which they arrived."""
        rows = self._db.execute(
            "SELECT frame FROM result JOIN entry USING (arrival) WHERE job = ? AND cell = ?"
            " ORDER BY arrival",
            (job, cell),
        )
        return [decode_frame(frame) for (frame,) in rows]

    # --- projects and jobs ----------------------------------------------------------------

    def projects(self) -> list[ProjectState]:
        ids = [row[0] for row in self._db.execute("SELECT project FROM project ORDER BY name")]
        return [state for id_ in ids if (state := self.project(id_)) is not None]

    def project(self, id_: bytes) -> ProjectState | None:
        """What the project's record says now, as its undisputed entries here give it."""
        entries = [decode_frame(frame) for (frame,) in self._db.execute(RIGHTS, (id_,))]
        return fold((entry, decode_payload(entry)) for entry in entries)

    def jobs(self, project: bytes | None = None) -> list[JobRow]:
        """Jobs, the latest announced first."""
        rows = self._db.execute(
            "SELECT job.job, job.project, ifnull(project.name, ''), title, \"commit\", announced,"
            " expires, redundancy, EXISTS (SELECT 1 FROM withdrawal AS w"
            " WHERE w.project = job.project AND w.job = job.job), author.key"
            " FROM job LEFT JOIN project USING (project) JOIN author USING (author)"
            " WHERE ?1 IS NULL OR job.project = ?1 ORDER BY announced DESC, job.job",
            (project,),
        )
        return [
            JobRow(
                id=row[0],
                project=row[1],
                project_name=row[2],
                title=row[3],
                commit=row[4],
                announced=row[5],
                expires=row[6],
                redundancy=row[7],
                withdrawn=bool(row[8]),
                announcer=row[9],
            )
            for row in rows
        ]

    def announce(self, job: bytes) -> Announce | None:
        """What a job's announcement says."""
        entry = self.entry(job)
        payload = None if entry is None else decode_payload(entry)
        return payload if isinstance(payload, Announce) else None

    def entry(self, id_: bytes) -> Entry | None:
        for (frame,) in self._db.execute(
            "SELECT frame FROM entry WHERE prefix = ? AND id = ?", (id_prefix(id_), id_)
        ):
            return decode_frame(frame)
        return None

    # --- results ---------------------------------------------------------------------------

    def forked(self, project: bytes) -> frozenset[bytes]:
        """Authors with a proven fork in this project: their results weigh nothing.

        A vouch that is later than every `fork` entry about them says that a maintainer
        trusts the key again. Until an entry tells of a fork, its own headers' times stand in.
        """
        state = self.project(project)
        vouched = {} if state is None else state.vouched
        told: dict[tuple[bytes, bytes], int] = {}
        for author, nonce, time in self._db.execute(
            "SELECT told.author, told.nonce, max(entry.time) FROM fork_told AS told"
            " JOIN entry USING (arrival) JOIN feed USING (feed) WHERE told.project = ?"
            " AND (forked_at IS NULL OR entry.seq < forked_at) GROUP BY told.author, told.nonce",
            (project,),
        ):
            told[author, nonce] = time
        since: dict[bytes, int] = {}
        for author, nonce, first, second in self._db.execute(
            "SELECT author, nonce, first, second FROM fork_evidence WHERE project = ?", (project,)
        ):
            time = told.get((author, nonce))
            if time is None:
                time = max(unpack_header(first).time, unpack_header(second).time)
            since[author] = max(time, since.get(author, 0))
        return frozenset(a for a, time in since.items() if vouched.get(a, -1) <= time)

    def cells(self, job: JobRow, policy: ReaderPolicy) -> list[CellRow]:
        """Every cell of a job, in the matrix's order, with verdict and outcomes."""
        results: dict[bytes, list[ResultRow]] = {}
        for cell, row in self._results(job.id):
            results.setdefault(cell, []).append(row)
        state = self.project(job.project)
        operators = {} if state is None else dict(state.operators)
        forked = self.forked(job.project)
        rows = self._db.execute(
            "SELECT cell, python, services, factors FROM cell WHERE job = ? ORDER BY position",
            (job.id,),
        )
        found = []
        for id_, python, services, factors in rows:
            mine = results.get(id_, [])
            finding = judge_cell(
                [
                    _as_run(order, row)
                    for order, row in enumerate(mine)
                    if not row.disputed
                    and not (state is not None and state.is_revoked(row.author, row.time))
                ],
                policy,
                operators=operators,
                forked=forked,
            )
            found.append(
                CellRow(
                    id=id_,
                    python=python,
                    services=services,
                    factors=factors,
                    finding=finding,
                    results=tuple(mine),
                )
            )
        return found

    def _results(self, job: bytes) -> list[tuple[bytes, ResultRow]]:
        rows = self._db.execute(
            "SELECT result.cell, author.key, entry.frame, result.environment,"
            " feed.forked_at IS NOT NULL AND entry.seq >= feed.forked_at"
            " FROM result JOIN author ON author.author = result.author"
            " JOIN entry USING (arrival) JOIN feed USING (feed)"
            " WHERE result.job = ? ORDER BY author.key, entry.time, feed.nonce, entry.seq",
            (job,),
        )
        found = []
        for cell, author, frame, environment, disputed in rows:
            entry = decode_frame(frame)
            result = decode_payload(entry)
            assert isinstance(result, Result)
            counts = {str(status): count for status, count in result.counts.items()}
            found.append(
                (
                    bytes(cell),
                    ResultRow(
                        author=author,
                        entry=entry.id,
                        state=result.state,
                        reason=str(result.reason or ""),
                        passed=counts.get("passed", 0),
                        failed=counts.get("failed", 0) + counts.get("error", 0),
                        skipped=counts.get("skipped", 0),
                        total=sum(counts.values()),
                        digest=result.digest,
                        environment=environment,
                        seconds=result.seconds,
                        disputed=bool(disputed),
                        time=entry.header.time,
                        result=result,
                    ),
                )
            )
        return found

    # --- the log, and checking all of it -----------------------------------------------------

    def log(
        self, *, project: bytes | None = None, author: bytes | None = None, most: int = 50
    ) -> list[LogRow]:
        """The latest entries to arrive, newest first."""
        rows = self._db.execute(
            "SELECT entry.arrival, entry.frame, ifnull(project.name, '') FROM entry"
            " JOIN feed USING (feed) JOIN author USING (author)"
            " LEFT JOIN project USING (project)"
            " WHERE (?1 IS NULL OR feed.project = ?1) AND (?2 IS NULL OR author.key = ?2)"
            " ORDER BY arrival DESC LIMIT ?3",
            (project, author, most),
        )
        return [_log_row(arrival, decode_frame(frame), name) for arrival, frame, name in rows]

    def count(self) -> int:
        """How many entries there are."""
        return int(self._db.execute("SELECT count(*) FROM entry").fetchone()[0])

    def verify(self, progress: Callable[[int], None]) -> list[str]:
        """Check every entry again from its bytes; what is wrong, in words.

        Frames, hashes, keys, signatures, chains, the derived index columns, and the rows
        of results are compared with what the frames say.
        """
        faults: list[str] = []
        heads: dict[int, Head] = {}
        done = 0
        for feed, seq, id_, prefix, arrival, frame in self._db.execute(
            "SELECT feed, seq, id, prefix, arrival, frame FROM entry ORDER BY feed, seq"
        ):
            done += 1
            if done % 200 == 0:
                progress(done)
            name = f"entry {arrival}"
            try:
                entry = decode_frame(frame)
            except PeerError as fault:
                faults.append(f"{name}: {fault}")
                heads.pop(feed, None)
                continue
            if entry.id != id_ or id_prefix(entry.id) != prefix or entry.header.seq != seq:
                faults.append(f"{name}: the row does not say what its frame says")
            if not is_valid_key(entry.header.author) or not is_authentic(entry):
                faults.append(f"{name}: its signature does not hold")
            link = judge(entry, heads.get(feed), None, entry.header.time)
            if isinstance(link, Refused) or (seq > 0 and entry.header.prev != _id(heads, feed)):
                faults.append(f"{name}: it does not follow the entry before it in its feed")
            heads[feed] = Head(seq, entry.id, entry.header.time)
        for feed, height, head in self._db.execute("SELECT feed, height, head FROM feed"):
            last = heads.get(feed)
            if last is None or (last.seq + 1, last.id) != (height, head):
                faults.append(f"feed {feed}: its head is not its last entry")
        faults += self._verify_results()
        progress(done)
        return faults

    def _verify_results(self) -> list[str]:
        faults = []
        for arrival, frame, state, total, failed, digest in self._db.execute(
            "SELECT entry.arrival, entry.frame, result.state, total, failed, digest FROM entry"
            " LEFT JOIN result USING (arrival) WHERE entry.kind = ?",
            (Kind.RESULT,),
        ):
            try:
                payload = decode_payload(decode_frame(frame))
            except PeerError:
                continue
            assert isinstance(payload, Result)
            counts = {str(status): count for status, count in payload.counts.items()}
            bad = counts.get("failed", 0) + counts.get("error", 0)
            facts = (payload.state, sum(counts.values()), bad, payload.digest)
            if facts != (state, total, failed, digest):
                faults.append(f"entry {arrival}: the row in 'result' does not say what it says")
        return faults


def _id(heads: dict[int, Head], feed: int) -> bytes:
    head = heads.get(feed)
    return b"" if head is None else head.id


def _is_hex(text: str) -> bool:
    return 4 <= len(text) <= 64 and all(c in "0123456789abcdefABCDEF" for c in text)


def _as_run(order: int, row: ResultRow) -> Run:
    return Run(
        author=row.author,
        order=order,
        completed=row.state == "completed",
        reason=row.reason,
        digest=row.digest,
        comparable=comparable(row.result.environment),
        failed=row.failed,
        total=row.total,
    )


def _log_row(arrival: int, entry: Entry, project_name: str) -> LogRow:
    payload = decode_payload(entry)
    match payload:
        case Project():
            text = f"project {payload.name}"
        case Announce():
            text = payload.title
        case Result():
            bad = sum(n for status, n in payload.counts.items() if status in ("failed", "error"))
            total = sum(payload.counts.values())
            text = (
                f"{total} tests, {bad} bad"
                if payload.state == "completed"
                else f"broken: {payload.reason} {payload.detail}".rstrip()
            )
        case _:
            text = ""
    kind = Kind(entry.header.kind).name.lower() if payload is not None else str(entry.header.kind)
    return LogRow(
        arrival=arrival,
        id=entry.id,
        kind=kind,
        author=entry.header.author,
        seq=entry.header.seq,
        time=entry.header.time,
        project_name=project_name,
        text=text,
    )
