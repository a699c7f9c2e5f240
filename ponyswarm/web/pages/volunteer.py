"""Volunteers: who publishes here, and how one key's runs compare with what others gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ponyswarm import keys
from ponyswarm.errors import LocalError
from ponyswarm.ledger import history
from ponyswarm.ledger.queries import Reader
from ponyswarm.plain import harmless
from ponyswarm.policy import ProjectState
from ponyswarm.web.pages.common import Key, NotHere, key
from ponyswarm.web.site import Site

RUNS = 120
LISTED = 100

# What a run is beside the others' (`verdicts.agreement`), as a kind of `words.KINDS`.
KINDS: Mapping[str, str] = {
    "agreed": "pass",
    "late": "unconfirmed",
    "dissented": "disputed",
    "void": "disputed",
    "stalled": "broken",
    "open": "flaky",
    "alone": "unconfirmed",
    "broken": "broken",
}
MEANINGS: Mapping[str, str] = {
    "agreed": "most independent volunteers gave the same outcome",
    "late": "it agrees, and may be copied: others had told theirs before",
    "dissented": "most gave one other outcome",
    "void": "it is not what its author had committed to, and counts for nothing",
    "stalled": "its author committed to an outcome and never told it",
    "open": "no outcome has most voices yet",
    "alone": "nobody else ran it on an equal environment",
    "broken": "the run did not come to an end",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What a key is in one project."""

    project: str
    name: str
    entries: int
    last: int
    operator: str
    forked: bool
    revoked: bool
    maintainer: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    entry: str
    cell: str
    job: str
    title: str
    name: str
    environment: str
    time: int
    word: str
    kind: str
    failed: int
    total: int
    seconds: float
    reason: str
    blind: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VolunteerPage:
    key: Key
    projects: tuple[Membership, ...]
    tally: Mapping[str, int]
    compared: int
    runs: tuple[RunLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    key: Key
    project: str
    name: str
    entries: int
    last: int
    forked: bool
    revoked: bool
    maintainer: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VolunteersPage:
    lines: tuple[Line, ...]
    cut: bool


def volunteer(site: Site, reader: Reader, text: str, *, now: int) -> VolunteerPage:
    try:
        public = keys.parse_peer_id(text)
    except LocalError as fault:
        raise NotHere(str(fault)) from fault
    feeds = reader.select(
        "SELECT project, sum(height), max(head_time), max(forked_at IS NOT NULL) FROM feed"
        " JOIN author USING (author) WHERE key = ? AND genesis = 0 GROUP BY project"
        " ORDER BY 3 DESC LIMIT 50",
        (public,),
    )
    if not feeds:
        raise NotHere(
            f"the key …{text[-8:]} has published nothing in this ledger: check it, or let a node "
            "run until what it published came"
        )
    states = {row[0]: reader.project(row[0]) for row in feeds}
    memberships = tuple(
        _membership(public, states[project], project, entries, last, bool(forked))
        for project, entries, last, forked in feeds
    )
    found = history.latest_runs(
        reader,
        public,
        RUNS,
        states={id_: state for id_, state in states.items() if state is not None},
        now=now,
    )
    titles = {
        id_: title
        for id_ in {run.job for run in found}
        for (title,) in reader.select("SELECT title FROM job WHERE job = ?", (id_,))
    }
    names = {id_: harmless(state.record.name) for id_, state in states.items() if state}
    runs = tuple(
        RunLine(
            entry=run.entry.hex(),
            cell=run.cell.hex(),
            job=run.job.hex(),
            title=harmless(titles.get(run.job, "a job that is not here")),
            name=names.get(run.project, ""),
            environment=harmless(run.environment),
            time=run.time,
            word=run.word,
            kind=KINDS[run.word],
            failed=run.failed,
            total=run.total,
            seconds=run.seconds,
            reason=run.reason,
            blind=run.blind,
        )
        for run in found
    )
    counted = Counter(run.word for run in runs)
    operator = next((one.operator for one in memberships if one.operator), "")
    name = keys.peer_id(public)
    return VolunteerPage(
        key=Key(id=name, tail=name[-8:], operator=operator),
        projects=memberships,
        tally={word: counted[word] for word in KINDS if counted[word]},
        compared=sum(counted[word] for word in ("agreed", "late", "dissented", "open")),
        runs=runs,
    )


def _membership(
    public: bytes,
    state: ProjectState | None,
    project: bytes,
    entries: int,
    last: int,
    forked: bool,
) -> Membership:
    return Membership(
        project=project.hex(),
        name="" if state is None else harmless(state.record.name),
        entries=entries,
        last=last,
        operator="" if state is None else harmless(state.operators.get(public, "")),
        forked=forked,
        revoked=state is not None and public in state.revoked,
        maintainer=state is not None and public in (*state.record.roots, *state.record.announcers),
    )


def volunteers(site: Site, reader: Reader) -> VolunteersPage:
    found = history.volunteers(reader, None, LISTED + 1)
    states = {id_: reader.project(id_) for id_ in {one.project for one in found}}
    lines = []
    for one in found[:LISTED]:
        state = states[one.project]
        is_maintainer = state is not None and one.key in (
            *state.record.roots,
            *state.record.announcers,
        )
        lines.append(
            Line(
                key=key(one.key, {} if state is None else state.operators),
                project=one.project.hex(),
                name="" if state is None else harmless(state.record.name),
                entries=one.entries,
                last=one.last,
                forked=one.forked,
                revoked=state is not None and one.key in state.revoked,
                maintainer=is_maintainer,
            )
        )
    return VolunteersPage(lines=tuple(lines), cut=len(found) > LISTED)
