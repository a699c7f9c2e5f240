"""``ponyswarm status``, ``results``, ``show``, ``log``, ``verify``: what is known here."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TextIO

import click
from rich.console import Console
from rich.markup import escape

from ponyswarm import config, keys
from ponyswarm.cli import (
    EXIT_BAD,
    EXIT_INCONCLUSIVE,
    EXIT_UNTRUSTED,
    json_option,
    print_json,
)
from ponyswarm.cli.opening import node_is_running, running_status
from ponyswarm.cli.plain import harmless, refused, resting, room, size
from ponyswarm.cli.screen import console
from ponyswarm.cli.tables import print_matrix, verdict_text
from ponyswarm.errors import LocalError
from ponyswarm.home import Home
from ponyswarm.ledger import analysis, verifier
from ponyswarm.ledger.queries import CellRow, JobRow, Reader, ResultRow
from ponyswarm.ledger.verdicts import Finding, TestFinding, Verdict
from ponyswarm.messages import Cell
from ponyswarm.offers import lacking
from ponyswarm.policy import ReaderPolicy

# How long `show --log` waits for peers to give an output that is not here.
FETCH_SECONDS = 15.0


def short(key: bytes) -> str:
    """A key short enough for a table, long enough to tell keys apart."""
    name = keys.peer_id(key)
    return f"…{name[-8:]}"


def moment(millis: int) -> str:
    return datetime.fromtimestamp(millis / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


# --- results -----------------------------------------------------------------------------


def exit_code(cells: Sequence[CellRow]) -> int:
    """0: every cell is a confirmed pass; 1: one failed; 3: something is open."""
    verdicts = {cell.finding.verdict for cell in cells}
    if Verdict.CONFIRMED_FAIL in verdicts:
        return EXIT_BAD
    return 0 if verdicts == {Verdict.CONFIRMED_PASS} else EXIT_INCONCLUSIVE


def find_job(reader: Reader, text: str) -> JobRow:
    """A job by the beginning of its id, by commit, or as the latest of a project."""
    with suppress(LocalError):
        return reader.find_job(None, text, None)
    with suppress(LocalError):
        return reader.find_job(None, None, text)
    with suppress(LocalError):
        return reader.find_job(reader.find_project(text), None, None)
    raise LocalError(
        f"{text!r} is neither a job, nor a commit, nor a project with jobs in this ledger: "
        "'ponyswarm log' shows what is there"
    )


def unserved(
    home: Home, job: JobRow, cells: Sequence[CellRow], points: Mapping[bytes, Cell]
) -> dict[bytes, str]:
    """Why nobody runs the cells that wait, as the node on this home knows it; without, none."""
    now, project = running_status(home), job.project.hex()
    if now is None or job.withdrawn or all(line.project != project for line in now.projects):
        return {}
    offers = [offer for offer in now.offers if offer.project == project]
    waiting = [cell for cell in cells if cell.finding.verdict is Verdict.PENDING]
    found = {cell.id: lacking(points[cell.id], offers) for cell in waiting if cell.id in points}
    return {id_: why for id_, why in found.items() if why}


def cell_facts(cell: CellRow, point: Cell | None) -> dict[str, object]:
    """A cell and its finding as ``--json`` prints them; ``point`` is as it was announced."""
    finding = cell.finding
    return {
        "cell": cell.id.hex(),
        "python": cell.python,
        "services": [] if point is None else list(point.services),
        "factors": {} if point is None else dict(point.factors),
        "verdict": str(finding.verdict),
        "cross_check": cell.mode,
        "agree": finding.agree,
        "of": finding.of,
        "blind": finding.blind,
        "on_record": finding.on_record,
        "tests": finding.tests,
        "failed": finding.failed,
        "supporters": [keys.peer_id(key) for key in finding.supporters],
        "dissent": [keys.peer_id(key) for key in finding.dissent],
        "wavering": [keys.peer_id(key) for key in finding.wavering],
        "committed": [keys.peer_id(key) for key in finding.sealed],
        "differ": list(finding.differ),
        "broken": dict(finding.broken),
    }


def _outcome_facts(reader: Reader, job: JobRow, cell: CellRow) -> dict[str, object]:
    """What the majority's outcome of a cell was, test by test in numbers; none: empty."""
    digest = cell.finding.digest
    example = None if digest is None else reader.example(job.id, cell.id, digest)
    return {
        "digest": "" if digest is None else digest.hex(),
        "counts": {} if example is None else {str(s): n for s, n in example.counts.items()},
        "bad": [] if example is None else list(example.bad),
        "seconds": 0.0 if example is None else example.seconds,
    }


