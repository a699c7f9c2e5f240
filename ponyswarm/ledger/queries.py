"""Questions to the ledger, read only. Every answer is a frozen value, ready to print."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from msgspec import UNSET

from ponyswarm.agreement import Pairs, Sealed, Voice, chance, open_commits
from ponyswarm.codec import (
    cell_id,
    commitment,
    comparable,
    decode_kept,
    decode_payload,
    is_authentic,
    unpack_header,
)
from ponyswarm.errors import LocalError, PeerError
from ponyswarm.keys import peer_id
from ponyswarm.ledger.chain import Head, Refused, judge
from ponyswarm.ledger.database import SCHEMA_VERSION, Auth, id_prefix, open_to_read, schema_version
from ponyswarm.ledger.store import RIGHTS, forked_authors
from ponyswarm.ledger.verdicts import (
    NOTHING_OPENED,
    Finding,
    Outcome,
    Record,
    Run,
    Tally,
    add_cell,
    count,
    differing,
    weigh,
)
from ponyswarm.matrix import cells
from ponyswarm.messages import (
    Announce,
    Approve,
    Cell,
    Commit,
    CrossCheck,
    Entry,
    Fork,
    Kind,
    Project,
    Reason,
    Result,
    Revoke,
    Rotate,
    Status,
    Vouch,
    Withdraw,
)
from ponyswarm.policy import ProjectState, ReaderPolicy, Standing, cross_check, fold

# Of a row of `result`: why it is broken, NULL where it is completed.
WHY_BROKEN = "CASE state WHEN 'completed' THEN NULL ELSE ifnull(reason, '') END"

# What a result opens: its commitment, and the commits that it names.
Opening = tuple[bytes, frozenset[bytes]]

NOTHING = Tally({}, {}, NOTHING_OPENED)

# So many of the latest jobs make an operator's record.
RECORD_JOBS = 200

_JOBS = (
    "SELECT job.job, job.project, ifnull(project.name, ''), title, \"commit\", announced,"
    " expires, redundancy, EXISTS (SELECT 1 FROM withdrawal AS w"
    " WHERE w.project = job.project AND w.job = job.job), author.key"
    " FROM job LEFT JOIN project USING (project) JOIN author USING (author)"
)


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
    # Why it counts for nothing under the policy that was asked for; "" when it counts.
    ignored: str = ""
    # Its payload was dropped here: `result` is what the derived row tells of it.
    is_bare: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRow:
    """One cell of a job with its finding, how many runs it rests on, and, where they were
    asked for, all their outcomes."""

    id: bytes
    python: str
    services: str
    factors: str
    finding: Finding
    mode: str = "open"
    runs: int = 0
    results: tuple[ResultRow, ...] = ()
    pairs: Pairs = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where in the matrix it is, in words: ``3.12 postgresql django=5.2``."""
        return " ".join(part for part in (self.python, self.services, self.factors) if part)


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
    disputed: bool = False


