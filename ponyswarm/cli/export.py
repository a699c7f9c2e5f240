"""``ponyswarm export``: what is known here, as a file that others can check."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path

import click

from ponyswarm import keys
from ponyswarm.cli import json_option, print_json
from ponyswarm.cli.opening import node_is_running, now_ms, opened
from ponyswarm.cli.plain import harmless
from ponyswarm.cli.read import find_job
from ponyswarm.codec import TestRecord, decode_tests
from ponyswarm.errors import LocalError, PeerError
from ponyswarm.home import Home
from ponyswarm.ledger import dump
from ponyswarm.ledger.proofs import Held, Log
from ponyswarm.ledger.queries import Reader, ResultRow
from ponyswarm.messages import Entry
from ponyswarm.notary import open_notary
from ponyswarm.policy import ReaderPolicy

POLL = 0.25


@click.command()
@click.option(
    "--proof",
    metavar="ENTRY|CELL",
    help="Prove this entry, or the latest result of this cell (the beginning of an id).",
)
@click.option(
    "--frames",
    metavar="PROJECT|all",
    help="Write every entry of a project, or of all, for another program to read.",
)
@click.option("--junit", metavar="JOB", help="A job's verdicts as JUnit XML, a suite a cell.")
@click.option("--in-toto", metavar="JOB", help="A signed in-toto test-result attestation.")
@click.option("--badge", metavar="JOB", help="An SVG badge: '3 of 3 agree'.")
@click.option("--markdown", metavar="JOB", help="The matrix as Markdown.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    required=True,
    help="Where to write it; '-' prints it.",
)
@click.option("--policy", default="all", show_default=True, help="all, vouched, or KEY,KEY…")
@click.option("--agreeing", "-k", type=click.IntRange(1), help="How many must agree.")
@click.option("--author", metavar="KEY", help="Of a cell's results, the one of this volunteer.")
@click.option(
    "-n",
    "needed",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="With --proof: how many witnesses to wait for.",
)
@click.option(
    "--wait",
    "seconds",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="For how long.",
)
@json_option
@click.pass_obj
def export(
    home: Home,
    proof: str | None,
    frames: str | None,
    junit: str | None,
    in_toto: str | None,
    badge: str | None,
    markdown: str | None,
    output: Path,
    policy: str,
    agreeing: int | None,
    author: str | None,
    needed: int,
    seconds: float,
    as_json: bool,
) -> None:
    """Write what is known here as a file, for other tools or for others to check.

    JOB is the beginning of a job's id, a commit, or a project (its latest job). JUnit XML,
    badge and Markdown say what your policy makes of the results; the attestation is signed
    by your key and written only when every cell is confirmed.

    A proof shows, without PonySwarm or a network, that an entry was here. Witnesses are
    other nodes: while the node here runs, it asks those it is connected to. 'ponyswarm
    verify --proof FILE' reads the file and says what it proves; so does
    ponyswarm/ledger/verifier.py, copied alone to a machine with PyNaCl.
    """
    views = {"junit": junit, "in-toto": in_toto, "badge": badge, "markdown": markdown}
    wanted = [(form, job) for form, job in views.items() if job is not None]
    if len(wanted) + (proof is not None) + (frames is not None) != 1:
        raise click.UsageError(
            "say one of --proof, --frames, --junit, --in-toto, --badge, --markdown"
        )
    if wanted:
        ((form, job),) = wanted
        _view(home, form, job, output, policy, agreeing, as_json=as_json)
        return
    if frames is not None:
        _frames(home, frames, output, as_json=as_json)
        return
    assert proof is not None
    with Reader(home.ledger) as reader:
        entry = find(reader, proof, None if author is None else keys.parse_peer_id(author))
    if entry.is_bare:
        raise LocalError(
            f"the payload of {entry.id.hex()[:16]} was dropped here as old, so it cannot be proved "
            "from here: a node that runs with --archive gets it back from its peers"
        )
    with (
        opened(home) as session,
        open_notary(key=session.key, ledger=home.ledger, witness=home.witness) as notary,
    ):
        running = node_is_running(home)
        held = covering(notary.log, entry.id, needed, seconds if running else None)
        data = notary.log.prove(entry.id, entry.frame, held)
    with writing(output):
        output.write_bytes(data)
    facts = {
        "entry": entry.id.hex(),
        "file": str(output),
        "bytes": len(data),
        "origin": held.origin,
        "size": held.size,
        "witnesses": [keys.peer_id(key) for key in held.witnesses],
    }
    if as_json:
        print_json(facts)
    else:
        count = len(held.witnesses)
        click.echo(
            f"{output}: {len(data)} bytes, entry {entry.id.hex()[:16]} in a tree of {held.size}, "
            f"{count} {'witness' if count == 1 else 'witnesses'}"
        )
    if len(held.witnesses) < needed:
        why = (
            f"no more cosigned in {seconds:g} s: is the node connected? ('ponyswarm status')"
            if running
            else "no node runs here to ask them: start 'ponyswarm node' and try again"
        )
        click.echo(
            f"warning: {len(held.witnesses)} of the {needed} witnesses wanted; {why}", err=True
        )


def _view(
    home: Home,
    form: str,
    job: str,
    output: Path,
    policy: str,
    agreeing: int | None,
    *,
    as_json: bool,
) -> None:
    """What a job came to, in one of the forms that other tools read."""
    with Reader(home.ledger) as reader:
        row = find_job(reader, job)
        chosen = ReaderPolicy.parse(policy, agreeing or row.redundancy)
        cells = reader.cells(row, chosen)
        announce = reader.announce(row.id)
    assert announce is not None
    match form:
        case "junit":
            from ponyswarm import junit

            buffer = BytesIO()
            junit.of_job(row.title, cells, partial(_tests, home)).write(buffer, pretty=True)
            data = buffer.getvalue()
        case "in-toto":
            from ponyswarm import attestation

            said = attestation.statement(row, announce, cells, chosen)
            data = attestation.envelope(said, keys.load(home.key)).encode()
        case "badge":
            from ponyswarm import badge

            data = badge.svg(cells).encode()
        case _:
            from ponyswarm import summary

            data = summary.markdown(row, cells).encode()
    if output == Path("-"):
        click.echo(data, nl=False)
        return
    with writing(output):
        output.write_bytes(data)
    if as_json:
        print_json({"file": str(output), "bytes": len(data), "job": row.id.hex()})
    else:
        click.echo(f"{output}: {len(data)} bytes, {harmless(row.title)}")


def _tests(home: Home, row: ResultRow) -> Sequence[TestRecord]:
    """A result's list of tests, where its blob is here."""
    if row.result.tests is None:
        return ()
    name = row.result.tests.hash.hex()
    try:
        return decode_tests((home.blobs / name[:2] / name[2:]).read_bytes())
    except (OSError, PeerError):
        return ()


