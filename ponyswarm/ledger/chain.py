"""The rules of a feed, as one pure function: accept, duplicate, gap, fork.

A feed is the hash chain of one author in one project under one nonce. Within it seq
rises by one, prev is the id before, and time never falls. `judge` says what an
authentic entry is to the feed as it is known here; `store` acts on the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct

from ponyswarm.messages import Entry

FUTURE_MS = 120_000

# What others keep of one feed. It is a valid prefix then: its author goes on in another one.
MAX_BYTES_PER_FEED = 64 << 20


class Head(Struct, frozen=True, gc=False):
    """The last known entry of a feed."""

    seq: int
    id: bytes
    time: int


@dataclass(frozen=True, slots=True)
class Accept:
    """The entry is the feed's next."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The entry is held already."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The entry was held without its payload, and is whole now."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Entries before it are missing: the feed is known up to ``height`` entries."""

    height: int


@dataclass(frozen=True, slots=True)
class Forked:
    """Another entry is held at the same place: the author signed two histories."""

    seq: int


@dataclass(frozen=True, slots=True)
class Diverges:
    """It follows a head we do not hold: there is a fork at or below ``seq``, not yet seen."""

    seq: int


@dataclass(frozen=True, slots=True)
class Early:
    """It is dated too far ahead of our clock: held back until its time comes, not refused."""


@dataclass(frozen=True, slots=True)
class Refused:
    """It breaks a rule; ``reason`` is the word it is counted under."""

    reason: str


_ACCEPT, _DUPLICATE, _COMPLETED = Accept(), Duplicate(), Completed()

Judgement = Accept | Duplicate | Completed | Gap | Forked | Diverges | Early | Refused


def judge(entry: Entry, head: Head | None, held: Entry | None, now: int) -> Judgement:
    """What an authentic ``entry`` is to its feed.

    ``head`` is the feed's last entry here, None when the feed is unknown; ``held`` is what
    is held at the entry's own seq, None when there is none; ``now`` is in milliseconds.
    """
    header = entry.header
    if held is not None:
        if held.id != entry.id:
            return Forked(header.seq)
        return _COMPLETED if held.is_bare and not entry.is_bare else _DUPLICATE
    height = 0 if head is None else head.seq + 1
    if header.seq > height:
        return Gap(height)
    if header.time > now + FUTURE_MS:
        return Early()
    if head is None:
        return _ACCEPT
    if header.prev != head.id:
        return Diverges(head.seq)
    if header.time < head.time:
        return Refused("time-falls")
    return _ACCEPT
