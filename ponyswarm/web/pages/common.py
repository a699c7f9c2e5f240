"""What several pages show: a job in a list, a key, a stack of verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ponyswarm import keys
from ponyswarm.errors import PonySwarmError
from ponyswarm.ledger.queries import JobRow, Reader
from ponyswarm.plain import harmless
from ponyswarm.policy import ReaderPolicy
from ponyswarm.web import words
from ponyswarm.web.site import Site


class NotHere(PonySwarmError):
    """What was asked for is not in this ledger: the page says so, and where to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A volunteer's or maintainer's key. ``tail`` is enough to tell keys apart at a glance."""

    id: str
    tail: str
    operator: str = ""


def key(public: bytes, operators: Mapping[bytes, str] | None = None) -> Key:
    name = keys.peer_id(public)
    return Key(id=name, tail=name[-8:], operator=harmless((operators or {}).get(public, "")))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLine:
    """A job in a list."""

    id: str
    project: str
    name: str
    title: str
    commit: str
    announced: int
    withdrawn: bool
    expired: bool
    kind: str
    tally: Mapping[str, int]
    says: str


def job_line(site: Site, reader: Reader, job: JobRow, now: int) -> JobLine:
    tally = words.tally(site.matrix(reader, job, ReaderPolicy(agreeing=job.redundancy)))
    return JobLine(
        id=job.id.hex(),
        project=job.project.hex(),
        name=harmless(job.project_name),
        title=harmless(job.title),
        commit=harmless(job.commit),
        announced=job.announced,
        withdrawn=job.withdrawn,
        expired=job.expires <= now,
        kind=words.overall(tally),
        tally=tally,
        says=words.summary(tally),
    )


def hex_id(text: str) -> bytes:
    """The 32 bytes of an id in an address; `NotHere` when it is none."""
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != 32:
        raise NotHere(f"{harmless(text)[:80]!r} is not an id: ids have 64 hexadecimal digits")
    return found
