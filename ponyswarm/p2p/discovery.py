"""Where peers are: the forms of an address, and the bootstrap list.

Nothing here opens a connection. An address is a multiaddr string. Three forms can be
called: ``/ip4/192.0.2.7/tcp/4001/p2p/12D3KooW…`` (or ``ip6``, ``dns4``, ``dns6``, ``dns``),
the same followed by ``/p2p-circuit/p2p/12D3KooW…`` for a peer behind a relay, and
``/dnsaddr/example.org``, whose DNS entries hold addresses. Other transports are known by
name and passed over.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from ponyswarm import keys
from ponyswarm.errors import LocalError

_FORM = re.compile(
    r"/(?P<kind>ip4|ip6|dns4|dns6|dns)/(?P<host>[^/\s]+)/tcp/(?P<port>\d{1,5})"
    r"(?:/p2p/(?P<peer>[1-9A-HJ-NP-Za-km-z]+))?/?"
)
_DNS_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9])?\.?")


_DNSADDR = re.compile(r"/dnsaddr/(?P<host>[^/\s]+)(?:/p2p/(?P<peer>[1-9A-HJ-NP-Za-km-z]+))?/?")
_CIRCUIT = "/p2p-circuit/p2p/"
# Transports of libp2p that this node does not speak (docs/adr/0017-tcp-only.md).
_OTHER_TRANSPORT = re.compile(
    r"/(?:ip4|ip6|dns4|dns6|dns)/[^/\s]+/(?:udp/\d{1,5}|tcp/\d{1,5}/(?:ws|wss|tls|http|https)(?=/|$))"
    r"(?:/[^/\s]+)*/?"
)


class OtherTransport(LocalError):
    """An address that is in order, for a transport that this node does not speak."""


@dataclass(frozen=True, slots=True)
class Address:
    """``kind`` is ip4, ip6, dns4, dns6 or dns; ``peer`` the 32 bytes of a key."""

    kind: str
    host: str
    port: int
    peer: bytes | None

    def __str__(self) -> str:
        tail = f"/p2p/{keys.peer_id(self.peer)}" if self.peer is not None else ""
        return f"/{self.kind}/{self.host}/tcp/{self.port}{tail}"


@dataclass(frozen=True, slots=True)
class Circuit:
    """A peer that is reached through a relay, which has a key of its own."""

    relay: Address
    peer: bytes

    def __str__(self) -> str:
        return f"{self.relay}{_CIRCUIT}{keys.peer_id(self.peer)}"


@dataclass(frozen=True, slots=True)
class DnsAddress:
    """A DNS name whose TXT records hold addresses; with a peer, only that peer's count."""

    host: str
    peer: bytes | None

    def __str__(self) -> str:
        tail = f"/p2p/{keys.peer_id(self.peer)}" if self.peer is not None else ""
        return f"/dnsaddr/{self.host}{tail}"


_NAMED = "/dns4/node.example.org/tcp/4001"

Target = Address | Circuit | DnsAddress


def parse_target(text: str) -> Target:
    """Any address that can be called. `LocalError` says what is wrong with it."""
    text = text.strip()
    before, circuit, after = text.partition(_CIRCUIT)
    if circuit:
        relay = parse_address(before)
        if relay.peer is None:
            raise LocalError(f"{text!r} does not name its relay: add /p2p/ and its key before")
        return Circuit(relay, keys.parse_peer_id(after.rstrip("/")))
    found = _DNSADDR.fullmatch(text)
    if found is not None:
        if not _DNS_NAME.fullmatch(found["host"]):
            raise LocalError(f"{text!r} has no valid host name: write one such as {_NAMED}")
        return DnsAddress(
            found["host"], keys.parse_peer_id(found["peer"]) if found["peer"] else None
        )
    if _OTHER_TRANSPORT.fullmatch(text):
        raise OtherTransport(
            f"{text!r} is for a transport other than TCP, which is not spoken here: take one with "
            "/tcp/"
        )
    return parse_address(text)


