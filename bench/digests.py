"""The same case on two homes, again and again: is it one outcome digest?

Two homes share nothing but the machine: each resolves, downloads and builds for itself. The
small and middle cases of ``examples/`` run in both in turn; of a case whose digests differ
the tests that are bad only now and then are named.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from bench import cases
from bench.cases import Case, Ran, through_run
from bench.report import Row, main

QUICK = ("itsdangerous", "markupsafe")
FULL = (
    *("itsdangerous", "markupsafe", "six", "pluggy", "jinja2", "click"),
    *("more-itertools-doctest", "sqlparse"),
)
HOMES = 2
ROUNDS, QUICK_ROUNDS = 5, 2


def compared(case: Case, runs: list[Ran]) -> list[Row]:
    """A row for each cell: how many runs gave the digest that most gave."""
    by_cell: dict[str, list[Ran]] = defaultdict(list)
    for ran in runs:
        by_cell[ran.cell].append(ran)
    rows = []
    for cell, here in by_cell.items():
        (_, most), *others = Counter(ran.digest for ran in here).most_common()
        what = f"{case.source} {case.version} on {cell}: runs with one digest"
        rows.append(Row(what, most, "runs in two homes", len(here), ">= 1x"))
        if others:
            counted = Counter(test for ran in here for test in ran.bad)
            now_and_then = [test for test, count in counted.items() if count < len(here)]
            print(f"{case.name} on {cell} is flaky: {', '.join(now_and_then) or 'by skips'}")
            print("\n".join(sorted({str(dict(ran.counts)) for ran in here})))
    return rows


def measure(quick: bool) -> list[Row]:
    chosen = cases.load()
    rows = []
    with tempfile.TemporaryDirectory(prefix="ponyswarm-bench-") as folder:
        homes = [Path(folder, f"home{number}") for number in range(HOMES)]
        for name in QUICK if quick else FULL:
            runs: list[Ran] = []
            for _ in range(QUICK_ROUNDS if quick else ROUNDS):
                for home in homes:
                    runs += through_run(chosen[name], home)
            rows += compared(chosen[name], runs)
    return rows


if __name__ == "__main__":
    main("digests", __doc__.splitlines()[0], measure)
