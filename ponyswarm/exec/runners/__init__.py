"""The test runners a job may name. To add one: a file beside this, and a line below."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from ponyswarm.exec.report import Report
from ponyswarm.exec.runners import command, django, pytest, unittest
from ponyswarm.messages import Spec


class Runner(Protocol):
    """How a runner is made to report, and what its end means (a module with these)."""

    def argv(self, spec: Spec) -> tuple[str, ...]:
        """The command to start."""

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """Variables to add, seeing those the job sets."""

    def judge(self, report: Report, code: int) -> str:
        """Why a run that exited was not a complete run of the suite; "" when it was."""


RUNNERS: Mapping[str, Runner] = MappingProxyType(
    {"pytest": pytest, "unittest": unittest, "django": django, "command": command}
)
