"""What the command line costs before it does anything: starting, beside Python and other tools.

Each command is started a number of times in turn, so that whatever else the machine does
falls on all alike; the figure is the median, of wall time and of CPU time.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.report import Row, main

GOAL = 0.2  # seconds for `ponyswarm --help`
SCRIPT = str(Path(sys.executable).with_name("ponyswarm"))
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "ponyswarm --help": [SCRIPT, "--help"],
    "ponyswarm --version": [SCRIPT, "--version"],
    "ponyswarm trust --help": [SCRIPT, "trust", "--help"],
    "ponyswarm announce --help": [SCRIPT, "announce", "--help"],
    "completing 'ponyswarm an'": [SCRIPT],
    "pip --version": [sys.executable, "-m", "pip", "--version"],
    "tox --version": [sys.executable, "-m", "tox", "--version"],
}
COMPLETING = {
    "_PONYSWARM_COMPLETE": "bash_complete",
    "COMP_WORDS": "ponyswarm an",
    "COMP_CWORD": "1",
}


def cost(command: Sequence[str], environ: dict[str, str]) -> tuple[float, float] | None:
    """(wall, CPU) seconds of one start; None when it is not installed here."""
    before = os.times()
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, env={**os.environ, **environ})
    wall = time.perf_counter() - began
    after = os.times()
    cpu = after.children_user + after.children_system
    return (
        None
        if done.returncode
        else (
            wall,
            cpu - before.children_user - before.children_system,
        )
    )


def measure(quick: bool) -> list[Row]:
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(5 if quick else 40):
        for name, command in COMMANDS.items():
            one = cost(command, COMPLETING if name.startswith("completing") else {})
            if one is not None:
                times.setdefault(name, []).append(one)
    walls = {name: statistics.median(wall for wall, _ in found) for name, found in times.items()}
    cpus = {name: statistics.median(cpu for _, cpu in found) for name, found in times.items()}
    bare = "python -c pass"
    rows = []
    for name in times:
        if name == bare:
            continue
        goal = f"<= {GOAL}" if name == "ponyswarm --help" else ""
        rows.append(Row(f"{name}, s", walls[name], bare, walls[bare], goal))
        rows.append(Row(f"{name}, CPU s", cpus[name], bare, cpus[bare]))
    return rows


if __name__ == "__main__":
    main("cli", __doc__ or "", measure)
