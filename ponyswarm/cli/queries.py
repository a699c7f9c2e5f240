"""``ponyswarm diff``, ``flaky``, ``volunteers``, ``search``, ``sql``: further questions."""

from __future__ import annotations

import click

from ponyswarm import keys
from ponyswarm.cli import EXIT_BAD, EXIT_INCONCLUSIVE, json_option, print_json
from ponyswarm.cli.opening import now_ms
from ponyswarm.cli.read import moment, plain, short
from ponyswarm.cli.screen import console
from ponyswarm.errors import LocalError
from ponyswarm.home import Home
from ponyswarm.ledger import analysis, history
from ponyswarm.ledger import diff as comparison
from ponyswarm.ledger.queries import JobRow, Reader


def _blobs(home: Home) -> analysis.Read:
    def read(hash_: bytes) -> bytes | None:
        name = hash_.hex()
        try:
            return (home.blobs / name[:2] / name[2:]).read_bytes()
        except OSError:
            return None

    return read


def _job(reader: Reader, text: str) -> JobRow:
    """A job by the beginning of its id, else the latest of a commit."""
    try:
        return reader.find_job(None, text, None)
    except LocalError:
        return reader.find_job(None, None, text)


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--job", help="Compare within this job: two environments, or two volunteers.")
@json_option
@click.pass_context
def diff(ctx: click.Context, a: str, b: str, job: str | None, as_json: bool) -> None:
    """Show the tests that differ between A and B.

    A and B are two jobs (ids or commits); with --job, two Pythons or environments of that
    job ('3.12', 'linux arm64'), or two volunteers (keys, or how they end). Exits 0 when
    nothing differs, 1 when something does, 3 when there is nothing to compare.
    """
    home: Home = ctx.obj
    with Reader(home.ledger) as reader:
        sides = []
        within = None if job is None else _job(reader, job)
        for text in (a, b):
            row = within or _job(reader, text)
            sides.append(
                comparison.of_job(reader, row)
                if within is None
                else comparison.within(reader, row, text)
            )
        found = comparison.diff(sides[0], sides[1], _blobs(home))
    if as_json:
        print_json(
            [
                {
                    "cell": one.place,
                    "same": one.same,
                    "a": one.left,
                    "b": one.right,
                    "tests": None
                    if one.tests is None
                    else {test: list(pair) for test, pair in one.tests.items()},
                }
                for one in found
            ]
        )
    else:
        _print_diff(found, a, b)
    if not found:
        ctx.exit(EXIT_INCONCLUSIVE)
    ctx.exit(0 if all(one.same for one in found) else EXIT_BAD)


def _print_diff(found: list[comparison.Difference], a: str, b: str) -> None:
    out = console()
    for one in found:
        where = plain(one.place) or "all"
        if one.same:
            out.print(f"{where}: the same, {one.left}")
            continue
        out.print(f"[bold]{where}[/bold]: {plain(a)} {one.left}; {plain(b)} {one.right}")
        if one.tests is None:
            out.print("  which tests differ is not known here: their lists are not on this machine")
            continue
        for test, (left, right) in one.tests.items():
            out.print(f"  {left:>8} → {right:<8} {plain(test)}")
    if not found:
        out.print("there is nothing to compare: no place of the matrix has outcomes on both sides")


jobs_option = click.option(
    "--jobs",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="Look at so many of the latest jobs of each project; 0 is all of them.",
)


@click.command()
@click.argument("project")
@jobs_option
@json_option
@click.pass_context
def flaky(ctx: click.Context, project: str, jobs: int, as_json: bool) -> None:
    """List tests whose status differs between comparable runs of the same source.

    Exits 1 when there are any, 3 when runs differ and it is not known here in which tests.
    """
    home: Home = ctx.obj
    with Reader(home.ledger) as reader:
        report = analysis.flaky(reader, reader.find_project(project), _blobs(home), jobs or -1)
    if as_json:
        print_json(
            {
                "tests": [
                    {"test": t.test, "statuses": t.statuses, "cells": sorted(t.places)}
                    for t in report.tests
                ],
                "differing": report.differing,
                "unknown": report.unknown,
            }
        )
    else:
        out = console()
        for test in report.tests:
            counted = ", ".join(f"{n} {status}" for status, n in sorted(test.statuses.items()))
            out.print(f"{plain(test.test)}  {counted}  in {plain(', '.join(sorted(test.places)))}")
        out.print(
            f"{len(report.tests)} flaky tests; {report.differing} sets of comparable runs differ"
            + (f", {report.unknown} of them without all lists here" if report.unknown else "")
        )
    if report.tests:
        ctx.exit(EXIT_BAD)
    ctx.exit(EXIT_INCONCLUSIVE if report.differing else 0)


