"""The services of this machine: which work, and what one run is given of them.

`open_services` asks each service that the owner offers whether it works, removes what a
killed node left, and stops the private servers when it closes. `Services.provisioned`
gives a run what its cell asks for; `Given.fill` puts it where the maintainer wrote
``{postgresql.url}``. Called by `executor`, and by `cli`, which reads the owner's settings.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from ponyswarm.errors import InfraError, LocalError
from ponyswarm.exec.interpreters import Installed
from ponyswarm.exec.outcome import Broken
from ponyswarm.exec.sandbox import Holds, Sandbox
from ponyswarm.exec.services import SERVICES
from ponyswarm.exec.services.hosting import Hosting, mark_of, open_hosting
from ponyswarm.exec.services.service import Missing, Offer, Options, Place, Provisioned
from ponyswarm.matrix import service_matches, service_requirement
from ponyswarm.messages import Cell, Reason, Spec

log = logging.getLogger("ponyswarm")

# The one SQL database of a cell, whichever it is; and a cell's choice of a factor's value.
DATABASE = "database"
FACTOR = "factor"
FIELDS = frozenset(
    {"url", "host", "port", "user", "password", "name", "socket", "engine"}
    | {"tcp_url", "tcp_host", "tcp_port", "version"}
)
# Needs nothing but an interpreter, so nobody has to offer it.
ALWAYS = ("sqlite",)
SWEEP_SECONDS = 30.0
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_-]*)\.([A-Za-z0-9][A-Za-z0-9_.-]*)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What fills a run's placeholders: its factors, and what it has of services."""

    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    parts: tuple[Provisioned, ...] = ()

    @property
    def versions(self) -> dict[str, str]:
        return {name: version for part in self.parts for name, version in part.versions.items()}

    @property
    def trouble(self) -> str:
        """Why a service, and not the suite, is to blame; "" when all is well."""
        return next((said for part in self.parts if (said := part.trouble())), "")

    def fill(self, text: str) -> str:
        """A text with its placeholders filled; what the cell has not becomes empty."""

        def value(match: re.Match[str]) -> str:
            if not _is_ours(match[1]):
                return match[0]
            return self.values.get(match[1], {}).get(match[2], "")

        return _PLACEHOLDER.sub(value, text)

    def plain(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Those of the texts that are the same for every run of the cell, filled."""
        return {
            name: self.fill(text)
            for name, text in texts.items()
            if all(match[1] == FACTOR for match in _ours(text))
        }

    def filled(self, spec: Spec) -> Spec:
        """The spec of a run, with its placeholders filled."""
        return replace(
            spec,
            command=tuple(map(self.fill, spec.command)),
            env={name: self.fill(text) for name, text in spec.env.items()},
            files=tuple(replace(file, content=self.fill(file.content)) for file in spec.files),
        )

    def forwards(self, texts: Iterable[str]) -> tuple[str, ...]:
        """``PORT=SOCKET`` of what must be reachable by TCP inside, as these texts want it."""
        wanted = {m[1] for text in texts for m in _PLACEHOLDER.finditer(text) if "tcp_" in m[2]}
        found = []
        for part in self.parts:
            named = {name for name, values in self.values.items() if values is part.placeholders}
            if part.socket is not None and (part.only_tcp or named & wanted):
                found.append(f"{part.port}={part.socket[1]}")
        return tuple(dict.fromkeys(found))

    def bound(self, box: Sandbox) -> Sandbox:
        """The sandbox with the services' sockets, and nothing else of them."""
        for part in self.parts:
            if part.socket is not None:
                box = box.with_read_only(*part.socket)
        return box


def of_cell(cell: Cell) -> Given:
    """What fills the placeholders of a cell without services."""
    return Given(values={FACTOR: dict(cell.factors)})


class Services:
    """What is offered here, ready to be given to runs. Made by `open_services`."""

    def __init__(
        self,
        hosting: Hosting,
        options: Mapping[str, Options],
        probed: Mapping[str, Offer | Missing],
    ) -> None:
        self._hosting = hosting
        self._options = options
        self.offers = tuple(found for found in probed.values() if isinstance(found, Offer))
        self.missing = {name: found for name, found in probed.items() if isinstance(found, Missing)}

    @property
    def words(self) -> tuple[str, ...]:
        """What an `Offer` of this machine says."""
        return tuple(offer.words for offer in self.offers)

    def offer(self, requirement: str) -> Offer | None:
        """What serves one of a cell's services here: of that very name, else what stands in."""
        fitting = [one for one in self.offers if service_matches(requirement, one.words)]
        fitting.sort(key=lambda one: one.name != service_requirement(requirement).name)
        return fitting[0] if fitting else None

    @asynccontextmanager
    async def provisioned(
        self, cell: Cell, *, slot: int, interpreter: Installed | None
    ) -> AsyncIterator[Given]:
        """A cell's services, given for as long as the context is open. Raises `Broken`."""
        values: dict[str, Mapping[str, str]] = {FACTOR: dict(cell.factors)}
        parts: list[Provisioned] = []
        place = Place(hosting=self._hosting, slot=slot, interpreter=interpreter)
        async with AsyncExitStack() as stack:
            for requirement in cell.services:
                offer = self.offer(requirement)
                if offer is None:
                    raise Broken(Reason.SERVICE, self.why_not(requirement))
                service = SERVICES[offer.name]
                options = self._options.get(offer.name, Options())
                try:
                    part = await stack.enter_async_context(service.provision(place, options))
                except (InfraError, OSError) as fault:
                    raise Broken(Reason.SERVICE, f"{offer.name}: {fault}") from fault
                wanted = service_requirement(requirement).name
                version = part.versions[offer.name]
                if not service_matches(requirement, f"{offer.name} {version}".strip()) and version:
                    detail = f"{requirement} is wanted, and this run would get {version}"
                    raise Broken(Reason.SERVICE, detail)
                tcp = {
                    "tcp_host": "127.0.0.1" if part.port else "",
                    "tcp_port": str(part.port) if part.port else "",
                }
                part = replace(part, placeholders={**tcp, "version": version, **part.placeholders})
                parts.append(part)
                for name in {wanted, offer.name}:
                    values[name] = part.placeholders
                if service.database:
                    values.setdefault(DATABASE, part.placeholders)
            yield Given(values=values, parts=tuple(parts))

    def why_not(self, requirement: str) -> str:
        """Why one of a cell's services cannot be had here."""
        try:
            name = service_requirement(requirement).name
        except LocalError as fault:
            return str(fault)
        if name in self.missing:
            return f"{name} does not work here: {self.missing[name].why}"
        here = ", ".join(self.words)
        if name not in SERVICES:
            return f"this version knows no service {name!r}; here are {here}"
        return f"{requirement} is not offered here, only {here}"


def texts_of(spec: Spec) -> dict[str, str]:
    """Every text of a spec that may have placeholders, under a name for people."""
    return {
        **dict(spec.env),
        **{file.path: file.content for file in spec.files},
        "command": " ".join(spec.command),
    }


def _is_ours(name: str) -> bool:
    return name in SERVICES or name in (DATABASE, FACTOR)


def _ours(text: str) -> Iterator[re.Match[str]]:
    """The placeholders in a text; braces that mean something else are left alone."""
    return (match for match in _PLACEHOLDER.finditer(text) if _is_ours(match[1]))


def check_placeholders(spec: Spec) -> None:
    """See that each placeholder can mean something in this job. Raises `Broken`."""
    named = set()
    for part in "+".join(spec.services).split("+"):
        with suppress(LocalError):  # A service that a later version of us can name.
            named.add(service_requirement(part).name)
    if any(SERVICES[name].database for name in named if name in SERVICES):
        named.add(DATABASE)
    for place, text in texts_of(spec).items():
        for match in _PLACEHOLDER.finditer(text):
            wrong = _wrong(match[1], match[2], named, spec)
            if wrong:
                reason = Reason.SOURCE if match[1] == FACTOR else Reason.SERVICE
                raise Broken(reason, f"{match[0]} in {place} {wrong}")


def _wrong(name: str, field_: str, named: set[str], spec: Spec) -> str:
    """Why a placeholder means nothing; "" when it does, or is none of ours."""
    if name == FACTOR:
        return "" if field_ in spec.factors else "names a factor that the job has not"
    if not _is_ours(name):
        close = difflib.get_close_matches(name, SERVICES, n=1, cutoff=0.8)
        known = close and field_ in FIELDS
        return f"names no service: did you mean {{{close[0]}.{field_}}}?" if known else ""
    if name not in named:
        return "names a service that is not among the job's services"
    if field_ not in FIELDS:
        close = difflib.get_close_matches(field_, FIELDS, n=1)
        return f"is unknown: did you mean {{{name}.{(close or ['url'])[0]}}}?"
    return ""


def with_always(options: Mapping[str, Options]) -> dict[str, Options]:
    """These, and what everybody offers."""
    return {**{name: Options() for name in ALWAYS}, **options}


def whatever_is_here(options: Mapping[str, Options]) -> dict[str, Options]:
    """These, and all else that the machine may have: for the owner's own suites."""
    return {**{name: Options() for name in SERVICES}, **options}


async def probe(options: Mapping[str, Options]) -> dict[str, Offer | Missing]:
    """Ask each of these services whether it works here. `LocalError` for an unknown one."""
    found: dict[str, Offer | Missing] = {}
    for name in options:
        if name not in SERVICES:
            close = difflib.get_close_matches(name, SERVICES, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(SERVICES)}"
            raise LocalError(f"[services] names {name!r}, which is no service: {hint}")

    async def ask(name: str) -> None:
        try:
            found[name] = await SERVICES[name].probe(options[name])
        except (InfraError, OSError) as fault:
            found[name] = Missing(why=str(fault), remedy="ponyswarm doctor")

    async with trio.open_nursery() as nursery:
        for name in options:
            nursery.start_soon(ask, name)
    return {name: found[name] for name in options}


async def sweep(options: Mapping[str, Options], *, scratch: Path, holds: Holds) -> None:
    """Remove what a killed run in this scratch left: sockets, roles, databases."""
    async with open_services(options, cache=scratch, scratch=scratch, holds=holds):
        pass


@asynccontextmanager
async def open_services(
    options: Mapping[str, Options], *, cache: Path, scratch: Path, holds: Holds
) -> AsyncIterator[Services]:
    """The services of a node while it runs; its private servers end with the context.

    ``scratch`` names the home: what a killed node of it left is removed first.
    """
    chosen = with_always(options)
    probed = await probe(chosen)
    mark = mark_of(scratch)
    async with open_hosting(cache=cache, holds=holds, mark=mark) as hosting:
        for name, found in probed.items():
            if isinstance(found, Offer):
                try:
                    with trio.fail_after(SWEEP_SECONDS):
                        await SERVICES[name].sweep(mark, chosen[name])
                except (InfraError, trio.TooSlowError) as fault:
                    log.warning("leftovers on the %s server stay for now: %s", name, fault)
        yield Services(hosting, chosen, probed)
