"""Sockets to listen on, which nobody else shares, and the addresses they have."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import psutil
import trio

from ponyswarm.errors import InfraError, LocalError
from ponyswarm.p2p.discovery import Address, parse_address


async def bind(addresses: Sequence[str]) -> list[trio.SocketListener]:
    """Listening sockets that nobody else shares."""
    listeners: list[trio.SocketListener] = []
    try:
        for text in addresses:
            address = parse_address(text)
            listeners.append(await _bind_one(address))
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


async def _bind_one(address: Address) -> trio.SocketListener:
    if address.kind not in ("ip4", "ip6"):
        raise LocalError(f"{address} cannot be listened on: give an /ip4/ or /ip6/ address")
    six = address.kind == "ip6"
    sock = trio.socket.socket(
        trio.socket.AF_INET6 if six else trio.socket.AF_INET, trio.socket.SOCK_STREAM
    )
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            # Frees a port whose last connections are in TIME_WAIT; never shares a live one.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind((address.host, address.port))
        sock.listen(256)
    except OSError as fault:
        sock.close()
        raise InfraError(
            f"cannot listen on {address}: {fault.strerror or fault}. Another node or program may "
            "have the port: stop it, or choose another port (tcp/0 takes a free one)"
        ) from fault
    return trio.SocketListener(sock)


def own_addresses(listener: trio.SocketListener) -> list[str]:
    """The listener's address with its real port; each of the machine's, for a wildcard."""
    host, port = listener.socket.getsockname()[:2]
    six = listener.socket.family == socket.AF_INET6
    kind = "ip6" if six else "ip4"
    if host not in ("0.0.0.0", "::"):  # noqa: S104
        return [str(Address(kind, host, port, None))]
    family = socket.AF_INET6 if six else socket.AF_INET
    return [
        str(Address(kind, entry.address, port, None))
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        # A link-local address needs the name of an interface, which nobody else knows.
        if entry.family == family and "%" not in entry.address
    ]