@click.command()
@click.argument("project", required=False)
@jobs_option
@json_option
@click.pass_obj
def volunteers(home: Home, project: str | None, jobs: int, as_json: bool) -> None:
    """Show how each key's runs compare with what others gave.

    Every figure follows from the ledger alone, so anyone gets the same ones.
    """
    with Reader(home.ledger) as reader:
        states = reader.projects()
        if project is not None:
            wanted = reader.find_project(project)
            states = [state for state in states if state.id == wanted]
        facts = []
        for state in states:
            forked = reader.forked(state.id)
            order = sorted(
                analysis.records(reader, state.id, now_ms(), jobs or -1).items(),
                key=lambda item: (-item[1].runs, item[0]),
            )
            facts += [
                {
                    "project": state.record.name,
                    "volunteer": keys.peer_id(key),
                    "operator": state.operators.get(key, ""),
                    "runs": record.runs,
                    "agreed": record.agreed,
                    "dissented": record.dissented,
                    "alone": record.alone,
                    "open": record.open,
                    "late": record.late,
                    "stalled": record.stalled,
                    "void": record.void,
                    "broken": record.broken,
                    "forked": key in forked,
                    "revoked": key in state.revoked,
                }
                for key, record in order
            ]
    if as_json:
        print_json(facts)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    numbers = ("runs", "agreed", "dissented", "alone", "open", "late", "stalled", "void", "broken")
    columns = ("volunteer", "operator", *numbers)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left")
    table.add_column("")
    for fact in facts:
        marks = [word for word in ("forked", "revoked") if fact[word]]
        table.add_row(*(plain(str(fact[column])) for column in columns), " ".join(marks))
    console().print(table)


@click.command()
@click.argument("words", nargs=-1, required=True)
@click.option("-n", "most", default=30, show_default=True, help="How many.")
@json_option
@click.pass_context
def search(ctx: click.Context, words: tuple[str, ...], most: int, as_json: bool) -> None:
    """Find failed tests by words of their names and messages, the latest to arrive first.

    Exits 3 when nothing is found.
    """
    home: Home = ctx.obj
    text = " ".join(words)
    if not text.replace('"', "").strip():
        raise LocalError(
            "give at least one word to search for: part of a test's name, or of what it said"
        )
    with Reader(home.ledger) as reader:
        found = history.search(reader, text, most)
    if as_json:
        print_json(
            [
                {
                    "project": one.project_name,
                    "job": one.title,
                    "commit": one.commit,
                    "cell": one.place,
                    "volunteer": keys.peer_id(one.author),
                    "test": one.test,
                    "message": one.message,
                    "time": moment(one.time),
                }
                for one in found
            ]
        )
    else:
        out = console()
        for one in found:
            out.print(
                f"[dim]{moment(one.time)}[/dim] {plain(one.project_name)}  {plain(one.title)}  "
                f"{plain(one.place)}  {short(one.author)}"
            )
            out.print(f"  [red]✗[/red] {plain(one.test)}")
            for line in one.message.splitlines()[-4:]:
                out.print(f"      {plain(line)}", style="dim")
        if not found:
            out.print("no failed test here has these words")
    ctx.exit(0 if found else EXIT_INCONCLUSIVE)


@click.command()
@click.argument("query", required=False)
@click.option("--schema", is_flag=True, help="Print the tables and views instead.")
@click.option("--timeout", default=10.0, show_default=True, help="Seconds until it is ended.")
@click.option("-n", "most", default=1000, show_default=True, help="At most so many rows.")
@json_option
@click.pass_obj
def sql(
    home: Home, query: str | None, schema: bool, timeout: float, most: int, as_json: bool
) -> None:
    """Ask the ledger in SQL: read only, within a time and a number of rows."""
    if schema:
        _print_schema(home, as_json=as_json)
        return
    if query is None:
        raise click.UsageError("give a query, or --schema")
    answer = analysis.sql(home.ledger, query, seconds=timeout, most=most)
    if as_json:
        print_json(
            [
                {
                    name: value.hex() if isinstance(value, bytes) else value
                    for name, value in zip(answer.columns, row, strict=True)
                }
                for row in answer.rows
            ]
        )
    else:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in answer.columns:
            table.add_column(plain(column), overflow="fold")
        for row in answer.rows:
            table.add_row(*(plain(_text(value)) for value in row))
        console().print(table)
    if answer.cut:
        click.echo(f"there are more than {most} rows: -n shows more", err=True)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return "" if value is None else str(value)


def _print_schema(home: Home, *, as_json: bool) -> None:
    found = analysis.tables(home.ledger)
    if as_json:
        print_json(
            [{"type": kind, "name": name, "columns": columns} for kind, name, columns in found]
        )
        return
    for kind, name, columns in found:
        click.echo(f"{kind:<5} {name} ({', '.join(columns)})")
    click.echo("docs/ledger.md says what they mean", err=True)
