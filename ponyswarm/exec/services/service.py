"""What a service is to a run: the interface that each file beside this one fills.

`Service.probe` says what this machine can offer, or why not and what would help.
`Service.provision` gives one run a database (or a server) of its own and takes it away
afterwards, whatever happened. What a job gets to see is `Provisioned`: placeholders and
a UNIX socket; the owner's own credentials are never among them. `Place` is what a
service may use of the node. Called by `exec.provisioning`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ponyswarm.exec.interpreters import Installed
from ponyswarm.exec.services.hosting import Hosting

# Where sockets are inside a job's sandbox: one folder a service.
INSIDE = "/services"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the owner says of a service; with ``host`` it is a server of the owner's."""

    values: Mapping[str, str] = field(default_factory=dict)
    password: str = field(default="", repr=False)

    @property
    def host(self) -> str:
        return self.values.get("host", "")

    def port(self, usual: int) -> int:
        text = self.values.get("port", "")
        return int(text) if text.isdecimal() else usual


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A service that works here. ``how`` is for people: started from where, or whose."""

    name: str
    version: str
    how: str

    @property
    def words(self) -> str:
        """As `messages.Offer` carries it and `matrix.service_matches` reads it."""
        return f"{self.name} {self.version}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Why a service does not work here, and one line to copy that may help."""

    why: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioned:
    """What one run gets of one service.

    ``socket`` (here, inside) is bound into the sandbox; ``port`` is where programs that
    speak only TCP expect the service (with ``only_tcp`` all do). ``trouble`` says, after
    the run, why the service and not the suite is to blame; "" when all is well.
    """

    placeholders: Mapping[str, str] = field(repr=False)
    versions: Mapping[str, str]
    socket: tuple[Path, str] | None = None
    port: int = 0
    only_tcp: bool = False
    trouble: Callable[[], str] = lambda: ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run gets its service: its slot and interpreter, and what hosts servers."""

    hosting: Hosting
    slot: int
    interpreter: Installed | None = None

    def name(self) -> str:
        """A new name for a database and its role, marked as this home's."""
        return f"{prefix(self.hosting.mark)}{secrets.token_hex(4)}"


def prefix(mark: str) -> str:
    """How the names of all that a home makes on servers begin."""
    return f"psw_{mark}_"


class Service(Protocol):
    """One kind of service. ``database`` says whether ``{database.…}`` may mean it."""

    name: str
    database: bool

    async def probe(self, options: Options) -> Offer | Missing:
        """What works here, quickly; nothing is started."""

    def provision(self, place: Place, options: Options) -> AbstractAsyncContextManager[Provisioned]:
        """Give a run its own; all of it is gone when the context ends. Raises `InfraError`."""

    async def sweep(self, mark: str, options: Options) -> None:
        """Remove what a killed node of this home left on a server of the owner's."""