class Reader:
    """A ledger opened for reading; writers may go on meanwhile."""

    def __init__(self, path: Path, *, any_thread: bool = False) -> None:
        """``any_thread``: threads take turns with it, one at a time."""
        self._db = open_to_read(path, any_thread=any_thread)
        version = schema_version(self._db, path)
        if version != SCHEMA_VERSION:
            self._db.close()
            raise LocalError(
                f"{path} was written by an earlier PonySwarm (schema {version}): 'ponyswarm node' "
                "brings it up to date when it starts; no entry is lost"
            )

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def limit(self, seconds: float) -> None:
        """End what takes longer, from now on in all, by `sqlite3.OperationalError`."""
        deadline = monotonic() + seconds
        self._db.set_progress_handler(lambda: int(monotonic() > deadline), 10_000)

    def snapshot(self) -> None:
        """Answer everything from now on as of this moment, whatever is written meanwhile."""
        self._db.execute("BEGIN")

    def author_key(self, author: int) -> bytes:
        """The key of an author's number."""
        ((key,),) = self.select("SELECT key FROM author WHERE author = ?", (author,))
        return bytes(key)

    def environment(self, environment: int) -> str:
        """The words for an environment's number."""
        ((text,),) = self.select(
            "SELECT text FROM environment WHERE environment = ?", (environment,)
        )
        return str(text)

    def select(
        self, sql: str, values: Sequence[object] | Mapping[str, object] = ()
    ) -> list[tuple[Any, ...]]:
        """The rows of a question that no method here asks."""
        return self._db.execute(sql, values).fetchall()

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
        low, high = (None, None) if text is None else _id_range(text)
        jobs = self._jobs(project, commit=commit, low=low, high=high, most=2)
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
            "SELECT job, cell FROM cell WHERE cell BETWEEN ? AND ? LIMIT 3", _id_range(text)
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
        return [decode_kept(frame) for (frame,) in rows]

    def cell_results(self, job: bytes, cell: bytes) -> list[Entry]:
        """The entries that hold a cell's results, in the order in which they arrived."""
        rows = self._db.execute(
            "SELECT frame FROM result JOIN entry USING (arrival) WHERE job = ? AND cell = ?"
            " ORDER BY arrival",
            (job, cell),
        )
        return [decode_kept(frame) for (frame,) in rows]

    # --- projects and jobs ----------------------------------------------------------------

    def projects(self) -> list[ProjectState]:
        ids = [row[0] for row in self._db.execute("SELECT project FROM project ORDER BY name")]
        return [state for id_ in ids if (state := self.project(id_)) is not None]

    def project(self, id_: bytes) -> ProjectState | None:
        """What the project's record says now, as its undisputed entries here give it."""
        entries = [decode_kept(frame) for (frame,) in self._db.execute(RIGHTS, (id_,))]
        return fold((entry, decode_payload(entry)) for entry in entries)

    def jobs(
        self, project: bytes | None = None, *, before: int | None = None, most: int = -1
    ) -> list[JobRow]:
        """Jobs announced before a time (milliseconds), the latest first."""
        return self._jobs(project, before=before, most=most)

    def _jobs(
        self,
        project: bytes | None,
        *,
        commit: str | None = None,
        low: bytes | None = None,
        high: bytes | None = None,
        before: int | None = None,
        most: int = -1,
    ) -> list[JobRow]:
        wishes = {
            "job.project = :project": project,
            # The first term is the index's own condition.
            '"commit" != \'\' AND "commit" >= :commit AND "commit" < :commit || char(1114111)': (
                commit or None
            ),
            "job.job BETWEEN :low AND :high": low,
            "announced < :before": before,
        }
        where = " AND ".join(wish for wish, value in wishes.items() if value is not None)
        rows = self._db.execute(
            f"{_JOBS} WHERE {where or 'true'} ORDER BY announced DESC, job.job LIMIT :most",
            {
                "project": project,
                "commit": commit,
                "low": low,
                "high": high,
                "before": before,
                "most": most,
            },
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

    def points(self, job: bytes) -> dict[bytes, Cell]:
        """The cells of a job by id, as its announcement gives them."""
        announce = self.announce(job)
        return {} if announce is None else {cell_id(job, c): c for c in cells(announce.spec)}

    def announce(self, job: bytes) -> Announce | None:
        """What a job's announcement says."""
        entry = self.entry(job)
        payload = None if entry is None else decode_payload(entry)
        return payload if isinstance(payload, Announce) else None

    def entry(self, id_: bytes) -> Entry | None:
        for (frame,) in self._db.execute(
            "SELECT frame FROM entry WHERE prefix = ? AND id = ?", (id_prefix(id_), id_)
        ):
            return decode_kept(frame)
        return None

    def arrival(self, id_: bytes) -> int:
        """The number of an entry that is here."""
        ((arrival,),) = self.select(
            "SELECT arrival FROM entry WHERE prefix = ? AND id = ?", (id_prefix(id_), id_)
        )
        return int(arrival)

    def given_since(self, author: bytes, since: int) -> tuple[int, int]:
        """(runs, tests) that an author's results from a time on tell of."""
        runs = tests = 0
        for (feed,) in self._db.execute(
            "SELECT feed FROM feed JOIN author USING (author) WHERE key = ?", (author,)
        ).fetchall():
            # Times never fall within a feed, so its end is all that need be read.
            for time, total in self._db.execute(
                "SELECT time, total FROM entry LEFT JOIN result USING (arrival)"
                " WHERE feed = ? ORDER BY seq DESC",
                (feed,),
            ):
                if time < since:
                    break
                runs += total is not None
                tests += total or 0
        return runs, tests

    # --- results ---------------------------------------------------------------------------

    def forked(self, project: bytes, state: ProjectState | None = None) -> frozenset[bytes]:
        """Authors with a proven fork in this project (`store.forked_authors`)."""
        state = state or self.project(project)
        return forked_authors(self._db, project, {} if state is None else state.vouched)

    def cells(self, job: JobRow, policy: ReaderPolicy, only: bytes | None = None) -> list[CellRow]:
        """Every cell of a job, in the matrix's order, with verdict and outcomes.

        ``only`` is the one cell that is asked for. Where the verdicts are enough, `matrix`
        is much faster.
        """
        results: dict[bytes, list[ResultRow]] = {}
        for cell, row in self._results(job.id, only):
            results.setdefault(cell, []).append(row)
        standing = self.standing(job.project)
        commits = self._commits(job.id, only, self._void(job, standing))
        return [
            replace(
                row,
                results=_explained(
                    results.get(row.id, ()), commits.get(row.id, ()), policy, standing
                ),
            )
            for row in self.matrix(job, policy, only)
        ]

    def matrix(self, job: JobRow, policy: ReaderPolicy, only: bytes | None = None) -> list[CellRow]:
        """Every cell of a job with its verdict, from derived columns alone: no outcomes."""
        state = self.project(job.project)
        standing = self.standing(job.project, state)
        check = self._check(job, state)
        speakers = standing.speakers
        chances = self.chances(job.project, state, standing) if check.mode == "blind" else {}
        tallies, runs = self._tallies(job, policy, standing, only, chances)
        rows = self._db.execute(
            "SELECT cell, python, services, factors FROM cell WHERE job = :job"
            " AND (:only IS NULL OR cell = :only) ORDER BY position",
            {"job": job.id, "only": only},
        )
        found = []
        for id_, python, services, factors in rows:
            tally = tallies.get(id_, NOTHING)
            finding = weigh(
                tally.voices,
                tally.broken,
                policy,
                speakers=speakers,
                opened=tally.opened,
                is_blind=check.mode == "blind",
            )
            if finding.dissent or finding.wavering:
                finding = replace(finding, differ=self._differ(job.id, id_, finding))
            found.append(
                CellRow(
                    id=id_,
                    python=python,
                    services=services,
                    factors=factors,
                    finding=finding,
                    mode=check.mode,
                    runs=runs.get(id_, 0),
                    pairs=tally.opened.pairs,
                )
            )
        return found

    def _differ(self, job: bytes, cell: bytes, finding: Finding) -> tuple[str, ...]:
        """The tests that the runs of a finding differ on, as far as their entries name them."""
        lists = []
        heard = {*finding.supporters, *finding.dissent, *finding.wavering}
        # Equal digests are equal lists: one run of each is looked at, however many there are.
        examples = {
            digest: (arrival, failed)
            for digest, key, arrival, failed in self._db.execute(
                "SELECT digest, key, min(arrival), failed FROM result"
                " JOIN environment USING (environment) JOIN author USING (author)"
                " WHERE job = ? AND cell = ? AND state = 'completed' AND comparable = ?"
                " GROUP BY author, digest",
                (job, cell, finding.comparable),
            )
            if key in heard
        }
        for arrival, failed in examples.values():
            rows = self._db.execute("SELECT test FROM failure WHERE arrival = ?", (arrival,))
            names = [test for (test,) in rows]
            if len(names) == failed:
                lists.append(names)
        return differing(lists)

    def standing(self, project: bytes, state: ProjectState | None = None) -> Standing:
        """Whose word counts in a project, as its entries here give it."""
        state = state or self.project(project)
        return Standing() if state is None else state.standing(self.forked(project, state))

    def _check(self, job: JobRow, state: ProjectState | None) -> CrossCheck:
        announce = self.announce(job.id)
        return CrossCheck() if announce is None else cross_check(state, announce, job.announced)

    def _tallies(
        self,
        job: JobRow,
        policy: ReaderPolicy,
        standing: Standing,
        only: bytes | None,
        chances: Mapping[Voice, float],
    ) -> tuple[dict[bytes, Tally], dict[bytes, int]]:
        """By cell: who gave which outcome, how many broke and why; and how many runs."""
        void = self._void(job, standing)
        commits = self._commits(job.id, only, void)
        told = self.openings(job.id, only)
        # This loop runs for each result of a job, sixty thousand times for a hot one.
        keys: dict[int, bytes | None] = {}
        sets: dict[int, bytes] = {}
        voices: dict[bytes, dict[Outcome, list[bytes]]] = {}
        broken: dict[bytes, dict[str, int]] = {}
        runs: dict[bytes, int] = {}
        sealed: dict[bytes, list[Run]] = {}
        here: dict[Outcome, list[bytes]] = {}
        last_cell, outcomes, is_sealed = b"", 0, False
        for cell, author, arrival, reason, digest, where, failed, total in self._db.execute(
            f"SELECT cell, author, arrival, {WHY_BROKEN}, digest, environment, failed, total"  # noqa: S608
            " FROM result WHERE job = ?"
            + " AND cell = ?" * (only is not None)
            + " ORDER BY cell, author, arrival",
            (job.id, only) if only is not None else (job.id,),
        ):
            if cell != last_cell:
                if last_cell:
                    runs[last_cell] = outcomes
                last_cell, outcomes = cell, 0
                here = voices.setdefault(cell, {})
                is_sealed = bool(told) or cell in commits
            outcomes += 1
            if void and arrival in void:
                continue
            if author not in keys:
                keys[author] = self._counted(author, policy, standing)
            key = keys[author]
            if key is None:
                continue
            set_ = sets.get(where)
            if set_ is None:
                set_ = sets[where] = self._comparable(where)
            if is_sealed:
                run = run_of(key, told.get(arrival), reason, set_, digest, failed, total)
                sealed.setdefault(cell, []).append(run)
                continue
            if reason is not None:
                reasons = broken.setdefault(cell, {})
                reasons[reason] = reasons.get(reason, 0) + 1
                continue
            # A plain tuple equals an `Outcome` of the same, and is made much faster.
            found = here.get((set_, digest, failed, total))  # type: ignore[call-overload]
            if found is None:
                here[Outcome(set_, digest, failed, total)] = [key]
            elif found[-1] != key:
                found.append(key)
        if last_cell:
            runs[last_cell] = outcomes
        tallies = {
            cell: Tally(said, broken.get(cell, {}), NOTHING.opened) for cell, said in voices.items()
        }
        speakers = standing.speakers
        for cell in {*sealed, *commits}:
            mine = [
                commit for commit in commits.get(cell, ()) if policy.counts(commit.author, standing)
            ]
            tallies[cell] = count(sealed.get(cell, []), mine, speakers, chances)
        return tallies, runs

    def _commits(self, job: bytes, only: bytes | None, void: set[int]) -> dict[bytes, list[Sealed]]:
        """By cell: the commits to it that count."""
        rows = [
            row
            for row in self._db.execute(
                "SELECT cell, key, arrival, id, commitment, time, seen FROM sealed"
                " JOIN author USING (author) WHERE job = ? ORDER BY id",
                (job,),
            )
            if row[2] not in void
        ]
        named: dict[bytes, list[tuple[bytes, bytes]]] = {}
        for _, author, _, id_, _, _, seen in rows:
            for other in _ids(seen):
                named.setdefault(other, []).append((id_, author))
        found: dict[bytes, list[Sealed]] = {}
        for cell, author, _, id_, binds, time, _ in rows:
            if only is None or cell == only:
                commit = Sealed(
                    id=id_,
                    author=author,
                    commitment=binds,
                    time=time,
                    named=tuple(named.get(id_, ())),
                )
                found.setdefault(cell, []).append(commit)
        return found

    def chances(
        self, project: bytes, state: ProjectState | None, standing: Standing
    ) -> dict[Voice, float]:
        """How likely a run of each operator is checked, of those with a long record.

        It counts the checked runs of the latest jobs that others agreed with, back to the
        last job in which one of an operator's did not stand. Nobody else's are counted.
        """
        floor = UNSET if state is None else state.record.cross_check.floor
        if floor is UNSET:
            return {}
        streaks: Counter[Voice] = Counter()
        ended: set[Voice] = set()
        for job in self._jobs(project, most=RECORD_JOBS):
            is_blind = self._check(job, state).mode == "blind"
            runs, commits = self.runs(job, standing)
            records: dict[bytes, Record] = {}
            for cell, here in runs.items():
                known = commits.get(cell, ())
                add_cell(here, known, records, standing=standing, is_blind=is_blind)
            ended |= {standing.voice(k) for k, one in records.items() if one.dissented or one.void}
            for key, record in records.items():
                if standing.voice(key) not in ended:
                    streaks[standing.voice(key)] += record.agreed
        odds = {voice: chance(streak, floor) for voice, streak in streaks.items()}
        return {voice: one for voice, one in odds.items() if one < 1 and isinstance(voice, str)}

    def openings(self, job: bytes, only: bytes | None) -> dict[int, Opening]:
        """By arrival of a result that opens a commitment: that, and the commits it names."""
        return {
            arrival: (opens, frozenset(_ids(seen)))
            for arrival, opens, seen in self._db.execute(
                "SELECT arrival, opens, seen FROM opening WHERE job = :job"
                " AND (:only IS NULL OR cell = :only)",
                {"job": job, "only": only},
            )
        }

    def runs(
        self, job: JobRow, standing: Standing
    ) -> tuple[dict[bytes, list[Run]], dict[bytes, list[Sealed]]]:
        """By cell: every run and every commit of a job but disputed ones and of ended keys."""
        void = self._void(job, standing)
        told = self.openings(job.id, None)
        found: dict[bytes, list[Run]] = {}
        for cell, key, arrival, *outcome in self._db.execute(
            f"SELECT cell, key, arrival, {WHY_BROKEN}, comparable, digest, failed, total"  # noqa: S608
            " FROM result JOIN environment USING (environment)"
            " JOIN author ON author.author = result.author WHERE job = ?"
            " ORDER BY cell, result.author, arrival",
            (job.id,),
        ):
            if arrival in void:
                continue
            found.setdefault(cell, []).append(run_of(key, told.get(arrival), *outcome))
        return found, self._commits(job.id, None, void)

    def _void(self, job: JobRow, standing: Standing) -> set[int]:
        """Arrivals of entries that count for nothing: disputed, or of an ended key."""
        void = {
            row[0]
            for row in self._db.execute(
                "SELECT arrival FROM feed JOIN entry USING (feed) WHERE project = ?"
                " AND forked_at IS NOT NULL AND seq >= forked_at",
                (job.project,),
            )
        }
        for key, since in standing.revoked.items():
            void |= {
                row[0]
                for row in self._db.execute(
                    "SELECT arrival FROM feed JOIN author USING (author) JOIN entry USING (feed)"
                    " WHERE project = ? AND key = ? AND time >= ?",
                    (job.project, key, since),
                )
            }
        return void

    def _comparable(self, environment: int) -> bytes:
        return bytes(
            self._db.execute(
                "SELECT comparable FROM environment WHERE environment = ?", (environment,)
            ).fetchone()[0]
        )

    def _counted(self, author: int, policy: ReaderPolicy, standing: Standing) -> bytes | None:
        """The key of an author whose word counts under a policy; None of any other."""
        key = self.author_key(author)
        return key if policy.counts(key, standing) else None

    def example(self, job: bytes, cell: bytes, digest: bytes) -> Result | None:
        """One of the results that gave a cell this outcome, as it was signed."""
        row = self._db.execute(
            "SELECT entry.frame FROM result JOIN entry USING (arrival)"
            " WHERE result.job = ? AND result.cell = ? AND result.digest = ? LIMIT 1",
            (job, cell, digest),
        ).fetchone()
        payload = None if row is None else decode_payload(decode_kept(row[0]))
        return payload if isinstance(payload, Result) else None

    def outcome(self, job: bytes, cell: bytes, author: int, arrival: int) -> Result:
        """What one run gave, as far as it is known here still."""
        frame, *row = self._db.execute(
            "SELECT frame, state, reason, passed, failed, skipped, digest, seconds FROM result"
            " JOIN entry USING (arrival) WHERE job = ? AND cell = ? AND author = ? AND arrival = ?",
            (job, cell, author, arrival),
        ).fetchone()
        return _told(job, cell, decode_kept(frame), row)

    def _results(self, job: bytes, only: bytes | None) -> list[tuple[bytes, ResultRow]]:
        rows = self._db.execute(
            "SELECT result.cell, author.key, entry.frame, environment.text,"
            " feed.forked_at IS NOT NULL AND entry.seq >= feed.forked_at,"
            " state, reason, passed, failed, skipped, digest, seconds"
            " FROM result JOIN author ON author.author = result.author"
            " JOIN environment ON environment.environment = result.environment"
            " JOIN entry USING (arrival) JOIN feed USING (feed)"
            " WHERE result.job = :job AND (:only IS NULL OR result.cell = :only)"
            " ORDER BY author.key, entry.time, feed.nonce, entry.seq",
            {"job": job, "only": only},
        )
        found = []
        for cell, author, frame, environment, disputed, *row in rows:
            entry = decode_kept(frame)
            result = _told(job, cell, entry, row)
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
                        is_bare=entry.is_bare,
                    ),
                )
            )
        return found

    # --- the log, and checking all of it -----------------------------------------------------

    def log(
        self, *, project: bytes | None = None, author: bytes | None = None, most: int = 50
    ) -> list[LogRow]:
        """The latest entries to arrive, newest first."""
        columns = (
            "SELECT entry.arrival, entry.frame, ifnull(project.name, ''),"
            " forked_at IS NOT NULL AND entry.seq >= forked_at FROM entry"
            " JOIN feed USING (feed) LEFT JOIN project USING (project)"
        )
        if project is None and author is None:
            rows = self._db.execute(f"{columns} ORDER BY arrival DESC LIMIT ?", (most,)).fetchall()
        else:
            # The latest of each feed, whatever else arrived since.
            feeds = self._db.execute(
                "SELECT feed FROM feed JOIN author USING (author)"
                " WHERE (:project IS NULL OR project = :project)"
                " AND (:author IS NULL OR key = :author)",
                {"project": project, "author": author},
            ).fetchall()
            arrivals = heapq.nlargest(
                most,
                (
                    arrival
                    for feed in feeds
                    for (arrival,) in self._db.execute(
                        "SELECT arrival FROM entry WHERE feed = ? ORDER BY seq DESC LIMIT ?",
                        (*feed, most),
                    )
                ),
            )
            rows = [
                self._db.execute(f"{columns} WHERE arrival = ?", (arrival,)).fetchone()
                for arrival in arrivals
            ]
        return [
            _log_row(arrival, decode_kept(frame), name, bool(disputed))
            for arrival, frame, name, disputed in rows
        ]

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
        for feed, seq, id_, prefix, arrival, auth, frame in self._db.execute(
            "SELECT feed, seq, id, prefix, arrival, auth, frame FROM entry ORDER BY feed, seq"
        ):
            done += 1
            if done % 200 == 0:
                progress(done)
            name = f"entry {arrival}"
            try:
                entry = decode_kept(frame)
            except PeerError as fault:
                faults.append(f"{name}: {fault}")
                heads.pop(feed, None)
                continue
            if entry.id != id_ or id_prefix(entry.id) != prefix or entry.header.seq != seq:
                faults.append(f"{name}: the row does not say what its frame says")
            if auth != Auth.JUNK and not is_authentic(entry):
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
            " LEFT JOIN result USING (arrival) WHERE entry.kind = ? AND length(frame) > 224",
            (Kind.RESULT,),
        ):
            try:
                payload = decode_payload(decode_kept(frame))
            except PeerError:
                continue
            assert isinstance(payload, Result)
            counts = {str(status): count for status, count in payload.counts.items()}
            bad = counts.get("failed", 0) + counts.get("error", 0)
            facts = (payload.state, sum(counts.values()), bad, payload.digest)
            if facts != (state, total, failed, digest):
                faults.append(f"entry {arrival}: the row in 'result' does not say what it says")
        return faults


