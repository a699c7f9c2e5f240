"""A job's matrix: environments down, services and factors across, a verdict in each place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ponyswarm.ledger import history
from ponyswarm.ledger.queries import CellRow, Reader
from ponyswarm.messages import Cell
from ponyswarm.plain import harmless
from ponyswarm.policy import ReaderPolicy
from ponyswarm.web import words
from ponyswarm.web.pages.common import Key, key
from ponyswarm.web.site import Site
from ponyswarm.web.words import Shown

# Cells that are neither settled nor still to be run are told one by one, so many of them.
MAX_QUESTIONS = 30
MAX_FAILURES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One cell of the matrix."""

    id: str
    python: str
    services: tuple[str, ...]
    factors: Mapping[str, str]
    label: str
    shown: Shown


@dataclass(frozen=True, slots=True)
class Head:
    """A heading over ``span`` columns."""

    text: str
    span: int


@dataclass(frozen=True, slots=True)
class Axis:
    """One row of headings: ``services`` or a factor's name, and its values across."""

    name: str
    heads: tuple[Head, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One environment with its place in each column; None where nothing was asked for."""

    python: str
    places: tuple[Place | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    axes: tuple[Axis, ...]
    rows: tuple[Row, ...]
    columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """A test that failed in a job. ``test`` is its id, ``name`` the same made harmless."""

    test: str
    name: str
    cells: int
    cell: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    id: str
    project: str
    name: str
    title: str
    commit: str
    announced: int
    announcer: Key
    expires: int
    expired: bool
    withdrawn: bool
    redundancy: int
    cross_check: str
    command: str
    policy: str
    agreeing: int
    tally: Mapping[str, int]
    says: str
    kind: str
    runs: int
    tests: int
    grid: Grid
    failures: tuple[Failing, ...]
    questions: tuple[Place, ...]
    more_questions: int


def job(
    site: Site, reader: Reader, text: str, *, policy: str, agreeing: int | None, now: int
) -> Job:
    found = reader.find_job(None, text, None)
    chosen = ReaderPolicy.parse(policy, agreeing or found.redundancy)
    cells = site.matrix(reader, found, chosen)
    announce = reader.announce(found.id)
    points = reader.points(found.id)
    places = [_place(cell, points[cell.id]) for cell in cells if cell.id in points]
    tally = words.tally(cells)
    questions = [place for place in places if place.shown.kind not in ("pass", "fail", "pending")]
    return Job(
        id=found.id.hex(),
        project=found.project.hex(),
        name=harmless(found.project_name),
        title=harmless(found.title),
        commit=harmless(found.commit),
        announced=found.announced,
        announcer=key(found.announcer),
        expires=found.expires,
        expired=found.expires <= now,
        withdrawn=found.withdrawn,
        redundancy=found.redundancy,
        cross_check=cells[0].mode if cells else "open",
        command="" if announce is None else harmless(" ".join(announce.spec.command)),
        policy=policy,
        agreeing=chosen.agreeing,
        tally=tally,
        says=words.summary(tally),
        kind=words.overall(tally),
        runs=sum(cell.runs for cell in cells),
        tests=sum(cell.finding.tests for cell in cells),
        grid=grid(places),
        failures=tuple(
            Failing(test=one.test, name=harmless(one.test), cells=one.cells, cell=one.cell.hex())
            for one in site.remember(
                found,
                "failures",
                lambda: history.job_failures(reader, found.id, MAX_FAILURES),
            )
        ),
        questions=tuple(questions[:MAX_QUESTIONS]),
        more_questions=max(0, len(questions) - MAX_QUESTIONS),
    )


def _place(cell: CellRow, point: Cell) -> Place:
    return Place(
        id=cell.id.hex(),
        python=harmless(point.python),
        services=tuple(harmless(service) for service in point.services),
        factors={harmless(name): harmless(value) for name, value in point.factors},
        label=harmless(words.place(point)),
        shown=words.shown(cell),
    )


def grid(places: Sequence[Place]) -> Grid:
    """The places in rows and columns, in the order in which the maintainer wrote them."""
    columns = dict.fromkeys((place.services, tuple(place.factors.items())) for place in places)
    here = {(p.python, p.services, tuple(p.factors.items())): p for p in places}
    rows = [
        Row(python, tuple(here.get((python, *column)) for column in columns))
        for python in dict.fromkeys(place.python for place in places)
    ]
    # A path of values for each column; headings join neighbours that share all of it so far.
    names: list[str] = []
    paths: list[tuple[str, ...]] = [() for _ in columns]
    if any(services for services, _ in columns):
        names.append("services")
        paths = [(" + ".join(services) or "none",) for services, _ in columns]
    for name in dict.fromkeys(name for _, factors in columns for name, _ in factors):
        names.append(name)
        paths = [
            (*path, dict(factors).get(name, ""))
            for path, (_, factors) in zip(paths, columns, strict=True)
        ]
    axes = [
        Axis(
            name,
            tuple(
                Head(path[-1], len(list(group)))
                for path, group in groupby(path[: depth + 1] for path in paths)
            ),
        )
        for depth, name in enumerate(names)
    ]
    return Grid(axes=tuple(axes), rows=tuple(rows), columns=len(columns))
