"""What differs between two jobs, or between two environments or volunteers of one.

A side of a comparison has one run for each place of the matrix. Which one that is, what is
derived from entries tells; only those runs are decoded, so that a commit which everybody ran
a thousand times is compared as fast as any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ponyswarm.errors import LocalError
from ponyswarm.keys import peer_id
from ponyswarm.ledger.analysis import Read, differing, tests_of
from ponyswarm.ledger.queries import CellRow, JobRow, Reader
from ponyswarm.messages import Result
from ponyswarm.policy import ReaderPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One place of a matrix in two jobs, environments or volunteers.

    ``tests`` is None when the outcomes differ and which tests do is not known here.
    """

    place: str
    left: str
    right: str
    same: bool
    tests: Mapping[str, tuple[str, str]] | None


# A side of a comparison: the outcome that stands for each place.
Side = Mapping[str, Result]


@dataclass(frozen=True, slots=True)
class _Given:
    """What an author gave in a cell on one environment: its last run that gave just that."""

    author: bytes
    digest: bytes
    environment: str
    number: int
    arrival: int


def of_job(reader: Reader, job: JobRow) -> Side:
    """By cell: the outcome of the majority, or the only one, or a broken run."""
    given = _given(reader, job)
    return {
        cell.place: _read(reader, job, cell, runs[0])
        for cell in _cells(reader, job)
        if (runs := _ranked(cell, given.get(cell.id, [])))
    }


def within(reader: Reader, job: JobRow, text: str) -> Side:
    """A side of a comparison within one job: a volunteer's key (or its end), else a Python
    or a piece of an environment's name. `LocalError` when nothing fits."""
    given, cells = _given(reader, job), _cells(reader, job)
    authors = {run.author for runs in given.values() for run in runs}
    named = [key for key in authors if len(text) >= 6 and peer_id(key).endswith(text)]
    side: dict[str, Result] = {}
    for cell in cells:
        runs = _ranked(cell, given.get(cell.id, []))
        if len(named) == 1:
            # The last outcome of the one key.
            own = [run for run in runs if run.author == named[0]]
            if own:
                latest = max(own, key=lambda run: run.arrival)
                side[cell.place] = _read(reader, job, cell, latest)
        else:
            fitting = [run for run in runs if cell.python == text or text in run.environment]
            if fitting:
                side[_beside_python(cell)] = _read(reader, job, cell, fitting[0])
    if not side:
        raise LocalError(
            f"nothing in {job.title!r} ran on or by {text!r}: name a Python of the matrix, a part "
            "of an environment such as 'linux arm64', or the end of a volunteer's key"
        )
    return side


def diff(left: Side, right: Side, read: Read) -> list[Difference]:
    """What differs in each place that both sides have."""
    found = []
    for where in [where for where in left if where in right]:
        one, other = left[where], right[where]
        same = (one.state, one.digest) == (other.state, other.digest)
        tests: Mapping[str, tuple[str, str]] | None = {}
        if not same:
            mine, theirs = tests_of(one, read), tests_of(other, read)
            both_ran = one.state == other.state == "completed"
            known = both_ran and mine is not None and theirs is not None
            tests = differing(mine, theirs) if known and mine and theirs else None
        found.append(
            Difference(
                place=where, left=_summary(one), right=_summary(other), same=same, tests=tests
            )
        )
    return found


def _cells(reader: Reader, job: JobRow) -> list[CellRow]:
    return reader.matrix(job, ReaderPolicy(agreeing=job.redundancy))


def _beside_python(cell: CellRow) -> str:
    return " ".join(part for part in (cell.services, cell.factors) if part)


def _given(reader: Reader, job: JobRow) -> dict[bytes, list[_Given]]:
    """By cell: what its runs gave, in the order of their authors' keys."""
    keys: dict[int, bytes] = {}
    texts: dict[int, str] = {}
    found: dict[bytes, list[_Given]] = {}
    for cell, author, digest, where, arrival in reader.select(
        "SELECT cell, author, digest, environment, max(arrival) FROM result WHERE job = ?"
        " GROUP BY cell, author, digest, environment",
        (job.id,),
    ):
        if author not in keys:
            keys[author] = reader.author_key(author)
        if where not in texts:
            texts[where] = reader.environment(where)
        run = _Given(keys[author], digest, texts[where], author, arrival)
        found.setdefault(cell, []).append(run)
    for runs in found.values():
        runs.sort(key=lambda run: (run.author, run.arrival))
    return found


def _ranked(cell: CellRow, runs: list[_Given]) -> list[_Given]:
    """Those first that gave what most gave."""
    return sorted(runs, key=lambda run: run.digest != cell.finding.digest)


def _read(reader: Reader, job: JobRow, cell: CellRow, run: _Given) -> Result:
    return reader.outcome(job.id, cell.id, run.number, run.arrival)


def _summary(result: Result) -> str:
    if result.state == "broken":
        return f"broken ({result.reason})"
    counts = {str(status): n for status, n in result.counts.items() if n}
    return ", ".join(f"{n} {status}" for status, n in sorted(counts.items())) or "no tests"
