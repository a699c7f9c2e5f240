"""``ponyswarm fsck``: every byte of the ledger checked, and what is damaged rebuilt."""

from __future__ import annotations

import sys

import click
from filelock import FileLock, Timeout

from ponyswarm.cli import EXIT_UNTRUSTED, json_option, print_json
from ponyswarm.errors import LocalError
from ponyswarm.home import Home


@click.command()
@click.option("--repair", is_flag=True, help="Rebuild what is damaged; no node may run here.")
@json_option
@click.pass_context
def fsck(ctx: click.Context, repair: bool, as_json: bool) -> None:
    """Check every byte of the ledger: entries, signatures, chains, tables and views.

    With --repair, each feed is kept up to its first damaged entry and all tables are built
    anew; a node gets the rest back from its peers. The damaged file stays beside the new one,
    as "….damaged". Exits 0 when all is well, 4 when something was found.
    """
    from ponyswarm.ledger.fsck import check

    home: Home = ctx.obj
    lock = FileLock(home.lock)
    if repair:
        try:
            home.lock.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as fault:
            raise LocalError(
                "a node runs on this home: stop it ('ponyswarm drain --wait'), then repair"
            ) from fault

    def progress(done: int) -> None:
        if not as_json and sys.stderr.isatty():
            click.echo(f"\r{done:,} entries", nl=False, err=True)

    try:
        report = check(home.ledger, repair=repair, progress=progress)
    finally:
        lock.release()
    if not as_json and sys.stderr.isatty():
        click.echo("\r", nl=False, err=True)
    if as_json:
        print_json(
            {
                "entries": report.entries,
                "faults": report.faults,
                "dropped": report.dropped,
                "repaired": report.repaired,
            }
        )
    else:
        for text in report.faults:
            click.echo(text)
        click.echo(_summary(report.entries, len(report.faults), report.dropped, report.repaired))
    ctx.exit(EXIT_UNTRUSTED if report.faults else 0)


def _summary(entries: int, faults: int, dropped: int, repaired: bool) -> str:
    if not faults:
        return f"{entries:,} entries: every byte is as it must be"
    said = f"{entries:,} entries, {faults} faults"
    if not repaired:
        return f"{said}: 'ponyswarm fsck --repair' mends it"
    lost = f"; {dropped} entries were dropped, and a node gets them from its peers"
    return f"{said}: the ledger was rebuilt{lost if dropped else ', nothing was lost'}"
