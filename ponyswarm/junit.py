"""JUnit XML of runs, for tools that read it: a suite a cell, a case a test. Pure but `write`.

A broken run's suite holds what came before and one case in error which names the reason,
so that no tool takes it for a good one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from ponyswarm.codec import TestRecord
from ponyswarm.errors import LocalError
from ponyswarm.exec.outcome import Outcome, TestOutcome
from ponyswarm.keys import peer_id
from ponyswarm.ledger.queries import CellRow, ResultRow
from ponyswarm.ledger.verdicts import CONFIRMED, Finding
from ponyswarm.local import Ended
from ponyswarm.messages import Status

# What XML 1.0 cannot hold, however it is written.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def document(title: str, ended: Sequence[Ended]) -> JUnitXml:
    """The runs of a matrix as one document."""
    xml = JUnitXml(_clean(title))
    for one in ended:
        suite = TestSuite(_clean(one.place.name))
        cases = [_case(test) for test in one.outcome.tests]
        if one.outcome.state == "broken":
            cases.append(_broken(one.outcome))
        # All at once: one by one the library counts them all again for each.
        suite.add_testcases(cases)
        suite.add_property("python", one.place.interpreter.name if one.place.interpreter else "")
        xml.append(suite)  # type: ignore[no-untyped-call]
    xml.update_statistics()  # type: ignore[no-untyped-call]
    return xml


def of_job(
    title: str, cells: Sequence[CellRow], tests_of: Callable[[ResultRow], Sequence[TestRecord]]
) -> JUnitXml:
    """A job's verdicts as one document: a suite a cell, its cases those that most agree on.

    ``tests_of`` gives a result's list of tests, empty where the list is not on this
    machine: then its suite names only what did not pass. A cell without a confirmed
    verdict holds one case in error, so that no tool takes it for a good one.
    """
    xml = JUnitXml(_clean(title))
    for cell in cells:
        finding = cell.finding
        suite = TestSuite(_clean(cell.place))
        cases = []
        chosen = [row for row in cell.results if row.author in finding.supporters]
        agreed = [row for row in chosen if row.digest == finding.digest] or chosen
        lists = [tests for row in agreed if (tests := tests_of(row))]
        if lists:
            cases = [_case(test) for test in lists[0]]
        elif agreed:
            cases = [
                _case(TestRecord(test, Status.FAILED, 0.0, "")) for test in agreed[0].result.bad
            ]
        if finding.verdict not in CONFIRMED:
            cases.append(_open(finding))
        suite.add_testcases(cases)
        suite.add_property("verdict", str(finding.verdict))
        suite.add_property("agree", f"{finding.agree} of {finding.of}")
        if finding.on_record:
            suite.add_property("on record", "one run, of an operator with a long record")
        for row in agreed:
            suite.add_property("volunteer", peer_id(row.author))
        xml.append(suite)  # type: ignore[no-untyped-call]
    xml.update_statistics()  # type: ignore[no-untyped-call]
    return xml


def _open(finding: Finding) -> TestCase:
    case = TestCase("the verdict", "ponyswarm", 0.0)
    case.result = [Error(f"{finding.verdict}: {finding.agree} of {finding.of} agree", "open")]
    return case


def write(path: Path, title: str, ended: Sequence[Ended]) -> None:
    """Write the document. `LocalError` when the file cannot be written."""
    try:
        document(title, ended).write(str(path), pretty=True)
    except OSError as fault:
        raise LocalError(
            f"{path} cannot be written: {fault.strerror}; name another file by --junit"
        ) from fault


def _case(test: TestOutcome | TestRecord) -> TestCase:
    holder, name = _split(test.id)
    case = TestCase(_clean(name), _clean(holder), round(test.seconds, 6))
    message = _clean(test.message)
    last = message.strip().splitlines()[-1] if message.strip() else ""
    match test.status:
        case Status.FAILED:
            result = Failure(last or "failed")
            result.text = message
            case.result = [result]
        case Status.ERROR:
            error = Error(last or "error")
            error.text = message
            case.result = [error]
        case Status.SKIPPED:
            case.result = [Skipped(last or "skipped")]
        case Status.XFAILED:
            case.result = [Skipped(last or "expected to fail", "xfail")]
        case Status.PASSED | Status.XPASSED:
            pass
    return case


def _broken(outcome: Outcome) -> TestCase:
    case = TestCase(_clean(outcome.culprit) or "the run", "ponyswarm", 0.0)
    error = Error(_clean(f"{outcome.reason}: {outcome.detail}"), "broken")
    error.text = _clean(outcome.log.decode("utf-8", "replace")[-4000:])
    case.result = [error]
    return case


def _split(id_: str) -> tuple[str, str]:
    """(class name, name): ``tests/test_a.py::TestB::test_c[x.y]`` as pytest itself writes it."""
    head, bracket, parameters = id_.partition("[")
    if "::" in head:
        place, _, name = head.rpartition("::")
        file, *classes = place.split("::")
        holder = ".".join([file.removesuffix(".py").replace("/", "."), *classes])
    else:
        holder, _, name = head.rpartition(".")
    return holder, f"{name}{bracket}{parameters}"


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
