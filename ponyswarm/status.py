"""What a running node tells other commands: one small file, replaced whole."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLine:
    peer: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectLine:
    project: str
    name: str
    trusted: bool
    volunteers: int = 0
    heads: str = ""
    """What peers say of our own feeds: waiting, checked, or alone when none could be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    job: str
    title: str
    cell: str
    step: str
    done: int
    total: int | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleLine:
    """A job that this node does not serve, and why."""

    job: str
    title: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferLine:
    """What a volunteer says it can run for a project now.

    An interpreter reads ``cpython 3.12.1``, with a ``t`` at the end when it is free-threaded.
    """

    project: str
    peer: str
    interpreters: tuple[str, ...]
    services: tuple[str, ...]
    system: str
    machine: str
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLine:
    """A volunteer that is at a cell, and since when at the latest (seconds since the epoch)."""

    cell: str
    volunteer: str
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What something takes on disk, and what it may take; bytes."""

    name: str
    used: int
    budget: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """One moment of a node. Times are seconds since the epoch."""

    pid: int
    started: float
    updated: float
    peer: str
    addresses: tuple[str, ...] = ()
    reached_at: tuple[str, ...] = ()
    """Where others are told to call, which is elsewhere than ``addresses`` behind a router."""
    reach: str = ""
    """Whether others can reach this node, in a sentence."""
    sandbox: str = ""
    limits: str = ""
    """How many runs at once, and what each may take, in a sentence."""
    interpreters: tuple[str, ...] = ()
    peers: tuple[PeerLine, ...] = ()
    projects: tuple[ProjectLine, ...] = ()
    running: tuple[RunLine, ...] = ()
    idle: tuple[IdleLine, ...] = ()
    heard: tuple[ProjectLine, ...] = ()
    offers: tuple[OfferLine, ...] = ()
    leases: tuple[LeaseLine, ...] = ()
    """Who is at the cells of open jobs, this node and others."""
    hold: str = ""
    """Why it takes no jobs now; empty while it does."""
    hold_until: float | None = None
    first_claims: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    entries: int = 0
    runs: int = 0
    tests: int = 0
    blob_bytes: int = 0
    waiting: int = 0
    """Cells that this node could run next."""
    today_runs: int = 0
    today_tests: int = 0
    disk: tuple[Room, ...] = ()
    disk_free: int = 0


def write(path: Path, status: NodeStatus) -> None:
    """Replace the file at once, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(status))
    os.replace(fresh, path)


def read(path: Path) -> NodeStatus | None:
    """The last status; None when there is none or it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=NodeStatus)
    except (OSError, msgspec.DecodeError):
        return None
