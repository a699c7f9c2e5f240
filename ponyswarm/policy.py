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
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from msgspec import UNSET, structs

from ponyswarm.agreement import Voice
from ponyswarm.codec import decode_payload, fork_evidence, pack
from ponyswarm.errors import LocalError
from ponyswarm.keys import SecretKey, parse_peer_id, verify
from ponyswarm.matrix import cells
from ponyswarm.messages import (
    Announce,
    Approve,
    CrossCheck,
    Entry,
    Fork,
    Kind,
    Payload,
    Project,
    Result,
    Revoke,
    Rotate,
    Vouch,
    Withdraw,
)

_COSIGN_DOMAIN = b"ponyswarm/cosign/v1\0"
_ROTATE_DOMAIN = b"ponyswarm/rotate/v1\0"

# What a project's state is made of.
Directing = Project | Vouch | Revoke | Rotate | Approve
DIRECTING = (Kind.PROJECT, Kind.VOUCH, Kind.REVOKE, Kind.ROTATE, Kind.APPROVE)


@dataclass(frozen=True, slots=True, order=True)
class Said:
    """A directing entry that the ledger took; ordered by time, seq and id."""

    time: int
    seq: int
    id: bytes
    author: bytes = field(compare=False)
    payload: Directing = field(compare=False)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A project record that has no force yet, and the roots that stand behind it so far.

    ``stale`` when the record it was made from is no longer the one in force.
    """

    id: bytes
    time: int
    author: bytes
    record: Project
    agreed: frozenset[bytes]
    stale: bool


@dataclass(frozen=True, slots=True)
class ProjectState:
    """What a project's record says now: the latest record, ended keys, known operators.

    ``records`` are those that ever had force, with the time from which they had it;
    ``vouched`` says when each operator was last named; ``before`` gives of a successor the
    key that it goes on from; ``entry`` is the one whose record is in force; ``said`` is
    what it all rests on.
    """

    id: bytes
    record: Project
    revoked: Mapping[bytes, int] = field(default_factory=dict)
    operators: Mapping[bytes, str] = field(default_factory=dict)
    vouched: Mapping[bytes, int] = field(default_factory=dict)
    before: Mapping[bytes, bytes] = field(default_factory=dict)
    records: tuple[tuple[int, Project], ...] = ()
    proposals: tuple[Proposal, ...] = ()
    entry: bytes = b""
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
        seat = _seat(key, self.record_at(time).roots, self.before)
        return seat is not None and not self.is_revoked(key, time)

    def may_announce(self, key: bytes, time: int) -> bool:
        record = self.record_at(time)
        seat = _seat(key, (*record.announcers, *record.roots), self.before)
        return seat is not None and not self.is_revoked(key, time)

    def knows(self, key: bytes, time: int) -> bool:
        """Whether the record in force names this key, or a maintainer vouched for it."""
        if self.is_revoked(key, time):
            return False
        vouched = any(one in self.operators for one in _line(key, self.before))
        return vouched or self.may_announce(key, time)

    def ever(self) -> Iterator[Project]:
        """The genesis record, and every one that enough roots of one of these agreed to.

        Whether it has force is another question; more entries only ever make these more.
        """
        found = [self.said[0].payload if self.said else self.record]
        missing = [said for said in self.said[1:] if isinstance(said.payload, Project)]
        approvals = self._approvals()
        while True:
            agreed = [
                said
                for said in missing
                if isinstance(said.payload, Project)
                and any(
                    isinstance(by, Project)
                    and len(_agreeing(said.payload, {said.author, *approvals.get(said.id, ())}, by))
                    >= by.threshold
                    for by in found
                )
            ]
            if not agreed:
                break
            found += [said.payload for said in agreed]
            missing = [said for said in missing if said not in agreed]
        return (record for record in found if isinstance(record, Project))

    def _approvals(self) -> dict[bytes, set[bytes]]:
        found: dict[bytes, set[bytes]] = {}
        for said in self.said:
            if isinstance(said.payload, Approve):
                found.setdefault(said.payload.record, set()).add(said.author)
        return found

    def is_named(self, key: bytes) -> bool:
        """Whether any record ever gave this key, or one that it goes on from, a right."""
        line = self._line_ever(key)
        return any(line & {*record.announcers, *record.roots} for record in self.ever())

    def is_named_root(self, key: bytes) -> bool:
        """Whether any record ever named this key, or one that it goes on from, as a root."""
        line = self._line_ever(key)
        return any(line & {*record.roots} for record in self.ever())

    def _line_ever(self, key: bytes) -> set[bytes]:
        edges = [
            (said.author, said.payload.successor)
            for said in self.said
            if isinstance(said.payload, Rotate)
        ]
        line = {key}
        while grown := {old for old, new in edges if new in line} - line:
            line |= grown
        return line

    def standing(self, forked: Collection[bytes] = ()) -> Standing:
        """Whose word counts, for `ReaderPolicy` and the verdicts."""
        return Standing(
            operators=self.operators,
            before=self.before,
            revoked=self.revoked,
            forked=frozenset(forked),
        )


def _line(key: bytes, before: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """A key and those it goes on from, the latest first."""
    seen = set()
    while key not in seen:
        seen.add(key)
        yield key
        if key not in before:
            return
        key = before[key]


def _seat(key: bytes, keys: Collection[bytes], before: Mapping[bytes, bytes]) -> bytes | None:
    """Which of ``keys`` this one is, or goes on from."""
    return next((one for one in _line(key, before) if one in keys), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Whose word counts in a project by what its maintainers and the keys themselves said."""

    operators: Mapping[bytes, str] = field(default_factory=dict)
    before: Mapping[bytes, bytes] = field(default_factory=dict)
    revoked: Mapping[bytes, int] = field(default_factory=dict)
    forked: frozenset[bytes] = frozenset()

    def line(self, key: bytes) -> Iterator[bytes]:
        """A key and those it goes on from, the latest first."""
        return _line(key, self.before)

    def is_vouched(self, key: bytes) -> bool:
        return any(one in self.operators for one in self.line(key))

    def voice(self, key: bytes) -> Voice:
        """Who speaks through a key: its operator, or else the first key of its line."""
        first = key
        for one in self.line(key):
            if one in self.operators:
                return self.operators[one]
            first = one
        return first

    @property
    def speakers(self) -> dict[bytes, Voice]:
        """The voice of each key that does not only speak for itself."""
        keys = {*self.operators, *self.before, *self.before.values()}
        return {key: self.voice(key) for key in keys}

    def stands(self, key: bytes, time: int) -> bool:
        """Whether what a key said at a time counts: it is neither forked nor ended."""
        return key not in self.forked and not (key in self.revoked and time >= self.revoked[key])