def _ids(joined: bytes) -> list[bytes]:
    return [joined[at : at + 32] for at in range(0, len(joined), 32)]


def _explained(
    rows: Sequence[ResultRow],
    commits: Sequence[Sealed],
    policy: ReaderPolicy,
    standing: Standing,
) -> tuple[ResultRow, ...]:
    """Say of each of a cell's results why it counts for nothing, if it does."""
    found: list[ResultRow] = []
    counted: list[int] = []
    runs: list[Run] = []
    for row in rows:
        if row.disputed:
            why = "its author signed two histories here"
        elif row.author in standing.forked:
            why = "its author forked its feed"
        elif not standing.stands(row.author, row.time):
            why = "its key was ended before"
        elif not policy.counts(row.author, standing):
            why = "your policy leaves its key out"
        else:
            why = ""
        if not why and not row.is_bare:
            result = row.result
            nonce, digest = result.nonce, result.digest
            counted.append(len(found))
            runs.append(
                Run(
                    author=row.author,
                    completed=row.state == "completed",
                    digest=digest,
                    comparable=comparable(result.environment),
                    failed=row.failed,
                    total=row.total,
                    opens=commitment(nonce, digest, row.author) if nonce else None,
                )
            )
        found.append(replace(row, ignored=why))
    opened = open_commits(runs, [c for c in commits if policy.counts(c.author, standing)], {})
    for place in opened.void:
        row = found[counted[place]]
        found[counted[place]] = replace(row, ignored="it is not what its author committed to")
    return tuple(found)


