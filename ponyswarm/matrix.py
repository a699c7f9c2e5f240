"""A job's matrix: its cells, and which interpreters and services satisfy one. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidName, canonicalize_name
from packaging.version import InvalidVersion, Version

from ponyswarm.errors import LocalError, PeerError
from ponyswarm.messages import Cell, Spec

MAX_CELLS = 2000


def cells(spec: Spec) -> tuple[Cell, ...]:
    """The cells of a matrix, in the order a person wrote it; excluded ones left out.

    An item of ``services`` may join several by ``+``. Raises `PeerError` ("bad-matrix")
    beyond `MAX_CELLS`, for an empty factor, or when nothing is left.
    """
    factors = sorted(spec.factors.items())
    size = len(spec.python) * max(1, len(spec.services))
    for name, choices in factors:
        if not choices:
            raise PeerError("bad-matrix", f"the factor {name!r} has no values: give it some")
        size *= len(choices)
    if size > MAX_CELLS:
        raise PeerError("bad-matrix", f"{size} cells, and {MAX_CELLS} is the most: take some out")
    found: dict[Cell, None] = {}
    for python, services in product(spec.python, spec.services or ("",)):
        for values in product(*(choices for _, choices in factors)):
            cell = Cell(
                python=python,
                services=_parts(services),
                factors=tuple(
                    (name, value) for (name, _), value in zip(factors, values, strict=True)
                ),
            )
            if not any(_is_excluded(cell, rule) for rule in spec.exclude):
                found[cell] = None
    if not found:
        raise PeerError("bad-matrix", "every cell is excluded: take a rule out of 'exclude'")
    return tuple(found)


def _parts(services: str) -> tuple[str, ...]:
    """``postgresql + redis`` as the sorted names it joins."""
    return tuple(sorted({part.strip() for part in services.split("+") if part.strip()}))


def _is_excluded(cell: Cell, rule: dict[str, str]) -> bool:
    """Whether a rule's every ``name = value`` holds of the cell; an empty rule holds of none."""
    facts = {**dict(cell.factors), "python": cell.python}
    return bool(rule) and all(
        _parts(value) == cell.services if name == "services" else facts.get(name) == value
        for name, value in rule.items()
    )


def requirements(spec: Spec, cell: Cell) -> tuple[str, ...]:
    """What a cell installs beside the project: the common requirements, then its factors'."""
    chosen = dict(cell.factors)
    extra = [line for name, value in sorted(chosen.items()) for line in spec.factors[name][value]]
    return (*spec.install.requirements, *extra)


@lru_cache(maxsize=1024)
def source_pin(text: str) -> tuple[str, str]:
    """Canonical name and version of an item of ``install.from_source``.

    Raises `LocalError` for anything but ``name==version``.
    """
    name, _, version = (part.strip() for part in text.partition("=="))
    try:
        return canonicalize_name(name, validate=True), str(Version(version))
    except (InvalidName, InvalidVersion) as fault:
        raise LocalError(
            f"{text!r} is not one exact version: write it as in 'docopt==0.6.2', without extras "
            "or markers"
        ) from fault


def source_pins(spec: Spec) -> dict[str, str]:
    """Name → version of the dependencies to build from sdists. Raises `LocalError`."""
    pins: dict[str, str] = {}
    for text in spec.install.from_source or ():
        name, version = source_pin(text)
        if pins.setdefault(name, version) != version:
            raise LocalError(f"{name} is there twice: keep the version that the tests need")
    return pins


# --- which interpreter satisfies a cell -----------------------------------------------

IMPLEMENTATIONS = ("cpython", "pypy", "graalpy")

