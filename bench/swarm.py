"""A day of a hostile swarm on a virtual clock: real protocols, ledgers, sync and verdicts.

`simulation` says what is real in it. Two questions: does the swarm hold when a tenth of its
volunteers cheats, each for itself (`simulation.day`); and what share of the verdicts can one
operator get wrong who runs several keys, under policies that know operators and that do not.
``PONYSWARM_SEED`` chooses another history; ``PONYSWARM_HOURS`` ends the day after so many hours,
with as many fewer outcomes (a whole day takes about an hour of a core).
"""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import replace

from bench.report import Row, main
from ponyswarm.policy import ReaderPolicy
from simulation.day import Day, Plan, Report
from simulation.operators import Share, wrongly_confirmed
from simulation.world import SEED

HOURS = float(os.environ.get("PONYSWARM_HOURS", "24"))
FULL = replace(Plan(seed=SEED), hours=HOURS, outcomes=int(Plan(seed=SEED).outcomes * HOURS / 24))
QUICK = Plan(
    nodes=40, projects=1, outcomes=120, hours=1.0, partitions=1, partition_hours=0.1, seed=SEED
)
KEYS = (1, 2, 4, 8)


def _day(plan: Plan) -> list[Row]:
    began = time.perf_counter()
    report = Day(plan, lambda line: print(line, file=sys.stderr)).run()
    wall = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(_story(plan, report, wall, memory), file=sys.stderr)
    cells = max(1, report.cells)
    confirmed = sum(n for name, n in report.verdicts.items() if name.startswith("confirmed"))
    return [
        Row(
            f"projects of {plan.projects} with unequal ledgers",
            report.unequal_projects,
            goal="<= 0",
        ),
        Row("honest nodes with other verdicts", report.unequal_verdicts, goal="<= 0"),
        Row(f"cells of {cells} without their redundancy", report.unserved, goal="<= 0"),
        Row("wrong verdicts confirmed", report.wrong, goal="<= 0"),
        Row("confirmed, % of cells", 100 * confirmed / cells),
        Row("extra runs, %", 100 * report.extra, goal="<= 10"),
        Row("announce to first claim, p95, s", report.first_claim[1]),
        Row("announce to redundancy, p95, s", report.served[1]),
        Row("until all is equal and served after the day, s", report.settled_after),
        Row("CPU for it, s", report.cpu),
        Row("memory, MB", memory),
    ]


def _story(plan: Plan, report: Report, wall: float, memory: float) -> str:
    return (
        f"seed {plan.seed}: {plan.nodes} nodes, {plan.projects} projects, {plan.hours:g} h, "
        f"{plan.hostile:.0%} hostile, {report.deaths} deaths, {report.cells} cells, "
        f"{report.results} results, {report.entries} entries, {report.started_runs} runs started, "
        f"{report.lost_runs} lost with their nodes, {dict(report.sent)}, refused "
        f"{dict(report.refused)}, verdicts {dict(report.verdicts)}; {wall:.0f} s, {memory:.0f} MB"
    )


def _operators(quick: bool) -> list[Row]:
    rows = []
    for keys in KEYS[1:2] if quick else KEYS:
        for mode in ("open", "blind"):
            share = wrongly_confirmed(keys, mode=mode, cells=20 if quick else 100, seed=SEED)
            rows += _rows(share, keys, mode)
    return rows


def _rows(share: Share, keys: int, mode: str) -> list[Row]:
    what = f"wrong with {keys} of {share.volunteers} keys by one operator, {mode}"
    return [
        Row(f"{what}: all keys count, % of cells", 100 * share.by_all),
        Row(f"{what}: one voice an operator, %", 100 * share.by_operators, goal="<= 0"),
    ]


def measure(quick: bool) -> list[Row]:
    assert ReaderPolicy().agreeing == FULL.redundancy
    return _day(QUICK if quick else FULL) + _operators(quick)


if __name__ == "__main__":
    main("swarm", __doc__.splitlines()[0], measure)