def run_of(
    author: bytes,
    opening: Opening | None,
    why_broken: str | None,
    set_: bytes,
    digest: bytes,
    failed: int,
    total: int,
) -> Run:
    """A row of `result` as a verdict sees it; `WHY_BROKEN` gives the third value."""
    opens, seen = opening or (None, frozenset())
    return Run(
        author=author,
        completed=why_broken is None,
        digest=digest,
        comparable=set_,
        failed=failed,
        total=total,
        reason=why_broken or "",
        opens=opens,
        seen=seen,
    )


def _told(job: bytes, cell: bytes, entry: Entry, row: Sequence[Any]) -> Result:
    """A result from its entry, or where that is bare from the columns that are left of it."""
    result = _left_of(job, cell, *row) if entry.is_bare else decode_payload(entry)
    assert isinstance(result, Result)
    return result


def _left_of(
    job: bytes,
    cell: bytes,
    state: Literal["completed", "broken"],
    reason: str | None,
    passed: int,
    failed: int,
    skipped: int,
    digest: bytes,
    seconds: float,
) -> Result:
    """What is known still of a result whose payload was dropped here."""
    return Result(
        job=job,
        cell=cell,
        state=state,
        reason=None if reason is None else Reason(reason),
        detail="its details were dropped here as old; 'ponyswarm node --archive' gets them back",
        counts={Status.PASSED: passed, Status.FAILED: failed, Status.SKIPPED: skipped},
        digest=digest,
        started=0,
        seconds=seconds,
    )


