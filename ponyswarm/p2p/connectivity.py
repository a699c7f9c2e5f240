"""Everything that keeps a node in touch with others: finding peers, calling them, being called.

Made with plain values by whoever opens a node, and run by it. Each part is a loop of its
own; they share the network and the table of peers, and nothing else.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from random import Random
from typing import Literal

import trio

from ponyswarm.keys import SecretKey
from ponyswarm.p2p import lan, router
from ponyswarm.p2p.dialer import Dialer, Followers
from ponyswarm.p2p.discovery import is_loopback, parse_address
from ponyswarm.p2p.exchange import Exchange
from ponyswarm.p2p.network import Network, RelayLimits
from ponyswarm.p2p.reachability import Reachability
from ponyswarm.p2p.table import PeerTable

log = logging.getLogger("ponyswarm")


class Connectivity:
    """``addresses`` are the owner's, and called always; ``table`` fills up the rest.

    ``announced`` are addresses where the owner knows that others reach this node, without
    its key. ``on_lan`` looks for peers on the local network, ``upnp`` asks the router for
    a port, ``carry`` relays for others within ``limits`` (``auto``: while this node can be
    called itself).
    """

    def __init__(
        self,
        addresses: Sequence[str],
        table: PeerTable,
        *,
        announced: Sequence[str] = (),
        on_lan: bool = False,
        upnp: bool = False,
        carry: Literal["auto", "yes", "no"] = "auto",
        limits: RelayLimits | None = None,
    ) -> None:
        self._table = table
        self._announced = tuple(announced)
        self._on_lan = on_lan
        self._upnp = upnp
        self._carry = carry
        self._limits = limits or RelayLimits()
        self._random = Random(secrets.randbits(64))  # noqa: S311
        self._dialer = Dialer(addresses, table, random=self._random)
        self._reachability: Reachability | None = None

    async def run(
        self,
        key: SecretKey,
        network: Network,
        followers: Followers,
        refuse: Callable[[str, bytes | None], None],
    ) -> None:
        """Find, call and be found, for ever."""
        reachability = self._reachability = Reachability(
            network,
            announced=self._announced,
            carry=self._carry,
            limits=self._limits,
            refuse=refuse,
            random=self._random,
        )
        exchange = Exchange(
            key,
            self._table,
            network,
            addresses=reachability.addresses,
            followers=followers,
            refuse=refuse,
            random=self._random,
        )
        outside = tuple(one for one in network.addresses if not is_loopback(one))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._dialer.run, network, followers)
            nursery.start_soon(exchange.run)
            nursery.start_soon(reachability.run)
            if self._on_lan and outside:
                nursery.start_soon(_tried, partial(lan.run, network.peer, outside, self._met))
            if self._upnp and outside and network.port is not None:
                nursery.start_soon(_tried, partial(router.run, network.port, reachability.map))

    def addresses(self) -> tuple[str, ...]:
        """Where others may call this node, with its key; none before it runs."""
        return () if self._reachability is None else self._reachability.addresses()

    def words(self) -> str:
        """In a sentence: whether others can reach this node, and what its owner can do."""
        return "" if self._reachability is None else self._reachability.words()

    def _met(self, address: str) -> None:
        """A neighbour on this network spoke of itself."""
        peer = parse_address(address).peer
        if peer is not None:
            self._table.heard(peer, [address], frozenset(), teller="lan", now=time.time())


async def _tried(task: Callable[[], Awaitable[None]]) -> None:
    """Run what is nice to have: what ends it ends nothing else."""
    try:
        await task()
    except Exception:
        # A node without UPnP or multicast DNS is whole, whatever they stumbled over.
        log.exception("a fault of PonySwarm itself; the node goes on")
