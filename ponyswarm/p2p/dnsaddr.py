"""What stands behind ``/dnsaddr/NAME``: the addresses in the name's TXT records.

A record may name another ``/dnsaddr``; two steps are followed, and no more addresses are
taken than a bootstrap list needs. Whoever answers for the name is not trusted with more
than an address: each names its peer's key, and the handshake proves it.
"""

from __future__ import annotations

import logging

import dns.asyncresolver
import dns.exception
import trio

from ponyswarm.errors import LocalError
from ponyswarm.p2p.discovery import Address, Circuit, DnsAddress, parse_target

log = logging.getLogger("ponyswarm")

MAX_ADDRESSES = 16
MAX_STEPS = 2
MAX_RECORDS = 64
TIMEOUT = 5.0


async def resolve(
    name: DnsAddress, resolver: dns.asyncresolver.Resolver | None = None
) -> tuple[str, ...]:
    """The addresses behind a name that can be called; none when there are none or no answer."""
    found: dict[str, None] = {}
    names = [name]
    for _ in range(MAX_STEPS):
        deeper: list[DnsAddress] = []
        for one in names[:MAX_ADDRESSES]:
            for text in await _records(one.host, resolver):
                try:
                    target = parse_target(text)
                except LocalError:
                    continue
                if isinstance(target, DnsAddress):
                    deeper.append(target)
                elif target.peer is None or name.peer not in (None, target.peer):
                    continue
                elif isinstance(target, Address | Circuit):
                    found[str(target)] = None
        names = deeper
    return tuple(found)[:MAX_ADDRESSES]


async def _records(host: str, resolver: dns.asyncresolver.Resolver | None) -> list[str]:
    try:
        with trio.fail_after(TIMEOUT):
            asked = resolver or dns.asyncresolver.get_default_resolver()
            answer = await asked.resolve(f"_dnsaddr.{host}", "TXT")
    except (dns.exception.DNSException, OSError, trio.TooSlowError) as fault:
        log.info("no addresses were found behind %s: %s", host, fault)
        return []
    texts = [b"".join(record.strings).decode("utf-8", "replace") for record in answer]
    return [text[8:] for text in texts[:MAX_RECORDS] if text.startswith("dnsaddr=")]
