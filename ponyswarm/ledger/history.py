"""Questions over time: the latest jobs, one test's past, one volunteer's latest runs.

Each answer is bounded by a number of jobs or runs and goes through an index, so that it
takes as long at ten million entries as at ten. What lies further back is asked for by its
time. `web` shows these.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ponyswarm.agreement import Sealed, open_commits
from ponyswarm.codec import decode_kept, decode_payload
from ponyswarm.ledger.queries import WHY_BROKEN, JobRow, Reader, run_of
from ponyswarm.ledger.verdicts import Record, Run, agreement_of
from ponyswarm.messages import Commit, Entry, Kind, Result
from ponyswarm.policy import ProjectState, cross_check, window_ms

# --- jobs --------------------------------------------------------------------------------


def latest_jobs(
    reader: Reader, most: int, *, project: bytes | None = None, before: int | None = None
) -> list[JobRow]:
    """Jobs announced before a time (milliseconds; None: up to now), the latest first."""
    projects = [project] if project is not None else project_ids(reader)
    found = [job for id_ in projects for job in reader.jobs(id_, before=before, most=most)]
    return heapq.nlargest(most, found, key=lambda job: (job.announced, job.id))


def project_ids(reader: Reader) -> list[bytes]:
    return [row[0] for row in reader.select("SELECT project FROM project ORDER BY name, project")]


def job_counts(reader: Reader) -> dict[bytes, int]:
    """How many jobs each project announced."""
    rows = reader.select("SELECT project, count(*) FROM job GROUP BY project")
    return dict(rows)


@dataclass(frozen=True, slots=True)
class Size:
    """How much a ledger holds."""

    entries: int
    feeds: int
    authors: int


def size(reader: Reader) -> Size:
    """How much the ledger holds, from its feeds: the entries themselves are not counted."""
    ((entries, feeds, authors),) = reader.select(
        "SELECT ifnull(sum(height), 0), count(*), count(DISTINCT author) FROM feed"
    )
    return Size(entries, feeds, authors)


# --- failing tests ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FailingTest:
    """A test that failed in runs of a cell; ``runs`` are the arrivals of those runs."""

    test: str
    message: str
    runs: tuple[int, ...]


def failing_tests(reader: Reader, arrivals: Sequence[int], most: int) -> list[FailingTest]:
    """The tests that failed in these runs, those that failed most often first."""
    found: dict[str, list[int]] = {}
    messages: dict[str, str] = {}
    for arrival in arrivals:
        for test, message in reader.select(
            "SELECT test, message FROM failure WHERE arrival = ? LIMIT 1000", (arrival,)
        ):
            found.setdefault(test, []).append(arrival)
            if message:
                messages.setdefault(test, message)
    order = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return [FailingTest(test, messages.get(test, ""), tuple(runs)) for test, runs in order[:most]]


@dataclass(frozen=True, slots=True)
class JobFailure:
    """A test that failed somewhere in a job: in how many cells, and in one of them."""

    test: str
    cells: int
    cell: bytes


# Failing runs of a job that are looked at: a job that fails everywhere says so soon enough.
MAX_FAILING = 2_000


def job_failures(reader: Reader, job: bytes, most: int) -> list[JobFailure]:
    """The tests that failed in a job, those of most cells first."""
    rows = reader.select(
        "SELECT test, count(DISTINCT failing.cell), min(failing.cell) FROM (SELECT arrival, cell"
        " FROM result WHERE job = ? AND failed > 0 LIMIT ?) AS failing"
        " CROSS JOIN failure ON failure.arrival = failing.arrival"
        " GROUP BY test ORDER BY 2 DESC, 1 LIMIT ?",
        (job, MAX_FAILING, most),
    )
    return [JobFailure(*row) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class TestRun:
    """What one run says of one test: ``failed`` is None when that is not known here."""

    cell: bytes
    author: bytes
    comparable: bytes
    failed: bool | None


def runs_of_test(reader: Reader, job: bytes, test: str, forked: Collection[bytes]) -> list[TestRun]:
    """What the completed runs of a job say of a test.

    An entry names only the first few tests that failed. Where a run's list is cut and the
    test is not in the part that is here, whether it failed is not known.
    """
    keys: dict[int, bytes] = {}
    found = []
    for cell, author, failed, set_, here, known in reader.select(
        "SELECT cell, author, failed, comparable,"
        " CASE WHEN failed = 0 THEN 0 ELSE EXISTS (SELECT 1 FROM failure"
        " WHERE failure.arrival = result.arrival AND test = ?) END,"
        " CASE WHEN failed = 0 THEN 0 ELSE (SELECT count(*) FROM failure"
        " WHERE failure.arrival = result.arrival) END"
        " FROM result JOIN environment USING (environment)"
        " WHERE job = ? AND state = 'completed'",
        (test, job),
    ):
        if author not in keys:
            keys[author] = reader.author_key(author)
        if keys[author] not in forked:
            said = True if here else None if known < failed else False
            found.append(TestRun(cell=cell, author=keys[author], comparable=set_, failed=said))
    return found


# --- search ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A run in which a test failed."""

    project: bytes
    project_name: str
    job: bytes
    title: str
    commit: str
    cell: bytes
    place: str
    author: bytes
    test: str
    message: str
    time: int


