"""Whether volunteers' offers fit a cell, and in words why none does. Pure.

The offers are those that a running node tells of (`status`): without one nobody knows.
"""

from __future__ import annotations

from collections.abc import Sequence

from ponyswarm.errors import LocalError
from ponyswarm.matrix import matches, service_matches
from ponyswarm.messages import Cell
from ponyswarm.plain import harmless
from ponyswarm.status import OfferLine


def able(python: str, services: Sequence[str], offer: OfferLine) -> bool:
    """Whether an offer fits an environment."""
    return _has_python(python, offer) and all(
        any(service_matches(service, offered) for offered in offer.services) for service in services
    )


def lacking(cell: Cell, offers: Sequence[OfferLine]) -> str:
    """Why no offer fits a cell, in words that tell a volunteer what to install; "" if one does."""
    if any(able(cell.python, cell.services, offer) for offer in offers):
        return ""
    if not offers:
        return "no volunteer offers anything to this project now"
    if not any(_has_python(cell.python, offer) for offer in offers):
        return f"nobody offers Python {harmless(cell.python)}"
    for service in cell.services:
        if not any(service_matches(service, one) for offer in offers for one in offer.services):
            return f"nobody offers {harmless(service)}"
    return "nobody offers all of it on one machine"


def _has_python(python: str, offer: OfferLine) -> bool:
    try:
        for text in offer.interpreters:
            implementation, _, version = text.partition(" ")
            free_threaded = version.endswith("t")
            if matches(python, implementation, version.removesuffix("t"), free_threaded):
                return True
    except LocalError:
        return False  # A later version of us may know what this asks for.
    return False
