"""What a node shows of itself on a terminal while it runs: one screen part that is redrawn.

Log lines scroll above it. Into a pipe or a file nothing of this is printed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from ponyswarm.cli.plain import HarmlessFormatter, harmless
from ponyswarm.config import format_size
from ponyswarm.status import NodeStatus

Show = Callable[[NodeStatus], None]

MOST_LINES = 8


def view(now: NodeStatus) -> Group:
    """A node's moment, for people: what runs, for whom, what was refused and why."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    up = int(now.updated - now.started)
    facts.add_row("node", f"{now.peer}  up {up // 3600}:{up % 3600 // 60:02}")
    facts.add_row("peers", f"{len(now.peers)} connected")
    trusted = sum(project.trusted for project in now.projects)
    offers = sum(project.volunteers for project in now.projects)
    facts.add_row("projects", f"{trusted} trusted, {len(now.projects)} kept; {offers} offers")
    facts.add_row("today", f"{now.runs} runs, {now.tests} tests since the start")
    facts.add_row("disk", f"{now.entries} entries, blobs {format_size(now.blob_bytes)}")
    for run in now.running[:MOST_LINES]:
        total = "" if run.total is None else f" of {run.total}"
        what = f"{run.title} on {run.cell}: {run.step} {run.done}{total}, {run.seconds:.0f} s"
        facts.add_row(Text("running", style="green"), Text(harmless(what)))
    for idle in now.idle[:MOST_LINES]:
        facts.add_row("not run", Text(harmless(f"{idle.title}: {idle.why}")))
    if now.refused:
        counted = sorted(now.refused.items(), key=lambda item: -item[1])[:MOST_LINES]
        facts.add_row("refused", ", ".join(f"{why} {count}" for why, count in counted))
    return Group(Text(), facts)


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
            yield lambda now: live.update(view(now), refresh=True)
    finally:
        root.handlers[:] = before
