"""What a node shows of itself on a terminal while it runs: one screen part that is redrawn.

Log lines scroll above it. Into a pipe or a file nothing of this is printed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.logging import RichHandler
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ponyswarm.cli.plain import HarmlessFormatter, harmless, refused, resting, room, size
from ponyswarm.cli.tables import span
from ponyswarm.status import NodeStatus, RunLine

Show = Callable[[NodeStatus], None]

MOST_LINES = 6
MOST_PEERS = 4
# From so many columns on, bars and addresses have room.
WIDE = 100
BAR = 24


def view(now: NodeStatus, width: int) -> Group:
    """A node's moment, for people: what runs, for whom, what was refused and why."""
    facts = Table.grid(padding=(0, 2), expand=True)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(ratio=1, overflow="fold")
    up = int(now.updated - now.started)
    facts.add_row("node", f"{now.peer if width >= WIDE else '…' + now.peer[-12:]}  up {span(up)}")
    facts.add_row("peers", _peers(now, width))
    if now.reach:
        facts.add_row("reach", now.reach)
    trusted = sum(project.trusted for project in now.projects)
    offers = sum(project.volunteers for project in now.projects)
    facts.add_row("projects", f"{trusted} trusted, {len(now.projects)} kept; {offers} offers")
    facts.add_row("today", f"{now.today_runs:,} runs, {now.today_tests:,} tests given")
    facts.add_row("disk", _disk(now))
    facts.add_row("limits", now.limits)
    if now.hold:
        facts.add_row("resting", Text(harmless(resting(now)), style="yellow"))
    facts.add_row("queue", f"{_cells(now.waiting)} that this machine could run next")
    for idle in now.idle[:MOST_LINES]:
        facts.add_row("not run", Text(harmless(f"{idle.title}: {idle.why}")))
    if now.refused:
        facts.add_row("refused", refused(now.refused, MOST_LINES))
    # What runs stands first: a low terminal cuts the end off.
    running = [_running(now.running, width)] if now.running else []
    return Group(Text(), *running, facts)


def _peers(now: NodeStatus, width: int) -> Text:
    text = Text(f"{len(now.peers)} connected", overflow="ellipsis", no_wrap=True)
    shown = now.peers[:MOST_PEERS] if width >= WIDE else ()
    for peer in shown:
        text.append(f"  …{peer.peer[-8:]} {harmless(peer.address)}", style="dim")
    if shown and len(now.peers) > len(shown):
        text.append(f"  and {len(now.peers) - len(shown)} more", style="dim")
    return text


def _running(runs: tuple[RunLine, ...], width: int) -> Table:
    """One line a run: what, where, the step, and how far the tests are."""
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
    if width >= WIDE:
        table.add_column(width=BAR)
    table.add_column(justify="right", no_wrap=True)
    for run in runs[:MOST_LINES]:
        what = Text("▶ ", style="green")
        what.append(harmless(f"{run.title} on {run.cell}: {run.step}"), style="default")
        done = f"{run.done:,}" + ("" if run.total is None else f" of {run.total:,}")
        row: list[RenderableType] = [what]
        if width >= WIDE:
            # Without a total nobody knows how far it is, and a bar would say that it is done.
            known = ProgressBar(total=run.total, completed=run.done, width=BAR, pulse=False)
            row.append("" if run.total is None else known)
        row.append(f"{done}, {span(int(run.seconds))}")
        table.add_row(*row)
    if len(runs) > MOST_LINES:
        table.add_row(Text(f"  and {len(runs) - MOST_LINES} more", style="dim"))
    return table


def _disk(now: NodeStatus) -> str:
    parts = [f"{now.entries:,} entries", *map(room, now.disk)]
    return ", ".join(parts) + (f"; {size(now.disk_free)} free" if now.disk_free else "")


def _cells(count: int) -> str:
    return f"{count:,} cell{'' if count == 1 else 's'}"


@contextmanager
def showing(level: int) -> Iterator[Show]:
    """Take the terminal: log lines above, the view below. Yields what redraws it."""
    console = Console(stderr=True, highlight=False)
    handler = RichHandler(
        console=console, show_path=False, show_level=False, markup=False, log_time_format="%H:%M:%S"
    )
    handler.setFormatter(HarmlessFormatter("%(message)s"))
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers[:] = [handler]
    root.setLevel(level)
    try:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda now: live.update(view(now, console.width), refresh=True)
    finally:
        root.handlers[:] = before
