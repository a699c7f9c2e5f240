"""What a machine can run, and whether a cell fits what somebody offers. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ponyswarm.errors import LocalError
from ponyswarm.matrix import matches, service_matches
from ponyswarm.messages import Interpreter, Offer
from ponyswarm.p2p.scheduling import CellState, Fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What this machine can run: its offer without the moment."""

    interpreters: tuple[Interpreter, ...]
    services: tuple[str, ...]
    system: str
    machine: str
    slots: int


def fits(cell: CellState, offer: Offer) -> bool:
    """Whether an offer can run a cell."""
    for service in cell.services:
        if not any(service_matches(service, offered) for offered in offer.services):
            return False
    try:
        return any(
            matches(cell.python, i.implementation, i.version, i.free_threaded)
            for i in offer.interpreters
        )
    except LocalError:
        # A maintainer may ask for a Python that only a later version of us can name.
        return False


def remembering_fits() -> Fits:
    """`fits` for one choice, which asks for the same few kinds of cells again and again."""
    known: dict[tuple[str, tuple[str, ...], int], bool] = {}

    def remembered(cell: CellState, offer: Offer) -> bool:
        kind = (cell.python, cell.services, id(offer))
        found = known.get(kind)
        if found is None:
            found = known[kind] = fits(cell, offer)
        return found

    return remembered


def frees_others(before: Offer, after: Offer) -> bool:
    """Whether a changed offer may bring others forward: it takes on less than before."""
    less = after.slots <= 0 < before.slots
    same = after.interpreters == before.interpreters and after.services == before.services
    return less or not same
