"""Everything that keeps a node in touch with others: finding peers, calling them, being called.

Made with plain values by whoever opens a node, and run by it. Each part is a loop of its
own; they share the network and the table of peers, and nothing else.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from random import Random

import trio

from ponyswarm.keys import SecretKey
from ponyswarm.p2p.dialer import Dialer, Followers
from ponyswarm.p2p.exchange import Exchange
from ponyswarm.p2p.network import Network
from ponyswarm.p2p.table import PeerTable


class Connectivity:
    """``addresses`` are the owner's: those are called always. The others fill up from ``table``."""

    def __init__(self, addresses: Sequence[str], table: PeerTable) -> None:
        self._table = table
        self._random = Random(secrets.randbits(64))  # noqa: S311
        self._dialer = Dialer(addresses, table, random=self._random)

    async def run(
        self,
        key: SecretKey,
        network: Network,
        followers: Followers,
        refuse: Callable[[str, bytes | None], None],
    ) -> None:
        """Find, call and be found, for ever."""
        exchange = Exchange(
            key,
            self._table,
            network,
            addresses=lambda: network.addresses,
            followers=followers,
            refuse=refuse,
            random=self._random,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._dialer.run, network, followers)
            nursery.start_soon(exchange.run)
