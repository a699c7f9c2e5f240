"""``ponyswarm web``: the ledger as pages for a browser on this machine."""

from __future__ import annotations

import signal
import socket
import webbrowser

import click
import trio

from ponyswarm.cli.plain import start_logging
from ponyswarm.home import Home
from ponyswarm.web import server
from ponyswarm.web.guard import LOOPBACK
from ponyswarm.web.site import Site


@click.command()
@click.option("--port", default=server.DEFAULT_PORT, show_default=True, help="0: any free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Listen on this address.")
@click.option(
    "--name", "names", multiple=True, metavar="HOST", help="Answer to this host name, too."
)
@click.option("--open", "open_it", is_flag=True, help="Open it in your browser.")
@click.pass_obj
def web(home: Home, port: int, host: str, names: tuple[str, ...], open_it: bool) -> None:
    """Show the ledger of this home as pages: read only, live, for this machine alone.

    It works while a node runs and when none does. Ctrl-C ends it. There is no login: with
    --host, whoever reaches that address can read what is public anyway, the ledger and the
    kept output of runs, and what this node is doing.
    """
    start_logging(verbose=False)
    listening = server.listen(host, port)
    where = server.address(listening)
    if host not in LOOPBACK:
        names = (*names, host)
        click.echo(f"note: whoever reaches {host} can read these pages", err=True)
    click.echo(f"PonySwarm's pages are at {where}  (Ctrl-C ends)")
    if not home.ledger.exists():
        click.echo(
            f"there is no ledger at {home.ledger} yet: the pages fill once 'ponyswarm node' runs",
            err=True,
        )
    trio.run(_serve, site(home), listening, names, where if open_it else "")


def site(home: Home) -> Site:
    return Site(ledger=home.ledger, blobs=home.blobs, status_file=home.status)


async def _serve(
    shown: Site, listening: socket.socket, names: tuple[str, ...], open_at: str
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: server.serve(shown, listening, names=names))
            if open_at:
                # The stubs that libp2p brings for trio are older than the argument.
                await trio.to_thread.run_sync(  # type: ignore[call-arg]
                    webbrowser.open, open_at, abandon_on_cancel=True
                )
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()