def search(reader: Reader, text: str, most: int) -> list[Found]:
    """Failed tests whose id or message has all these words, the latest to arrive first.

    The last word may be a beginning, as when one types. To order them by how well they match
    would mean to weigh all that do.
    """
    words = [f'"{word.replace(chr(34), "")}"' for word in text.split() if word.strip('"')]
    if not words:
        return []
    rows = reader.select(
        "SELECT feed.project, ifnull(project.name, ''), failure.job, ifnull(title, ''),"
        " ifnull(\"commit\", ''), failure.cell, ifnull(python, ''), ifnull(services, ''),"
        " ifnull(factors, ''), key, test, message, time"
        " FROM (SELECT rowid AS found FROM failure_text WHERE failure_text MATCH ?"
        " ORDER BY rowid DESC LIMIT ?) CROSS JOIN failure ON failure = found"
        " JOIN entry USING (arrival) JOIN feed USING (feed)"
        " JOIN author ON author.author = feed.author"
        " LEFT JOIN project ON project.project = feed.project"
        " LEFT JOIN job ON job.job = failure.job"
        " LEFT JOIN cell ON cell.job = failure.job AND cell.cell = failure.cell"
        " ORDER BY found DESC",
        (" ".join(words) + "*", most),
    )
    return [
        Found(
            project=row[0],
            project_name=row[1],
            job=row[2],
            title=row[3],
            commit=row[4],
            cell=row[5],
            place=" ".join(part for part in row[6:9] if part),
            author=row[9],
            test=row[10],
            message=row[11],
            time=row[12],
        )
        for row in rows
    ]


# --- volunteers -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Volunteer:
    """A key that published in a project: how many entries, and when the last one was signed."""

    key: bytes
    project: bytes
    entries: int
    last: int
    forked: bool


