"""A project: its jobs one after another, and how they went over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ponyswarm.ledger import history
from ponyswarm.ledger.queries import Reader
from ponyswarm.plain import harmless
from ponyswarm.web import words
from ponyswarm.web.pages.common import JobLine, Key, NotHere, hex_id, job_line, key
from ponyswarm.web.site import Site

JOBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One job of the plot: how many of its cells are of each kind."""

    job: str
    title: str
    tally: Mapping[str, int]
    total: int
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    id: str
    name: str
    url: str
    redundancy: int
    cross_check: str
    maintainers: tuple[Key, ...]
    vouched: int
    revoked: int
    forked: tuple[Key, ...]
    jobs: tuple[JobLine, ...]
    older: int | None
    plot: tuple[Column, ...]


def project(site: Site, reader: Reader, text: str, *, before: int | None, now: int) -> Project:
    id_ = hex_id(text)
    state = reader.project(id_)
    if state is None:
        raise NotHere(
            f"the project {text[:16]}… is not in this ledger: 'ponyswarm follow add {text}' "
            "gets it, once a node runs"
        )
    record = state.record
    found = history.latest_jobs(reader, JOBS + 1, project=id_, before=before)
    lines = tuple(job_line(site, reader, job, now) for job in found[:JOBS])
    return Project(
        id=id_.hex(),
        name=harmless(record.name),
        url=words.web_url(harmless(record.url)),
        redundancy=record.cross_check.redundancy,
        cross_check=record.cross_check.mode,
        maintainers=tuple(
            key(public, state.operators)
            for public in dict.fromkeys((*record.roots, *record.announcers))
        ),
        vouched=len(state.operators),
        revoked=len(state.revoked),
        forked=tuple(key(public, state.operators) for public in sorted(reader.forked(id_))),
        jobs=lines,
        older=found[JOBS - 1].announced if len(found) > JOBS else None,
        plot=tuple(
            Column(
                job=line.id,
                title=line.title,
                tally=line.tally,
                total=sum(line.tally.values()),
                says=line.says,
            )
            for line in reversed(lines)
        ),
    )
