"""Search: failed tests by words, and whatever has an id by the id or its beginning."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from ponyswarm import keys
from ponyswarm.errors import LocalError
from ponyswarm.ledger import history
from ponyswarm.ledger.queries import JobRow, Reader
from ponyswarm.plain import harmless, uncoloured
from ponyswarm.web.pages.common import JobLine, job_line
from ponyswarm.web.site import Site

MOST = 40
# Failed runs that are looked at for these: a test that broke fails in every run of a job.
LOOKED_AT = 120
MAX_MESSAGE = 300
MIN_ID = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """Something with a name or an id of its own."""

    what: str
    text: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A test that failed so in one job. ``cell`` and ``time`` are of its latest run."""

    id: str
    test: str
    message: str
    project: str
    name: str
    job: str
    title: str
    commit: str
    cell: str
    time: int
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPage:
    query: str
    hits: tuple[Hit, ...]
    jobs: tuple[JobLine, ...]
    failures: tuple[Failure, ...]
    cut: bool


def search(site: Site, reader: Reader, query: str, now: int) -> SearchPage:
    query = query.strip()[:200]
    found = history.search(reader, query, LOOKED_AT + 1) if query else []
    failures = _failures(found[:LOOKED_AT])
    return SearchPage(
        query=harmless(query),
        hits=tuple(_hits(reader, query)) if query else (),
        jobs=tuple(job_line(site, reader, job, now) for job in _jobs(reader, query)),
        failures=tuple(failures[:MOST]),
        cut=len(found) > LOOKED_AT or len(failures) > MOST,
    )


def _failures(found: Sequence[history.Found]) -> list[Failure]:
    """One line for each test, job and message, in the order of their latest runs."""
    alike: dict[tuple[bytes, str, str], list[history.Found]] = {}
    for one in found:
        alike.setdefault((one.job, one.test, _last_line(one.message)), []).append(one)
    return [
        Failure(
            id=test,
            test=harmless(test),
            message=message,
            project=runs[0].project.hex(),
            name=harmless(runs[0].project_name),
            job=job.hex(),
            title=harmless(runs[0].title),
            commit=harmless(runs[0].commit),
            cell=runs[0].cell.hex(),
            time=runs[0].time,
            runs=len(runs),
        )
        for (job, test, message), runs in alike.items()
    ]


def _last_line(message: str) -> str:
    lines = uncoloured(message[-2_000:]).strip().splitlines()
    return lines[-1][:MAX_MESSAGE] if lines else ""


def _hits(reader: Reader, query: str) -> list[Hit]:
    found = [
        Hit(what="project", text=harmless(name), address=f"/project/{id_.hex()}")
        for id_, name in reader.select(
            "SELECT project, name FROM project WHERE name = ? OR instr(lower(name), lower(?))"
            " ORDER BY name LIMIT 10",
            (query, query),
        )
    ]
    try:
        _, cell = reader.find_cell(query)
        found.append(Hit(what="cell", text=cell.hex(), address=f"/cell/{cell.hex()}"))
    except LocalError:
        pass  # It is no cell's.
    try:
        public = keys.parse_peer_id(query)
        if reader.select("SELECT 1 FROM author WHERE key = ?", (public,)):
            found.append(Hit(what="key", text=query, address=f"/volunteer/{query}"))
    except LocalError:
        pass  # It is no key.
    return found


def _jobs(reader: Reader, query: str) -> list[JobRow]:
    """The job whose id, or the latest whose commit, begins so."""
    found = []
    for id_, commit in ((query, None), (None, query)):
        if len(query) >= MIN_ID:
            with contextlib.suppress(LocalError):
                found.append(reader.find_job(None, id_, commit))
    return list(dict.fromkeys(found))
