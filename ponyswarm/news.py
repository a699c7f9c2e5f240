"""What is news: a pure function of what verdicts were and what they are.

A place is a cell's position in a project's matrix, whatever the job. Told is the last
settled verdict of each place; one that is open again says nothing new until it settles.
News is a first failure, a failure that is fixed, or a dispute; nothing else is worth
waking a person for. Called by ``cli.notifying``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from ponyswarm.ledger.verdicts import Verdict

# (project id, the cell's place in words)
Place = tuple[str, str]


class What(StrEnum):
    FIRST_FAILURE = "first failure"
    FIXED = "fixed"
    DISPUTED = "disputed"


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """One thing worth telling: what happened to which place."""

    what: What
    place: Place
    before: str


_SETTLED = frozenset({Verdict.CONFIRMED_PASS, Verdict.CONFIRMED_FAIL, Verdict.DISPUTED})


def told(
    before: Mapping[Place, str], now: Iterable[tuple[Place, Verdict]]
) -> tuple[dict[Place, str], list[News]]:
    """(what is known afterwards, what of it is news), in the order of ``now``.

    A place never seen before that fails or is disputed is news, one that passes is not.
    """
    after = dict(before)
    news = []
    for place, verdict in now:
        if verdict not in _SETTLED:
            continue
        last = before.get(place, "")
        after[place] = str(verdict)
        what = _what(last, verdict)
        if what is not None:
            news.append(News(what=what, place=place, before=last))
    return after, news


def _what(before: str, now: Verdict) -> What | None:
    if before == now:
        return None
    if now is Verdict.DISPUTED:
        return What.DISPUTED
    if now is Verdict.CONFIRMED_FAIL:
        return What.FIRST_FAILURE
    return What.FIXED if before == Verdict.CONFIRMED_FAIL else None
