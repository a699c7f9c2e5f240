"""Peers on the same network, by multicast DNS: says that we are here, hears of others.

A node is a service ``_ponyswarm._tcp.local.`` whose TXT record names its peer id. What is
heard is a hint like any other: the handshake proves who is there. Nothing is said when
the node listens for this machine alone, or its owner does not want it.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
from collections.abc import Callable
from functools import partial

import trio
from zeroconf import ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from ponyswarm.errors import LocalError
from ponyswarm.keys import parse_peer_id, peer_id
from ponyswarm.p2p.discovery import Address, is_dialable, is_loopback, parse_address

log = logging.getLogger("ponyswarm")

SERVICE = "_ponyswarm._tcp.local."
# Services looked at while the node runs, whoever invents them.
MAX_SERVICES = 1000
MAX_HOSTS = 4
LOOKUP_MS = 2000


class _Ear(ServiceListener):
    """Called by zeroconf in a thread of its own."""

    def __init__(self, own: str, heard: Callable[[str], None]) -> None:
        self._own = own
        self._heard = heard
        self._names: set[str] = set()

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        if name == self._own or (name not in self._names and len(self._names) >= MAX_SERVICES):
            return
        self._names.add(name)
        info = zc.get_service_info(type_, name, timeout=LOOKUP_MS)
        if info is not None:
            for address in addresses_of(info):
                self._heard(address)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None: ...


def addresses_of(info: ServiceInfo) -> list[str]:
    """Where a service says that its peer can be called; none when it makes no sense."""
    try:
        peer = parse_peer_id((info.properties.get(b"peer") or b"").decode("ascii"))
    except (LocalError, UnicodeDecodeError):
        return []
    found = []
    for host in info.parsed_addresses()[:MAX_HOSTS]:
        try:
            ip = ipaddress.ip_address(host)
        except ValueError:
            continue
        address = str(Address(f"ip{ip.version}", ip.compressed, info.port or 0, peer))
        # A neighbour's private address is as good as a public one, this machine's is not.
        if not ip.is_loopback and is_dialable(address, from_=address):
            found.append(address)
    return found


async def run(peer: bytes, addresses: tuple[str, ...], heard: Callable[[str], None]) -> None:
    """Tell of ``addresses`` and hear of neighbours until cancelled; ``heard`` gets addresses."""
    ours = [parse_address(one) for one in addresses if not is_loopback(one)]
    if not ours:
        return
    token = trio.lowlevel.current_trio_token()

    def pass_on(address: str) -> None:
        try:
            token.run_sync_soon(heard, address)
        except trio.RunFinishedError:
            return

    hosts = [one.host for one in ours if one.port == ours[0].port]
    name = f"{secrets.token_hex(8)}.{SERVICE}"
    info = ServiceInfo(
        SERVICE,
        name,
        port=ours[0].port,
        parsed_addresses=hosts[:MAX_HOSTS],
        properties={"peer": peer_id(peer)},
        server=f"{name.partition('.')[0]}.local.",
    )
    try:
        opened = await trio.to_thread.run_sync(partial(_open, hosts, info, name, pass_on))
    except OSError as fault:
        log.info("peers on this network are not looked for: %s", fault)
        return
    try:
        await trio.sleep_forever()
    finally:
        with trio.move_on_after(2) as scope:
            scope.shield = True
            await trio.to_thread.run_sync(  # type: ignore[call-arg]
                opened.close, abandon_on_cancel=True
            )


def _open(hosts: list[str], info: ServiceInfo, name: str, heard: Callable[[str], None]) -> Zeroconf:
    opened = Zeroconf(interfaces=hosts)
    try:
        ServiceBrowser(opened, SERVICE, listener=_Ear(name, heard))
        opened.register_service(info)
    except BaseException:
        opened.close()
        raise
    return opened
