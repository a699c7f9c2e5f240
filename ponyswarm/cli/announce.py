"""``ponyswarm announce``: pack, pin, sign, and hand a job to the network."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import trio

from ponyswarm import announcing, config, handover, keys
from ponyswarm.cli import EXIT_USAGE, json_option, print_json
from ponyswarm.cli.joining import fetch_record, joined, known_addresses
from ponyswarm.cli.opening import node_is_running, now_ms, opened, seconds_of
from ponyswarm.cli.plain import start_logging
from ponyswarm.cli.tables import print_matrix
from ponyswarm.cli.watch import goes_on, settled
from ponyswarm.errors import LocalError
from ponyswarm.exec import interpreters
from ponyswarm.home import Home
from ponyswarm.ledger.queries import Reader
from ponyswarm.matrix import cells
from ponyswarm.messages import Announce, Blob, Entry
from ponyswarm.policy import ReaderPolicy
from ponyswarm.session import Session

GRACE = 3.0
# What the name of a project of uncommitted work ends with ('ponyswarm try').
TRIES = " (tries)"


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
    joins the network until at least one peer holds the job and its source. Exits 2 when no
    peer could be reached; the job is kept and goes out when a node next runs.
    """
    home: Home = ctx.obj
    start_logging(verbose=False, level=logging.WARNING)
    way = Way(peers=peers, seconds=seconds_of("--wait-peers", wait_peers))
    lasts, waits = seconds_of("--expires", expires), seconds_of("--timeout", timeout)
    with opened(home) as session:
        project_id = choose_project(home, session, project)
        packed = announcing.pack(path, commit=commit, spec_file=spec)
        if packed.note:
            click.echo(packed.note, err=True)
        locked = None if no_locks else lock(home, packed, now_ms())
        message, blobs = draft(session, packed, locked, title=title, lasts=lasts)
        if dry_run:
            _print(message, None, packed, locked, as_json=as_json)
            return
        told = partial(_print, message, packed=packed, locked=locked, as_json=False)

        async def verdicts(job: bytes) -> int:
            policy = ReaderPolicy(agreeing=message.spec.redundancy)
            return goes_on(job, await settled(home, job, policy, waits))

        sent = send(
            home, session, project_id, message, blobs, way, told, verdicts if wait else None
        )
    if as_json:
        print_json(sent_facts(sent, project_id, message, locked))
    elif wait and sent.code != EXIT_USAGE:
        with Reader(home.ledger) as reader:
            row = reader.find_job(None, sent.job.hex(), None)
            print_matrix(row, reader.matrix(row, ReaderPolicy(agreeing=row.redundancy)))
    ctx.exit(sent.code)


@dataclass(frozen=True, slots=True)
class Way:
    """How a job gets out where no node runs: whom to call besides, and for how long to try."""

    peers: tuple[str, ...]
    seconds: int


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of an announcement."""

    job: bytes
    facts: dict[str, object]
    code: int


def choose_project(home: Home, session: Session, text: str | None) -> bytes:
    """The project that is named, or the only one in which this key may announce.

    The full id of a project that is not here yet will do: its record is fetched.
    """
    if text is None:
        with Reader(home.ledger) as reader:
            known = reader.projects()
        mine = [state for state in known if state.may_announce(session.key.public, now_ms())]
        mine = [state for state in mine if not state.record.name.endswith(TRIES)]
        if len(mine) == 1:
            return mine[0].id
        if not mine:
            raise LocalError(
                "your key may announce in no project here: 'ponyswarm project create NAME' "
                "founds one; or name the id of one whose maintainers added your key by --project"
            )
        names = ", ".join(f"{state.record.name} ({state.id.hex()[:16]})" for state in mine)
        raise LocalError(f"your key may announce in several projects: choose by --project: {names}")
    try:
        with Reader(home.ledger) as reader:
            return reader.find_project(text)
    except LocalError:
        if len(text) == 64 and not node_is_running(home):
            return config.parse_project(text)
        raise


def lock(home: Home, packed: announcing.Packed, now: int) -> announcing.Locked:
    """Pin what each cell installs, with this machine's interpreters."""

    def progress(done: int, total: int, what: str) -> None:
        click.echo(f"pinning what {what} installs ({done + 1} of {total})", err=True)

    settings = config.load(home.ini) if home.ini.exists() else config.Settings()
    found = interpreters.survey(
        settings.interpreters.values(), search=not settings.interpreters
    ).found
    return trio.run(
        partial(announcing.lock, packed, found, before=now, cache=home.cache, progress=progress)
    )


