"""What the end of a run means, by values: which reason wins, and when there is none."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ponyswarm.exec.judging import judge
from ponyswarm.exec.process import Ended, How
from ponyswarm.exec.report import Report
from ponyswarm.exec.runners import RUNNERS
from ponyswarm.exec.sandbox import Confined, Limits
from ponyswarm.messages import Reason, Spec, Status

SPEC = Spec(python=("3",), command=("pytest",))
ENDED = Ended(how=How.EXITED, code=0, output=b"", seconds=1.0)
CONFINED = Confined(ended=ENDED, killed_for_memory=False, refused_processes=False)


def reported(status: str = "passed", message: str = "", *, space: int = 100) -> Report:
    """The report of a run of one test, from start to finish."""
    report = Report(lambda: 0.0)
    events = (
        {"e": "entered"},
        {"e": "begin", "r": "pytest", "s": "1"},
        {"e": "collected", "n": 1, "s": "1"},
        {"e": "start", "id": "a", "s": "1"},
        {"e": "end", "id": "a", "st": status, "t": 0.1, "m": message, "s": "1"},
        {"e": "finish", "code": 0, "s": "1"},
        {"e": "space", "free": space, "size": 1000},
    )
    report.feed(b"".join(json.dumps(event).encode() + b"\n" for event in events))
    return report


def judged(report: Report, confined: Confined = CONFINED, *, spec: Spec = SPEC, grouped=True):
    return judge(
        report, confined, spec=spec, runner=RUNNERS[spec.runner], limits=Limits(), grouped=grouped
    )


def ended(**facts: object) -> Confined:
    return replace(CONFINED, ended=replace(ENDED, **facts))


def test_a_run_that_ended_well_is_completed():
    reason, detail, tests = judged(reported())
    assert (reason, detail) == (None, "")
    assert [(test.id, test.status) for test in tests] == [("a", Status.PASSED)]


def test_a_bad_test_is_a_finding_and_explains_the_exit_status():
    reason, _, tests = judged(reported("failed"), ended(code=1))
    assert reason is None
    assert [test.id for test in tests] == ["a"]


def test_an_exit_status_that_no_test_explains_is_a_failure_of_the_command():
    reason, _, tests = judged(reported(), ended(code=1))
    assert reason is None
    assert [(test.id, test.status) for test in tests][1:] == [("command", Status.FAILED)]


@pytest.mark.parametrize(
    ("confined", "reason"),
    [
        (ended(how=How.TIMEOUT, code=-9), Reason.TIMEOUT),
        (ended(how=How.NO_OUTPUT, code=-9), Reason.NO_OUTPUT),
        (ended(how=How.OUTPUT_LIMIT, code=-9), Reason.CRASHED),
        (ended(code=-11), Reason.CRASHED),
        (ended(code=128 + 11), Reason.CRASHED),
        (replace(ended(code=1), refused_processes=True), Reason.SANDBOX),
        (replace(ended(how=How.TIMEOUT), killed_for_memory=True), Reason.OUT_OF_MEMORY),
    ],
)
def test_the_limit_that_was_run_into_is_named(confined, reason):
    found, detail, tests = judged(reported(), confined)
    assert found is reason
    assert detail
    assert [test.id for test in tests] == ["a"]


def test_a_full_disk_breaks_a_run_only_where_something_went_wrong():
    assert judged(reported(space=1))[0] is None
    assert judged(reported("failed", space=1), ended(code=1))[0] is Reason.DISK_FULL


def test_without_a_control_group_a_memory_error_is_our_limit():
    starved = reported("failed", "MemoryError")
    assert judged(starved, ended(code=1), grouped=False)[0] is Reason.OUT_OF_MEMORY
    assert judged(starved, ended(code=1))[0] is None


def test_a_sandbox_that_never_started_is_no_crash_of_the_job():
    reason, detail, _ = judged(Report(lambda: 0.0), ended(code=125, output=b"bwrap: no"))
    assert reason is Reason.SANDBOX
    assert detail.endswith("bwrap: no")


def test_a_command_without_a_report_is_one_test():
    spec = Spec(python=("3",), runner="command", command=("true",))
    report = Report(lambda: 0.0)
    report.feed(b'{"e":"entered"}\n')
    for code, status in ((0, Status.PASSED), (3, Status.FAILED)):
        reason, _, tests = judged(report, ended(code=code), spec=spec)
        assert reason is None
        assert [(test.id, test.status) for test in tests] == [("command", status)]
