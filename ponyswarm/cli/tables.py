"""How findings look on a terminal: a sign *and* a word, colour only on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from ponyswarm.cli.screen import console
from ponyswarm.keys import peer_id
from ponyswarm.ledger.verdicts import Finding, Verdict
from ponyswarm.plain import harmless

if TYPE_CHECKING:
    from ponyswarm.ledger.queries import CellRow, JobRow

_LOOKS = {
    Verdict.CONFIRMED_PASS: ("✔", "green"),
    Verdict.CONFIRMED_FAIL: ("✘", "red"),
    Verdict.FLAKY: ("~", "magenta"),
    Verdict.DISPUTED: ("≠", "magenta"),
    Verdict.UNCONFIRMED: ("?", "yellow"),
    Verdict.BROKEN: ("!", "yellow"),
    Verdict.PENDING: ("·", "dim"),
}


# Beside a verdict that rests on one run and its operator's long record (docs/verdicts.md).
ON_RECORD = "◇ on record"
# How many tests a line on a cell names.
MOST_TESTS = 3


def verdict_text(finding: Finding) -> str:
    """A finding in one line of markup."""
    sign, style = _LOOKS[finding.verdict]
    parts = [f"[{style}]{sign} {finding.verdict}[/{style}]"]
    if finding.of:
        blind = f", {finding.blind} of them blind" if finding.blind else ""
        parts.append(f"{finding.agree} of {finding.of} agree{blind}")
        if finding.on_record:
            parts.append(f"{ON_RECORD}: its operator is checked less often")
        parts.append(f"{finding.tests} tests" + (f", {finding.failed} bad" * bool(finding.failed)))
    if finding.verdict is Verdict.DISPUTED and finding.dissent:
        # Without a majority nobody is in the wrong yet.
        parts.append("they differ: " + _keys((*finding.supporters, *finding.dissent)))
    elif finding.dissent:
        parts.append("against it: " + _keys(finding.dissent))
    if finding.wavering:
        parts.append("gave several outcomes: " + _keys(finding.wavering))
    if finding.differ:
        more = f" and {len(finding.differ) - MOST_TESTS} more" * (len(finding.differ) > MOST_TESTS)
        named = ", ".join(escape(harmless(test)) for test in finding.differ[:MOST_TESTS])
        parts.append(f"over {named}{more}")
    if finding.sealed:
        parts.append(f"{len(finding.sealed)} committed and not told")
    if finding.broken:
        counted = ", ".join(f"{n} {escape(why)}" for why, n in sorted(finding.broken.items()))
        parts.append(f"broken runs: {counted}")
    return " · ".join(parts)


def span(seconds: int) -> str:
    """``3:05``, or with hours ``1:02:05``."""
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02}"
    return f"{seconds // 3600}:{seconds % 3600 // 60:02}:{seconds % 60:02}"


def _keys(keys: Sequence[bytes]) -> str:
    return ", ".join(f"…{peer_id(key)[-8:]}" for key in keys)


def matrix_table(cells: Sequence[CellRow], at_work: Mapping[bytes, int] | None = None) -> Table:
    """Interpreters down, services and factors across.

    ``at_work`` are the cells that somebody runs now, with the seconds since it began.
    """
    columns = list(dict.fromkeys((cell.services, cell.factors) for cell in cells))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("python")
    for services, factors in columns:
        table.add_column(escape(" ".join(part for part in (services, factors) if part)) or "result")
    by_place = {(c.python, c.services, c.factors): c for c in cells}
    for python in dict.fromkeys(cell.python for cell in cells):
        row = [escape(python)]
        for services, factors in columns:
            cell = by_place.get((python, services, factors))
            row.append("" if cell is None else _cell_text(cell, (at_work or {}).get(cell.id)))
        table.add_row(*row)
    return table


def _cell_text(cell: CellRow, seconds: int | None) -> str:
    finding = cell.finding
    sign, style = _LOOKS[finding.verdict]
    text = f"[{style}]{sign} {finding.verdict}[/{style}]"
    if finding.of:
        text += f" {finding.agree}/{finding.of}"
    if finding.on_record:
        text += f" {ON_RECORD}"
    if seconds is not None:
        text += f" [blue]▶ {span(seconds)}[/blue]"
    return f"{text} [dim]{cell.id.hex()[:8]}[/dim]"


def print_matrix(
    job: JobRow, cells: Sequence[CellRow], lacking: Mapping[bytes, str] | None = None
) -> None:
    """A job's matrix, with a line on each cell that is not plainly good.

    ``lacking`` says of cells that nobody can run why, by their ids.
    """
    out = console()
    name = escape(job.title)
    state = " (withdrawn)" if job.withdrawn else ""
    commit = f" at {escape(job.commit[:12])}" if job.commit else ""
    out.print(f"[bold]{name}[/bold]{commit}{state}  [dim]job {job.id.hex()[:16]}[/dim]")
    out.print(matrix_table(cells))
    for cell in cells:
        finding = cell.finding
        open_ = finding.dissent or finding.wavering or finding.broken or finding.sealed
        if open_ or finding.verdict is Verdict.CONFIRMED_FAIL:
            out.print(f"{escape(cell.place)}: {verdict_text(finding)}")
        elif lacking and cell.id in lacking:
            out.print(f"{escape(cell.place)}: not run yet, {escape(lacking[cell.id])}")
    tests = sum(cell.finding.tests for cell in cells)
    good = sum(cell.finding.verdict is Verdict.CONFIRMED_PASS for cell in cells)
    lone = sum(cell.finding.on_record for cell in cells)
    on_record = f", {lone} cells confirmed by one run {ON_RECORD}" if lone else ""
    out.print(f"{good} of {len(cells)} cells are a confirmed pass, {tests} tests in all{on_record}")