def rotation_text(project: bytes, key: bytes, successor: bytes) -> bytes:
    """What a successor signs to take a key's place in a project."""
    return _ROTATE_DOMAIN + hashlib.sha256(project + key + successor).digest()


def rotation(project: bytes, key: bytes, successor: SecretKey) -> Rotate:
    """The statement by which ``key`` gives its place to ``successor``; ``key`` signs the entry."""
    text = rotation_text(project, key, successor.public)
    return Rotate(successor=successor.public, signature=successor.sign(text))


@lru_cache(maxsize=4096)
def _is_accepted(project: bytes, key: bytes, said: Rotate) -> bool:
    text = rotation_text(project, key, said.successor)
    return said.successor != key and verify(said.successor, text, said.signature)


def cosign_text(record: Project) -> bytes:
    """What a further root signs to agree to a project record."""
    return _COSIGN_DOMAIN + hashlib.sha256(pack(structs.replace(record, cosigns=()))).digest()


def _agreeing(
    record: Project,
    keys: Iterable[bytes],
    by: Project,
    before: Mapping[bytes, bytes] = MappingProxyType({}),
) -> set[bytes]:
    """The roots of the record ``by`` that stand behind a new one: these keys, and cosigners.

    Each seat counts once, whichever key sits on it.
    """
    text = cosign_text(record)
    signed = [c.key for c in record.cosigns if verify(c.key, text, c.signature)]
    seats = {_seat(key, by.roots, before) for key in (*keys, *signed)}
    return {seat for seat in seats if seat is not None}


def agreeing_roots(record: Project, author: bytes, roots: Collection[bytes]) -> int:
    """How many of ``roots`` stand behind a record: its author, and each valid cosigner."""
    return len(_agreeing(record, [author], Project(name="-", roots=tuple(roots))))


def checked_payload(entry: Entry) -> Payload | None:
    """What an entry says, if nothing in itself rules it out, whatever else is known.

    Raises `PeerError` ("bad-payload", "bad-matrix", "bad-fork").
    """
    payload = decode_payload(entry)
    if isinstance(payload, Announce):
        cells(payload.spec)
    elif isinstance(payload, Fork):
        fork_evidence(payload, entry)
    return payload


