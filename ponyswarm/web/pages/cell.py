"""A cell: who ran it, what they agree on, which tests failed, and how long it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ponyswarm import agreement
from ponyswarm.codec import comparable, decode_tests
from ponyswarm.errors import PeerError
from ponyswarm.ledger import history
from ponyswarm.ledger.history import FailingTest
from ponyswarm.ledger.queries import CellRow, JobRow, Reader, ResultRow
from ponyswarm.messages import BAD_STATUSES, Cell
from ponyswarm.plain import harmless, uncoloured
from ponyswarm.policy import ReaderPolicy
from ponyswarm.web import words
from ponyswarm.web.pages.common import Key, key
from ponyswarm.web.site import Site
from ponyswarm.web.words import Shown

MAX_RUNS = 100
MAX_TESTS = 50
MAX_MESSAGE = 6_000
# Lists of tests that are read for messages which the ledger does not hold.
MAX_LISTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """One run. ``voice`` is the letter of its outcome; "" of a broken one.

    ``check`` is ``blind``, ``open``, or ``late``: it agrees with others of a blind job, and
    could have been copied from what they had told.
    """

    entry: str
    key: Key
    time: int
    state: str
    reason: str
    detail: str
    passed: int
    failed: int
    skipped: int
    total: int
    environment: str
    sandbox: str
    seconds: float
    digest: str
    voice: str
    check: str
    counts: bool
    why_not: str
    has_log: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """One outcome, and the keys that gave it. ``stands``: the verdict rests on it."""

    letter: str
    digest: str
    environment: str
    failed: int
    total: int
    keys: tuple[Key, ...]
    more_keys: int
    stands: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """``test`` is its id, ``name`` the same made harmless."""

    test: str
    name: str
    message: str
    runs: int
    voices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """A test that comparable runs disagree on. ``name`` is its id made harmless."""

    test: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPage:
    id: str
    job: str
    title: str
    commit: str
    project: str
    name: str
    python: str
    services: tuple[str, ...]
    factors: Mapping[str, str]
    label: str
    shown: Shown
    redundancy: int
    cross_check: str
    policy: str
    agreeing: int
    voices: tuple[Voice, ...]
    sealed: tuple[Key, ...]
    stalled: tuple[Key, ...]
    differ: tuple[Difference, ...]
    runs: tuple[RunLine, ...]
    more_runs: int
    failures: tuple[Failure, ...]
    more_failures: int
    withdrawn: bool
    expired: bool


def cell(
    site: Site, reader: Reader, text: str, *, policy: str, agreeing: int | None, now: int
) -> CellPage:
    job_id, cell_id = reader.find_cell(text)
    job = reader.find_job(None, job_id.hex(), None)
    chosen = ReaderPolicy.parse(policy, agreeing or job.redundancy)
    (row,) = reader.cells(job, chosen, cell_id)
    point = reader.points(job.id).get(cell_id) or Cell(python=row.python)
    state = reader.project(job.project)
    operators = {} if state is None else state.operators
    letters = _letters(row)
    results = sorted(row.results, key=lambda result: (-result.time, result.entry))
    late = _late(row, reader.standing(job.project, state).speakers)
    runs = [_run(result, letters, operators, late) for result in results]
    stalled = history.stalled(reader, job.id, cell_id, now) & {*row.finding.sealed}
    sealed = [author for author in row.finding.sealed if author not in stalled]
    failures = _failures(site, reader, job, results, letters)
    return CellPage(
        id=cell_id.hex(),
        job=job.id.hex(),
        title=harmless(job.title),
        commit=harmless(job.commit),
        project=job.project.hex(),
        name=harmless(job.project_name),
        python=harmless(point.python),
        services=tuple(harmless(service) for service in point.services),
        factors={harmless(name): harmless(value) for name, value in point.factors},
        label=harmless(words.place(point)),
        shown=words.shown(row),
        redundancy=job.redundancy,
        cross_check=row.mode,
        policy=policy,
        agreeing=chosen.agreeing,
        voices=_voices(row, letters, operators),
        sealed=tuple(key(author, operators) for author in sealed[:MAX_TESTS]),
        stalled=tuple(key(author, operators) for author in sorted(stalled)[:MAX_TESTS]),
        differ=tuple(Difference(one, harmless(one)) for one in row.finding.differ[:MAX_TESTS]),
        runs=tuple(runs[:MAX_RUNS]),
        more_runs=max(0, len(runs) - MAX_RUNS),
        failures=tuple(failures[:MAX_TESTS]),
        more_failures=max(0, len(failures) - MAX_TESTS),
        withdrawn=job.withdrawn,
        expired=job.expires <= now,
    )


# What tells outcomes apart: the comparable part of the environment, digest, counts.
Outcome = tuple[bytes, bytes, int, int]


def _outcome(result: ResultRow) -> Outcome:
    return comparable(result.result.environment), result.digest, result.failed, result.total


def _letters(row: CellRow) -> dict[Outcome, str]:
    """A letter for each outcome, the verdict's own first: A, B, … Z, then numbers."""
    order = sorted(
        {_outcome(result) for result in row.results if result.state == "completed"},
        key=lambda outcome: (outcome[1] != row.finding.digest, outcome),
    )
    return {
        outcome: chr(ord("A") + number) if number < 26 else str(number)
        for number, outcome in enumerate(order)
    }


