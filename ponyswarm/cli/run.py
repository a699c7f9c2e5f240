"""``ponyswarm run``: the matrix on this machine, without a network of peers."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import trio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from ponyswarm import config, local
from ponyswarm.cli import (
    EXIT_BAD,
    EXIT_INCONCLUSIVE,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    json_option,
    print_json,
)
from ponyswarm.cli.opening import service_options
from ponyswarm.cli.screen import console
from ponyswarm.errors import InfraError, LocalError
from ponyswarm.exec import interpreters, process, provisioning, sandbox
from ponyswarm.exec.executor import Executor
from ponyswarm.exec.outcome import Outcome, TestOutcome
from ponyswarm.exec.services.service import Options
from ponyswarm.exec.source import WorkingTree
from ponyswarm.exec.together import together
from ponyswarm.home import Home
from ponyswarm.local import Ended, Job, Place, Watched
from ponyswarm.messages import BAD_STATUSES, Status
from ponyswarm.volunteer import Volunteer

SHOWN_FAILURES = 30
MESSAGE_LINES = 15
LOG_LINES = 25
_ORDER = [str(status) for status in Status]


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path), default=".")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--spec",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read [tool.ponyswarm] from this file instead.",
)
@click.option("-j", "--jobs", type=click.IntRange(1, 1000), help="Cells at once (default: CPUs).")
@click.option("--python", "pythons", multiple=True, metavar="PY", help="Run these Pythons instead.")
@click.option("--cell", "wanted", multiple=True, metavar="WORDS", help="Only cells named so.")
@click.option(
    "--junit",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write JUnit XML as well, a suite a cell.",
)
@click.option("--upgrade", is_flag=True, help="Resolve anew what else is kept for a day.")
@click.option("--timings", is_flag=True, help="Show where the time went, step by step.")
@json_option
@click.pass_context
def run(
    ctx: click.Context,
    path: Path,
    arguments: tuple[str, ...],
    spec: Path | None,
    jobs: int | None,
    pythons: tuple[str, ...],
    wanted: tuple[str, ...],
    junit: Path | None,
    upgrade: bool,
    timings: bool,
    as_json: bool,
) -> None:
    """Run the matrix of PATH here: a git checkout as it is on disk, or an sdist.

    Every file that git tracks is taken with its uncommitted changes; files that were never
    added are not. What follows '--' is added to the tests' command:
    'ponyswarm run . --cell 3.12 -- -k name'. Exits 0 when all that ran is good, 1 when
    tests are bad, 3 when only runs are broken, 2 when nothing could be run.
    """
    home: Home = ctx.obj
    began = time.monotonic()
    told = _Told(console(), live=not as_json and sys.stdout.isatty(), quiet=as_json)
    found = trio.run(
        partial(_run, home, path, spec, jobs, pythons, wanted, arguments, upgrade, told)
    )
    seconds = time.monotonic() - began
    if junit is not None:
        from ponyswarm import junit as form

        form.write(junit, found.job.title, told.ended)
    if as_json:
        print_json(_as_json(found, told, seconds))
    else:
        _print(found, told, seconds, timings=timings)
    ctx.exit(_code(found, told))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What was to be run, and whether a person stopped it."""

    job: Job
    places: tuple[Place, ...]
    stopped: bool


async def _run(
    home: Home,
    path: Path,
    spec: Path | None,
    jobs: int | None,
    pythons: tuple[str, ...],
    wanted: tuple[str, ...],
    arguments: tuple[str, ...],
    upgrade: bool,
    told: _Told,
) -> _Found:
    settings = config.load(home.ini) if home.ini.exists() else config.Settings()
    bounds = _bounds(settings)
    holds, survey, packed = await _what_is_here(home, settings, bounds, path)
    options = provisioning.whatever_is_here(service_options(settings))
    async with _scratch(home, bounds, holds, options) as folder, AsyncExitStack() as stack:
        runs = folder / "runs"
        make = partial(
            Executor,
            cache=home.cache,
            scratch=runs,
            limits=bounds,
            sandbox=holds,
            cache_bytes=settings.limits.cache,
        )
        executor = make()
        job = await local.prepare(executor, path, packed, spec, folder, arguments)
        if job.spec.services:
            services = await stack.enter_async_context(
                provisioning.open_services(options, cache=home.cache, scratch=runs, holds=holds)
            )
            executor = make(services=services)
        places = local.places(job.spec, survey.found, pythons=pythons, wanted=wanted)
        here = [place for place in places if place.interpreter is not None]
        if not here:
            names = ", ".join(one.name for one in survey.found) or "no Python at all"
            raise LocalError(
                f"no interpreter here satisfies {', '.join(place.cell.python for place in places)}"
                f": there is {names}"
            )
        told.start(job, places)
        stopped = False
        with told.shown(), trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:

                async def heed() -> None:
                    nonlocal stopped
                    async for _ in signals:
                        stopped = True
                        nursery.cancel_scope.cancel()

                nursery.start_soon(heed)
                nursery.start_soon(told.refresh)
                await local.run(
                    job,
                    here,
                    Volunteer(executor, survey.found).execute,
                    local.Locks(home.cache / "locks", executor, fresh=upgrade),
                    at_once=jobs or os.cpu_count() or 1,
                    began=told.began,
                    ended=told.end,
                )
                nursery.cancel_scope.cancel()
    return _Found(job=job, places=places, stopped=stopped)


