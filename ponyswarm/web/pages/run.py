"""One run: what its entry says, and the end of its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ponyswarm.codec import decode_payload, inflate
from ponyswarm.errors import PeerError
from ponyswarm.ledger.queries import Reader
from ponyswarm.messages import Entry, Result
from ponyswarm.plain import harmless, uncoloured
from ponyswarm.web.pages.common import Key, NotHere, hex_id, key
from ponyswarm.web.site import Site

# What a page shows of an output is its end; the rest is one click away.
SHOWN = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    id: str
    key: Key
    time: int
    seq: int
    job: str
    cell: str
    project: str
    state: str
    reason: str
    detail: str
    counts: Mapping[str, int]
    seconds: float
    digest: str
    blind: bool
    environment: Mapping[str, str]
    services: Mapping[str, str]
    log: str
    log_bytes: int
    log_cut: bool
    log_why_not: str


def run(site: Site, reader: Reader, text: str) -> RunPage:
    entry, result = _result(reader, text)
    log, why_not = _log(site, result)
    where = result.environment
    facts = {} if where is None else {
        "interpreter": f"{where.implementation} {where.version}",
        "build": where.build,
        "system": f"{where.system} {where.release}".strip(),
        "machine": where.machine,
        "C library": where.libc,
        "sandbox": where.sandbox,
        "installed set": where.packages.hex(),
    }  # fmt: skip
    return RunPage(
        id=entry.id.hex(),
        key=key(entry.header.author),
        time=entry.header.time,
        seq=entry.header.seq,
        job=result.job.hex(),
        cell=result.cell.hex(),
        project=entry.namespace.hex(),
        state=result.state,
        reason=str(result.reason or ""),
        detail=harmless(result.detail),
        counts={str(status): number for status, number in sorted(result.counts.items())},
        seconds=result.seconds,
        digest=result.digest.hex(),
        blind=bool(result.nonce),
        environment={name: harmless(value) for name, value in facts.items() if value},
        services={}
        if where is None
        else {harmless(n): harmless(v) for n, v in sorted(where.services.items())},
        log=uncoloured(log[-SHOWN:].decode("utf-8", "replace")),
        log_bytes=len(log),
        log_cut=len(log) > SHOWN,
        log_why_not=why_not,
    )


def log(site: Site, reader: Reader, text: str) -> str:
    """A run's whole output, made harmless: it may be read on a terminal."""
    _, result = _result(reader, text)
    found, why_not = _log(site, result)
    if why_not:
        raise NotHere(why_not)
    return uncoloured(found.decode("utf-8", "replace"))


def _result(reader: Reader, text: str) -> tuple[Entry, Result]:
    entry = reader.entry(hex_id(text))
    result = None if entry is None else decode_payload(entry)
    if entry is None or not isinstance(result, Result):
        raise NotHere(
            f"the run {text[:16]}… is not in this ledger: it may come while a node runs, and "
            "'ponyswarm log' shows what did"
        )
    return entry, result


def _log(site: Site, result: Result) -> tuple[bytes, str]:
    """A run's output, or why it cannot be shown."""
    if result.log is None:
        return b"", "this run left no output"
    data = site.blob(result.log.hash)
    if data is None:
        return b"", (
            "its output is not on this machine: 'ponyswarm show "
            f"{result.cell.hex()[:16]} --log' asks peers for it while a node runs"
        )
    try:
        return inflate(data, "bad-log"), ""
    except PeerError as fault:
        return b"", f"what its author published as output is none ({fault.reason})"
