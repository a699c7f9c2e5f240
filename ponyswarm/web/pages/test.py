"""One test's past: over the latest jobs, in every environment. Flaky, or broken since when?"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ponyswarm.ledger import history
from ponyswarm.ledger.history import TestRun
from ponyswarm.ledger.queries import JobRow, Reader
from ponyswarm.plain import harmless, uncoloured
from ponyswarm.web.pages.common import NotHere, hex_id
from ponyswarm.web.site import Site

JOBS = 24
ROWS = 60
MAX_TEST_ID = 500
MAX_MESSAGE = 6_000

# What the runs of one cell say of a test, as a kind of `words.KINDS` and a word.
FAILS, PASSES, MIXED, UNKNOWN, NOT_RUN = "fails", "does not fail", "mixed", "unknown", "not run"
LOOKS: Mapping[str, tuple[str, str]] = {
    FAILS: ("fail", "fails"),
    PASSES: ("pass", "does not fail"),
    MIXED: ("flaky", "both: fails in some runs on equal environments and not in others"),
    UNKNOWN: ("unconfirmed", "not known here: the run's list of failures is cut"),
    NOT_RUN: ("pending", "not run"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One job: what the test gave in it as a whole."""

    job: str
    title: str
    commit: str
    announced: int
    word: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """What the test gave in one cell."""

    cell: str
    word: str
    kind: str
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    label: str
    spots: tuple[Spot | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TestPage:
    test: str
    project: str
    name: str
    conclusion: str
    kind: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    more_rows: int
    message: str
    message_cell: str


def test(site: Site, reader: Reader, text: str, id_: str) -> TestPage:
    project = hex_id(text)
    state = reader.project(project)
    if state is None:
        raise NotHere(
            f"the project {text[:16]}… is not in this ledger: 'ponyswarm follow add {text}' gets "
            "it, once a node runs"
        )
    if not id_:
        raise NotHere("name a test: its address ends in ?id=TEST, as links to tests do")
    id_ = id_[:MAX_TEST_ID]
    jobs = list(reversed(history.latest_jobs(reader, JOBS, project=project)))
    forked = reader.forked(project)
    labels: dict[str, None] = {}
    by_job: list[dict[str, Spot]] = []
    columns = []
    for job in jobs:
        spots = dict(site.remember(job, ("test", id_), partial(_spots, reader, job, id_, forked)))
        labels.update(dict.fromkeys(spots))
        by_job.append(spots)
        word = of_job(one.word for one in spots.values())
        columns.append(
            Column(
                job=job.id.hex(),
                title=harmless(job.title),
                commit=harmless(job.commit),
                announced=job.announced,
                word=word,
                kind=LOOKS[word][0],
            )
        )
    rows = [Row(label=label, spots=tuple(spots.get(label) for spots in by_job)) for label in labels]
    if len(rows) > ROWS:
        rows.sort(key=lambda row: all(s is None or s.word in (PASSES, NOT_RUN) for s in row.spots))
    word, conclusion = conclude(columns)
    message, where = _message(reader, by_job, id_)
    return TestPage(
        test=harmless(id_),
        project=project.hex(),
        name=harmless(state.record.name),
        conclusion=conclusion,
        kind=LOOKS[word][0],
        columns=tuple(columns),
        rows=tuple(rows[:ROWS]),
        more_rows=max(0, len(rows) - ROWS),
        message=message,
        message_cell=where,
    )


def _spots(
    reader: Reader, job: JobRow, test: str, forked: Collection[bytes]
) -> list[tuple[str, Spot]]:
    """What the test gave in each cell of a job, by the cell's label."""
    by_cell: dict[bytes, list[TestRun]] = {}
    for run in history.runs_of_test(reader, job.id, test, forked):
        by_cell.setdefault(run.cell, []).append(run)
    return [(label, spot(cell, by_cell.get(cell, ()))) for cell, label in _labels(reader, job)]


def _labels(reader: Reader, job: JobRow) -> list[tuple[bytes, str]]:
    rows = reader.select(
        "SELECT cell, python, services, factors FROM cell WHERE job = ? ORDER BY position",
        (job.id,),
    )
    return [(row[0], harmless(" ".join(part for part in row[1:] if part))) for row in rows]


def spot(cell: bytes, runs: Sequence[TestRun]) -> Spot:
    """What a cell's runs say of a test. Only runs that compare can be at odds."""
    word = of_runs(runs)
    failed = sum(run.failed is True for run in runs)
    kind, says = LOOKS[word]
    if failed:
        says = f"{says}: {failed} of {len(runs)} runs"
    return Spot(cell=cell.hex(), word=word, kind=kind, says=says)


def of_runs(runs: Sequence[TestRun]) -> str:
    if not runs:
        return NOT_RUN
    said: dict[bytes, set[bool | None]] = {}
    for run in runs:
        said.setdefault(run.comparable, set()).add(run.failed)
    if any({True, False} <= answers for answers in said.values()):
        return MIXED
    answers = set().union(*said.values())
    if True in answers:
        return FAILS
    return PASSES if False in answers else UNKNOWN


def of_job(spots: Iterable[str]) -> str:
    """What a test gave in a whole job: the worst of its cells."""
    found = set(spots)
    for word in (FAILS, MIXED, PASSES, UNKNOWN):
        if word in found:
            return word
    return NOT_RUN


def conclude(columns: Sequence[Column]) -> tuple[str, str]:
    """(word, sentence) on a test from its jobs, the oldest first."""
    known = [column for column in columns if column.word in (FAILS, PASSES, MIXED)]
    if not known:
        return NOT_RUN, "Nothing that is kept here says whether this test fails."
    last = known[-1]
    bad = [column for column in known if column.word != PASSES]
    if not bad:
        return PASSES, f"It does not fail in any of the latest {_jobs(len(known))}."
    if any(column.word == MIXED for column in known):
        mixed = sum(column.word == MIXED for column in known)
        return MIXED, (
            f"Flaky: in {_jobs(mixed)} of the latest {len(known)}, runs on equal environments "
            "say different things of it."
        )
    if last.word == PASSES:
        return PASSES, f"It last failed in {_name(bad[-1])}, and does not fail since."
    since = len(known)
    while since and known[since - 1].word == FAILS:
        since -= 1
    if since == 0:
        return FAILS, f"Broken: it fails in all of the latest {_jobs(len(known))}."
    return FAILS, (
        f"Broken since {_name(known[since])}; it did not fail in {_name(known[since - 1])}."
    )


def _jobs(number: int) -> str:
    return f"{number} job{'' if number == 1 else 's'}"


def _name(column: Column) -> str:
    return f"{column.title} ({column.commit[:12]})" if column.commit else column.title


def _message(reader: Reader, by_job: Sequence[Mapping[str, Spot]], test: str) -> tuple[str, str]:
    """The latest message that a failure left, and the cell that it is from."""
    for spots in reversed(by_job):
        for one in spots.values():
            if one.word in (FAILS, MIXED):
                rows = reader.select(
                    "SELECT message FROM cell CROSS JOIN result ON result.job = cell.job"
                    " AND result.cell = cell.cell CROSS JOIN failure"
                    " ON failure.arrival = result.arrival"
                    " WHERE cell.cell = ? AND failed > 0 AND test = ? AND message != '' LIMIT 1",
                    (bytes.fromhex(one.cell), test),
                )
                if rows:
                    return uncoloured(rows[0][0][-MAX_MESSAGE:]), one.cell
    return "", ""
