"""Who may say what, whose jobs may run here, and whose results count.

Pure: a project's state is a function of the *set* of its entries, whatever order they
arrived in; every question about rights is a function of that state. The ledger asks
`refusal` before it takes an entry, the protocol asks `run_refusal` before it claims or
starts a job and to say why not, a reader's `ReaderPolicy` goes to `ledger.verdicts`.

Taking an entry and giving it force are two questions. A ledger takes it when any record
ever named its author: that only grows, so all nodes end with the same entries. It has
force when the record of its time names its author and no revocation ended the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from ponyswarm.codec import pack
from ponyswarm.errors import LocalError
from ponyswarm.keys import parse_peer_id, verify
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


@dataclass(frozen=True, slots=True, order=True)
class Said:
    """A project, vouch or revoke entry that the ledger took; ordered by time, seq and id."""

    time: int
    seq: int
    id: bytes
    author: bytes = field(compare=False)
    payload: Project | Vouch | Revoke = field(compare=False)


@dataclass(frozen=True, slots=True)
class ProjectState:
    """What a project's record says now: the latest record, ended keys, known operators.

    ``records`` are those that ever had force, with the time from which they had it;
    ``vouched`` says when each operator was last named; ``said`` is what it all rests on.
    """

    id: bytes
    record: Project
    revoked: Mapping[bytes, int] = field(default_factory=dict)
    operators: Mapping[bytes, str] = field(default_factory=dict)
    vouched: Mapping[bytes, int] = field(default_factory=dict)
    records: tuple[tuple[int, Project], ...] = ()
    said: tuple[Said, ...] = ()

    def record_at(self, time: int) -> Project:
        """The record that was in force at a time; the genesis one before all others."""
        found = self.records[0][1] if self.records else self.record
        for since, record in self.records:
            if since <= time:
                found = record
        return found

    def is_revoked(self, key: bytes, time: int) -> bool:
        return key in self.revoked and time >= self.revoked[key]

    def is_root(self, key: bytes, time: int) -> bool:
        return key in self.record_at(time).roots and not self.is_revoked(key, time)

    def may_announce(self, key: bytes, time: int) -> bool:
        record = self.record_at(time)
        named = key in record.announcers or key in record.roots
        return named and not self.is_revoked(key, time)

    def ever(self) -> Iterator[Project]:
        """Every record the ledger took, whether it has force or not."""
        yield self.record
        for said in self.said:
            if isinstance(said.payload, Project):
                yield said.payload


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
    they are worth is the reader's decision. What directs the swarm is not: its author must
    have been named by some record. Whether it has force is asked of the state, later.
    """
    author = entry.header.author
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
            agreed = payload.threshold <= len(set(payload.roots)) and any(
                _is_agreed(payload, author, record) for record in state.ever()
            )
            return None if agreed else "unauthorised-project"
        case Announce() | Withdraw() | Vouch():
            if not any(author in (*r.announcers, *r.roots) for r in state.ever()):
                return f"unauthorised-{type(payload).__name__.lower()}"
        case Revoke():
            # A key may always end itself: whoever finds it stolen must be able to say so.
            if payload.key != author and not any(author in r.roots for r in state.ever()):
                return "unauthorised-revoke"
        case _:
            return None
    return None


def has_force(state: ProjectState, entry: Entry, payload: Payload | None) -> bool:
    """Whether an entry that `refusal` lets in also directs the swarm: rights at its own time."""
    author, time = entry.header.author, entry.header.time
    match payload:
        case Announce() | Withdraw() | Vouch():
            return state.may_announce(author, time)
        case Revoke():
            return payload.key == author or state.is_root(author, time)
        case Project() if not entry.is_genesis:
            by = state.record_at(time)
            return not state.is_revoked(author, time) and _is_agreed(payload, author, by)
        case _:
            return True


def draft_refusal(state: ProjectState | None, entry: Entry, payload: Payload | None) -> str | None:
    """Why nobody would act on an entry that is about to be signed; None when they would."""
    reason = refusal(state, entry, payload)
    if reason is None and state is not None and not has_force(state, entry, payload):
        return f"unauthorised-{type(payload).__name__.lower()}"
    return reason


def _is_agreed(record: Project, author: bytes, by: Project) -> bool:
    """Whether enough roots of the record ``by`` stand behind a new record."""
    return author in by.roots and agreeing_roots(record, author, by.roots) >= by.threshold


def fold(entries: Iterable[tuple[Entry, Payload | None]]) -> ProjectState | None:
    """The state that a project's undisputed entries give, in whatever order they come."""
    genesis: Said | None = None
    said: list[Said] = []
    id_ = b""
    for entry, payload in entries:
        if isinstance(payload, Project | Vouch | Revoke):
            header = entry.header
            item = Said(header.time, header.seq, entry.id, header.author, payload)
            if entry.is_genesis:
                genesis, id_ = item, entry.id
            else:
                said.append(item)
    return None if genesis is None else _derive(id_, [genesis, *sorted(said)])


def advance(
    state: ProjectState | None, entry: Entry, payload: Payload | None
) -> ProjectState | None:
    """The project's state after a further accepted entry."""
    if not isinstance(payload, Project | Vouch | Revoke):
        return state
    if state is None:
        return fold([(entry, payload)])
    header = entry.header
    new = Said(header.time, header.seq, entry.id, header.author, payload)
    return _derive(state.id, [state.said[0], *sorted([*state.said[1:], new])])


def _derive(id_: bytes, said: list[Said]) -> ProjectState:
    """Give each statement force or none, in order of time; the genesis record comes first."""
    first = said[0].payload
    assert isinstance(first, Project)
    record, records = first, [(0, first)]
    revoked: dict[bytes, int] = {}
    operators: dict[bytes, str] = {}
    vouched: dict[bytes, int] = {}

    def stands(key: bytes, time: int) -> bool:
        return key not in revoked or time < revoked[key]

    for item in said[1:]:
        author, time = item.author, item.time
        match item.payload:
            case Project() as new:
                if stands(author, time) and _is_agreed(new, author, record):
                    record = new
                    records.append((time, new))
            case Vouch(key=key, operator=operator):
                if stands(author, time) and author in (*record.roots, *record.announcers):
                    operators[key] = operator
                    vouched[key] = time
            case Revoke(key=key, since=since):
                if key == author or (stands(author, time) and author in record.roots):
                    revoked[key] = min(since, revoked.get(key, since))
    return ProjectState(id_, record, revoked, operators, vouched, tuple(records), tuple(said))


def run_refusal(
    project: bytes, *, trusted: Collection[bytes], expires: int, now: int, withdrawn: bool
) -> str | None:
    """Why a job must not run on this machine, in words for its owner; None when it may.

    ``withdrawn`` is also true of a job whose announcing key had no right to announce it.
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

    @classmethod
    def parse(cls, text: str, agreeing: int) -> ReaderPolicy:
        """A policy as people type it: ``all``, ``vouched``, or keys separated by commas."""
        if text == "all":
            return cls(agreeing=agreeing)
        if text == "vouched":
            return cls(agreeing=agreeing, vouched_only=True)
        chosen = frozenset(parse_peer_id(part) for part in text.split(",") if part.strip())
        if not chosen:
            raise LocalError("a policy is 'all', 'vouched', or keys separated by commas")
        return cls(agreeing=agreeing, keys=chosen)

    def counts(self, author: bytes, operators: Mapping[bytes, str]) -> bool:
        if self.keys is not None:
            return author in self.keys
        return not self.vouched_only or author in operators
