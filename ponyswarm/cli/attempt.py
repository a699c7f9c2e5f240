"""``ponyswarm try``: uncommitted work on the machines of those who chose to trust yours.

A try is a job in a project of its own, which its owner's key founds on first use. So it
runs nowhere unless a volunteer trusted that project by its id, it never mixes with what
is known of commits, and its announcement names no commit.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import trio

from ponyswarm import announcing, config
from ponyswarm.cli import EXIT_INTERRUPTED, json_option, print_json
from ponyswarm.cli.opening import now_ms, opened, seconds_of
from ponyswarm.cli.plain import harmless, start_logging
from ponyswarm.cli.sending import (
    TRIES,
    Way,
    amount,
    draft,
    lock,
    send,
    sent_facts,
)
from ponyswarm.cli.tables import print_matrix
from ponyswarm.cli.watch import settled
from ponyswarm.exec import source
from ponyswarm.home import Home
from ponyswarm.ledger.queries import JobRow, Reader
from ponyswarm.ledger.verdicts import CONFIRMED
from ponyswarm.messages import Announce, CrossCheck, Project, Withdraw
from ponyswarm.policy import ReaderPolicy
from ponyswarm.session import Session

if TYPE_CHECKING:
    from ponyswarm.node import Node

# Time for the withdrawal of an interrupted try to reach those who run it.
FAREWELL = 1.0


@click.command("try")
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".")
@click.option(
    "--spec",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read [tool.ponyswarm] from this file instead.",
)
@click.option("--redundancy", default=1, show_default=True, help="Runs asked for of each cell.")
@click.option("--no-locks", is_flag=True, help="Let each volunteer resolve, as of now.")
@click.option("--peer", "peers", multiple=True, metavar="ADDR", help="Call this node as well.")
@click.option("--no-wait", is_flag=True, help="Do not stay for the verdicts.")
@click.option("--timeout", default="1 h", show_default=True, help="How long to stay at the most.")
@json_option
@click.pass_context
def attempt(
    ctx: click.Context,
    path: Path,
    spec: Path | None,
    redundancy: int,
    no_locks: bool,
    peers: tuple[str, ...],
    no_wait: bool,
    timeout: str,
    as_json: bool,
) -> None:
    """Have uncommitted work tested by volunteers who trust your tries.

    What git tracks in PATH is taken as it is on disk. The job goes into a project of your
    own, made on first use, whose id your volunteers trust; whoever follows that project
    can read the source. It says nothing of any commit, and a new try withdraws the one
    before. When you stop waiting by Ctrl-C it is withdrawn as well. Exits as 'watch'.
    """
    home: Home = ctx.obj
    start_logging(verbose=False, level=logging.WARNING)
    way = Way(peers=peers, seconds=60)
    waits = seconds_of("--timeout", timeout)
    packed = announcing.pack_working_tree(path, spec_file=spec)
    packed = replace(packed, spec=replace(packed.spec, redundancy=redundancy))
    if packed.left_out:
        some = ", ".join(map(harmless, packed.left_out[:3]))
        more = " …" if len(packed.left_out) > 3 else ""
        click.echo(
            f"{amount(len(packed.left_out), 'file')} left out, since git does not track them: "
            f"{some}{more}",
            err=True,
        )
    with opened(home) as session:
        project = _own_project(home, session, packed.title.split(" ")[0])
        locked = None if no_locks else lock(home, packed, now_ms())
        title = f"{packed.title}, uncommitted on {source.head(path)[:12] or 'nothing'}"
        message, blobs = draft(session, packed, locked, title=title, lasts=86_400)
        _withdraw_open(home, session, project, "a newer try took its place")

        async def verdicts(job: bytes, node: Node | None) -> int:
            code = await settled(home, job, ReaderPolicy(agreeing=redundancy), waits, node=node)
            if code == EXIT_INTERRUPTED:
                # Nobody waits for it any more, so no machine need run it.
                _withdraw_open(home, session, project, "its author stopped waiting")
                await trio.sleep(FAREWELL)
                click.echo("the try is withdrawn", err=True)
            return code

        sent = send(
            home,
            session,
            project,
            message,
            blobs,
            way,
            partial(_told, message),
            None if no_wait else verdicts,
        )
    if as_json:
        print_json(sent_facts(sent, project, message, locked))
    elif sent.is_watched:
        with Reader(home.ledger) as reader:
            row = reader.find_job(None, sent.job.hex(), None)
            print_matrix(row, reader.matrix(row, ReaderPolicy(agreeing=redundancy)))
    ctx.exit(sent.code)


def _told(message: Announce, job: bytes) -> None:
    click.echo(f"{harmless(message.title)} is job {job.hex()}", err=True)


def _own_project(home: Home, session: Session, name: str) -> bytes:
    """The project of this key's tries of ``name``, founded when there is none yet."""
    wanted = f"{name[:90]}{TRIES}"
    with Reader(home.ledger) as reader:
        for state in reader.projects():
            if state.record.name == wanted and session.key.public in state.record.roots:
                return state.id
    record = Project(name=wanted, roots=(session.key.public,), cross_check=CrossCheck(redundancy=1))
    entry = session.publish(record, now=now_ms())
    if home.ini.exists():
        config.add_project(home.ini, "follow", entry.id, wanted)
    click.echo(
        f"your tries of {harmless(name)} are a project of their own now; on each machine that "
        f"shall run them:\n  ponyswarm trust add {entry.id.hex()}",
        err=True,
    )
    return entry.id


def _withdraw_open(home: Home, session: Session, project: bytes, reason: str) -> int:
    """Withdraw what still runs of this project; how many that were."""
    with Reader(home.ledger) as reader:
        rows = [
            row
            for row in reader.jobs(project)
            if not row.withdrawn
            and row.expires > now_ms()
            and row.announcer == session.key.public
            and not _is_settled(reader, row)
        ]
    for row in rows:
        session.publish(Withdraw(job=row.id, reason=reason), project=project, now=now_ms())
    return len(rows)


def _is_settled(reader: Reader, job: JobRow) -> bool:
    cells = reader.matrix(job, ReaderPolicy(agreeing=job.redundancy))
    return all(cell.finding.verdict in CONFIRMED for cell in cells)
