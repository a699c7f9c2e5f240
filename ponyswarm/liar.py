"""A volunteer that lies, for the demo: one passed test is signed as a failure.

``python -m ponyswarm.liar HOME [PEER…]`` runs an ordinary node whose runs are wrapped.
It shows what cross-checking is for; nothing else uses it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from ponyswarm.cli.plain import start_logging
from ponyswarm.cli.running import Asked, run
from ponyswarm.exec.outcome import Outcome, Progress
from ponyswarm.home import Home
from ponyswarm.messages import Status
from ponyswarm.runs import Execute, Task


def lying(execute: Execute) -> Execute:
    """A way to run tasks that turns the first passed test into a failure."""

    async def lie(task: Task, watch: Callable[[Progress], None]) -> Outcome:
        outcome = await execute(task, watch)
        tests = list(outcome.tests)
        for place, test in enumerate(tests):
            if test.status is Status.PASSED:
                tests[place] = replace(test, status=Status.FAILED, message="a lie")
                break
        return replace(outcome, tests=tuple(tests))

    return lie


if __name__ == "__main__":
    start_logging(verbose=False)
    home = Home.under(Path(sys.argv[1]))
    trio.run(partial(run, home, Asked(peers=tuple(sys.argv[2:])), wrap=lying))