def refusal(state: ProjectState | None, entry: Entry, payload: Payload | None) -> str | None:
    """Why the ledger must not take this entry, as the word it is counted under; None when it may.

    Results, commits, forks, checkpoints, rotations and unknown kinds are anyone's to publish:
    what they are worth is the reader's decision. What directs the swarm is not: its author
    must have been named by some record. Whether it has force is asked of the state, later.
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
        case Result():  # The first case, as most entries are.
            return None
        case Project():
            reachable = payload.threshold <= len(set(payload.roots))
            if not reachable or not state.is_named_root(author):
                return "unauthorised-project"
        case Announce() | Withdraw() | Vouch():
            if not state.is_named(author):
                return f"unauthorised-{type(payload).__name__.lower()}"
        case Approve():
            if not state.is_named_root(author):
                return "unauthorised-approve"
        case Revoke():
            # A key may always end itself: whoever finds it stolen must be able to say so.
            if payload.key != author and not state.is_named_root(author):
                return "unauthorised-revoke"
        case Rotate():
            if not _is_accepted(state.id, author, payload):
                return "bad-rotation"
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
        case Approve():
            return state.is_root(author, time)
        case Rotate():
            return not state.is_revoked(author, time)
        case Project() if not entry.is_genesis:
            return state.is_root(author, time)
        case _:
            return True


def draft_refusal(state: ProjectState | None, entry: Entry, payload: Payload | None) -> str | None:
    """Why nobody would act on an entry that is about to be signed; None when they would."""
    reason = refusal(state, entry, payload)
    if reason is None and state is not None and not has_force(state, entry, payload):
        return f"unauthorised-{type(payload).__name__.lower()}"
    return reason


def fold(entries: Iterable[tuple[Entry, Payload | None]]) -> ProjectState | None:
    """The state that a project's undisputed entries give, in whatever order they come."""
    genesis: Said | None = None
    said: list[Said] = []
    id_ = b""
    for entry, payload in entries:
        if isinstance(payload, Directing):
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
    if not isinstance(payload, Directing):
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
    record, in_force, records = first, said[0].id, [(0, first)]
    revoked: dict[bytes, int] = {}
    operators: dict[bytes, str] = {}
    vouched: dict[bytes, int] = {}
    before: dict[bytes, bytes] = {}
    proposed: dict[bytes, Said] = {}
    behind: dict[bytes, set[bytes]] = {}

    def stands(key: bytes, time: int) -> bool:
        return key not in revoked or time < revoked[key]

    def names(key: bytes, keys: Collection[bytes]) -> bool:
        return _seat(key, keys, before) is not None

    def agreed(id_: bytes, time: int) -> frozenset[bytes]:
        new = proposed[id_]
        assert isinstance(new.payload, Project)
        keys = [key for key in behind[id_] if stands(key, time)]
        return frozenset(_agreeing(new.payload, keys, record, before))

    for item in said[1:]:
        author, time = item.author, item.time
        if not stands(author, time) and not (
            isinstance(item.payload, Revoke) and item.payload.key == author
        ):
            continue
        match item.payload:
            case Project() | Approve() if names(author, record.roots):
                about = item.id if isinstance(item.payload, Project) else item.payload.record
                behind.setdefault(about, set()).add(author)
                if isinstance(item.payload, Project):
                    proposed[about] = item
                new = proposed.get(about)
                if (
                    new is not None
                    and not _is_stale(new, in_force)
                    and len(agreed(about, time)) >= record.threshold
                ):
                    assert isinstance(new.payload, Project)
                    record, in_force = new.payload, new.id
                    records.append((time, record))
                    del proposed[about]
            case Vouch(key=key, operator=operator):
                if names(author, (*record.roots, *record.announcers)):
                    operators[key] = operator
                    vouched[key] = time
            case Revoke(key=key, since=since):
                if key == author or names(author, record.roots):
                    revoked[key] = min(since, revoked.get(key, since))
            case Rotate(successor=new_key) as rotate:
                # A key goes on from one other at most, and nobody comes before itself.
                is_fresh = new_key not in before and author not in before.values()
                if is_fresh and not names(author, [new_key]) and _is_accepted(id_, author, rotate):
                    before[new_key] = author
                    # What the old key said in that very millisecond stands.
                    revoked[author] = min(time + 1, revoked.get(author, time + 1))
            case _:
                pass
    now = said[-1].time
    open_ = tuple(
        Proposal(
            id=new.id,
            time=new.time,
            author=new.author,
            record=new.payload,
            agreed=agreed(new.id, now),
            stale=_is_stale(new, in_force),
        )
        for new in proposed.values()
        if isinstance(new.payload, Project)
    )
    return ProjectState(
        id_,
        record,
        revoked,
        operators,
        vouched,
        before,
        tuple(records),
        open_,
        in_force,
        tuple(said),
    )


def _is_stale(said: Said, in_force: bytes) -> bool:
    assert isinstance(said.payload, Project)
    return said.payload.replaces is not UNSET and said.payload.replaces != in_force


def cross_check(state: ProjectState | None, announce: Announce, time: int) -> CrossCheck:
    """How a job's results are checked: as it says itself, or more strictly if its project does.

    ``time`` is when it was announced. Where one run is enough there is nobody to copy from.
    """
    spec = announce.spec
    wish = CrossCheck() if state is None else state.record_at(time).cross_check
    is_blind = spec.redundancy > 1 and "blind" in (spec.cross_check, wish.mode)
    return structs.replace(wish, redundancy=spec.redundancy, mode="blind" if is_blind else "open")


def window_ms(announce: Announce) -> int:
    """How long after its commit an outcome must have been told: time for others to run it too."""
    return 2_000 * announce.spec.timeout + 600_000


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
            raise LocalError(
                "this is no policy: write 'all', 'vouched', or keys separated by commas"
            )
        return cls(agreeing=agreeing, keys=chosen)

    def counts(self, author: bytes, standing: Standing) -> bool:
        """Whether this reader listens to a key at all; to a successor as to whom it follows."""
        if author in standing.forked:
            return False
        if self.keys is not None:
            return any(key in self.keys for key in standing.line(author))
        return not self.vouched_only or standing.is_vouched(author)
