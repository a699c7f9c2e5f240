"""A node that lives as long as one command: it replicates and serves, and runs no jobs.

libp2p takes more than a second to import, so that is left to when a command joins.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from ponyswarm import config
from ponyswarm.errors import InfraError, LocalError, PeerError
from ponyswarm.home import Home
from ponyswarm.p2p.table import PeerTable
from ponyswarm.session import Session

if TYPE_CHECKING:
    from ponyswarm.node import Node


def known_addresses(home: Home, peers: tuple[str, ...]) -> tuple[tuple[str, ...], PeerTable]:
    """Whom a command could call, and the peers that were met before."""
    from ponyswarm.cli.running import network_addresses

    settings = config.load(home.ini) if home.ini.exists() else config.Settings()
    return network_addresses(home, settings, peers), PeerTable(home.peers)


@asynccontextmanager
async def joined(
    session: Session, addresses: tuple[str, ...], table: PeerTable
) -> AsyncIterator[Node]:
    """Join the network for the length of the block; nobody can call in."""
    from ponyswarm.node import open_node
    from ponyswarm.p2p.connectivity import Connectivity

    async with open_node(
        key=session.key,
        store=session.store,
        journal=session.journal,
        blobs=session.blobs,
        capacity=None,
        execute=None,
        listen=(),
        connectivity=Connectivity(addresses, table),
    ) as node:
        yield node


async def fetch_record(node: Node, project: bytes, seconds: float) -> None:
    """Get the record of a project that is followed; returns at once when it is here.

    Follow it first, so that peers who ask us for it on connecting have an answer.

    Raises `InfraError` when no peer was reached, `LocalError` when none knows the project.
    """
    met = False
    with trio.move_on_after(seconds):
        while node.store.state(project) is None:
            for peer in node.network.peers():
                met = True
                try:
                    with trio.move_on_after(5):
                        await node.pull(peer, project)
                except PeerError:
                    continue  # It may be gone, or busy: the next round asks again.
            await trio.sleep(0.2)
        return
    if not met:
        raise InfraError(
            f"no peer answered in {seconds:g} s, and the record of project "
            f"{project.hex()[:16]}… is not here: check the network, or name a node by --peer"
        )
    raise LocalError(
        f"no peer that was reached in {seconds:g} s follows project {project.hex()[:16]}…: "
        "check the id, or name by --peer a node that keeps it"
    )