async def _what_is_here(
    home: Home, settings: config.Settings, bounds: sandbox.Limits, path: Path
) -> tuple[sandbox.Holds, interpreters.Survey, WorkingTree]:
    """The sandbox of this machine, its interpreters and the source, looked for all at once."""
    search = partial(
        interpreters.survey,
        settings.interpreters.values(),
        search=not settings.interpreters,
        known=home.cache / "interpreters.json",
    )
    holds, survey, packed = await together(
        (
            partial(sandbox.probe, bounds),
            partial(trio.to_thread.run_sync, search),
            partial(local.pack, path),
        )
    )
    if isinstance(holds, sandbox.Missing):
        raise InfraError(f"nothing can be run here: {holds.why}; what may help: {holds.remedy}")
    return holds, survey, packed


def _bounds(settings: config.Settings) -> sandbox.Limits:
    limits = settings.limits
    return sandbox.Limits(
        memory_bytes=limits.memory,
        processes=limits.processes,
        scratch_bytes=limits.disk,
        output_bytes=limits.output,
        seconds=limits.time,
        silent_seconds=limits.silence,
    )


@asynccontextmanager
async def _scratch(
    home: Home, bounds: sandbox.Limits, holds: sandbox.Holds, options: Mapping[str, Options]
) -> AsyncIterator[Path]:
    """A folder of this process alone: a node on this home sweeps its own at any time.

    What a killed run left is removed here, its control groups too.
    """
    parent = home.cache / "local"
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in parent.iterdir():
        if not (left.name.isdecimal() and process.alive(int(left.name))):
            runs = left / "runs"
            await provisioning.sweep(options, scratch=runs, holds=holds)
            Executor(cache=home.cache, scratch=runs, limits=bounds, sandbox=holds).sweep()
            shutil.rmtree(left, ignore_errors=True)
    folder = parent / str(os.getpid())
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- while it runs -----------------------------------------------------------------------


@dataclass(slots=True)
class _Told:
    """What is shown while cells run: a live table on a terminal, a line an event elsewhere."""

    out: Console
    live: bool
    quiet: bool
    ended: list[Ended] = field(default_factory=list)
    running: list[Watched] = field(default_factory=list)
    waiting: int = 0
    screen: Live | None = None

    def start(self, job: Job, places: Sequence[Place]) -> None:
        self.waiting = sum(place.interpreter is not None for place in places)
        if self.quiet:
            return
        self.out.print(f"[bold]{escape(job.title)}[/bold]: {_amount(len(places), 'cell')}")
        for place in places:
            if place.interpreter is None:
                self.out.print(f"[dim]- {escape(place.name)}: no such interpreter here[/dim]")
        if job.left_out:
            some = ", ".join(job.left_out[:3]) + (" …" if len(job.left_out) > 3 else "")
            click.echo(
                f"{_amount(len(job.left_out), 'file')} left out, since git does not track them: "
                f"{_plain(some)}",
                err=True,
            )

    def began(self, watched: Watched) -> None:
        self.waiting -= 1
        self.running.append(watched)

    def end(self, ended: Ended) -> None:
        self.running = [one for one in self.running if one.place is not ended.place]
        self.ended.append(ended)
        if not self.quiet:
            self.out.print(_line(ended))

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not self.live:
            yield
            return
        with Live(
            console=self.out, get_renderable=self.render, auto_refresh=False, transient=True
        ) as self.screen:
            yield
        self.screen = None

    async def refresh(self) -> None:
        while True:
            await trio.sleep(0.1)
            if self.screen is not None:
                self.screen.refresh()

    def render(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, show_header=False)
        for watched in self.running:
            now = watched.progress
            done = f"{now.done:,}" + (f" of {now.total:,}" if now.total else "") if now.done else ""
            table.add_row(
                f"… {escape(watched.place.name)}",
                now.step,
                done,
                f"{trio.current_time() - watched.began:.0f} s",
                f"[dim]{escape(now.current[-60:])}[/dim]",
            )
        if not self.waiting:
            return table
        return Group(table, f"[dim]{_amount(self.waiting, 'cell')} waiting[/dim]")