def parse_address(text: str) -> Address:
    """The parts of a multiaddr; `LocalError` says what is wrong with it."""
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise LocalError(
            f"{text!r} is not an address: write it as /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW…"
        )
    kind, host, port = found["kind"], found["host"], int(found["port"])
    if port > 65535:
        raise LocalError(f"{text!r} has no such port: ports end at 65535")
    if kind in ("ip4", "ip6"):
        try:
            ip = ipaddress.ip_address(host)
        except ValueError as fault:
            raise LocalError(
                f"{text!r} has no valid IP address: write one such as /ip4/192.0.2.7/tcp/4001"
            ) from fault
        if ip.version != int(kind[2]):
            raise LocalError(
                f"{text!r} names an IPv{ip.version} address as {kind}: write /ip{ip.version}/"
            )
        host = ip.compressed
    elif not _DNS_NAME.fullmatch(host):
        raise LocalError(f"{text!r} has no valid host name: write one such as {_NAMED}")
    peer = keys.parse_peer_id(found["peer"]) if found["peer"] else None
    return Address(kind, host, port, peer)


def range_of(address: str) -> str:
    """The addresses that one owner easily has many of: a /16 of IPv4, a /32 of IPv6.

    A peer behind a relay counts with its relay, a DNS name for itself, and so does each
    program on this machine, which is no network.
    """
    target = parse_target(address)
    host = target.relay if isinstance(target, Circuit) else target
    if isinstance(host, Address) and host.kind in ("ip4", "ip6"):
        if ipaddress.ip_address(host.host).is_loopback:
            return f"{host.host}:{host.port}"
        bits = 16 if host.kind == "ip4" else 32
        return str(ipaddress.ip_network(f"{host.host}/{bits}", strict=False))
    return host.host.lower()


def is_loopback(address: str) -> bool:
    """Whether only programs on this machine can call the address."""
    target = parse_target(address)
    return (
        isinstance(target, Address)
        and target.kind in ("ip4", "ip6")
        and ipaddress.ip_address(target.host).is_loopback
    )


def is_dialable(address: str, *, from_: str | None) -> bool:
    """Whether an address that a peer tells of makes sense for us.

    ``from_`` is where that peer is connected. Loopback is for peers on this machine, and
    private addresses for peers that have one; nothing is sent to multicast, link-local or
    unspecified addresses, whoever names them.
    """
    try:
        target = parse_target(address)
    except LocalError:
        return False
    host = target.relay if isinstance(target, Circuit) else target
    if isinstance(host, DnsAddress) or host.port == 0:
        return False
    if host.kind not in ("ip4", "ip6"):
        return True
    ip = ipaddress.ip_address(host.host)
    if ip.is_multicast or ip.is_unspecified or ip.is_link_local or ip.is_reserved:
        return False
    if ip.is_global:
        return True
    if from_ is None:
        return False
    teller = parse_target(from_)
    near = teller.relay if isinstance(teller, Circuit) else teller
    if not isinstance(near, Address) or near.kind not in ("ip4", "ip6"):
        return False
    beside = ipaddress.ip_address(near.host)
    return beside.is_loopback if ip.is_loopback else not beside.is_global


def parse_bootstrap(text: str, name: str = "bootstrap_peers.txt") -> tuple[str, ...]:
    """The addresses of a bootstrap list: one a line, ``#`` begins a comment.

    Lines for transports that are not spoken here are passed over. Raises `LocalError`
    with file and line for one that makes no sense.
    """
    addresses: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        try:
            target = parse_target(entry)
        except OtherTransport:
            continue
        except LocalError as fault:
            raise LocalError(f"{name}, line {number}: {fault}") from fault
        if isinstance(target, Address) and target.peer is None:
            raise LocalError(
                f"{name}, line {number}: {entry!r} does not name its peer: "
                "add /p2p/ and its key at the end"
            )
        addresses[str(target)] = None
    return tuple(addresses)


def read_bootstrap(path: Path) -> tuple[str, ...]:
    """The addresses in a bootstrap file; none when there is no such file."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as fault:
        why = getattr(fault, "strerror", "it is not UTF-8")
        raise LocalError(f"{path} cannot be read ({why}): mend it, or take it away") from fault
    return parse_bootstrap(text, path.name)
