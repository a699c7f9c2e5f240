"""The message types: what travels, frozen, with their bounds.

Payloads (`Project` … `Checkpoint`) are what entries of the ledger say; `Offer` and
`Claim` are ephemeral and only gossiped. Names and bounds here are the format:
`codec` turns them into bytes and back, and refuses what is out of bounds. Fields
may be added with a default; a field's meaning never changes. Ids and hashes are 32
raw bytes, times are milliseconds since the epoch, durations are seconds.

A field that was added later is `UNSET` where it says nothing, and is then left out of the
bytes: what an earlier version wrote is written again as it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
HeaderBytes = Annotated[bytes, Meta(min_length=160, max_length=160)]
Millis = Annotated[int, Meta(ge=0, le=1 << 53)]
Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Word = Annotated[str, Meta(min_length=1, max_length=100)]
Line = Annotated[str, Meta(max_length=500)]
Text = Annotated[str, Meta(max_length=6000)]

# How many commits of others an entry names at most.
MAX_NAMED = 32


class Kind(IntEnum):
    """What an entry's payload says (a u8 in its header)."""

    PROJECT = 1
    ANNOUNCE = 2
    WITHDRAW = 3
    COMMIT = 4
    RESULT = 5
    VOUCH = 6
    REVOKE = 7
    FORK = 8
    CHECKPOINT = 9
    ROTATE = 10
    APPROVE = 11


