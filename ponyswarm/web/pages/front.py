"""The front page: projects, the latest jobs, how the swarm is."""

from __future__ import annotations

from dataclasses import dataclass

from ponyswarm.ledger import history
from ponyswarm.ledger.queries import Reader
from ponyswarm.plain import harmless
from ponyswarm.status import NodeStatus
from ponyswarm.web import words
from ponyswarm.web.pages.common import JobLine, job_line
from ponyswarm.web.site import Site

JOBS = 8
PROJECTS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectLine:
    id: str
    name: str
    url: str
    jobs: int
    trusted: bool
    offers: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A run that is under way on this machine."""

    title: str
    cell: str
    step: str
    done: int
    total: int | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What the node on this home says of itself."""

    peer: str
    peers: int
    sandbox: str
    runs: int
    tests: int
    running: tuple[Running, ...]
    idle: tuple[str, ...]
    refused: int
    heard: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    projects: tuple[ProjectLine, ...]
    more_projects: int
    jobs: tuple[JobLine, ...]
    entries: int
    volunteers: int
    node: Node | None


def front(site: Site, reader: Reader, now: int) -> Front:
    counts = history.job_counts(reader)
    size = history.size(reader)
    status = site.status()
    told = {} if status is None else {line.project: line for line in status.projects}
    rows = reader.select("SELECT project, name, url FROM project ORDER BY name, project")
    lines = []
    for id_, name, url in rows[:PROJECTS]:
        line = told.get(id_.hex())
        lines.append(
            ProjectLine(
                id=id_.hex(),
                name=harmless(name),
                url=words.web_url(harmless(url)),
                jobs=counts.get(id_, 0),
                trusted=line is not None and line.trusted,
                offers=None if line is None else line.volunteers,
            )
        )
    return Front(
        projects=tuple(lines),
        more_projects=max(0, len(rows) - PROJECTS),
        jobs=tuple(job_line(site, reader, job, now) for job in history.latest_jobs(reader, JOBS)),
        entries=size.entries,
        volunteers=size.authors,
        node=None if status is None else node(status),
    )


def empty(site: Site) -> Front:
    """The front page of a home that has no ledger yet."""
    status = site.status()
    return Front(
        projects=(),
        more_projects=0,
        jobs=(),
        entries=0,
        volunteers=0,
        node=None if status is None else node(status),
    )


def node(status: NodeStatus) -> Node:
    return Node(
        peer=status.peer,
        peers=len(status.peers),
        sandbox=harmless(status.sandbox),
        runs=status.runs,
        tests=status.tests,
        running=tuple(
            Running(
                title=harmless(run.title),
                cell=harmless(run.cell),
                step=run.step,
                done=run.done,
                total=run.total,
                seconds=run.seconds,
            )
            for run in status.running[:20]
        ),
        idle=tuple(harmless(f"{idle.title}: {idle.why}") for idle in status.idle[:10]),
        refused=sum(status.refused.values()),
        heard=tuple(harmless(line.name) for line in status.heard[:10]),
    )