def job_facts(job: JobRow) -> dict[str, object]:
    return {
        "job": job.id.hex(),
        "project": job.project.hex(),
        "name": job.project_name,
        "title": job.title,
        "commit": job.commit,
        "announced": job.announced,
        "announcer": keys.peer_id(job.announcer),
        "redundancy": job.redundancy,
        "withdrawn": job.withdrawn,
    }


@click.command()
@click.argument("project")
@click.option("--job", help="A job, by the beginning of its id (default: the latest).")
@click.option("--commit", help="The latest job of a commit.")
@click.option("--policy", default="all", show_default=True, help="all, vouched, or KEY,KEY…")
@click.option("--agreeing", "-k", type=click.IntRange(1), help="How many must agree.")
@json_option
@click.pass_context
def results(
    ctx: click.Context,
    project: str,
    job: str | None,
    commit: str | None,
    policy: str,
    agreeing: int | None,
    as_json: bool,
) -> None:
    """Show what works where: the matrix of a project's latest job.

    Exits 0 when every cell is a confirmed pass, 1 when one is a confirmed failure, 3 when
    something is still open or disputed.
    """
    home: Home = ctx.obj
    with Reader(home.ledger) as reader:
        found = reader.find_job(reader.find_project(project), job, commit)
        chosen = ReaderPolicy.parse(policy, agreeing or found.redundancy)
        cells = reader.matrix(found, chosen)
        points = reader.points(found.id)
        forked = sorted(keys.peer_id(key) for key in reader.forked(found.project))
        outcomes = [_outcome_facts(reader, found, cell) for cell in cells] if as_json else []
    if as_json:
        facts = [
            {**cell_facts(cell, points.get(cell.id)), **outcome}
            for cell, outcome in zip(cells, outcomes, strict=True)
        ]
        print_json({**job_facts(found), "forked": forked, "cells": facts})
    else:
        print_matrix(found, cells, unserved(home, found, cells, points))
        for key in forked:
            click.echo(f"forked: {key} signed two histories; its results count for nothing")
    ctx.exit(exit_code(cells))