def draft(
    session: Session,
    packed: announcing.Packed,
    locked: announcing.Locked | None,
    *,
    title: str | None,
    lasts: int,
) -> tuple[Announce, list[Blob]]:
    """The announcement to sign, and its blobs, which are kept from here on."""
    now = now_ms()
    source = session.blobs.put(packed.data)
    locks = None if locked is None or not locked.count else session.blobs.put(locked.data)
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
        expires=now + 1000 * lasts,
    )
    return message, [source] if locks is None else [source, locks]


def send(
    home: Home,
    session: Session,
    project: bytes,
    message: Announce,
    blobs: Sequence[Blob],
    way: Way,
    told: Callable[[bytes], None],
    then: Callable[[bytes], Awaitable[int]] | None,
) -> Sent:
    """Sign an announcement and get it out; ``told`` hears its id, ``then`` gives the code."""
    if not node_is_running(home):
        return _hand_over(home, session, project, message, blobs, way, told, then)
    entry = session.publish(message, project=project, now=now_ms())
    told(entry.id)
    click.echo("the node running on this home publishes it", err=True)
    code = 0 if then is None else trio.run(then, entry.id)
    return Sent(entry.id, {"published_by": "the node running on this home"}, code)


def sent_facts(
    sent: Sent, project: bytes, message: Announce, locked: announcing.Locked | None
) -> dict[str, object]:
    return {
        "job": sent.job.hex(),
        "project": project.hex(),
        "title": message.title,
        "commit": message.commit,
        "source": message.source.hex(),
        "locks": 0 if locked is None else locked.count,
        "exit_code": sent.code,
        **sent.facts,
    }


def _print(
    message: Announce,
    job: bytes | None,
    packed: announcing.Packed,
    locked: announcing.Locked | None,
    *,
    as_json: bool,
) -> None:
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


def _hand_over(
    home: Home,
    session: Session,
    project: bytes,
    message: Announce,
    blobs: Sequence[Blob],
    way: Way,
    told: Callable[[bytes], None],
    then: Callable[[bytes], Awaitable[int]] | None,
) -> Sent:
    """Join the network for as long as it takes; what came of it, and the exit code."""
    addresses, table = known_addresses(home, way.peers)
    known = session.store.state(project) is not None
    if not addresses and not table.addresses() and known:
        entry = session.publish(message, project=project, now=now_ms())
        told(entry.id)
        click.echo(
            "no peer is known, so nobody has it yet: name one by --peer, or under [network] in "
            f"{home.ini}; it is kept, and goes out when 'ponyswarm node' runs",
            err=True,
        )
        return Sent(entry.id, {"handed_to": [], "entry_only": []}, EXIT_USAGE)
    if known:
        session.check(message, project, now_ms())
    click.echo("looking for peers to hand it to", err=True)

    async def main() -> tuple[Entry, handover.HandedOver, int]:
        async with joined(session, addresses, table) as node:
            await node.follow(project, trusted=False)
            await fetch_record(node, project, way.seconds)
            session.check(message, project, now_ms())
            # Signed here and not before: peers are first asked what they know of our feed.
            entry = await node.publish(message, project)
            told(entry.id)
            state = await handover.hand_over(
                node, project, blobs, seconds=way.seconds, grace=GRACE, progress=lambda state: None
            )
            if state.whole and then is not None:
                return entry, state, await then(entry.id)
            return entry, state, 0

    entry, state, code = trio.run(main)
    facts: dict[str, object] = {
        "handed_to": sorted(keys.peer_id(key) for key in state.whole),
        "entry_only": sorted(keys.peer_id(key) for key in state.entry - state.whole),
    }
    if state.whole:
        click.echo(f"handed to {amount(len(state.whole), 'peer')}, with its source", err=True)
        return Sent(entry.id, facts, code)
    if state.entry:
        click.echo(
            f"held by {amount(len(state.entry), 'peer')}, none of which took the source "
            "(volunteers that trust the project do); it is kept here: "
            "run 'ponyswarm node' to serve it",
            err=True,
        )
    elif state.connected:
        click.echo(
            f"{amount(len(state.connected), 'peer')} reached, and none follows this project: "
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
    return Sent(entry.id, facts, EXIT_USAGE)


def amount(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