def _line(ended: Ended) -> str:
    """One cell that was run, in one line of markup."""
    sign, style, words = _verdict(ended)
    text = f"[{style}]{sign}[/{style}] {escape(ended.place.name)}: {escape(words)}"
    return f"{text} [dim]in {ended.seconds:.1f} s[/dim]"


def _verdict(ended: Ended) -> tuple[str, str, str]:
    """(sign, colour, words) of a cell that was run."""
    outcome = ended.outcome
    if outcome.state == "broken":
        return "!", "yellow", f"broken ({outcome.reason}): {_plain(outcome.detail)}"
    return ("✘", "red", _counted(outcome)) if ended.bad else ("✔", "green", _counted(outcome))


def _counted(outcome: Outcome) -> str:
    counts = Counter(str(test.status) for test in outcome.tests)
    return ", ".join(f"{counts[name]:,} {name}" for name in _ORDER if counts[name]) or "no tests"


# --- when it is over ---------------------------------------------------------------------


def _print(found: _Found, told: _Told, seconds: float, *, timings: bool) -> None:
    out = told.out
    ended = _in_order(found, told)
    _print_failures(out, ended)
    for one in ended:
        if one.outcome.state == "broken":
            _print_broken(out, one)
    if len(found.places) > 1:
        out.print()
        out.print(_matrix(found, told))
    if timings:
        out.print()
        out.print(_timings(ended))
    out.print(_summary(found, told, seconds))


def _in_order(found: _Found, told: _Told) -> list[Ended]:
    by_place = {id(one.place): one for one in told.ended}
    return [by_place[id(place)] for place in found.places if id(place) in by_place]


def _print_failures(out: Console, ended: Sequence[Ended]) -> None:
    """Each bad test once, with the cells it is bad in and the first message."""
    bad: dict[str, list[tuple[Ended, TestOutcome]]] = {}
    for one in ended:
        for test in one.outcome.tests:
            if test.status in BAD_STATUSES:
                bad.setdefault(test.id, []).append((one, test))
    for number, (name, seen) in enumerate(bad.items()):
        if number == SHOWN_FAILURES:
            out.print(f"… and {_amount(len(bad) - number, 'bad test')} more")
            break
        test = seen[0][1]
        places = ", ".join(one.place.name for one, _ in seen)
        where = "everywhere" if len(seen) == len(ended) > 1 else f"on {places}"
        out.print()
        out.print(f"[red]{test.status}[/red] [bold]{escape(_plain(name))}[/bold] {escape(where)}")
        for line in test.message.strip().splitlines()[-MESSAGE_LINES:]:
            out.print(f"    {_plain(line)}", markup=False)


def _print_broken(out: Console, ended: Ended) -> None:
    outcome = ended.outcome
    out.print()
    out.print(
        f"[yellow]broken[/yellow] [bold]{escape(ended.place.name)}[/bold]: "
        f"{escape(str(outcome.reason))}, {escape(_plain(outcome.detail))}"
    )
    if outcome.culprit:
        out.print(f"    this test was running: {escape(_plain(outcome.culprit))}")
    if outcome.tests:
        out.print(f"    before it: {_counted(outcome)}")
    for line in outcome.log.decode("utf-8", "replace").strip().splitlines()[-LOG_LINES:]:
        out.print(f"    {_plain(line)}", markup=False, style="dim")


