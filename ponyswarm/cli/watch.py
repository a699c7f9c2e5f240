"""``ponyswarm watch``: a job's matrix while it fills in, and an exit code when it has."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
import trio
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from ponyswarm import keys, status
from ponyswarm.cli import EXIT_INTERRUPTED, EXIT_UNTRUSTED, json_option, print_json
from ponyswarm.cli.joining import joined, known_addresses
from ponyswarm.cli.opening import node_is_running, now_ms, opened, seconds_of
from ponyswarm.cli.plain import harmless
from ponyswarm.cli.read import cell_facts, exit_code, find_job, job_facts, unserved
from ponyswarm.cli.tables import matrix_table, print_matrix, span, verdict_text
from ponyswarm.errors import LocalError
from ponyswarm.home import Home
from ponyswarm.ledger.queries import CellRow, JobRow, Reader
from ponyswarm.ledger.verdicts import CONFIRMED, Verdict
from ponyswarm.policy import ReaderPolicy

if TYPE_CHECKING:
    from ponyswarm.node import Node

POLL = 0.5
# How long a node that has just started may take to get a job from its peers.
ARRIVES = 15.0

# A long suite must not look dead where nobody sees a table: a line at least this often.
SILENT = 240.0
MOST_NAMED = 4


@dataclass(frozen=True, slots=True)
class Lease:
    """Who runs a cell, and since when at the latest (seconds since the epoch)."""

    volunteer: str
    since: float


AtWork = Mapping[bytes, Sequence[Lease]]
Show = Callable[[Sequence[CellRow], AtWork], None]


@click.command()
@click.argument("job")
@click.option("--policy", default="all", show_default=True, help="all, vouched, or KEY,KEY…")
@click.option("--agreeing", "-k", type=click.IntRange(1), help="How many must agree.")
@click.option("--timeout", default="1 h", show_default=True, help="How long at the most.")
@click.option("--fail-fast", is_flag=True, help="End at the first confirmed failure.")
@click.option("--peer", "peers", multiple=True, metavar="ADDR", help="Call this node as well.")
@json_option
@click.pass_context
def watch(
    ctx: click.Context,
    job: str,
    policy: str,
    agreeing: int | None,
    timeout: str,
    fail_fast: bool,
    peers: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show the matrix of JOB while it fills in; end when every cell is confirmed.

    JOB is the beginning of a job's id, a commit, or a project (its latest job). With a node
    on this home its ledger is watched; without one this command joins the network for as
    long. Exits 0 when every cell is a confirmed pass, 1 when one is a confirmed failure, 3
    when something is still open or disputed, 4 when the announcing key does not count.
    """
    home: Home = ctx.obj
    seconds = seconds_of("--timeout", timeout)
    row = arriving(home, job)
    chosen = ReaderPolicy.parse(policy, agreeing or row.redundancy)

    async def here(node: Node | None = None) -> int:
        code = await settled(home, row.id, chosen, seconds, node=node, fail_fast=fail_fast)
        return goes_on(row.id, code)

    if node_is_running(home):
        code = trio.run(here)
    else:
        addresses, table = known_addresses(home, peers)
        with opened(home) as session:

            async def among_peers() -> int:
                async with joined(session, addresses, table) as node:
                    await node.follow(row.project, trusted=False)
                    return await here(node)

            code = trio.run(among_peers)
    with Reader(home.ledger) as reader:
        cells = reader.matrix(row, chosen)
        points = reader.points(row.id)
    if as_json:
        facts = [cell_facts(cell, points.get(cell.id)) for cell in cells]
        print_json({**job_facts(row), "exit_code": code, "cells": facts})
    else:
        print_matrix(row, cells, unserved(home, row, cells, points))
    ctx.exit(code)


def arriving(home: Home, text: str, seconds: float = ARRIVES) -> JobRow:
    """A job that is here, or that the node on this home gets in so many seconds.

    Raises `LocalError` when it is not here by then; at once when no node runs.
    """
    node_runs = node_is_running(home)
    until = time.monotonic() + seconds
    is_told = False
    while True:
        try:
            with Reader(home.ledger) as reader:
                return find_job(reader, text)
        except LocalError as fault:
            if not node_runs:
                raise
            if time.monotonic() >= until:
                raise LocalError(
                    f"{fault}; the node here did not get it in {seconds:g} s: 'ponyswarm status' "
                    "shows which projects it follows and whom it is connected to"
                ) from fault
        if not is_told:
            click.echo(
                f"{text!r} is not in this ledger yet: the node here has {seconds:g} s to get it",
                err=True,
            )
            is_told = True
        time.sleep(POLL)


