"""An SVG badge of a job, for a README: who agrees, in words, with colour only on top. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from ponyswarm.ledger.verdicts import CONFIRMED, Verdict

if TYPE_CHECKING:
    from ponyswarm.ledger.queries import CellRow

_GREEN, _RED, _PURPLE, _GREY = "#2a7d3c", "#b3261e", "#7b3fa0", "#5f6b76"
# The mean width of Verdana's letters at 11 px; ``textLength`` makes every font fit it.
_LETTER = 6.6


def words(cells: Sequence[CellRow]) -> tuple[str, str]:
    """(what a job's badge says, its colour). All confirmed: the weakest cell speaks for it.

    Cells that one run confirmed by its operator's long record are counted apart.
    """
    verdicts = [cell.finding.verdict for cell in cells]
    failed = verdicts.count(Verdict.CONFIRMED_FAIL)
    if failed:
        return f"{failed} of {len(cells)} fail", _RED
    for doubtful in (Verdict.DISPUTED, Verdict.FLAKY):
        if doubtful in verdicts:
            return f"{verdicts.count(doubtful)} of {len(cells)} {doubtful}", _PURPLE
    if not cells or not set(verdicts) <= CONFIRMED:
        confirmed = sum(verdict in CONFIRMED for verdict in verdicts)
        return f"{confirmed} of {len(cells)} confirmed", _GREY
    weakest = min(cells, key=lambda cell: (cell.finding.agree, -cell.finding.of)).finding
    lone = sum(cell.finding.on_record for cell in cells)
    on_record = f", {lone} on record" if lone else ""
    return f"{weakest.agree} of {weakest.of} agree{on_record}", _GREEN


def svg(cells: Sequence[CellRow], label: str = "ponyswarm") -> str:
    """The badge of these cells as one SVG document without scripts or references."""
    message, colour = words(cells)
    left, right = round(len(label) * _LETTER) + 14, round(len(message) * _LETTER) + 14
    said = escape(f"{label}: {message}")

    def text(value: str, middle: float) -> str:
        return (
            f'<text x="{middle:g}" y="14" textLength="{round(len(value) * _LETTER)}" '
            f'lengthAdjust="spacingAndGlyphs">{escape(value)}</text>'
        )

    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" '
        f'role="img" aria-label="{said}"><title>{said}</title>'
        f'<rect width="{left}" height="20" fill="#3b4249"/>'
        f'<rect x="{left}" width="{right}" height="20" fill="{colour}"/>'
        '<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" '
        f'font-size="11">{text(label, left / 2)}{text(message, left + right / 2)}</g></svg>\n'
    )
