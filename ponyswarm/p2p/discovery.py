"""Where peers are: addresses, the bootstrap list, and the table of peers seen.

Nothing here opens a connection. An address is a multiaddr string such as
``/ip4/192.0.2.7/tcp/4001/p2p/12D3KooW…``; only TCP over IP or a DNS name is known.
"""

from __future__ import annotations

import ipaddress
import json
import os
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


@dataclass(frozen=True, slots=True)
class Address:
    kind: str
    host: str
    port: int
    peer: bytes | None

    def __str__(self) -> str:
        tail = f"/p2p/{keys.peer_id(self.peer)}" if self.peer is not None else ""
        return f"/{self.kind}/{self.host}/tcp/{self.port}{tail}"


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
            raise LocalError(f"{text!r} has no valid IP address") from fault
        if ip.version != int(kind[2]):
            raise LocalError(f"{text!r} names an IPv{ip.version} address as {kind}")
        host = ip.compressed
    elif not _DNS_NAME.fullmatch(host):
        raise LocalError(f"{text!r} has no valid host name")
    peer = keys.parse_peer_id(found["peer"]) if found["peer"] else None
    return Address(kind, host, port, peer)


def parse_bootstrap(text: str, name: str = "bootstrap_peers.txt") -> tuple[str, ...]:
    """The addresses of a bootstrap list: one a line, ``#`` begins a comment.

    Raises `LocalError` with file and line for one that cannot be dialled.
    """
    addresses: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        try:
            address = parse_address(entry)
        except LocalError as fault:
            raise LocalError(f"{name}, line {number}: {fault}") from fault
        if address.peer is None:
            raise LocalError(
                f"{name}, line {number}: {entry!r} does not name its peer: "
                "add /p2p/ and its key at the end"
            )
        addresses[str(address)] = None
    return tuple(addresses)


def read_bootstrap(path: Path) -> tuple[str, ...]:
    """The addresses in a bootstrap file; none when there is no such file."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as fault:
        raise LocalError(f"{path} cannot be read: {fault}") from fault
    return parse_bootstrap(text, path.name)


class PeerTable:
    """The addresses at which peers were reached, best first, kept in a small file.

    The file is a hint: when it is damaged or lost, the node starts from the
    bootstrap list.
    """

    KEPT = 1000
    PER_PEER = 4

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        # Address to (last reached, failures since), times in seconds since the epoch.
        self._seen: dict[str, tuple[float, int]] = {}
        if path is not None:
            self._load(path)

    def reached(self, address: str, now: float) -> None:
        self._seen[str(parse_address(address))] = (now, 0)
        self._shrink()

    def failed(self, address: str) -> None:
        known = self._seen.get(address)
        if known is not None:
            self._seen[address] = (known[0], known[1] + 1)

    def addresses(self) -> tuple[str, ...]:
        """Least failures first, then the most recent."""
        return tuple(sorted(self._seen, key=lambda a: (self._seen[a][1], -self._seen[a][0])))

    def save(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps({a: list(v) for a, v in self._seen.items()}), "utf-8")
        os.replace(draft, self._path)

    def _shrink(self) -> None:
        count: dict[bytes | None, int] = {}
        kept: dict[str, tuple[float, int]] = {}
        for address in self.addresses():
            peer = parse_address(address).peer
            count[peer] = count.get(peer, 0) + 1
            if count[peer] <= self.PER_PEER and len(kept) < self.KEPT:
                kept[address] = self._seen[address]
        self._seen = kept

    def _load(self, path: Path) -> None:
        try:
            stored = json.loads(path.read_text("utf-8"))
            for address, (at, failures) in stored.items():
                if parse_address(address).peer is not None:
                    self._seen[address] = (float(at), int(failures))
        except (OSError, ValueError, TypeError, AttributeError, LocalError):
            self._seen = {}
        self._shrink()
