"""How things are said on a page: verdicts, keys, ids, moments, numbers. Pure.

A verdict is told three times over, by colour, by sign and by word, so that nobody depends
on one of them. ``kind`` names colour and sign at once: it is the CSS class and the icon.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ponyswarm.ledger.verdicts import Finding
from ponyswarm.messages import Cell
from ponyswarm.plain import harmless

if TYPE_CHECKING:
    from ponyswarm.ledger.queries import CellRow

# Verdict -> (kind, one word). What is not here (a later version's verdict) shows as itself.
LOOKS: Mapping[str, tuple[str, str]] = {
    "confirmed pass": ("pass", "pass"),
    "confirmed fail": ("fail", "fail"),
    "flaky": ("flaky", "flaky"),
    "disputed": ("disputed", "disputed"),
    "unconfirmed": ("unconfirmed", "unconfirmed"),
    "broken": ("broken", "broken"),
    "pending": ("pending", "pending"),
}
KINDS = tuple(kind for kind, _ in LOOKS.values())
# What each kind means, for legends.
MEANINGS: Mapping[str, str] = {
    "pass": "enough independent volunteers agree that every test passes",
    "fail": "enough independent volunteers agree that tests fail",
    "flaky": "different outcomes were each seen more than once on equal environments",
    "disputed": "volunteers on equal environments say different things",
    "unconfirmed": "too few volunteers ran it to be sure",
    "broken": "no run came to an end: that is about machines, not about the tests",
    "pending": "nobody whose word counts has run it yet",
}
# What the mark says that a verdict bears which rests on a single run (`Finding.on_record`).
ON_RECORD = "one run is enough here, as its operator has a long record of agreed runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A cell's verdict as a page shows it. ``says`` is the whole of it in one sentence."""

    kind: str
    word: str
    verdict: str
    agree: int
    of: int
    blind: int
    on_record: bool
    sealed: int
    tests: int
    failed: int
    runs: int
    says: str


def shown(cell: CellRow) -> Shown:
    finding = cell.finding
    kind, word = LOOKS.get(str(finding.verdict), ("pending", str(finding.verdict)))
    return Shown(
        kind=kind,
        word=word,
        verdict=str(finding.verdict),
        agree=finding.agree,
        of=finding.of,
        blind=finding.blind,
        on_record=finding.on_record,
        sealed=len(finding.sealed),
        tests=finding.tests,
        failed=finding.failed,
        runs=cell.runs,
        says=sentence(finding),
    )


def sentence(finding: Finding) -> str:
    """A finding in one line of plain text."""
    parts = [str(finding.verdict)]
    if finding.of:
        blind = f", {finding.blind} of them blind" if finding.blind else ""
        parts.append(f"{finding.agree} of {finding.of} agree{blind}")
        if finding.on_record:
            parts.append(f"on record: {ON_RECORD}")
        bad = f", {finding.failed} bad" if finding.failed else ""
        parts.append(f"{count(finding.tests, 'test')}{bad}")
    if finding.sealed:
        parts.append(f"{len(finding.sealed)} committed to an answer, not told yet")
    if finding.broken:
        told = ", ".join(f"{n} {harmless(why)}" for why, n in sorted(finding.broken.items()))
        parts.append(f"broken runs: {told}")
    return " · ".join(parts)


def tally(cells: Iterable[CellRow]) -> dict[str, int]:
    """How many cells are of each kind, in the order of `KINDS`; kinds that none is are left out."""
    found = dict.fromkeys(KINDS, 0)
    for cell in cells:
        found[LOOKS.get(str(cell.finding.verdict), ("pending", ""))[0]] += 1
    return {kind: number for kind, number in found.items() if number}


def summary(tallied: Mapping[str, int]) -> str:
    """``3 of 4 cells pass, 1 disputed``."""
    total = sum(tallied.values())
    if not total:
        return "no cells"
    parts = [f"{tallied.get('pass', 0)} of {count(total, 'cell')} pass"]
    parts += [f"{number} {kind}" for kind, number in tallied.items() if kind != "pass"]
    return ", ".join(parts)


def overall(tallied: Mapping[str, int]) -> str:
    """The one kind that stands for a whole job: the worst news first."""
    for kind in ("fail", "disputed", "flaky", "broken", "unconfirmed", "pending"):
        if tallied.get(kind):
            return kind
    return "pass" if tallied.get("pass") else "pending"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def place(point: Cell) -> str:
    """A cell's environment and factors in one line."""
    return " ".join([point.python, *point.services, *(f"{n}={v}" for n, v in point.factors)])


def moment(millis: int) -> str:
    """``27 Nov 2026, 20:14`` in UTC; a year that no calendar has is said as a number."""
    try:
        return datetime.fromtimestamp(millis / 1000, UTC).strftime("%-d %b %Y, %H:%M")
    except (ValueError, OverflowError, OSError):
        return f"{millis} ms"


def iso(millis: int) -> str:
    try:
        return datetime.fromtimestamp(millis / 1000, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return ""


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 h 4 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(number: int) -> str:
    value = float(number)
    for unit in ("bytes", "KB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return (
                f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"
            )
        value /= 1000
    raise AssertionError


def web_url(text: str) -> str:
    """A stranger's address if it may become a link, else nothing."""
    return text if text.lower().startswith(("https://", "http://")) else ""