def _matrix(found: _Found, told: _Told) -> Table:
    """Pythons down, services and factors across."""
    by_place = {id(one.place): one for one in told.ended}

    def column(place: Place) -> str:
        return " ".join((*place.cell.services, *(f"{n}={v}" for n, v in place.cell.factors)))

    columns = list(dict.fromkeys(column(place) for place in found.places))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("python")
    for name in columns:
        table.add_column(escape(name) or "result")
    for python in dict.fromkeys(place.cell.python for place in found.places):
        row = [escape(python)]
        for name in columns:
            here = [p for p in found.places if (p.cell.python, column(p)) == (python, name)]
            row.append(_in_matrix(here[0], by_place.get(id(here[0]))) if here else "")
        table.add_row(*row)
    return table


def _in_matrix(place: Place, ended: Ended | None) -> str:
    if ended is None:
        return "[dim]- not here[/dim]" if place.interpreter is None else "[dim]- not done[/dim]"
    sign, style, _ = _verdict(ended)
    outcome = ended.outcome
    if outcome.state == "broken":
        return f"[{style}]{sign} {outcome.reason}[/{style}]"
    bad = sum(test.status in BAD_STATUSES for test in outcome.tests)
    words = f"{bad:,} of {len(outcome.tests):,} bad" if bad else f"{len(outcome.tests):,}"
    return f"[{style}]{sign} {words}[/{style}] [dim]{ended.seconds:.1f} s[/dim]"


def _timings(ended: Sequence[Ended]) -> Table:
    names = list(dict.fromkeys(name for one in ended for name, _ in one.steps))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("seconds")
    for name in names:
        table.add_column(name, justify="right")
    for one in ended:
        steps = one.seconds_of
        table.add_row(
            escape(one.place.name),
            *(f"{steps[name]:.2f}" if name in steps else "" for name in names),
        )
    return table


def _summary(found: _Found, told: _Told, seconds: float) -> str:
    good = sum(one.outcome.state == "completed" and not one.bad for one in told.ended)
    bad = sum(one.bad for one in told.ended)
    broken = sum(one.outcome.state == "broken" and not one.bad for one in told.ended)
    missing = sum(place.interpreter is None for place in found.places)
    undone = len(found.places) - len(told.ended) - missing
    parts = [f"{good} of {_amount(len(found.places), 'cell')} good"]
    parts += [f"{count} {word}" for count, word in ((bad, "bad"), (broken, "broken")) if count]
    parts += [f"{missing} without an interpreter here"] if missing else []
    parts += [f"{undone} not done: interrupted"] if undone else []
    return f"{', '.join(parts)}, in {seconds:.1f} s"


def _code(found: _Found, told: _Told) -> int:
    if found.stopped:
        return EXIT_INTERRUPTED
    if any(one.bad for one in told.ended):
        return EXIT_BAD
    if any(one.outcome.state == "broken" for one in told.ended):
        return EXIT_INCONCLUSIVE
    return 0 if told.ended else EXIT_USAGE


def _as_json(found: _Found, told: _Told, seconds: float) -> dict[str, object]:
    ended = {id(one.place): one for one in told.ended}
    return {
        "title": found.job.title,
        "source": found.job.digest.hex(),
        "interrupted": found.stopped,
        "seconds": round(seconds, 3),
        "cells": [_cell_json(place, ended.get(id(place))) for place in found.places],
    }


def _cell_json(place: Place, ended: Ended | None) -> dict[str, object]:
    cell = place.cell
    facts: dict[str, object] = {
        "python": cell.python,
        "services": cell.services,
        "factors": dict(cell.factors),
        "interpreter": None if place.interpreter is None else place.interpreter.name,
        "state": "not run",
    }
    if ended is None:
        return facts
    outcome = ended.outcome
    return facts | {
        "state": outcome.state,
        "reason": None if outcome.reason is None else str(outcome.reason),
        "detail": outcome.detail,
        "culprit": outcome.culprit,
        "digest": local.digest(outcome).hex(),
        "counts": dict(Counter(str(test.status) for test in outcome.tests)),
        "seconds": round(ended.seconds, 3),
        "steps": {name: round(seconds, 3) for name, seconds in ended.seconds_of.items()},
        "bad": [
            {"id": test.id, "status": str(test.status), "message": test.message}
            for test in outcome.tests
            if test.status in BAD_STATUSES
        ],
    }


def _amount(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _plain(text: str) -> str:
    """Without what a terminal would obey: names and output are the job's."""
    return "".join(c if c.isprintable() or c == " " else "\ufffd" for c in text.expandtabs())
