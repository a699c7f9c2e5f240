"""Questions over time: the latest jobs, one test's past, one volunteer's latest runs.

Each answer is bounded by a number of jobs or runs and goes through an index, so that it
takes as long at ten million entries as at ten. What lies further back is asked for by its
time. `web` shows these.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ponyswarm.codec import decode_kept, decode_payload
from ponyswarm.ledger.queries import JobRow, Reader
from ponyswarm.ledger.verdicts import Outcome, Record, agreement_of
from ponyswarm.messages import Kind, Result

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
        " WHERE failure.arrival = result.arrival AND test = ?2) END,"
        " CASE WHEN failed = 0 THEN 0 ELSE (SELECT count(*) FROM failure"
        " WHERE failure.arrival = result.arrival) END"
        " FROM result JOIN environment USING (environment)"
        " WHERE job = ?1 AND state = 'completed'",
        (job, test),
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
    test: str
    message: str
    time: int


def search(reader: Reader, text: str, most: int) -> list[Found]:
    """Failed tests whose id or message has all these words, the latest to arrive first.

    `analysis.search` orders by how well they match, which must weigh all that do.
    """
    words = [f'"{word.replace(chr(34), "")}"' for word in text.split() if word.strip('"')]
    if not words:
        return []
    rows = reader.select(
        "SELECT feed.project, ifnull(project.name, ''), failure.job, ifnull(title, ''),"
        " ifnull(\"commit\", ''), failure.cell, test, message, time"
        " FROM (SELECT rowid AS found FROM failure_text WHERE failure_text MATCH ?"
        " ORDER BY rowid DESC LIMIT ?) CROSS JOIN failure ON failure = found"
        " JOIN entry USING (arrival) JOIN feed USING (feed)"
        " LEFT JOIN project ON project.project = feed.project"
        " LEFT JOIN job ON job.job = failure.job ORDER BY found DESC",
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
            test=row[6],
            message=row[7],
            time=row[8],
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
        + " AND project = ?1" * (project is not None)
        + " GROUP BY author, project ORDER BY 4 DESC, 1 LIMIT ?2",
        (project, most),
    )
    return [
        Volunteer(key=row[0], project=row[1], entries=row[2], last=row[3], forked=bool(row[4]))
        for row in rows
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestRun:
    """One of a key's latest runs, with what the others' runs of that cell make of it.

    ``word`` is agreed, dissented, alone, open or broken, as `verdicts.agreement` has it.
    """

    arrival: int
    entry: bytes
    project: bytes
    job: bytes
    cell: bytes
    time: int
    word: str
    failed: int
    total: int
    seconds: float
    environment: str
    reason: str
    blind: bool


def latest_runs(
    reader: Reader, key: bytes, most: int, *, operators: Mapping[bytes, Mapping[bytes, str]]
) -> list[LatestRun]:
    """A key's latest results, the newest first. ``operators`` by project, as vouched there."""
    feeds = reader.select(
        "SELECT feed, project FROM feed JOIN author USING (author)"
        " WHERE key = ? AND genesis = 0 ORDER BY head_time DESC LIMIT 50",
        (key,),
    )
    candidates = [
        (time, arrival, project)
        for feed, project in feeds
        for arrival, time in reader.select(
            "SELECT arrival, time FROM entry WHERE feed = ? AND kind = ? ORDER BY seq DESC LIMIT ?",
            (feed, Kind.RESULT, most),
        )
    ]
    found = []
    cells: dict[tuple[bytes, bytes], dict[int, str]] = {}
    for time, arrival, project in heapq.nlargest(most, candidates):
        ((frame,),) = reader.select("SELECT frame FROM entry WHERE arrival = ?", (arrival,))
        entry = decode_kept(frame)
        result = decode_payload(entry)
        if not isinstance(result, Result):
            continue
        place = (result.job, result.cell)
        if place not in cells:
            cells[place] = _words(reader, *place, key, operators.get(project, {}))
        rows = reader.select(
            "SELECT failed, total, text FROM result JOIN environment USING (environment)"
            " JOIN author USING (author) WHERE job = ? AND cell = ? AND key = ? AND arrival = ?",
            (*place, key, arrival),
        )
        failed, total, environment = rows[0] if rows else (0, sum(result.counts.values()), "")
        found.append(
            LatestRun(
                arrival=arrival,
                entry=entry.id,
                project=project,
                job=result.job,
                cell=result.cell,
                time=time,
                word=cells[place].get(arrival, "open"),
                failed=failed,
                total=total,
                seconds=result.seconds,
                environment=environment,
                reason=str(result.reason or ""),
                blind=bool(result.nonce),
            )
        )
    return found


# A cell that ran more often than this is judged by its first runs alone.
MAX_RUNS = 2_000


def _words(
    reader: Reader, job: bytes, cell: bytes, key: bytes, operators: Mapping[bytes, str]
) -> dict[int, str]:
    """By arrival: what the others' runs of a cell make of each run of this key."""
    others: list[tuple[bytes, Outcome | None]] = []
    own: dict[int, Outcome | None] = {}
    keys: dict[int, bytes] = {}
    for author, arrival, state, *outcome in reader.select(
        "SELECT author, arrival, state, comparable, digest, failed, total FROM result"
        " JOIN environment USING (environment) WHERE job = ? AND cell = ? LIMIT ?",
        (job, cell, MAX_RUNS),
    ):
        if author not in keys:
            keys[author] = reader.author_key(author)
        said = Outcome(*outcome) if state == "completed" else None
        if keys[author] == key:
            own[arrival] = said
        else:
            others.append((keys[author], said))
    words = {}
    for arrival, said in own.items():
        records: dict[bytes, Record] = {}
        agreement_of([*others, (key, said)], records, speakers=operators)
        words[arrival] = _word(records[key])
    return words


def _word(record: Record) -> str:
    if record.broken:
        return "broken"
    if record.alone:
        return "alone"
    if record.agreed:
        return "agreed"
    return "dissented" if record.dissented else "open"
