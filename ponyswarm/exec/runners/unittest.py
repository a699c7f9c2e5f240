"""unittest, and whatever ends in a suite of it: a hook in the environment's start-up."""

from __future__ import annotations

from collections.abc import Mapping

from ponyswarm.exec.report import Report
from ponyswarm.messages import Spec


def argv(spec: Spec) -> tuple[str, ...]:
    return spec.command


def environment(given: Mapping[str, str]) -> dict[str, str]:
    return {}


def judge(report: Report, code: int) -> str:
    if not report.began:
        return f"no unittest suite was started (exit status {code})"
    if not report.complete:
        return f"unittest ended before its suite did (exit status {code})"
    if not report.done:
        return "no tests were found"
    return ""