@click.command()
@click.argument("cell")
@click.option("--log", "with_log", is_flag=True, help="Print the runs' output, where it is here.")
@click.option("--policy", default="all", show_default=True, help="all, vouched, or KEY,KEY…")
@click.option("--agreeing", "-k", type=click.IntRange(1), help="How many must agree.")
@json_option
@click.pass_obj
def show(
    home: Home, cell: str, with_log: bool, policy: str, agreeing: int | None, as_json: bool
) -> None:
    """Show everything that is known of one cell, by the beginning of its id."""
    with Reader(home.ledger) as reader:
        job_id, cell_id = reader.find_cell(cell)
        job = reader.find_job(None, job_id.hex(), None)
        chosen = ReaderPolicy.parse(policy, agreeing or job.redundancy)
        (row,) = reader.cells(job, chosen, cell_id)
        standing = reader.standing(job.project)
        forked = standing.forked
        point = reader.points(job.id).get(cell_id)
    failing = {result.entry: _failing(home, result) for result in row.results}
    differ = analysis.by_test(row, chosen, standing, partial(_read_blob, home))
    if as_json:
        print_json(
            {
                **cell_facts(row, point),
                "job": job_facts(job),
                "by_test": None
                if differ is None
                else {test: _test_facts(found) for test, found in differ.items()},
                "results": [
                    {
                        **_result_facts(result, failing[result.entry]),
                        "forked": result.author in forked,
                    }
                    for result in row.results
                ],
            }
        )
        return
    out = console()
    out.print(
        f"[bold]{plain(job.title)}[/bold]  python {plain(row.python)} "
        f"{plain(row.services)} {plain(row.factors)}"
    )
    out.print(verdict_text(row.finding))
    _print_tests(out, differ, row.finding)
    for result in row.results:
        mark = " [magenta](forked: counts for nothing)[/magenta]" * (result.author in forked)
        if result.disputed:
            mark = " [magenta](after the fork of its feed: disputed)[/magenta]"
        elif result.ignored and not mark:
            mark = f" [magenta](does not count: {result.ignored})[/magenta]"
        elif result.result.nonce:
            mark += " [dim](blind)[/dim]"
        out.print(
            f"\n{keys.peer_id(result.author)}{mark}\n  {plain(result.environment)}, "
            f"{result.seconds:.1f} s, outcome {result.digest.hex()[:12]}"
        )
        if result.state == "broken":
            out.print(f"  broken: {result.reason} {plain(result.result.detail)}")
        out.print(
            f"  {result.total} tests: {result.passed} passed, {result.failed} bad, "
            f"{result.skipped} skipped"
        )
        for test, message in failing[result.entry]:
            out.print(f"  [red]✗[/red] {plain(test)}")
            for line in message.splitlines()[-12:]:
                out.print(f"      {plain(line)}", style="dim")
        if with_log:
            out.print(plain(_log(home, result)))


def _print_tests(out: Console, differ: dict[str, TestFinding] | None, finding: Finding) -> None:
    """What stands of each test that comparable runs differ on."""
    if differ is None and (finding.dissent or finding.wavering):
        out.print("which tests differ is not known here: their lists are not on this machine")
    for test, found in (differ or {}).items():
        said = "; ".join(
            f"{status} by {', '.join(short(key) for key in authors)}"
            for status, authors in found.statuses.items()
        )
        both = ", ".join(short(key) for key in found.wavering)
        unsteady = f"  [magenta]flaky for {both}[/magenta]" if both else ""
        out.print(f"  {found.verdict}  {plain(test)}{unsteady}  [dim]{said}[/dim]")


def _test_facts(found: TestFinding) -> dict[str, object]:
    return {
        "verdict": str(found.verdict),
        "status": found.status,
        "agree": found.agree,
        "of": found.of,
        "statuses": {
            status: [keys.peer_id(key) for key in authors]
            for status, authors in found.statuses.items()
        },
        "wavering": [keys.peer_id(key) for key in found.wavering],
    }


def _read_blob(home: Home, hash_: bytes) -> bytes | None:
    try:
        return _blob_path(home, hash_).read_bytes()
    except OSError:
        return None


def plain(text: str) -> str:
    """Text of strangers for rich: harmless, and no markup."""
    return escape(harmless(text))


def _failing(home: Home, row: ResultRow) -> list[tuple[str, str]]:
    """(test id, message) of what did not pass; messages come from the tests blob, if here."""
    from ponyswarm.codec import decode_tests
    from ponyswarm.errors import PonySwarmError
    from ponyswarm.messages import BAD_STATUSES

    messages: dict[str, str] = dict.fromkeys(row.result.bad, "")
    blob = row.result.tests
    if blob is not None:
        try:
            data = _blob_path(home, blob.hash).read_bytes()
            for test in decode_tests(data):
                if test.status in BAD_STATUSES:
                    messages[test.id] = test.message
        except (OSError, PonySwarmError):
            pass  # The names are in the entry; the messages are with whoever keeps the blob.
    return list(messages.items())


