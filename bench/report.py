"""The rows of a benchmark and their two forms: a table for people, JSON for programs.

Every row names what was measured beside it in the same run (``against``, with its
``reference`` figure) or, when there is no such peer, only a goal.
"""

from __future__ import annotations

import argparse
import json
import operator
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_RELATIONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True, slots=True)
class Row:
    """``goal`` reads ``"< 1"`` or ``">= 0.5"`` of the value, with ``x`` of the ratio."""

    what: str
    value: float
    against: str = ""
    reference: float | None = None
    goal: str = ""

    @property
    def ratio(self) -> float | None:
        if self.reference is None or self.reference == 0:
            return None
        return self.value / self.reference

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None when there is none."""
        if not self.goal:
            return None
        relation, bound = self.goal.split()
        measured = self.ratio if bound.endswith("x") else self.value
        if measured is None:
            return False
        return bool(_RELATIONS[relation](measured, float(bound.rstrip("x"))))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "met": self.met is not False}


def arguments(description: str, home: str = "") -> argparse.Namespace:
    """The two options that every benchmark has, and ``--home`` where that is described."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="end within 50 seconds")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    if home:
        parser.add_argument("--home", type=Path, help=home)
    return parser.parse_args()


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def report(name: str, rows: Sequence[Row], *, as_json: bool) -> None:
    """Print the rows: as a table, and with ``as_json`` as one object on the last line."""
    head = ("what", "value", "against", "reference", "ratio", "goal", "met")
    table = [head] + [
        (
            row.what,
            _figure(row.value),
            row.against,
            _figure(row.reference),
            _figure(row.ratio),
            row.goal,
            {True: "yes", False: "NO", None: ""}[row.met],
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    if as_json:
        machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
        print(
            json.dumps(
                {
                    "name": name,
                    "date": datetime.now(UTC).date().isoformat(),
                    "machine": machine,
                    "rows": [row.as_dict() for row in rows],
                }
            )
        )


def main(name: str, description: str, measure: Callable[[bool], Sequence[Row]]) -> None:
    """The body of a benchmark's ``__main__``: parse, measure, print."""
    chosen = arguments(description)
    report(name, measure(chosen.quick), as_json=chosen.json)
