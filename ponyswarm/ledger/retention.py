"""What goes when it is old or when space is short: pure, candidates in, victims out.

Of blobs, for whoever still has one gives it back, in an order that says what is missed
least: first what nobody can name a use for, then outputs and lists of passing runs, then
sources of jobs that are over, the outputs of failing runs, the latest job of each project,
and what open jobs need to run at all. Of entries, the payloads of old results; headers,
signatures and the journal are never dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Above this share of the budget blobs go, down to the lower one: room for what comes next.
FULL, ROOMY = 0.9, 0.8

INPUTS = frozenset({"source", "locks"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A blob that is here: its role (source, locks, tests, log or ""), and its job.

    ``kept`` is when it came, ``expires`` when its job ends, in milliseconds; ``failing``
    is true of what a failing or broken run left, ``latest`` of a project's newest job.
    """

    hash: bytes
    size: int
    role: str = ""
    job: bytes = b""
    failing: bool = False
    kept: int = 0
    expires: int = 0
    latest: bool = False


def worth(blob: Held, now: int) -> int:
    """How much a blob would be missed; the lowest goes first."""
    if blob.role in INPUTS and blob.expires > now:
        return 5
    if blob.latest:
        return 4
    if blob.failing:
        return 3
    if blob.role in INPUTS:
        return 2
    return 1 if blob.role else 0


def victims(blobs: Iterable[Held], *, budget: int, keep_ms: int, now: int) -> list[Held]:
    """What has to go: everything too old that nothing needs, then the least missed for space.

    Age alone takes neither the inputs of open jobs nor anything of a project's latest job.
    Within one worth the oldest goes first.
    """
    order = sorted(blobs, key=lambda blob: (worth(blob, now), blob.kept, blob.hash))
    gone = [blob for blob in order if now - blob.kept > keep_ms and worth(blob, now) < 4]
    names = {blob.hash for blob in gone}
    left = sum(blob.size for blob in order if blob.hash not in names)
    if left > FULL * budget:
        for blob in order:
            if left <= ROOMY * budget:
                break
            if blob.hash not in names:
                gone.append(blob)
                left -= blob.size
    return gone


# Payloads of results that failed or broke are kept so much longer than those that passed.
FAILING_LONGER = 4
# Times that the age for payloads is halved at most, while the ledger is too large.
MOST_PRESSURE = 12


def payload_age(keep_ms: int, pressure: int) -> int:
    """How old a result becomes before its payload goes (milliseconds).

    ``pressure`` rises while the ledger is near its limit, and halves it each time.
    """
    return keep_ms >> pressure


def is_spent(
    *, age: int, failing: bool, over: bool, latest: bool, keep_ms: int, pressure: int
) -> bool:
    """Whether a result's payload goes. ``over``: its job has ended; ``latest``: it is of a
    project's newest job, which only a ledger that nothing else relieved lets go of.
    """
    most = payload_age(keep_ms, pressure) * (FAILING_LONGER if failing else 1)
    return over and age > most and (not latest or pressure == MOST_PRESSURE)
