"""What a key gains that earns a long record and lies then, beside checking every run.

No network: the rule itself (`agreement.chance`, `agreement.is_spared`) over many keys with
random ids. Each earns its record honestly, and then lies in every run until one is checked;
what it had confirmed by its word alone until then is the harm. Measured too is what the
rule saves while everybody is honest.
"""

from __future__ import annotations

import os
import random
import statistics

from bench.report import Row, main
from ponyswarm.agreement import LONG_RECORD, Sealed, chance, is_spared

SEED = 11
REDUNDANCY = 2


def spared(odds: float, chance_: random.Random) -> bool:
    """Whether one run of an operator is spared, its commit named by one or two others."""
    lots = tuple((chance_.randbytes(32), b"other") for _ in range(chance_.randint(1, 2)))
    commit = Sealed(id=chance_.randbytes(32), author=b"liar", commitment=b"", named=lots)
    return is_spared(commit, {b"liar": "operator"}, {"operator": odds})


def lies_before_caught(streak: int, floor: int, chance_: random.Random) -> int:
    """How many lies stood on record until one was checked; that one takes all of them back."""
    lies = 0
    while spared(chance(streak, floor), chance_):
        lies += 1
    return lies


def runs_per_cell(cells: int, floor: int, chance_: random.Random) -> float:
    """Honest runs that a cell takes when its first volunteer has a record that grows."""
    streak = runs = 0
    for _ in range(cells):
        if streak >= LONG_RECORD and spared(chance(streak, floor), chance_):
            runs += 1
        else:
            runs += REDUNDANCY
            streak += 1
    return runs / cells


def measure(quick: bool) -> list[Row]:
    chance_ = random.Random(int(os.environ.get("PONYSWARM_SEED", SEED)))
    times = 2_000 if quick else 20_000
    rows = []
    for floor in (5, 10, 20):
        for streak in (LONG_RECORD, 20, 100):
            lies = sorted(lies_before_caught(streak, floor, chance_) for _ in range(times))
            rows.append(
                Row(
                    f"floor {floor} %, record {streak}: lies on record, mean", statistics.mean(lies)
                )
            )
            rows.append(
                Row(
                    f"floor {floor} %, record {streak}: lies on record, 95 of 100 at most",
                    float(lies[int(0.95 * len(lies))]),
                )
            )
        rows.append(
            Row(
                f"floor {floor} %: runs a cell over 1,000 cells, all honest",
                runs_per_cell(1_000, floor, chance_),
                "checking every run",
                float(REDUNDANCY),
                "< 0.75x",
            )
        )
    return rows


if __name__ == "__main__":
    main("records", __doc__.splitlines()[0], measure)