async def settled(
    home: Home,
    job: bytes,
    policy: ReaderPolicy,
    seconds: float,
    *,
    node: Node | None = None,
    fail_fast: bool = False,
) -> int:
    """Wait until every cell of a job is confirmed, and show what changes meanwhile.

    ``node`` is our own, of this command; without one, that of the home says who runs what.

    It also ends when the job was withdrawn or has expired, after ``seconds``, and by Ctrl-C
    (130). Else the exit code is that of ``results``, or 4 when the key that announced the
    job does not count.
    """
    cells: list[CellRow] = []
    interrupted = False
    with Reader(home.ledger) as reader:
        row = reader.find_job(None, job.hex(), None)
        with (
            _shown(row) as show,
            trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
            trio.move_on_after(seconds),
        ):
            while True:
                cells = reader.matrix(row, policy)
                show(cells, _at_work(home, node))
                verdicts = {cell.finding.verdict for cell in cells}
                row = reader.find_job(None, job.hex(), None)
                if verdicts <= CONFIRMED or row.withdrawn or row.expires <= now_ms():
                    break
                if fail_fast and Verdict.CONFIRMED_FAIL in verdicts:
                    break
                with trio.move_on_after(POLL):
                    await anext(signals)
                    interrupted = True
                    break
        why = _distrust(reader, row)
    if why is not None:
        click.echo(f"this job does not count: {why}", err=True)
        return EXIT_UNTRUSTED
    if interrupted:
        return EXIT_INTERRUPTED
    if row.withdrawn:
        click.echo("the job was withdrawn: nobody runs it any more", err=True)
    return exit_code(cells)


def goes_on(job: bytes, code: int) -> int:
    """Tell who stopped waiting how to come back; the same code."""
    if code == EXIT_INTERRUPTED:
        click.echo(f"the job goes on: 'ponyswarm watch {job.hex()[:16]}' shows it again", err=True)
    return code


def _distrust(reader: Reader, job: JobRow) -> str | None:
    """Why an announcement is worth nothing now; None when it stands."""
    state = reader.project(job.project)
    if state is None or not state.may_announce(job.announcer, job.announced):
        return "its key had no right to announce it when it did"
    if job.announcer in reader.forked(job.project):
        return "its key signed two histories"
    return None


def _at_work(home: Home, node: Node | None) -> AtWork:
    """Who is at which cells now, as a node has heard it."""
    found: dict[bytes, list[Lease]] = {}
    if node is not None:
        for cell, held in node.protocol.at_work(now_ms()).items():
            found[cell] = [Lease(keys.peer_id(key), at / 1000) for key, at in held.items()]
        return found
    now = status.read(home.status)
    for line in () if now is None else now.leases:
        found.setdefault(bytes.fromhex(line.cell), []).append(Lease(line.volunteer, line.since))
    return found


@contextmanager
def _shown(job: JobRow) -> Iterator[Show]:
    """The matrix redrawn on a terminal; elsewhere a line for each cell whose verdict changed."""
    began = time.monotonic()
    if not sys.stderr.isatty():
        yield _lines()
        return
    screen = Console(stderr=True, highlight=False)
    with Live(console=screen, auto_refresh=False, transient=True) as live:

        def show(cells: Sequence[CellRow], at_work: AtWork) -> None:
            live.update(_view(job, cells, at_work, time.monotonic() - began), refresh=True)

        yield show


def _view(job: JobRow, cells: Sequence[CellRow], at_work: AtWork, seconds: float) -> Group:
    done = sum(cell.finding.verdict in CONFIRMED for cell in cells)
    runs = sum(cell.runs for cell in cells)
    head = Text(
        f"{harmless(job.title)}  {done} of {len(cells)} cells confirmed, {runs} runs, "
        f"{seconds:.0f} s"
    )
    return Group(head, matrix_table(cells, {id_: _age(held) for id_, held in at_work.items()}))


def _age(held: Sequence[Lease]) -> int:
    """Seconds since the first of them began; a clock of theirs may be ahead of ours."""
    return max(0, int(time.time() - min(lease.since for lease in held)))


def _lines() -> Show:
    before: dict[bytes, str] = {}
    runners: dict[bytes, set[str]] = {}
    out = Console(stderr=True, highlight=False, soft_wrap=True)
    said = time.monotonic()

    def say(text: str) -> None:
        nonlocal said
        said = time.monotonic()
        out.print(text)

    def show(cells: Sequence[CellRow], at_work: AtWork) -> None:
        for cell in cells:
            text, place = verdict_text(cell.finding), escape(harmless(cell.place))
            held = at_work.get(cell.id, ())
            now = {lease.volunteer for lease in held}
            for one in sorted(now - runners.get(cell.id, set())):
                say(f"{place}: ▶ …{one[-8:]} runs it")
            runners[cell.id] = now
            if before.get(cell.id, _unspoken(cell)) != text:
                say(f"{place}: {text}")
            before[cell.id] = text
        if time.monotonic() - said > SILENT:
            busy = [cell for cell in cells if cell.id in at_work]
            runs = ", ".join(
                f"{escape(harmless(cell.place))} for {span(_age(at_work[cell.id]))}"
                for cell in busy[:MOST_NAMED]
            )
            more = f" and {len(busy) - MOST_NAMED} more" * (len(busy) > MOST_NAMED)
            say(f"still running: {runs}{more}" if busy else "nobody runs any of it now")

    return show


def _unspoken(cell: CellRow) -> str:
    """What needs no line: a cell that nobody has run yet."""
    return verdict_text(cell.finding) if cell.finding.verdict is Verdict.PENDING else ""
