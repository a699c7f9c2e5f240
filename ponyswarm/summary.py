"""A job's matrix as Markdown: for a pull request, or the summary page of a hosted CI. Pure.

Titles, factors and test ids are strangers' words: none of them may become markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ponyswarm.keys import peer_id
from ponyswarm.ledger.verdicts import Verdict

if TYPE_CHECKING:
    from ponyswarm.ledger.queries import CellRow, JobRow

MOST_TESTS = 20
_SIGNS = {
    Verdict.CONFIRMED_PASS: "✔",
    Verdict.CONFIRMED_FAIL: "✘",
    Verdict.DISPUTED: "≠",
    Verdict.FLAKY: "~",
    Verdict.UNCONFIRMED: "?",
    Verdict.BROKEN: "!",
    Verdict.PENDING: "·",
}


def markdown(job: JobRow, cells: Sequence[CellRow]) -> str:
    """A heading, the matrix, what failed where, and how to see more."""
    commit = f" at `{_code(job.commit[:12])}`" if job.commit else ""
    good = sum(cell.finding.verdict is Verdict.CONFIRMED_PASS for cell in cells)
    lines = [
        f"### {literal(job.title)}{commit}",
        "",
        f"{good} of {len(cells)} cells are a confirmed pass"
        + (" (the job was withdrawn)." if job.withdrawn else "."),
        "",
        *_table(cells),
    ]
    if any(cell.finding.on_record for cell in cells):
        lines += ["", "◇ on record: one run, of an operator with a long record of agreed runs."]
    for cell in cells:
        finding = cell.finding
        if finding.verdict is Verdict.CONFIRMED_FAIL or finding.dissent:
            lines += ["", *_detail(cell)]
    lines += ["", f"Job `{job.id.hex()}`. See it with `ponyswarm results {job.project.hex()}`."]
    return "\n".join(lines) + "\n"


def literal(text: str) -> str:
    """Words of strangers, so that Markdown and HTML in them stay text."""
    flat = " ".join("".join(c if c.isprintable() else "\ufffd" for c in text).split())
    return re.sub(r"([\\`*_{}\[\]()#+\-!|~<>@&])", lambda match: f"&#{ord(match[1])};", flat)


def _code(text: str) -> str:
    return "".join(c for c in text if c.isprintable() and c != "`")


def _table(cells: Sequence[CellRow]) -> list[str]:
    columns = list(dict.fromkeys((cell.services, cell.factors) for cell in cells))
    by_place = {(cell.python, cell.services, cell.factors): cell for cell in cells}
    heads = [literal(" ".join(part for part in column if part)) or "result" for column in columns]
    lines = [f"| python | {' | '.join(heads)} |", "| --- " * (1 + len(columns)) + "|"]
    for python in dict.fromkeys(cell.python for cell in cells):
        found = [by_place.get((python, *column)) for column in columns]
        lines.append(
            f"| {literal(python)} | "
            + " | ".join("" if cell is None else _cell(cell) for cell in found)
            + " |"
        )
    return lines


def _cell(cell: CellRow) -> str:
    finding = cell.finding
    agree = f" {finding.agree}/{finding.of}" if finding.of else ""
    on_record = " ◇ on record" if finding.on_record else ""
    return f"{_SIGNS[finding.verdict]} {finding.verdict}{agree}{on_record}"


def _detail(cell: CellRow) -> list[str]:
    finding = cell.finding
    lines = [f"**{literal(cell.place)}**: {finding.verdict}, {finding.agree} of {finding.of} agree"]
    if finding.dissent:
        lines[0] += ", against it " + ", ".join(f"`{peer_id(key)}`" for key in finding.dissent)
    bad = dict.fromkeys(
        test for row in cell.results if row.author in finding.supporters for test in row.result.bad
    )
    lines += [f"- {literal(test)}" for test in list(bad)[:MOST_TESTS]]
    more = max(finding.failed, len(bad)) - MOST_TESTS
    return [*lines, f"- and {more} more"] if more > 0 else lines
