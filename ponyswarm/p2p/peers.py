"""What nodes tell each other about peers: signed records, and one question over one stream.

A record is a peer's own word on where it can be called and what it follows, signed with
its key: ``signature (64) || body``, the signature over ``ponyswarm/peer/v1\\0 || body``, the
body one msgpack map of `Record`. It is handed on as it came. Nobody can say anything of
another peer; the worst that a liar can do is name addresses of his own, or addresses where
nobody with his key answers, and `p2p.table` bounds how many.

The question is one frame with a `Question`, the answer one frame with an `Answer`. All
here is pure: bytes in, values out, `PeerError` ("bad-peers") for whatever is out of form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from ponyswarm.codec import convert, pack, unpack
from ponyswarm.errors import PeerError
from ponyswarm.keys import SIGNATURE_SIZE, SecretKey, verify
from ponyswarm.messages import Hash, Key, Millis
from ponyswarm.p2p.lookup import distance

if TYPE_CHECKING:
    from random import Random

PROTOCOL = "/ponyswarm/peers/1"

MAX_RECORD = 6 * 1024
MAX_QUESTION = 8 * 1024
MAX_PEERS = 24
MAX_ANSWER = (MAX_PEERS + 1) * (MAX_RECORD + 8) + 1024
MAX_ADDRESSES = 8
MAX_PROJECTS = 64
# A record tells of the present: it is good for a day, and clocks may differ by minutes.
MAX_AGE_MS = 24 * 3600 * 1000
MAX_AHEAD_MS = 10 * 60 * 1000
# Peers of one address range in one answer.
PER_RANGE = 8
# Of an answer, so many are those nearest to the point of the first asked project.
NEAREST = 8

_PREFIX = b"ponyswarm/peer/v1\0"

AddressText = Annotated[str, Meta(min_length=1, max_length=400)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Where a peer can be called, and which projects it follows, at a time."""

    peer: Key
    time: Millis
    addresses: Annotated[tuple[AddressText, ...], Meta(max_length=MAX_ADDRESSES)] = ()
    projects: Annotated[tuple[Hash, ...], Meta(max_length=MAX_PROJECTS)] = ()


@dataclass(frozen=True, slots=True)
class Signed:
    """A record and the bytes that prove it."""

    record: Record
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """``own`` is the asker's record; peers of ``projects`` are wanted before others."""

    own: Annotated[bytes, Meta(max_length=MAX_RECORD)] = b""
    projects: Annotated[tuple[Hash, ...], Meta(max_length=MAX_PROJECTS)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """``own`` is the record of the one who answers, ``peers`` are those of others."""

    own: Annotated[bytes, Meta(max_length=MAX_RECORD)] = b""
    peers: Annotated[
        tuple[Annotated[bytes, Meta(max_length=MAX_RECORD)], ...], Meta(max_length=MAX_PEERS)
    ] = ()


def sign(record: Record, key: SecretKey) -> Signed:
    body = pack(record)
    return Signed(record, key.sign(_PREFIX + body) + body)


def read(raw: bytes, now: int) -> Signed:
    """A record that its peer signed and that is of today."""
    if not SIGNATURE_SIZE < len(raw) <= MAX_RECORD:
        raise PeerError("bad-peers", "a record has no such length")
    signature, body = raw[:SIGNATURE_SIZE], raw[SIGNATURE_SIZE:]
    record = convert(unpack(body), Record, "bad-peers")
    if not verify(record.peer, _PREFIX + body, signature):
        raise PeerError("bad-peers", "a record was not signed by its peer")
    if not now - MAX_AGE_MS <= record.time <= now + MAX_AHEAD_MS:
        raise PeerError("stale-record", "a record is not of today")
    return Signed(record, raw)


def encode(message: Question | Answer) -> bytes:
    return pack(message)


def decode_question(data: bytes) -> Question:
    return convert(unpack(data), Question, "bad-peers")


def decode_answer(data: bytes) -> Answer:
    return convert(unpack(data), Answer, "bad-peers")


def select(
    records: Iterable[tuple[Signed, str]],
    question: Question,
    asker: bytes,
    random: Random,
) -> list[Signed]:
    """Whom to tell a peer of: those of its projects, those near to them, then anybody.

    ``records`` come with the address range in which their peer is connected. Who is told
    of is left to chance, and few are of one range.
    """
    asked = frozenset(question.projects)
    candidates = [one for one in records if one[0].record.peer != asker and one[0].record.addresses]
    random.shuffle(candidates)
    members = [one for one in candidates if not asked.isdisjoint(one[0].record.projects)]
    others = [one for one in candidates if asked.isdisjoint(one[0].record.projects)]
    if question.projects:
        project = question.projects[0]
        others.sort(key=lambda one: distance(one[0].record.peer, project))
        far = others[NEAREST:]
        random.shuffle(far)
        others[NEAREST:] = far
    ranges: Counter[str] = Counter()
    chosen: list[Signed] = []
    for signed, where in [*members[: MAX_PEERS - NEAREST], *others, *members]:
        if len(chosen) == MAX_PEERS:
            break
        if ranges[where] < PER_RANGE and signed not in chosen:
            ranges[where] += 1
            chosen.append(signed)
    return chosen
