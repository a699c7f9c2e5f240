"""Has the home's router let others through to our port, where it speaks UPnP.

The mapping is leased, so it ends by itself when the node is killed, and renewed while the
node runs. A router's word on our outside address is a hint: `p2p.reach` proves it.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable
from functools import partial

import miniupnpc
import trio

log = logging.getLogger("ponyswarm")

LEASE = 3600
RENEW_EVERY = 1500.0
LOOK_AGAIN = 3600.0
DISCOVER_MS = 1500
DESCRIPTION = "PonySwarm"


async def run(port: int, mapped: Callable[[str], None]) -> None:
    """Keep the port open until cancelled; ``mapped`` gets its address outside, or "".

    Everything the library does blocks, so it is done in a thread, and left behind there
    when a router does not answer.
    """
    gateway = None
    try:
        while True:
            gateway, address = await trio.to_thread.run_sync(  # type: ignore[call-arg]
                partial(_map, port), abandon_on_cancel=True
            )
            mapped(address)
            await trio.sleep(RENEW_EVERY if address else LOOK_AGAIN)
    finally:
        if gateway is not None:
            with trio.move_on_after(2) as scope:
                scope.shield = True
                await trio.to_thread.run_sync(  # type: ignore[call-arg]
                    partial(_unmap, gateway, port), abandon_on_cancel=True
                )


def _map(port: int) -> tuple[miniupnpc.UPnP | None, str]:
    gateway = miniupnpc.UPnP()
    gateway.discoverdelay = DISCOVER_MS
    try:
        if gateway.discover() <= 0:
            return None, ""
        gateway.selectigd()
        outside = ipaddress.ip_address(gateway.externalipaddress())
        gateway.addportmapping(port, "TCP", gateway.lanaddr, port, DESCRIPTION, "", LEASE)
    except Exception as fault:
        # The library raises bare Exception, with the router's words.
        log.debug("no router opens a port for this node: %s", fault)
        return None, ""
    if outside.is_private or outside.is_unspecified:
        log.info("the router has a private address itself: opening its port is not enough")
    return gateway, f"/ip{outside.version}/{outside.compressed}/tcp/{port}"


def _unmap(gateway: miniupnpc.UPnP, port: int) -> None:
    try:
        gateway.deleteportmapping(port, "TCP")
    except Exception as fault:
        # As above; the lease ends by itself.
        log.debug("the router keeps the port open until its lease ends: %s", fault)
