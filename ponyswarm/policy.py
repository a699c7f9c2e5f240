"""Who may say what, whose jobs may run here, and whose results count.

Pure: a project's state is a fold over its entries; every question about rights is a
function of that state. The ledger asks `refusal` before it takes an entry, the node
asks `run_refusal` before it runs a job, a reader's `ReaderPolicy` goes to
`ledger.verdicts`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from ponyswarm.codec import pack
from ponyswarm.keys import verify
from ponyswarm.messages import (
    Announce,
    Entry,
    Payload,
    Project,
    Revoke,
    Vouch,
    Withdraw,
)

_COSIGN_DOMAIN = b"ponyswarm/cosign/v1\0"


@dataclass(frozen=True, slots=True)
class ProjectState:
    """What a project's record says now: the latest record, ended keys, known operators."""

    id: bytes
    record: Project
    revoked: Mapping[bytes, int] = field(default_factory=dict)
    operators: Mapping[bytes, str] = field(default_factory=dict)

    def is_revoked(self, key: bytes, time: int) -> bool:
        return key in self.revoked and time >= self.revoked[key]

    def is_root(self, key: bytes, time: int) -> bool:
        return key in self.record.roots and not self.is_revoked(key, time)

    def may_announce(self, key: bytes, time: int) -> bool:
        named = key in self.record.announcers or key in self.record.roots
        return named and not self.is_revoked(key, time)


def cosign_text(record: Project) -> bytes:
    """What a further root signs to agree to a project record."""
    return _COSIGN_DOMAIN + hashlib.sha256(pack(replace(record, cosigns=()))).digest()


def agreeing_roots(record: Project, author: bytes, roots: Collection[bytes]) -> int:
    """How many of ``roots`` stand behind a record: its author, and each valid cosigner."""
    text = cosign_text(record)
    agreeing = {author} & set(roots)
    for cosign in record.cosigns:
        if cosign.key in roots and verify(cosign.key, text, cosign.signature):
            agreeing.add(cosign.key)
    return len(agreeing)


def refusal(state: ProjectState | None, entry: Entry, payload: Payload | None) -> str | None:
    """Why the ledger must not take this entry, as the word it is counted under; None when it may.

    Results, commits, forks, checkpoints and unknown kinds are anyone's to publish: what
    they are worth is the reader's decision. What directs the swarm is not.
    """
    author, time = entry.header.author, entry.header.time
    if entry.is_genesis:
        if not isinstance(payload, Project) or author not in payload.roots:
            return "bad-genesis"
        if payload.threshold > len(set(payload.roots)):
            return "bad-genesis"
        return None
    if state is None:
        return "unknown-project"
    match payload:
        case Project():
            if not state.is_root(author, time) or payload.threshold > len(set(payload.roots)):
                return "unauthorised-project"
            if agreeing_roots(payload, author, state.record.roots) < state.record.threshold:
                return "unauthorised-project"
        case Announce():
            if not state.may_announce(author, time):
                return "unauthorised-announce"
        case Withdraw():
            if not state.may_announce(author, time):
                return "unauthorised-withdraw"
        case Vouch():
            if not state.may_announce(author, time):
                return "unauthorised-vouch"
        case Revoke():
            # A key may always end itself: whoever finds it stolen must be able to say so.
            if not state.is_root(author, time) and payload.key != author:
                return "unauthorised-revoke"
        case _:
            return None
    return None


def advance(
    state: ProjectState | None, entry: Entry, payload: Payload | None
) -> ProjectState | None:
    """The project's state after an accepted entry."""
    match payload:
        case Project():
            if state is None or entry.is_genesis:
                return ProjectState(entry.namespace, payload)
            return replace(state, record=payload)
        case Revoke() if state is not None:
            since = min(payload.since, state.revoked.get(payload.key, payload.since))
            return replace(state, revoked={**state.revoked, payload.key: since})
        case Vouch() if state is not None:
            return replace(state, operators={**state.operators, payload.key: payload.operator})
        case _:
            return state


def run_refusal(
    project: bytes, *, trusted: Collection[bytes], expires: int, now: int, withdrawn: bool
) -> str | None:
    """Why a job must not run on this machine, in words for its owner; None when it may.

    That the announcing key is one the project names was settled by `refusal`: the ledger
    holds no other announcements.
    """
    if project not in trusted:
        return f"its project is not trusted here: 'ponyswarm trust add {project.hex()}'"
    if withdrawn:
        return "its maintainer withdrew it"
    if expires <= now:
        return "it has expired"
    return None


@dataclass(frozen=True, slots=True)
class ReaderPolicy:
    """Whose results a reader counts, and how many independent operators must agree."""

    agreeing: int = 2
    keys: frozenset[bytes] | None = None
    vouched_only: bool = False

    def counts(self, author: bytes, operators: Mapping[bytes, str]) -> bool:
        if self.keys is not None:
            return author in self.keys
        return not self.vouched_only or author in operators