def volunteers(reader: Reader, project: bytes | None, most: int) -> list[Volunteer]:
    """Who published in a project, or in all of them, the latest to do so first.

    Keys that only announce are among them: a feed does not say what is in it.
    """
    rows = reader.select(
        "SELECT key, project, sum(height), max(head_time), max(forked_at IS NOT NULL)"
        " FROM feed JOIN author USING (author) WHERE genesis = 0"
        + " AND project = :project" * (project is not None)
        + " GROUP BY author, project ORDER BY 4 DESC, 1 LIMIT :most",
        {"project": project, "most": most},
    )
    return [
        Volunteer(key=row[0], project=row[1], entries=row[2], last=row[3], forked=bool(row[4]))
        for row in rows
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestRun:
    """One of a key's latest runs, with what the others' runs of that cell make of it.

    ``word`` is agreed, late, dissented, open, alone, void or broken, as `verdicts.Record` has
    it; or stalled, of a commit whose outcome was never told: it has no environment, tests or
    seconds, and ``entry`` and ``time`` are the commit's.
    """

    entry: bytes
    project: bytes
    job: bytes
    cell: bytes
    time: int
    word: str
    failed: int = 0
    total: int = 0
    seconds: float = 0.0
    environment: str = ""
    reason: str = ""
    blind: bool = False


def latest_runs(
    reader: Reader, key: bytes, most: int, *, states: Mapping[bytes, ProjectState], now: int
) -> list[LatestRun]:
    """A key's latest results and stalled commits, the newest first; ``states`` by project."""
    feeds = reader.select(
        "SELECT feed, project FROM feed JOIN author USING (author)"
        " WHERE key = ? AND genesis = 0 ORDER BY head_time DESC LIMIT 50",
        (key,),
    )
    candidates = [
        (time, arrival, project)
        for feed, project in feeds
        for kind in (Kind.RESULT, Kind.COMMIT)
        for arrival, time in reader.select(
            "SELECT arrival, time FROM entry WHERE feed = ? AND kind = ? ORDER BY seq DESC LIMIT ?",
            (feed, kind, most),
        )
    ]
    found: list[LatestRun] = []
    cells: dict[tuple[bytes, bytes], dict[int, str]] = {}
    for time, arrival, project in heapq.nlargest(2 * most, candidates):
        ((frame,),) = reader.select("SELECT frame FROM entry WHERE arrival = ?", (arrival,))
        entry = decode_kept(frame)
        payload = decode_payload(entry)
        if isinstance(payload, Commit) and _is_stalled(reader, payload, time, now):
            stalled = LatestRun(
                entry=entry.id,
                project=project,
                job=payload.job,
                cell=payload.cell,
                time=time,
                word="stalled",
                blind=True,
            )
            found.append(stalled)
        if isinstance(payload, Result):
            place = (payload.job, payload.cell)
            if place not in cells:
                cells[place] = _words(reader, *place, key, project, states.get(project))
            word = cells[place].get(arrival, "open")
            found.append(_latest(reader, entry, payload, arrival, key, project, word))
        if len(found) == most:
            break
    return found


def _latest(
    reader: Reader,
    entry: Entry,
    result: Result,
    arrival: int,
    key: bytes,
    project: bytes,
    word: str,
) -> LatestRun:
    rows = reader.select(
        "SELECT failed, total, text FROM result JOIN environment USING (environment)"
        " JOIN author USING (author) WHERE job = ? AND cell = ? AND key = ? AND arrival = ?",
        (result.job, result.cell, key, arrival),
    )
    failed, total, environment = rows[0] if rows else (0, sum(result.counts.values()), "")
    return LatestRun(
        entry=entry.id,
        project=project,
        job=result.job,
        cell=result.cell,
        time=entry.header.time,
        word=word,
        failed=failed,
        total=total,
        seconds=result.seconds,
        environment=environment,
        reason=str(result.reason or ""),
        blind=bool(result.nonce),
    )


def _is_stalled(reader: Reader, commit: Commit, time: int, now: int) -> bool:
    """Whether the window of a commit has ended, and no result told what it stands for."""
    announce = reader.announce(commit.job)
    if announce is None or time >= now - window_ms(announce):
        return False
    return not reader.select(
        "SELECT 1 FROM opening WHERE job = ? AND cell = ? AND opens = ? LIMIT 1",
        (commit.job, commit.cell, commit.commitment),
    )


def stalled(reader: Reader, job: bytes, cell: bytes, now: int) -> frozenset[bytes]:
    """Who committed to an outcome of a cell and let the window end without telling it."""
    announce = reader.announce(job)
    if announce is None:
        return frozenset()
    rows = reader.select(
        "SELECT DISTINCT key FROM sealed JOIN author USING (author)"
        " WHERE job = :job AND cell = :cell AND time < :due AND commitment NOT IN"
        " (SELECT opens FROM opening WHERE job = :job AND cell = :cell)",
        {"job": job, "cell": cell, "due": now - window_ms(announce)},
    )
    return frozenset(key for (key,) in rows)


# A cell that ran more often than this is judged by its first runs alone.
MAX_RUNS = 2_000


def _words(
    reader: Reader,
    job: bytes,
    cell: bytes,
    key: bytes,
    project: bytes,
    state: ProjectState | None,
) -> dict[int, str]:
    """By arrival: what the others' runs of a cell make of each run of this key."""
    keys: dict[int, bytes] = {}
    told = reader.openings(job, cell)
    arrivals: list[int] = []
    runs: list[Run] = []
    for author, arrival, *outcome in reader.select(
        f"SELECT author, arrival, {WHY_BROKEN}, comparable, digest, failed, total"  # noqa: S608
        " FROM result JOIN environment USING (environment) WHERE job = ? AND cell = ? LIMIT ?",
        (job, cell, MAX_RUNS),
    ):
        if author not in keys:
            keys[author] = reader.author_key(author)
        arrivals.append(arrival)
        runs.append(run_of(keys[author], told.get(arrival), *outcome))
    commits = [
        Sealed(id=id_, author=author, commitment=binds)
        for id_, author, binds in reader.select(
            "SELECT id, key, commitment FROM sealed JOIN author USING (author)"
            " WHERE job = ? AND cell = ?",
            (job, cell),
        )
    ]
    announce = reader.announce(job)
    announced = next(
        (row[0] for row in reader.select("SELECT announced FROM job WHERE job = ?", (job,))), 0
    )
    is_blind = announce is not None and cross_check(state, announce, announced).mode == "blind"
    speakers = reader.standing(project, state).speakers
    opened = open_commits(runs, commits, speakers)
    others = [
        (run.author, run.outcome if run.completed else None)
        for place, run in enumerate(runs)
        if run.author != key and place not in opened.void
    ]
    words = {}
    for place, (arrival, run) in enumerate(zip(arrivals, runs, strict=True)):
        if run.author != key:
            continue
        if place in opened.void:
            words[arrival] = "void"
            continue
        records: dict[bytes, Record] = {}
        own = (key, run.outcome if run.completed else None)
        agreement_of(
            [*others, own], records, speakers=speakers, pairs=opened.pairs, is_blind=is_blind
        )
        words[arrival] = _word(records[key])
    return words


def _word(record: Record) -> str:
    """The one count that a single run has put into its record."""
    words = ("broken", "alone", "agreed", "late", "dissented")
    return next((word for word in words if getattr(record, word)), "open")
