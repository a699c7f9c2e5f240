"""Listens: the site on Hypercorn, in a trio nursery of its own, until it is cancelled."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import sqlite3
from collections.abc import Collection
from functools import partial
from typing import Any, cast

import hypercorn.trio
import trio
from hypercorn.config import Config

from ponyswarm.errors import LocalError, PonySwarmError
from ponyswarm.web.app import application
from ponyswarm.web.guard import LOOPBACK
from ponyswarm.web.pages.front import front
from ponyswarm.web.site import Site

DEFAULT_PORT = 7640


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; `LocalError` says what to do when it cannot."""
    if not 0 <= port <= 65535:
        raise LocalError(f"{port} is no port: take one from 1 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=100)
    except OSError as fault:
        remedy = "choose another one with --port, or --port 0 for any that is free"
        if isinstance(fault, PermissionError):
            remedy = "ports below 1024 are for root: choose one above with --port"
        elif isinstance(fault, socket.gaierror) or fault.errno == errno.EADDRNOTAVAIL:
            remedy = "name an address of this machine with --host"
        raise LocalError(
            f"the web pages cannot listen on {host} port {port} ({_why(fault)}): {remedy}"
        ) from fault


def _why(fault: OSError) -> str:
    """The system's own words; Python adds the address, which is said already."""
    return (fault.strerror or str(fault)).partition(" (while")[0]


def address(listening: socket.socket) -> str:
    """What to type into a browser on this machine."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::", *LOOPBACK):  # noqa: S104
        host = "localhost" if host != "::1" else "[::1]"
    elif ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}/"


async def serve(site: Site, listening: socket.socket, *, names: Collection[str] = ()) -> None:
    """Serve until cancelled. Open pages are cut off then: they come back by themselves."""
    errors = logging.getLogger("ponyswarm.web")
    errors.setLevel(logging.WARNING)
    config = Config()
    config.bind = [f"fd://{listening.detach()}"]
    config.include_server_header = False
    config.errorlog = errors
    config.keep_alive_timeout = 30
    # Starlette and Hypercorn have different words for the same interface.
    app = cast(Any, application(site, names=names))
    async with trio.open_nursery() as nursery:
        await nursery.start(site.tail.run)
        nursery.start_soon(warm, site)
        nursery.start_soon(partial(hypercorn.trio.serve, app, config))


async def warm(site: Site) -> None:
    """Work the front page out before somebody asks: its jobs may have many runs."""

    def work() -> None:
        with contextlib.suppress(PonySwarmError, sqlite3.Error), site.reading() as reader:
            front(site, reader, 0)

    # The stubs that libp2p brings for trio are older than the argument.
    await trio.to_thread.run_sync(work, abandon_on_cancel=True)  # type: ignore[call-arg]
