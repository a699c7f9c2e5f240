"""Django's test runner: ``manage.py test``, or Django's own ``tests/runtests.py``.

It is unittest's, hook and all, also with ``--parallel``: there the worker processes
report for themselves, as their tests start and end.
"""

from __future__ import annotations

from ponyswarm.exec.report import Report
from ponyswarm.exec.runners.unittest import argv, environment
from ponyswarm.exec.runners.unittest import judge as unittest_judge

__all__ = ["argv", "environment", "judge"]


def judge(report: Report, code: int) -> str:
    if not report.began:
        return f"Django did not come to start a test (exit status {code})"
    return unittest_judge(report, code)