class Status(StrEnum):
    """What one test gave."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"
    XFAILED = "xfailed"
    XPASSED = "xpassed"

    # What is equal must hash alike, and the enum's own hash is a slow one of the name.
    __hash__ = str.__hash__


BAD_STATUSES = frozenset({Status.FAILED, Status.ERROR})


class Reason(StrEnum):
    """Why a run is broken: the volunteer's or the environment's affair, never a test failure."""

    INSTALL = "install"
    TIMEOUT = "timeout"
    NO_OUTPUT = "no-output"
    OUT_OF_MEMORY = "out-of-memory"
    DISK_FULL = "disk-full"
    CRASHED = "crashed"
    SERVICE = "service"
    SANDBOX = "sandbox"
    SOURCE = "source"
    CANCELLED = "cancelled"


# In a job's ``env``: the JUnit XML or TAP that its command writes ("-": TAP as output).
RESULTS_VARIABLE = "PONYSWARM_RESULTS"

# --- what a maintainer asks for -------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Install:
    """What a cell installs beside its factors: requirements, and the project itself.

    ``from_source`` are dependencies that are built from their sdists, each ``name==version``.
    """

    requirements: Annotated[tuple[Line, ...], Meta(max_length=100)] = ()
    extras: Annotated[tuple[Word, ...], Meta(max_length=30)] = ()
    groups: Annotated[tuple[Word, ...], Meta(max_length=30)] = ()
    project: bool = True
    from_source: Annotated[tuple[Line, ...], Meta(max_length=30)] | UnsetType = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTemplate:
    """A file written into the source tree before the tests, placeholders filled in."""

    path: Line
    content: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """``[tool.ponyswarm]``: the matrix and how to test one cell of it."""

    python: Annotated[tuple[Word, ...], Meta(min_length=1, max_length=50)]
    runner: Literal["pytest", "unittest", "django", "command"] = "pytest"
    command: Annotated[tuple[Line, ...], Meta(max_length=100)] = ("pytest",)
    install: Install = Install()
    services: Annotated[tuple[Word, ...], Meta(max_length=30)] = ()
    factors: dict[Word, dict[Word, Annotated[tuple[Line, ...], Meta(max_length=30)]]] = field(
        default_factory=dict
    )
    exclude: Annotated[tuple[dict[Word, Word], ...], Meta(max_length=100)] = ()
    env: dict[Word, Line] = field(default_factory=dict)
    files: Annotated[tuple[FileTemplate, ...], Meta(max_length=20)] = ()
    timeout: Annotated[int, Meta(ge=1, le=86_400)] = 1800
    redundancy: Annotated[int, Meta(ge=1, le=20)] = 2
    cross_check: Literal["blind", "open"] = "open"

    @property
    def report(self) -> str:
        """Where a command writes what it says of its tests; "" where nothing is read."""
        return self.env.get(RESULTS_VARIABLE, "") if self.runner == "command" else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One point of a job's matrix. ``factors`` are (name, value) pairs sorted by name."""

    python: Word
    services: tuple[Word, ...] = ()
    factors: tuple[tuple[Word, Word], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What one environment installs, pinned by hash, as a requirements text.

    It holds for one ``major.minor`` of one implementation on one platform, and for one
    choice of factors; ``build`` pins what building the project's wheel needs.
    """

    implementation: Word
    python: Word
    system: Word
    machine: Word
    factors: tuple[tuple[Word, Word], ...] = ()
    requirements: str
    build: str


# --- payloads of ledger entries --------------------------------------------------

# These are made for every entry that passes through: as structs they are read and written in
# half the time of dataclasses (`msgspec.structs.replace` changes one). Nothing in them can be
# part of a cycle, so the collector need not look at them.


class CrossCheck(Struct, frozen=True, kw_only=True, gc=False):
    """A project's own wish for how its results are checked; readers may ask for more.

    ``counts`` says whose results fill a cell's redundancy: "all" unless it is "vouched".
    ``floor`` lets long records count: one run in so many percent is checked even of the
    best key. Without it all are checked (`policy.Record`).
    """

    redundancy: Annotated[int, Meta(ge=1, le=20)] = 2
    mode: Literal["blind", "open"] = "open"
    counts: Literal["all", "vouched"] | UnsetType = UNSET
    floor: Annotated[int, Meta(ge=1, le=100)] | UnsetType = UNSET


class Cosign(Struct, frozen=True, kw_only=True, gc=False):
    """A further root's signature over ``"ponyswarm/cosign/v1\\0" || SHA-256(record)``.

    The record is the payload's msgpack with ``cosigns`` left empty.
    """

    key: Key
    signature: Signature


class Project(Struct, frozen=True, kw_only=True, gc=False):
    """A project record: the genesis one founds the namespace, later ones replace it.

    A later one has force once enough roots stand behind it: its author, its cosigners, and
    who says so in an `Approve`. ``replaces`` is the entry whose record it was made from: it
    never replaces another.
    """

    name: Word
    url: Line = ""
    roots: Annotated[tuple[Key, ...], Meta(min_length=1, max_length=16)]
    threshold: Annotated[int, Meta(ge=1, le=16)] = 1
    announcers: Annotated[tuple[Key, ...], Meta(max_length=64)] = ()
    cross_check: CrossCheck = CrossCheck()
    cosigns: Annotated[tuple[Cosign, ...], Meta(max_length=16)] = ()
    continues: Hash | None = None
    replaces: Hash | UnsetType = UNSET


class Announce(Struct, frozen=True, kw_only=True, gc=False):
    """A job: which source, how to test it, over which matrix."""

    title: Line
    commit: Line = ""
    source: Hash
    source_size: Count
    source_name: Line
    spec: Spec
    locks: Hash | None = None
    locks_size: Count = 0
    resolve_before: Millis
    expires: Millis
    continues: Hash | None = None


class Withdraw(Struct, frozen=True, kw_only=True, gc=False):
    """Ends a job: nothing of it is started any more."""

    job: Hash
    reason: Line = ""
    continues: Hash | None = None


class Commit(Struct, frozen=True, kw_only=True, gc=False):
    """A blind commitment: `codec.commitment` of a nonce, the outcome's digest and the author.

    ``seen`` names commits of others in this job that its author had when it signed.
    """

    job: Hash
    cell: Hash
    commitment: Hash
    continues: Hash | None = None
    seen: Annotated[tuple[Hash, ...], Meta(max_length=MAX_NAMED)] | UnsetType = UNSET


class Environment(Struct, frozen=True, kw_only=True, gc=False):
    """What a run ran on. Verdicts compare only runs whose `comparable` parts are equal."""

    implementation: Word
    version: Word
    build: Line = ""
    system: Word
    release: Line = ""
    machine: Word
    libc: Line = ""
    packages: Hash
    services: dict[Word, Word] = msgspec.field(default_factory=dict)
    sandbox: Line = ""


class Blob(Struct, frozen=True, kw_only=True, gc=False):
    """A reference to bytes that nodes serve by their SHA-256."""

    hash: Hash
    size: Count


class Result(Struct, frozen=True, kw_only=True, gc=False):
    """The outcome of one run of one cell.

    ``digest`` is the SHA-256 of the canonical outcome list (`codec.outcome_digest`), which
    the blob ``tests`` holds; ``bad`` names tests that failed or erred, the first few.
    With a ``nonce`` it opens the author's `Commit` to this cell; ``seen`` names the commits
    of others to it that its author had: they were there before this outcome was told.
    """

    job: Hash
    cell: Hash
    state: Literal["completed", "broken"]
    reason: Reason | None = None
    detail: Line = ""
    counts: dict[Status, Count] = msgspec.field(default_factory=dict)
    digest: Hash
    bad: Annotated[tuple[Line, ...], Meta(max_length=50)] = ()
    tests: Blob | None = None
    log: Blob | None = None
    environment: Environment | None = None
    started: Millis
    seconds: Annotated[float, Meta(ge=0, le=1e7)]
    nonce: Annotated[bytes, Meta(max_length=32)] = b""
    continues: Hash | None = None
    seen: Annotated[tuple[Hash, ...], Meta(max_length=MAX_NAMED)] | UnsetType = UNSET


class Vouch(Struct, frozen=True, kw_only=True, gc=False):
    """A maintainer knows this volunteer key, and which operator runs it."""

    key: Key
    operator: Word
    continues: Hash | None = None


class Revoke(Struct, frozen=True, kw_only=True, gc=False):
    """Ends a key from a time on."""

    key: Key
    since: Millis
    reason: Line = ""
    continues: Hash | None = None


class Fork(Struct, frozen=True, kw_only=True, gc=False):
    """Proof that an author forked its feed: two signed headers for one place."""

    first: HeaderBytes
    first_signature: Signature
    second: HeaderBytes
    second_signature: Signature
    continues: Hash | None = None


class Checkpoint(Struct, frozen=True, kw_only=True, gc=False):
    """A signed size and root of the author's Merkle tree over entry ids."""

    origin: Line
    size: Count
    root: Hash
    continues: Hash | None = None


class Rotate(Struct, frozen=True, kw_only=True, gc=False):
    """The author's key ends here; ``successor`` goes on with its record and rights.

    ``signature`` is the successor's own, over `policy.rotation_text`.
    """

    successor: Key
    signature: Signature
    continues: Hash | None = None


class Approve(Struct, frozen=True, kw_only=True, gc=False):
    """A root stands behind a proposed project record, named by its entry."""

    record: Hash
    continues: Hash | None = None


Payload = (
    Project
    | Announce
    | Withdraw
    | Commit
    | Result
    | Vouch
    | Revoke
    | Fork
    | Checkpoint
    | Rotate
    | Approve
)

PAYLOAD_TYPES: dict[Kind, type[Payload]] = {
    Kind.PROJECT: Project,
    Kind.ANNOUNCE: Announce,
    Kind.WITHDRAW: Withdraw,
    Kind.COMMIT: Commit,
    Kind.RESULT: Result,
    Kind.VOUCH: Vouch,
    Kind.REVOKE: Revoke,
    Kind.FORK: Fork,
    Kind.CHECKPOINT: Checkpoint,
    Kind.ROTATE: Rotate,
    Kind.APPROVE: Approve,
}
# Kinds whose payloads a node may drop when they are old; the others direct the swarm.
DROPPABLE = frozenset({Kind.RESULT})

KIND_OF: dict[type[Payload], Kind] = {type_: kind for kind, type_ in PAYLOAD_TYPES.items()}


# --- entries ------------------------------------------------------------------------

# Structs, for the same reasons.


class Header(Struct, frozen=True, gc=False):
    """The fixed 160 bytes that are signed (through their hash)."""

    kind: int
    length: int
    author: bytes
    project: bytes
    nonce: bytes
    seq: int
    prev: bytes
    time: int
    payload_hash: bytes


class FeedRef(Struct, frozen=True, order=True, gc=False):
    """A feed within a project: its author, nonce, and whether it is a genesis feed."""

    author: bytes
    nonce: bytes
    genesis: bool


class FeedMark(Struct, frozen=True, gc=False):
    """How far a feed goes somewhere: its number of entries, 8 bytes of its head's id."""

    height: int
    head: bytes


class Entry(Struct, frozen=True, eq=False, gc=False):
    """One signed link of a feed, with the very bytes it came in, which it is compared by."""

    header: Header
    id: bytes
    signature: bytes
    frame: bytes
    # What the payload says, where decoding the frame gave it; `codec.decode_payload` asks it.
    said: Payload | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and self.frame == other.frame

    def __hash__(self) -> int:
        return hash(self.frame)

    @property
    def payload(self) -> bytes:
        return self.frame[224:]

    @property
    def is_bare(self) -> bool:
        """Whether only header and signature are here: the payload was dropped."""
        return len(self.frame) == 224

    @property
    def feed(self) -> FeedRef:
        return FeedRef(self.header.author, self.header.nonce, self.is_genesis)

    @property
    def is_genesis(self) -> bool:
        """A genesis entry founds a project: its header names none yet."""
        return self.header.kind == Kind.PROJECT and self.header.project == bytes(32)

    @property
    def namespace(self) -> bytes:
        """The project this entry belongs to: a genesis entry belongs to the one it founds."""
        return self.id if self.is_genesis else self.header.project


# --- ephemeral, gossiped --------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """An interpreter a node offers: ``cpython``/``pypy``, full version, ABI kind."""

    implementation: Word
    version: Word
    free_threaded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the sender can run now for a project; void after ``until``."""

    interpreters: Annotated[tuple[Interpreter, ...], Meta(max_length=64)]
    services: Annotated[tuple[Word, ...], Meta(max_length=64)] = ()
    system: Word
    machine: Word
    slots: Annotated[int, Meta(ge=0, le=1024)]
    until: Millis


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A lease of the sender on a cell; ``until`` in the past gives it back."""

    job: Hash
    cell: Hash
    until: Millis


@dataclass(frozen=True, slots=True)
class Later:
    """An ephemeral message of a kind that a later version has: relayed, not interpreted."""

    tag: int
    body: bytes


Ephemeral = Offer | Claim | Later