def _voices(
    row: CellRow, letters: Mapping[Outcome, str], operators: Mapping[bytes, str]
) -> tuple[Voice, ...]:
    found = []
    for outcome, letter in letters.items():
        runs = [r for r in row.results if r.state == "completed" and _outcome(r) == outcome]
        authors = list(dict.fromkeys(result.author for result in runs))
        found.append(
            Voice(
                letter=letter,
                digest=outcome[1].hex(),
                environment=harmless(runs[0].environment),
                failed=outcome[2],
                total=outcome[3],
                keys=tuple(key(author, operators) for author in authors[:20]),
                more_keys=max(0, len(authors) - 20),
                stands=outcome[1] == row.finding.digest
                and bool({*authors} & {*row.finding.supporters}),
            )
        )
    return tuple(found[:26])


def _late(row: CellRow, speakers: Mapping[bytes, agreement.Voice]) -> frozenset[bytes]:
    """Whose agreement with the verdict of a blind job may have been copied."""
    voices: dict[bytes, agreement.Voice] = {
        author: speakers.get(author, author) for author in row.finding.supporters
    }
    if row.mode != "blind" or len({*voices.values()}) < 2:
        return frozenset()
    blind = agreement.blind_together({*voices.values()}, row.pairs)
    if len(blind) < 2:
        blind = set()
    return frozenset(author for author, voice in voices.items() if voice not in blind)


def _run(
    result: ResultRow,
    letters: Mapping[Outcome, str],
    operators: Mapping[bytes, str],
    late: frozenset[bytes],
) -> RunLine:
    why_not = result.ignored
    where = result.result.environment
    return RunLine(
        entry=result.entry.hex(),
        key=key(result.author, operators),
        time=result.time,
        state=result.state,
        reason=result.reason,
        detail=harmless(result.result.detail),
        passed=result.passed,
        failed=result.failed,
        skipped=result.skipped,
        total=result.total,
        environment=harmless(result.environment),
        sandbox="" if where is None else harmless(where.sandbox),
        seconds=result.seconds,
        digest=result.digest.hex(),
        voice=letters.get(_outcome(result), "") if result.state == "completed" else "",
        check="late"
        if result.author in late and not why_not
        else "blind"
        if result.result.nonce
        else "open",
        counts=not why_not,
        why_not=why_not,
        has_log=result.result.log is not None,
    )


def _failures(
    site: Site,
    reader: Reader,
    job: JobRow,
    results: Sequence[ResultRow],
    letters: Mapping[Outcome, str],
) -> list[Failure]:
    failing = [result for result in results[:MAX_RUNS] if result.failed]
    arrivals = {reader.arrival(result.entry): result for result in failing}
    found = history.failing_tests(reader, list(arrivals), 1000)
    messages = _messages(site, failing) if any(not one.message for one in found) else {}
    return [_failure(one, arrivals, letters, messages) for one in found]


def _failure(
    one: FailingTest,
    arrivals: Mapping[int, ResultRow],
    letters: Mapping[Outcome, str],
    messages: Mapping[str, str],
) -> Failure:
    voices = sorted({letters.get(_outcome(arrivals[run]), "") for run in one.runs} - {""})
    return Failure(
        test=one.test,
        name=harmless(one.test),
        message=uncoloured((one.message or messages.get(one.test, ""))[-MAX_MESSAGE:]),
        runs=len(one.runs),
        voices=tuple(voices),
    )


def _messages(site: Site, failing: Sequence[ResultRow]) -> dict[str, str]:
    """Messages from the runs' lists of tests, where these are here."""
    found: dict[str, str] = {}
    for result in failing[:MAX_LISTS]:
        blob = result.result.tests
        data = None if blob is None else site.blob(blob.hash)
        if data is None:
            continue
        try:
            tests = decode_tests(data)
        except PeerError:
            continue  # Whoever published it named a blob that is no list of tests.
        for test in tests:
            if test.status in BAD_STATUSES and test.message:
                found.setdefault(test.id, test.message)
    return found
