"""Whether others can call this node: the question, the answer, and what they add up to.

A node asks a peer to call it back. The question names ports alone: the peer calls them at
the address from which it was asked, and nowhere else, so nobody can be made to knock at a
third one's door. And the asker believes nothing that the peer says, but only what arrives
at its own door: a fresh connection on which that peer proves its key. A peer can lie that
it could not come through, therefore several are asked, in other address ranges.

Pure: bytes in, values out, `PeerError` ("bad-reach") for whatever is out of form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from ponyswarm.codec import convert, pack, unpack

PROTOCOL = "/ponyswarm/reach/1"
MAX_MESSAGE = 512

Port = Annotated[int, Meta(ge=1, le=65535)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Call me back at these ports, at the address that you see me at."""

    ports: Annotated[tuple[Port, ...], Meta(max_length=2)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """``seen`` is where the asker is connected from; ``tried`` the ports that were called."""

    seen: Annotated[str, Meta(max_length=100)] = ""
    tried: Annotated[tuple[Port, ...], Meta(max_length=2)] = ()


def encode(message: Question | Answer) -> bytes:
    return pack(message)


def decode_question(data: bytes) -> Question:
    return convert(unpack(data), Question, "bad-reach")


def decode_answer(data: bytes) -> Answer:
    return convert(unpack(data), Answer, "bad-reach")


class Reach(StrEnum):
    UNKNOWN = "unknown"
    OPEN = "open"
    CLOSED = "closed"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Report:
    """One call back: who made it from which range, whether it arrived, and when (seconds)."""

    peer: bytes
    where: str
    arrived: bool
    at: float


KEPT = 12
GOOD_FOR = 3600.0
# Calls that must have failed before a node believes that it cannot be reached.
ENOUGH = 2


def judge(reports: Iterable[Report], now: float) -> Reach:
    """Most peers' latest call decides; those of one address range are one voice."""
    voices: dict[str, bool] = {}
    failed: Counter[bool] = Counter()
    for report in sorted(reports, key=lambda one: one.at):
        if now - report.at <= GOOD_FOR:
            voices[report.where] = report.arrived
            failed[not report.arrived] += 1
    arrived = sum(voices.values())
    if arrived and 2 * arrived >= len(voices):
        return Reach.OPEN
    if voices and failed[True] >= ENOUGH:
        return Reach.CLOSED
    return Reach.UNKNOWN


def words(reach: Reach, *, asked: int, relays: int, carrying: bool, mapped: bool) -> str:
    """The state in a sentence, with what its owner can do about it."""
    match reach:
        case Reach.OPEN:
            by_router = ", through a port that the router opened for it" if mapped else ""
            carries = "; it carries connections for peers that cannot" if carrying else ""
            return f"others can call this node directly{by_router}{carries}"
        case Reach.CLOSED if relays:
            many = "a relay" if relays == 1 else f"{relays} relays"
            return (
                f"others cannot call this node directly, but reach it through {many}; forward "
                "its port in the router for faster connections"
            )
        case Reach.CLOSED:
            return (
                "others cannot call this node, and no peer relays for it: it works with the "
                "peers that it calls itself; forward its port in the router, or allow it in "
                "the firewall"
            )
        case Reach.LOCAL:
            return (
                "this node listens for programs on this machine alone: set another 'listen' in "
                "ponyswarm.ini to be reached by others"
            )
        case _:
            if asked:
                return "whether others can call this node is being found out"
            return "no peer outside this network could be asked yet whether it can call this node"
