"""``ponyswarm node``: run a node on this home until told to stop."""

from __future__ import annotations

import logging
import sys
from functools import partial
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ponyswarm.home import Home


@click.command()
@click.option("--listen", multiple=True, metavar="ADDR", help="Listen here instead.")
@click.option("--peer", "peers", multiple=True, metavar="ADDR", help="Call this node as well.")
@click.option("--read-only", is_flag=True, help="Run no jobs: only replicate and serve.")
@click.option("--archive", is_flag=True, help="Keep every file for ever.")
@click.option("--once", is_flag=True, help="Stop when there is nothing left to run.")
@click.option("--dry-run", is_flag=True, help="Say what would be offered, and to whom; then end.")
@click.option("--web", is_flag=True, help="Show the pages, too, as 'ponyswarm web' does.")
@click.option("--plain", is_flag=True, help="Only log lines, also on a terminal.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Log lines for people, or one JSON object a line.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
@click.pass_obj
def node(
    home: Home,
    listen: tuple[str, ...],
    peers: tuple[str, ...],
    read_only: bool,
    archive: bool,
    once: bool,
    dry_run: bool,
    web: bool,
    plain: bool,
    log_format: str,
    verbose: bool,
) -> None:
    """Run this machine's node: replicate, serve, and run the jobs you trust.

    Ctrl-C stops it in good order: what runs is given back to the others.
    """
    import trio

    from ponyswarm.cli import live, running
    from ponyswarm.cli.plain import start_logging

    start_logging(verbose=verbose, as_json=log_format == "json")
    if dry_run:
        trio.run(running.describe, home)
        return
    asked = running.Asked(
        listen=listen, peers=peers, read_only=read_only, archive=archive, once=once, web=web
    )
    if plain or log_format == "json" or not sys.stderr.isatty():
        trio.run(running.run, home, asked)
        return
    with live.showing(logging.DEBUG if verbose else logging.INFO) as show:
        trio.run(partial(running.run, home, asked, show=show))