def chances(path: Path, project: bytes) -> dict[Voice, float]:
    """`Reader.chances` of a ledger that is not open here."""
    with Reader(path) as reader:
        state = reader.project(project)
        return reader.chances(project, state, reader.standing(project, state))


def _id(heads: dict[int, Head], feed: int) -> bytes:
    head = heads.get(feed)
    return b"" if head is None else head.id


def _is_hex(text: str) -> bool:
    return 4 <= len(text) <= 64 and all(c in "0123456789abcdefABCDEF" for c in text)


def _id_range(text: str) -> tuple[bytes, bytes]:
    """The first and the last id that begin with these digits; none when they are not any."""
    if not 1 <= len(text) <= 64 or not all(c in "0123456789abcdefABCDEF" for c in text):
        return b"\1", b"\0"
    return bytes.fromhex(text.ljust(64, "0")), bytes.fromhex(text.ljust(64, "f"))


def _log_row(arrival: int, entry: Entry, project_name: str, disputed: bool) -> LogRow:
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
        case Fork():
            header = unpack_header(payload.first)
            text = f"{peer_id(header.author)} forked its feed at #{header.seq}"
        case Vouch():
            text = f"{peer_id(payload.key)} is run by {payload.operator}"
        case Revoke():
            text = f"{peer_id(payload.key)} is ended: {payload.reason}".rstrip(": ")
        case Withdraw():
            text = f"job {payload.job.hex()[:16]} is withdrawn: {payload.reason}".rstrip(": ")
        case Commit():
            text = f"an outcome of cell {payload.cell.hex()[:16]}, to be told later"
        case Rotate():
            text = f"its key goes on as {peer_id(payload.successor)}"
        case Approve():
            text = f"stands behind record {payload.record.hex()[:16]}"
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
        disputed=disputed,
    )