def _blob_path(home: Home, hash_: bytes) -> Path:
    name = hash_.hex()
    return home.blobs / name[:2] / name[2:]


def _log(home: Home, row: ResultRow) -> str:
    from ponyswarm.codec import inflate

    if row.result.log is None:
        return "  (no output was kept)"
    path = _blob_path(home, row.result.log.hash)
    if not path.exists() and node_is_running(home):
        # The node here asks its peers: who dropped a file gets it back that way.
        with home.wishes.open("a", encoding="ascii") as wishes:
            wishes.write(f"{row.result.log.hash.hex()} {row.result.log.size}\n")
        deadline = time.monotonic() + FETCH_SECONDS
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    try:
        data = path.read_bytes()
    except OSError:
        return "  (its output is not on this machine, and no peer that is connected has it)"
    return inflate(data, "bad-log").decode("utf-8", "replace")


def _result_facts(row: ResultRow, failing: list[tuple[str, str]]) -> dict[str, object]:
    return {
        "volunteer": keys.peer_id(row.author),
        "entry": row.entry.hex(),
        "state": row.state,
        "reason": row.reason,
        "environment": row.environment,
        "passed": row.passed,
        "failed": row.failed,
        "skipped": row.skipped,
        "total": row.total,
        "digest": row.digest.hex(),
        "seconds": row.seconds,
        "disputed": row.disputed,
        "blind": bool(row.result.nonce),
        "ignored": row.ignored,
        "bad": [{"test": test, "message": message} for test, message in failing],
    }


# --- log and verify -------------------------------------------------------------------------


@click.command()
@click.argument("project", required=False)
@click.option("--author", help="Only entries of this key.")
@click.option("-n", "most", default=30, show_default=True, help="How many.")
@json_option
@click.pass_obj
def log(home: Home, project: str | None, author: str | None, most: int, as_json: bool) -> None:
    """List ledger entries, newest first."""
    with Reader(home.ledger) as reader:
        rows = reader.log(
            project=None if project is None else reader.find_project(project),
            author=None if author is None else keys.parse_peer_id(author),
            most=most,
        )
    if as_json:
        print_json(
            [
                {
                    "arrival": row.arrival,
                    "id": row.id.hex(),
                    "kind": row.kind,
                    "author": keys.peer_id(row.author),
                    "seq": row.seq,
                    "time": row.time,
                    "project": row.project_name,
                    "text": row.text,
                    "disputed": row.disputed,
                }
                for row in rows
            ]
        )
        return
    out = console()
    for row in rows:
        out.print(
            f"[dim]{moment(row.time)}[/dim] {row.id.hex()[:12]} {row.kind:<9} "
            f"{short(row.author)} #{row.seq:<4} {plain(row.project_name)}  {plain(row.text)}"
            + " [magenta](disputed: after a fork)[/magenta]"
            * row.disputed,
            overflow="ellipsis",
            no_wrap=True,
        )


