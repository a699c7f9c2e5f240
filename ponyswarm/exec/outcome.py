"""What running a cell gives: one status per test, or a typed reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ponyswarm.errors import PonySwarmError
from ponyswarm.messages import Environment, Reason, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class TestOutcome:
    """One test. ``message`` is for people and never compared."""

    __test__ = False

    id: str
    status: Status
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run is: a step's name, how far, and the test under way."""

    step: str
    done: int = 0
    total: int | None = None
    current: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run of one cell gave; ``tests`` are sorted by id, ``log`` is capped.

    ``culprit`` names the test that was under way when a broken run ended.
    """

    state: Literal["completed", "broken"]
    reason: Reason | None = None
    detail: str = ""
    tests: tuple[TestOutcome, ...] = ()
    environment: Environment | None = None
    log: bytes = b""
    seconds: float = 0.0
    culprit: str = ""


class Broken(PonySwarmError):
    """A run cannot go on; `Executor.run` turns it into an outcome and lets none out."""

    def __init__(self, reason: Reason, detail: str, log: bytes = b"") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.log = log
