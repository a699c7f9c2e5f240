"""Errors by whose affair they are: ours and the person's, a peer's, or the machine's.

Every text says what happened, why, and what to do next. Expected outcomes (a
verdict, a broken run, a refused entry) are values, not errors.
"""

from __future__ import annotations


class PonySwarmError(Exception):
    """The root of all errors this package raises on purpose."""


class LocalError(PonySwarmError):
    """The person here asked for something that cannot be: usage, files, set-up."""


class PeerError(PonySwarmError):
    """Bytes from elsewhere that break a rule.

    ``reason`` is a short fixed word, such as ``bad-signature``, under which the
    node counts the refusal and lowers the sender's score. ``detail`` is for people.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail or reason


class InfraError(PonySwarmError):
    """This machine could not do it now: disk full, no sandbox, no network."""