@click.command()
@click.option(
    "--proof",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Check this file, made by 'export --proof', instead of the ledger.",
)
@click.option("--witness", "witnesses", multiple=True, metavar="KEY", help="Count only these.")
@click.option("-n", "needed", type=click.IntRange(0), help="How many witnesses must have cosigned.")
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    proof: Path | None,
    witnesses: tuple[str, ...],
    needed: int | None,
    as_json: bool,
) -> None:
    """Check every chain and signature in the ledger again, from its bytes.

    With --proof, check one file alone and say what it proves and what it does not; all
    witnesses that are named must have cosigned it, or -n of them. Exits 4 when anything
    does not hold.
    """
    home: Home = ctx.obj
    if proof is not None:
        chosen = [keys.parse_peer_id(key) for key in witnesses]
        code, text = verifier.judge(proof.read_bytes(), chosen, needed, as_json=as_json)
        click.echo(text)
        ctx.exit(code)
    if witnesses or needed is not None:
        raise LocalError("--witness and -n are about a proof: name its file with --proof FILE")
    began = time.monotonic()
    with Reader(home.ledger) as reader:
        total = reader.count()
        with click.progressbar(length=total, label="verifying", file=_stderr()) as bar:
            faults = reader.verify(lambda done: bar.update(done - bar.pos))
        forked = {state.id: reader.forked(state.id) for state in reader.projects()}
    forks = sorted({keys.peer_id(key) for authors in forked.values() for key in authors})
    if as_json:
        print_json(
            {
                "verified_entries": total,
                "faults": faults,
                "forked": forks,
                "seconds": round(time.monotonic() - began, 3),
            }
        )
    else:
        for fault in faults:
            click.echo(f"fault: {fault}")
        for key in forks:
            click.echo(f"forked: {key} signed two histories; its results count for nothing")
        if faults:
            click.echo(
                f"{len(faults)} faults in {total} entries: restore from peers by moving "
                f"{home.ledger} away and starting the node"
            )
        else:
            click.echo(f"{total} entries verified: every signature, hash and chain holds")
    ctx.exit(EXIT_UNTRUSTED if faults else 0)


def _stderr() -> TextIO:
    return sys.stderr


# --- status -----------------------------------------------------------------------------------


@click.command()
@json_option
@click.pass_obj
def status(home: Home, as_json: bool) -> None:
    """Show what the node here is doing, and why it does not do more."""
    now = running_status(home)
    if as_json:
        import msgspec

        facts = {"node_runs": now is not None, "home": str(home.data_dir)}
        print_json({**facts, **({} if now is None else msgspec.to_builtins(now))})
        return
    out = console()
    if now is None:
        out.print("No node runs on this home. Start it with 'ponyswarm node'.")
        out.print(f"  home      {home.data_dir}")
        if home.ini.exists():
            settings = config.load(home.ini)
            out.print(f"  trusted   {len(settings.trusted)} projects")
        return
    out.print(f"[bold]{now.peer}[/bold]  pid {now.pid}, up {time.time() - now.started:.0f} s")
    for address in now.addresses:
        out.print(f"  listens   {address}")
    for address in now.reached_at:
        if address not in now.addresses:
            out.print(f"  called at {address}")
    if now.reach:
        out.print(f"  reach     {now.reach}")
    out.print(f"  sandbox   {plain(now.sandbox)}")
    out.print(f"  limits    {now.limits}")
    out.print(f"  pythons   {', '.join(now.interpreters) or 'none'}")
    out.print(f"  peers     {len(now.peers)}")
    for peer in now.peers:
        out.print(f"            {peer.peer}  {peer.address}", style="dim")
    out.print(f"  ledger    {now.entries} entries")
    out.print(f"  given     {now.today_runs} runs, {now.today_tests} tests today")
    out.print(f"  disk      {', '.join(map(room, now.disk))}; {size(now.disk_free)} free")
    out.print(f"  queue     {now.waiting} cells that this machine could run next")
    for project in now.projects:
        word = "trusted" if project.trusted else "followed"
        out.print(
            f"  {word:<9} {plain(project.name) or '?'}  {project.project[:16]}…, "
            f"{project.volunteers} volunteers offer"
        )
    for run in now.running:
        total = "" if run.total is None else f"/{run.total}"
        out.print(
            f"  running   {plain(run.title)} on {plain(run.cell)}: {run.step} "
            f"{run.done}{total}, {run.seconds:.0f} s"
        )
    if now.hold:
        out.print(f"  resting   {plain(resting(now))}")
    for idle in now.idle:
        out.print(f"  not run   {plain(idle.title)}: {plain(idle.why)}")
    for project in now.heard:
        out.print(f"  heard of  {plain(project.name)}  {project.project}")
    if now.refused:
        out.print(f"  refused   {refused(now.refused)}")