def _frames(home: Home, project: str, output: Path, *, as_json: bool) -> None:
    with Reader(home.ledger) as reader:
        chosen = None if project == "all" else reader.find_project(project)
    with writing(output):
        count = dump.write(output, home.ledger, chosen)
    if as_json:
        print_json({"file": str(output), "entries": count})
    else:
        click.echo(f"{output}: {count} entries; docs/protocol.md says how to read them")


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """What is done in the block writes that file, and it is said when that cannot be."""
    try:
        yield
    except OSError as fault:
        raise LocalError(
            f"{output} cannot be written: {fault.strerror}; name another file by -o"
        ) from fault


def find(reader: Reader, text: str, author: bytes | None) -> Entry:
    """The entry that a beginning of an id names: an entry's own, or a cell's latest result."""
    matches = reader.find_entries(text)
    if len(matches) > 1:
        raise LocalError(f"{text!r} could be several entries: give more of the id")
    if matches:
        return matches[0]
    job, cell = reader.find_cell(text)
    results = reader.cell_results(job, cell)
    if author is not None:
        results = [entry for entry in results if entry.header.author == author]
    if not results:
        raise LocalError(
            f"the cell {text!r} has no such result here yet: "
            f"'ponyswarm show {text}' shows those it has"
        )
    return results[-1]


def covering(log: Log, id_: bytes, needed: int, seconds: float | None) -> Held:
    """A checkpoint that an entry is in, cosigned as wanted if that comes in time.

    ``seconds`` is how long to wait for the node here to have one cosigned; None when no
    node runs: then it is signed here, and nobody cosigns it.
    """
    held = log.covering(id_)
    if held is not None and len(held.witnesses) >= needed:
        return held
    if seconds is not None:
        log.wish(now_ms())
        held = _wait(lambda: log.covering(id_), needed, seconds) or held
    if held is None:
        log.fresh(now_ms())
        held = log.covering(id_)
    if held is None:
        raise LocalError("the entry is in no checkpoint: 'ponyswarm verify' checks the ledger")
    return held


def _wait(look: Callable[[], Held | None], needed: int, seconds: float) -> Held | None:
    deadline = time.monotonic() + seconds
    while True:
        held = look()
        if (held is not None and len(held.witnesses) >= needed) or time.monotonic() > deadline:
            return held
        time.sleep(POLL)
