"""What `announce` and `try` tell of a job that was handed over, or that nobody took."""

from __future__ import annotations

import pytest

from ponyswarm.cli.sending import Delivery, delivery
from ponyswarm.handover import NOBODY, HandedOver
from ponyswarm.keys import SecretKey, peer_id

PROJECT = bytes(range(32))
TRUST = f"ponyswarm trust add {PROJECT.hex()}"
ADA, BOB = (frozenset([SecretKey(bytes([n]) * 32).public]) for n in (1, 2))
NONE: frozenset[bytes] = frozenset()


def told(held: HandedOver, *, addresses: int = 3, trusted: bool = False) -> Delivery:
    return delivery(held, project=PROJECT, addresses=addresses, trusted=trusted)


def test_a_job_is_out_as_soon_as_one_peer_has_entry_and_source() -> None:
    made = told(HandedOver(connected=ADA | BOB, entry=ADA | BOB, whole=ADA))
    assert made.is_out
    assert made.words == "handed to 1 peer, with its source"
    ada, bob = ([peer_id(key) for key in who] for who in (ADA, BOB))
    assert made.facts == {"handed_to": ada, "entry_only": bob}


@pytest.mark.parametrize(
    ("held", "addresses", "why"),
    [
        (NOBODY, 0, "no peer is known"),
        (NOBODY, 3, "of 3 known addresses none answered"),
        (HandedOver(ADA, NONE, NONE), 3, "1 peer reached, and none follows this project"),
        (HandedOver(ADA, ADA, NONE), 3, "1 peer took the announcement, and none its source"),
    ],
)
def test_a_job_that_nobody_took_is_said_to_be_kept_and_why_and_what_comes_next(
    held: HandedOver, addresses: int, why: str
) -> None:
    made = told(held, addresses=addresses)
    assert not made.is_out
    first, second, *rest = made.words.splitlines()
    assert first.startswith(f"nobody has it yet: {why}")
    assert second == "It is signed and kept, and goes out when a node runs on this home:"
    assert rest[0].startswith("  ponyswarm node")
    assert rest[-1] == f"  {TRUST}"


def test_who_trusts_the_project_already_is_not_told_to_trust_it() -> None:
    assert TRUST not in told(NOBODY, trusted=True).words
