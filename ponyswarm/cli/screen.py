"""Where commands print; apart from `tables`, which loads what it shows."""

from __future__ import annotations

import sys

from rich.console import Console

# As wide as any table of ours: what goes into a pipe is never wrapped or cut.
PIPE_WIDTH = 2_000


def console() -> Console:
    """Plain text into a pipe, colours on a terminal, none with NO_COLOR."""
    if sys.stdout.isatty():
        return Console(file=sys.stdout, highlight=False)
    return Console(file=sys.stdout, highlight=False, soft_wrap=True, width=PIPE_WIDTH)