_REQUIREMENT = re.compile(rf"({'|'.join(IMPLEMENTATIONS)})?\s*(.*)", re.ASCII | re.DOTALL)
_VERSION = re.compile(r"\d+(\.\d+){0,2}((a|b|rc)\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """What a cell's ``python`` asks for. Without a name it means CPython.

    ``3.12`` is any release of 3.12, pre-releases too; a specifier such as ``>=3.9``
    takes a pre-release only when it names one. A ``t`` at the end asks for the
    free-threaded build, which nothing else asks for.
    """

    implementation: str
    specifiers: SpecifierSet
    prereleases: bool
    free_threaded: bool

    def accepts(self, implementation: str, version: str, free_threaded: bool) -> bool:
        """Whether that interpreter will do; a version that is none never does."""
        if implementation != self.implementation or free_threaded is not self.free_threaded:
            return False
        try:
            return self.specifiers.contains(Version(version), prereleases=self.prereleases)
        except InvalidVersion:
            return False


@lru_cache(maxsize=1024)
def requirement(text: str) -> Requirement:
    """Read a cell's ``python``: ``3.12``, ``3.12.1``, ``>=3.9``, ``pypy3.10``, ``3.13t``.

    Raises `LocalError` when it is none of these.
    """
    match = _REQUIREMENT.fullmatch(text.strip())
    assert match is not None  # Its second part takes anything.
    implementation, rest = match[1], match[2].strip()
    free_threaded = rest.endswith("t")
    if free_threaded:
        rest = rest[:-1]
    version = _VERSION.fullmatch(rest)
    try:
        if version:
            exact = rest.count(".") == 2 or version[2]
            specifiers = SpecifierSet(f"=={rest}" if exact else f"=={rest}.*")
        elif rest or (implementation and not free_threaded):
            specifiers = SpecifierSet(rest)
        else:
            raise LocalError(_nonsense(text))
    except InvalidSpecifier as fault:
        raise LocalError(_nonsense(text)) from fault
    return Requirement(
        implementation=implementation or "cpython",
        specifiers=specifiers,
        prereleases=bool(version or specifiers.prereleases),
        free_threaded=free_threaded,
    )


def _nonsense(text: str) -> str:
    return (
        f"{text!r} names no Python: write a version (3.12, 3.12.1), a range ('>=3.9'), "
        "either with a name before it (pypy3.10, 'cpython>=3.11'), or 3.13t for the "
        "free-threaded build"
    )


# Scheduling asks for each cell and offer, again and again.
@lru_cache(maxsize=8192)
def matches(text: str, implementation: str, version: str, free_threaded: bool = False) -> bool:
    """Whether an interpreter satisfies a cell's ``python``; `LocalError` on nonsense."""
    return requirement(text).accepts(implementation, version, free_threaded)


# --- which service satisfies a cell ----------------------------------------------------

_SERVICE = re.compile(r"([a-z][a-z0-9_-]*)\s*(.*)", re.ASCII | re.DOTALL)
# Who asks for the first without a version is content with the second; their version
# numbers have nothing to do with each other.
_STAND_INS = {"mysql": "mariadb", "redis": "valkey"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRequirement:
    """What one of a cell's ``services`` asks for: a name, and perhaps which versions."""

    name: str
    specifiers: SpecifierSet

    def accepts(self, name: str, version: str) -> bool:
        """Whether that service will do; an unknown name or a version that is none never does."""
        if name != self.name and (self.specifiers or _STAND_INS.get(self.name) != name):
            return False
        try:
            return self.specifiers.contains(Version(version), prereleases=True)
        except InvalidVersion:
            return name == self.name and not self.specifiers


@lru_cache(maxsize=1024)
def service_requirement(text: str) -> ServiceRequirement:
    """Read one of a cell's ``services``: ``redis``, ``postgresql>=13``, ``mariadb 10.11``.

    Raises `LocalError` when it is none of these.
    """
    match = _SERVICE.fullmatch(text.strip())
    if match is None:
        raise LocalError(_no_service(text))
    rest = match[2].strip()
    try:
        if rest and _VERSION.fullmatch(rest):
            specifiers = SpecifierSet(f"=={rest}.*")
        else:
            specifiers = SpecifierSet(rest)
    except InvalidSpecifier as fault:
        raise LocalError(_no_service(text)) from fault
    return ServiceRequirement(name=match[1], specifiers=specifiers)


def _no_service(text: str) -> str:
    return (
        f"{text!r} names no service: write a name, perhaps with versions (redis, "
        "'postgresql>=13', 'mariadb 10.11'), and join several of one cell by '+'"
    )


@lru_cache(maxsize=8192)
def service_matches(text: str, offered: str) -> bool:
    """Whether an offered ``name version`` satisfies one of a cell's ``services``.

    Nonsense on either side, which a later version of us may understand, never does.
    """
    name, _, version = offered.partition(" ")
    try:
        return service_requirement(text).accepts(name, version)
    except LocalError:
        return False
