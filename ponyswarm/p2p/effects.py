"""What the protocol wants done, as values. `node` performs them; nothing here decides."""

from __future__ import annotations

from dataclasses import dataclass

from ponyswarm.messages import Blob, Entry


@dataclass(frozen=True, slots=True)
class Subscribe:
    topic: str


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    topic: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Gossip these bytes to a topic."""

    topic: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Admit:
    """Append this entry to the ledger; ``peer`` gave it to us."""

    entry: Entry
    peer: bytes


@dataclass(frozen=True, slots=True)
class Pull:
    """Ask a peer for what is missing of a project."""

    peer: bytes
    project: bytes


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get a blob from whoever has it, asking ``peers`` first."""

    blob: Blob
    peers: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Start a run of a cell that is claimed by this node."""

    job: bytes
    cell: bytes


@dataclass(frozen=True, slots=True)
class Reveal:
    """Tell what this node committed to; ``seen`` are the commits of others it knows of."""

    job: bytes
    cell: bytes
    seen: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """Cancel a run of this node: its job ended."""

    cell: bytes
    why: str


@dataclass(frozen=True, slots=True)
class Penalise:
    """Count a refusal against a peer."""

    peer: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Heard:
    """A project record was seen in the directory."""

    entry: Entry


Effect = (
    Subscribe
    | Unsubscribe
    | Publish
    | Admit
    | Pull
    | Fetch
    | Run
    | Reveal
    | Stop
    | Penalise
    | Heard
)
