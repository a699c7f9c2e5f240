"""pytest, alone or under xdist: a plugin loaded by ``PYTEST_ADDOPTS``."""

from __future__ import annotations

from collections.abc import Mapping

from ponyswarm.exec.report import Report
from ponyswarm.messages import BAD_STATUSES, Spec

OPTION = "-p _ponyswarm_pytest"


def argv(spec: Spec) -> tuple[str, ...]:
    return spec.command


def environment(given: Mapping[str, str]) -> dict[str, str]:
    return {"PYTEST_ADDOPTS": f"{given.get('PYTEST_ADDOPTS', '')} {OPTION}".strip()}


def judge(report: Report, code: int) -> str:
    if code == 4:
        return "pytest does not understand its command line (exit status 4)"
    if not report.began:
        return f"pytest did not start (exit status {code})"
    if not report.complete:
        return f"pytest ended before its suite did (exit status {code})"
    # A module that fails to import interrupts pytest, but is a finding like any other.
    if code == 2 and not any(test.status in BAD_STATUSES for test in report.tests):
        return "pytest was interrupted (exit status 2)"
    if code == 3:
        return "pytest failed inside (exit status 3)"
    if code == 5 or not report.done:
        return "no tests were collected"
    return ""
