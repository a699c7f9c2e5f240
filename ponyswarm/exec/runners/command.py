"""Any command: its exit status is one test, or the tests are those of a report it writes."""

from __future__ import annotations

from collections.abc import Mapping

from ponyswarm.exec.report import Report
from ponyswarm.messages import Spec

READER = "/project/report/_ponyswarm_results.py"


def argv(spec: Spec) -> tuple[str, ...]:
    if not spec.report:
        return spec.command
    # Without the job's own PYTHON… variables, which are the command's.
    return ("/env/bin/python", "-E", "-s", READER, spec.report, *spec.command)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    return {}


def judge(report: Report, code: int) -> str:
    if not report.began:
        return ""
    if not report.complete:
        return f"the command ended before its report was read (exit status {code})"
    if not report.done:
        return f"the command wrote no report of any test (exit status {code})"
    return ""
