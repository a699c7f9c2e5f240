"""``ponyswarm announce``: pack, pin, sign, and hand a job to the network."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import click
import trio

from ponyswarm import announcing, config, handover, keys
from ponyswarm.cli import EXIT_USAGE, json_option, print_json
from ponyswarm.cli.node import network_addresses
from ponyswarm.cli.opening import node_is_running, now_ms, opened
from ponyswarm.cli.plain import start_logging
from ponyswarm.cli.read import exit_code
from ponyswarm.errors import LocalError
from ponyswarm.exec import interpreters
from ponyswarm.home import Home
from ponyswarm.ledger.queries import CellRow, Reader
from ponyswarm.ledger.verdicts import CONFIRMED
from ponyswarm.messages import Announce, Blob, Entry
from ponyswarm.node import open_node
from ponyswarm.p2p.connectivity import Connectivity
from ponyswarm.p2p.table import PeerTable
from ponyswarm.policy import ReaderPolicy
from ponyswarm.session import Session

GRACE = 3.0


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path), default=".")
@click.option("--project", "-p", required=True, help="The project, by name or id.")
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
@click.option("--wait", is_flag=True, help="Stay until the verdicts are there; exit as 'results'.")
@click.option(
    "--timeout", default="1 h", show_default=True, help="With --wait: how long at the most."
)
@click.option("--dry-run", is_flag=True, help="Show what would be announced; sign nothing.")
@json_option
@click.pass_context
def announce(
    ctx: click.Context,
    path: Path,
    project: str,
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
    """Ask volunteers to test PATH, a git checkout or an sdist.

    With a node running on this home, that node publishes the job. Without one, this command
    joins the network until at least one peer holds the job and its source. Exits 2 when no
    peer could be reached; the job is kept and goes out when a node next runs.
    """
    home: Home = ctx.obj
    start_logging(verbose=False, level=logging.WARNING)
    seconds = _seconds("--wait-peers", wait_peers)
    packed = announcing.pack(path, commit=commit, spec_file=spec)
    now = now_ms()
    locked = None if no_locks else _lock(home, packed, now)
    with opened(home) as session:
        with Reader(home.ledger) as reader:
            project_id = reader.find_project(project)
        source, locks = _blobs(packed, locked, session)
        message = Announce(
            title=(title or packed.title)[:500],
            commit=packed.commit,
            source=source.hash,
            source_size=source.size,
            source_name=packed.name,
            spec=packed.spec,
            locks=None if locks is None else locks.hash,
            locks_size=0 if locks is None else locks.size,
            resolve_before=now,
            expires=now + 1000 * _seconds("--expires", expires),
        )
        if dry_run:
            _print(message, None, packed, locked, as_json=as_json)
            return
        wanted = [source] if locks is None else [source, locks]
        told = partial(_print, message, packed=packed, locked=locked, as_json=False)
        if node_is_running(home):
            entry = session.publish(message, project=project_id, now=now_ms())
            told(entry.id)
            facts: dict[str, object] = {"published_by": "the node running on this home"}
            click.echo("the node running on this home publishes it", err=True)
            code = 0
            if wait:
                code = trio.run(_verdicts, home, entry.id, _seconds("--timeout", timeout))
        else:
            verdicts = partial(_verdicts, home, seconds=_seconds("--timeout", timeout))
            entry, facts, code = _hand_over(
                home,
                session,
                project_id,
                message,
                wanted,
                peers,
                seconds,
                told,
                verdicts if wait else None,
            )
    if as_json:
        print_json(
            {
                "job": entry.id.hex(),
                "project": project_id.hex(),
                "title": message.title,
                "commit": message.commit,
                "source": source.hash.hex(),
                "locks": 0 if locked is None else locked.count,
                **facts,
            }
        )
    ctx.exit(code)


def _seconds(option: str, text: str) -> int:
    try:
        return config.parse_duration(text)
    except ValueError as fault:
        raise LocalError(f"{option}: {text!r} {fault}") from fault


def _lock(home: Home, packed: announcing.Packed, now: int) -> announcing.Locked:
    def progress(done: int, total: int, what: str) -> None:
        click.echo(f"pinning what {what} installs ({done + 1} of {total})", err=True)

    settings = config.load(home.ini)
    found = interpreters.survey(
        settings.interpreters.values(), search=not settings.interpreters
    ).found
    return trio.run(
        partial(announcing.lock, packed, found, before=now, cache=home.cache, progress=progress)
    )


def _blobs(
    packed: announcing.Packed, locked: announcing.Locked | None, session: Session
) -> tuple[Blob, Blob | None]:
    source = session.blobs.put(packed.data)
    if locked is None or not locked.count:
        return source, None
    return source, session.blobs.put(locked.data)


def _print(
    message: Announce,
    job: bytes | None,
    packed: announcing.Packed,
    locked: announcing.Locked | None,
    *,
    as_json: bool,
) -> None:
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
        f"{message.title} {what}: {len(matrix)} cells, {message.spec.redundancy} runs of each, "
        f"{len(packed.data):,} bytes of source",
        err=job is not None,
    )
    if locked is not None and locked.without:
        click.echo(
            f"no interpreter here for {', '.join(locked.without)}: volunteers resolve those "
            "cells themselves, as of now",
            err=True,
        )


async def _verdicts(home: Home, job: bytes, seconds: int) -> int:
    """Wait until every cell is confirmed, saying what changes; the exit code of `results`."""
    said = ""
    cells: list[CellRow] = []
    with Reader(home.ledger) as reader:
        row = reader.find_job(None, job.hex(), None)
        with trio.move_on_after(seconds):
            while True:
                cells = reader.matrix(row, ReaderPolicy(agreeing=row.redundancy))
                counted = Counter(str(cell.finding.verdict) for cell in cells)
                text = ", ".join(f"{n} {verdict}" for verdict, n in sorted(counted.items()))
                if text != said:
                    click.echo(text, err=True)
                    said = text
                if all(cell.finding.verdict in CONFIRMED for cell in cells):
                    break
                await trio.sleep(1)
    click.echo(f"'ponyswarm results --job {job.hex()[:16]} …' shows the matrix", err=True)
    return exit_code(cells)


def _hand_over(
    home: Home,
    session: Session,
    project: bytes,
    message: Announce,
    blobs: Sequence[Blob],
    peers: tuple[str, ...],
    seconds: int,
    told: Callable[[bytes], None],
    verdicts: Callable[[bytes], Awaitable[int]] | None,
) -> tuple[Entry, dict[str, object], int]:
    """Join the network for as long as it takes; what came of it, and the exit code."""
    settings = config.load(home.ini)
    addresses = network_addresses(home, settings, peers)
    table = PeerTable(home.peers)
    if not addresses and not table.addresses():
        entry = session.publish(message, project=project, now=now_ms())
        told(entry.id)
        click.echo(
            "no peer is known, so nobody has it yet: name one by --peer, or under [network] in "
            f"{home.ini}; it is kept, and goes out when 'ponyswarm node' runs",
            err=True,
        )
        return entry, {"handed_to": [], "entry_only": []}, EXIT_USAGE
    session.check(message, project, now_ms())
    click.echo("looking for peers to hand it to", err=True)

    async def main() -> tuple[Entry, handover.HandedOver, int]:
        async with open_node(
            key=session.key,
            store=session.store,
            journal=session.journal,
            blobs=session.blobs,
            capacity=None,
            execute=None,
            listen=(),
            connectivity=Connectivity(addresses, table),
        ) as node:
            await node.follow(project, trusted=False)
            # Signed here and not before: peers are first asked what they know of our feed.
            entry = await node.publish(message, project)
            told(entry.id)
            state = await handover.hand_over(
                node, project, blobs, seconds=seconds, grace=GRACE, progress=lambda state: None
            )
            if state.whole and verdicts is not None:
                return entry, state, await verdicts(entry.id)
            return entry, state, 0

    entry, state, code = trio.run(main)
    facts: dict[str, object] = {
        "handed_to": sorted(keys.peer_id(key) for key in state.whole),
        "entry_only": sorted(keys.peer_id(key) for key in state.entry - state.whole),
    }
    if state.whole:
        count = len(state.whole)
        click.echo(f"handed to {count} peer{'s' * (count != 1)}, with its source", err=True)
        return entry, facts, code
    if state.entry:
        click.echo(
            f"{len(state.entry)} peers hold the announcement, none took the source (volunteers "
            "that trust the project do); it is kept here: run 'ponyswarm node' to serve it",
            err=True,
        )
    elif state.connected:
        click.echo(
            f"{len(state.connected)} peers were reached and none follows this project: "
            f"volunteers say 'ponyswarm trust add {project.hex()}'; it is kept, and goes out "
            "when 'ponyswarm node' runs",
            err=True,
        )
    else:
        click.echo(
            f"none of {len(addresses)} addresses answered; the job is kept, and goes out when "
            "'ponyswarm node' runs",
            err=True,
        )
    return entry, facts, EXIT_USAGE
