"""``ponyswarm announce``: pack, pin, sign, and hand a job to the network."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ponyswarm.cli import json_option, print_json

if TYPE_CHECKING:
    from ponyswarm.announcing import Locked, Packed
    from ponyswarm.home import Home
    from ponyswarm.messages import Announce
    from ponyswarm.node import Node


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path), default=".")
@click.option("--project", "-p", help="The project, by name or id (default: your only one).")
@click.option("--commit", default="HEAD", show_default=True, help="What of a checkout to test.")
@click.option(
    "--spec",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read [tool.ponyswarm] from this file instead.",
)
@click.option("--title", help="What to call the job (default: name and version).")
@click.option("--expires", default="7 d", show_default=True, help="How long it may be run.")
@click.option("--no-locks", is_flag=True, help="Let each volunteer resolve, as of now.")
@click.option("--peer", "peers", multiple=True, metavar="ADDR", help="Call this node as well.")
@click.option(
    "--wait-peers",
    default="60 s",
    show_default=True,
    help="Without a running node: how long to try to hand the job over.",
)
@click.option("--wait", is_flag=True, help="Stay until the verdicts are there; exit as 'watch'.")
@click.option(
    "--timeout", default="1 h", show_default=True, help="With --wait: how long at the most."
)
@click.option("--dry-run", is_flag=True, help="Show what would be announced; sign nothing.")
@json_option
@click.pass_context
def announce(
    ctx: click.Context,
    path: Path,
    project: str | None,
    commit: str,
    spec: Path | None,
    title: str | None,
    expires: str,
    no_locks: bool,
    peers: tuple[str, ...],
    wait_peers: str,
    wait: bool,
    timeout: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Ask volunteers to test PATH, a git repository or an sdist.

    With a node running on this home, that node publishes the job. Without one, this command
    joins the network until at least one peer holds the job and its source. When nobody takes
    it, it is kept and goes out when a node next runs: that exits 0, and 3 with --wait.
    """
    from ponyswarm import announcing
    from ponyswarm.cli import sending
    from ponyswarm.cli.opening import now_ms, opened, seconds_of
    from ponyswarm.cli.plain import start_logging
    from ponyswarm.cli.tables import print_matrix
    from ponyswarm.cli.watch import goes_on, settled
    from ponyswarm.ledger.queries import Reader
    from ponyswarm.policy import ReaderPolicy

    home: Home = ctx.obj
    start_logging(verbose=False, level=logging.WARNING)
    way = sending.Way(peers=peers, seconds=seconds_of("--wait-peers", wait_peers))
    lasts, waits = seconds_of("--expires", expires), seconds_of("--timeout", timeout)
    with opened(home) as session:
        project_id = sending.choose_project(home, session, project)
        packed = announcing.pack(path, commit=commit, spec_file=spec)
        if packed.note:
            click.echo(packed.note, err=True)
        locked = None if no_locks else sending.lock(home, packed, now_ms())
        message, blobs = sending.draft(session, packed, locked, title=title, lasts=lasts)
        if dry_run:
            _print(message, None, packed, locked, as_json=as_json)
            return
        told = partial(_print, message, packed=packed, locked=locked, as_json=False)

        async def verdicts(job: bytes, node: Node | None) -> int:
            policy = ReaderPolicy(agreeing=message.spec.redundancy)
            return goes_on(job, await settled(home, job, policy, waits, node=node))

        then = verdicts if wait else None
        sent = sending.send(home, session, project_id, message, blobs, way, told, then)
    if as_json:
        print_json(sending.sent_facts(sent, project_id, message, locked))
    elif sent.is_watched:
        with Reader(home.ledger) as reader:
            row = reader.find_job(None, sent.job.hex(), None)
            print_matrix(row, reader.matrix(row, ReaderPolicy(agreeing=row.redundancy)))
    ctx.exit(sent.code)


def _print(
    message: Announce,
    job: bytes | None,
    packed: Packed,
    locked: Locked | None,
    *,
    as_json: bool,
) -> None:
    from ponyswarm.cli.sending import amount
    from ponyswarm.matrix import cells

    matrix = cells(message.spec)
    if as_json:
        print_json(
            {
                "title": message.title,
                "commit": message.commit,
                "source": message.source.hex(),
                "source_bytes": message.source_size,
                "cells": [
                    {"python": c.python, "services": c.services, "factors": dict(c.factors)}
                    for c in matrix
                ],
            }
        )
        return
    what = "would be announced" if job is None else f"is job {job.hex()}"
    click.echo(
        f"{message.title} {what}: {amount(len(matrix), 'cell')}, "
        f"{amount(message.spec.redundancy, 'run')} of each, "
        f"{len(packed.data):,} bytes of source",
        err=job is not None,
    )
    if locked is not None and locked.without:
        click.echo(
            f"no interpreter here for {', '.join(locked.without)}: volunteers resolve those "
            "cells themselves, as of now",
            err=True,
        )
