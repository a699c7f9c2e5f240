"""Keeps a node connected: configured addresses always, known ones while peers are few."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence

import trio

from ponyswarm.errors import PeerError
from ponyswarm.p2p.discovery import PeerTable
from ponyswarm.p2p.network import Network

log = logging.getLogger("ponyswarm")

DIAL_EVERY = 2.0
LONGEST_BACKOFF = 300.0
WANTED_PEERS = 8


class Dialer:
    """``addresses`` come from the owner; ``table`` remembers what worked before."""

    def __init__(self, addresses: Sequence[str], table: PeerTable) -> None:
        self._addresses = tuple(addresses)
        self._table = table

    async def run(self, network: Network) -> None:
        """Keep connected: first the configured addresses, then those that worked before."""
        backoff: dict[str, tuple[float, float]] = {}
        while True:
            connected = set(network.peers())
            for address in dict.fromkeys((*self._addresses, *self._table.addresses())):
                if address not in self._addresses and len(connected) >= WANTED_PEERS:
                    break
                due, pause = backoff.get(address, (0.0, 1.0))
                if trio.current_time() < due:
                    continue
                try:
                    peer = await network.dial(address)
                except PeerError as fault:
                    if fault.reason == "own-address":
                        backoff[address] = (float("inf"), pause)
                        continue
                    self._table.failed(address)
                    longer = min(LONGEST_BACKOFF, pause * 2)
                    wait = random.uniform(pause / 2, pause)  # noqa: S311
                    backoff[address] = (trio.current_time() + wait, longer)
                    log.debug("could not reach %s: %s", address, fault)
                    continue
                backoff.pop(address, None)
                if peer not in connected:
                    connected.add(peer)
                    self._table.reached(address, time.time())
                    self._table.save()
            await trio.sleep(DIAL_EVERY)
