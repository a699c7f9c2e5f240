"""``ponyswarm demo``: watch a small swarm do the main job on this machine."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import trio

from ponyswarm import demo as story
from ponyswarm import keys
from ponyswarm.cli import EXIT_BAD, json_option, print_json
from ponyswarm.cli.read import cell_facts
from ponyswarm.cli.tables import matrix_table, print_matrix
from ponyswarm.errors import InfraError
from ponyswarm.exec import index, interpreters, sandbox


@click.command()
@click.argument("path", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--pythons", default=6, show_default=True, help="At most so many interpreters.")
@json_option
@click.pass_context
def demo(ctx: click.Context, path: Path | None, pythons: int, as_json: bool) -> None:
    """Run a small swarm on this machine and show it work.

    Without PATH a real package is downloaded by name, version and hash and announced; PATH
    is a project or sdist with a [tool.ponyswarm] table of your own. Everything stays on
    loopback and in a temporary folder. Exits 0 only if every cell is a confirmed pass, the
    reader's ledger verifies, and the liar is found out.
    """
    probe = trio.run(sandbox.probe)
    if isinstance(probe, sandbox.Missing):
        raise InfraError(f"the demo needs a sandbox: {probe.why}; what may help: {probe.remedy}")
    _say("looking for interpreters")
    chosen = story.choose_pythons(interpreters.discover(), pythons)
    if not chosen:
        raise InfraError(
            "no CPython from 3.8 on was found: install one, for example by uv or pyenv"
        )
    _say("found " + ", ".join(f"{one.implementation} {one.version}" for one in chosen))
    with tempfile.TemporaryDirectory(prefix="ponyswarm-source-") as folder:
        spec = None
        if path is None:
            _say(f"downloading {story.PACKAGE} {story.PACKAGE_VERSION} by its hash")
            path = index.fetch_sdist(
                story.PACKAGE, story.PACKAGE_VERSION, story.PACKAGE_SHA256, Path(folder)
            )
            spec = story.package_spec([story.minor(one) for one in chosen])
        with _watching() as watch:
            told = story.tell(path, spec, chosen, say=_say, watch=watch)
    if as_json:
        print_json(_facts(told))
    else:
        _print(told)
    ctx.exit(0 if told.good else EXIT_BAD)


def _say(text: str) -> None:
    click.echo(f"· {text}", err=True)


@contextmanager
def _watching() -> Iterator[story.Watch]:
    """A live matrix on a terminal; a line whenever something changed elsewhere."""
    if sys.stderr.isatty():
        with _live() as watch:
            yield watch
    else:
        yield _lines()


def _lines() -> story.Watch:
    last: list[str] = [""]

    def watch(what: str, job: story.Job | None, seconds: float) -> None:
        if job is None:
            return
        runs = sum(len(cell.results) for cell in job.cells)
        counted = Counter(str(cell.finding.verdict) for cell in job.cells)
        text = f"{runs} runs; " + ", ".join(f"{n} {v}" for v, n in sorted(counted.items()))
        if text != last[0]:
            last[0] = text
            _say(f"{what}, {seconds:.0f} s: {text}")

    return watch


@contextmanager
def _live() -> Iterator[story.Watch]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), refresh_per_second=4, transient=True) as live:

        def watch(what: str, job: story.Job | None, seconds: float) -> None:
            if job is None:
                live.update(Text(f"{what} ({seconds:.0f} s)"))
                return
            runs = sum(len(cell.results) for cell in job.cells)
            head = Text(f"{what}: {runs} runs ended, {seconds:.0f} s")
            live.update(Group(head, matrix_table(job.cells)))

        yield watch


def _cells(job: story.Job) -> list[dict[str, object]]:
    return [cell_facts(cell, job.points.get(cell.id)) for cell in job.cells]


def _facts(told: story.Story) -> dict[str, object]:
    return {
        "good": told.good,
        "nodes": list(told.nodes),
        "title": told.job.row.title,
        "cells": _cells(told.job),
        "verified_entries": told.verified_entries,
        "faults": list(told.faults),
        "liar": {
            "key": keys.peer_id(told.liar),
            "verdicts": dict(told.liar_verdicts),
            "cells": _cells(told.settled),
        },
        "seconds": dict(told.seconds),
    }


def _print(told: story.Story) -> None:
    out: Callable[[str], None] = click.echo
    print_matrix(told.job.row, told.job.cells)
    out(
        f"{told.verified_entries} entries verified: every signature, hash and chain holds"
        if not told.faults
        else "\n".join(f"fault: {fault}" for fault in told.faults)
    )
    out("")
    out("The other half, one volunteer that lies. While it stood against one:")
    print_matrix(told.disputed.row, told.disputed.cells)
    out("After two more runs:")
    print_matrix(told.settled.row, told.settled.cells)
    out(f"the liar was {keys.peer_id(told.liar)}")
    times = told.seconds
    out(
        f"\nfirst claim {times['announce_to_first_claim']:.2f} s after the announcement, all "
        f"confirmed after {times['announce_to_all_confirmed']:.0f} s, {times['total']:.0f} s in all"
    )
