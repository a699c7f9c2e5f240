"""ponyswarm.ini: read into frozen settings, and edited without losing the owner's comments.

Reading is strict: an unknown section or key, or a value that is none, is a `LocalError`
that names file, section and key and says what to write. Nothing secret stands in the
file; passwords are named by file or environment variable. Only cli imports this
module; everything else takes values.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import os
import re
import secrets
import shlex
from collections.abc import Callable, Iterable, Mapping
from configparser import ConfigParser
from configparser import Error as IniError
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

from ponyswarm.errors import LocalError
from ponyswarm.limits import Wishes, parse_hours

T = TypeVar("T")

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/7797"
_REACHED = "/ip4/192.0.2.7/tcp/7797 or /dns4/node.example.org/tcp/7797"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may use (bytes, counts, seconds), and what the node may keep (bytes)."""

    memory: int = 2 * GIB
    disk: int = 2 * GIB
    processes: int = 256
    output: int = 64 * MIB
    time: int = 3600
    silence: int = 600
    cpu_weight: int = 50
    blobs: int = 5 * GIB
    ledger: int = 5 * GIB
    cache: int = 10 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long files of jobs and outcomes are kept (seconds); ``archive``: for ever."""

    keep: int = 90 * 86_400
    archive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """How this machine offers a service: the owner's options, and where its password is."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    password_file: Path | None = None
    password_env: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaying:
    """Whether this node relays for others (``auto``, ``yes``, ``no``), and how much.

    ``places`` are peers at once, ``bytes`` and ``time`` (seconds) are for one connection.
    """

    mode: Literal["auto", "yes", "no"] = "auto"
    places: int = 32
    bytes: int = 64 * MIB
    time: int = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that the owner decides. ``interpreters`` empty: whatever is found at the start."""

    listen: tuple[str, ...] = (DEFAULT_LISTEN,)
    slots: int = 1
    volunteer: Wishes = field(default_factory=Wishes)
    limits: Limits = Limits()
    retention: Retention = Retention()
    trusted: frozenset[bytes] = frozenset()
    followed: frozenset[bytes] = frozenset()
    interpreters: Mapping[str, Path] = field(default_factory=dict)
    services: Mapping[str, Service] = field(default_factory=dict)
    peers: tuple[str, ...] = ()
    bootstrap: bool = True
    announce: tuple[str, ...] = ()
    lan: bool = True
    upnp: bool = True
    relaying: Relaying = Relaying()
    web_port: int | None = None
    """Where the node shows its pages; None: it does not."""
    notify: str = ""


# --- values ------------------------------------------------------------------------------

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": KIB, "mib": MIB, "gib": GIB, "tib": GIB << 10}
_UNITS |= {"k": KIB, "m": MIB, "g": GIB, "t": GIB << 10}
_SECONDS = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600}
_SECONDS |= {"d": 86_400, "day": 86_400}
_AMOUNT = r"(\d{1,15}(?:\.\d{1,6})?)\s*([a-z]*)"


def parse_size(text: str) -> int:
    """Bytes of ``2 GiB``, ``500 MB``, ``1.5G`` (a letter alone is binary, as elsewhere)."""
    match = re.fullmatch(_AMOUNT, text.strip().lower(), re.ASCII)
    if not match or match[2] not in _UNITS:
        raise ValueError("is no size: write a number and a unit, such as '2 GiB' or '500 MB'")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_duration(text: str) -> int:
    """Seconds of ``30 min``, ``90 s``, ``1 h 30 min``; a number alone is seconds."""
    low = text.strip().lower()
    total = 0.0
    if not re.fullmatch(rf"(?:{_AMOUNT}[\s,]*)+", low, re.ASCII):
        raise ValueError("is no duration: write a number and a unit, such as '30 min' or '1 h'")
    for amount, unit in re.findall(_AMOUNT, low, re.ASCII):
        single = unit if unit in _SECONDS else unit.removesuffix("s")
        if unit and single not in _SECONDS:
            raise ValueError(f"is no duration, {unit!r} is no unit: write s, min, h or d")
        total += float(amount) * _SECONDS[single or "s"]
    return int(total)


def format_size(size: int) -> str:
    """The shortest text that `parse_size` reads as ``size``."""
    for unit, worth in (("TiB", GIB << 10), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size and size % worth == 0:
            return f"{size // worth} {unit}"
    return f"{size} B"


def parse_project(text: str) -> bytes:
    """A project id: 64 hexadecimal digits. `LocalError` says what is wrong with it."""
    text = text.strip()
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text)
    if re.fullmatch(r"[0-9a-fA-F]+", text):
        raise LocalError(
            f"{text!r} has {len(text)} digits and a project id has 64: copy the whole id, as "
            "'ponyswarm project show' prints it"
        )
    raise LocalError(
        f"{text!r} is no project id: it has 64 hexadecimal digits, as "
        "'ponyswarm project show' prints them"
    )


def check_listen(text: str) -> str:
    """An address to listen on: ``/ip4/…/tcp/…`` or ``/ip6/…/tcp/…``."""
    parts = text.split("/")
    good = len(parts) == 5 and parts[0] == "" and parts[1] in ("ip4", "ip6") and parts[3] == "tcp"
    if good:
        try:
            version = ipaddress.ip_address(parts[2]).version
            good = parts[1] == f"ip{version}" and parts[4].isdecimal() and int(parts[4]) < 65536
        except ValueError:
            good = False
    if not good:
        raise ValueError(f"is no address to listen on: write one such as {DEFAULT_LISTEN}")
    return text


def _peer(text: str) -> str:
    from ponyswarm.keys import parse_peer_id

    parts = text.split("/")
    if not text.startswith("/") or len(parts) < 3 or not all(parts[1:]):
        raise ValueError("is no peer address: write one such as /ip4/192.0.2.7/tcp/7797/p2p/12D3…")
    if parts[-2] == "p2p":
        parse_peer_id(parts[-1])
    elif parts[1] != "dnsaddr":
        raise ValueError("does not say which peer is there: add /p2p/ and its key (12D3KooW…)")
    return text


def _reached(text: str) -> str:
    """An address at which others reach this node: IP or DNS name, and a TCP port."""
    if not re.fullmatch(r"/(ip4|ip6|dns4|dns6|dns)/[^/\s]+/tcp/[1-9]\d{0,4}", text, re.ASCII):
        raise ValueError(f"is no address that others can call: write one such as {_REACHED}")
    return text


def _relay_mode(text: str) -> Literal["auto", "yes", "no"]:
    if text.lower() == "auto":
        return "auto"
    try:
        return "yes" if _yes_no(text) else "no"
    except ValueError:
        raise ValueError("is none of auto, yes and no: write one of these") from None


def _yes_no(text: str) -> bool:
    try:
        return ConfigParser.BOOLEAN_STATES[text.lower()]
    except KeyError:
        raise ValueError("is neither yes nor no: write yes or no") from None


def _command(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError as fault:
        raise ValueError(f"is no command ({fault}): quote it as in a shell") from fault
    if not words or not words[0]:
        raise ValueError("names no program: write its full path")
    return text


def _load(text: str) -> float | None:
    if re.fullmatch(r"\d{1,3}(?:\.\d{1,3})?", text, re.ASCII):
        return float(text)
    raise ValueError("is no load: write what other programs may use of each core, such as 0.5")


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if re.fullmatch(r"\d{1,9}", text, re.ASCII) and least <= int(text) <= most:
            return int(text)
        raise ValueError(f"is no whole number from {least} to {most}")

    return parse


def _at_least(parse: Callable[[str], int], least: int, shown: str) -> Callable[[str], int]:
    def checked(text: str) -> int:
        if (value := parse(text)) < least:
            raise ValueError(f"is too little: {shown} is the least")
        return value

    return checked


_LIMITS: dict[str, Callable[[str], int]] = {
    "memory": _at_least(parse_size, 64 * MIB, "64 MiB"),
    "disk": _at_least(parse_size, 64 * MIB, "64 MiB"),
    "processes": _number(1, 100_000),
    "output": _at_least(parse_size, MIB, "1 MiB"),
    "time": _at_least(parse_duration, 1, "1 s"),
    "silence": _at_least(parse_duration, 1, "1 s"),
    "cpu_weight": _number(1, 10_000),
    "blobs": _at_least(parse_size, MIB, "1 MiB"),
    "ledger": _at_least(parse_size, MIB, "1 MiB"),
    "cache": _at_least(parse_size, MIB, "1 MiB"),
}
assert set(_LIMITS) == {item.name for item in fields(Limits)}

_KEYS: dict[str, tuple[str, ...]] = {
    "node": ("listen", "slots"),
    "volunteer": ("hours", "load", "battery", "floor"),
    "limits": tuple(_LIMITS),
    "retention": ("keep", "archive"),
    "trust": ("projects",),
    "follow": ("projects",),
    "network": (
        "peers",
        "bootstrap",
        "announce",
        "lan",
        "upnp",
        "relay",
        "relay_places",
        "relay_bytes",
        "relay_time",
    ),
    "web": ("port",),
    "notify": ("command",),
}
_OPEN = ("interpreters", "services")
_SERVICE_KEYS = ("bin", "host", "port", "user", "database", "password_file", "password_env")


# --- reading -----------------------------------------------------------------------------


def load(path: Path) -> Settings:
    """The settings in a file. `LocalError` when it is missing or anything in it is wrong."""
    return parse(_read(path), str(path))


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as fault:
        raise LocalError(f"there is no {path}: make one with 'ponyswarm init'") from fault
    except UnicodeDecodeError as fault:
        raise LocalError(f"{path} is not UTF-8 text: save it as UTF-8") from fault
    except OSError as fault:
        raise LocalError(
            f"{path} cannot be read: {fault.strerror}; 'ponyswarm doctor' says what to do"
        ) from fault


def parse(text: str, source: str = "ponyswarm.ini") -> Settings:
    """The settings in a file's text; ``source`` names it in errors."""
    ini = ConfigParser(interpolation=None, delimiters=("=",), default_section="")
    try:
        ini.read_string(text.removeprefix("\ufeff"), source)
    except IniError as fault:
        raise LocalError(
            f"{source} is no ini file ({' '.join(str(fault).split())}): mend that line, or have it "
            "written anew with 'ponyswarm init --force'"
        ) from fault
    for section in ini.sections():
        if section not in _KEYS and section not in _OPEN:
            known = (*_KEYS, *_OPEN)
            raise LocalError(f"{source}: there is no section [{section}]{_meant(section, known)}")
        for key in ini[section]:
            if section in _KEYS and key not in _KEYS[section]:
                hint = _meant(key, _KEYS[section])
                raise LocalError(f"{source}: [{section}] has no key {key!r}{hint}")

    def read(section: str, key: str, default: T, parser: Callable[[str], T]) -> T:
        value = ini.get(section, key, fallback="").strip()
        return _value(source, section, key, value, parser) if value else default

    def lines(section: str, key: str, parser: Callable[[str], T]) -> tuple[T, ...]:
        items = (item for item, _ in _items(ini.get(section, key, fallback="")))
        return tuple(_value(source, section, key, item, parser) for item in items)

    default = Settings()
    trusted = frozenset(lines("trust", "projects", parse_project))
    return Settings(
        listen=lines("node", "listen", check_listen) or default.listen,
        slots=read("node", "slots", default.slots, _number(1, 1024)),
        volunteer=Wishes(
            hours=read("volunteer", "hours", default.volunteer.hours, parse_hours),
            load=read("volunteer", "load", default.volunteer.load, _load),
            battery=read("volunteer", "battery", default.volunteer.battery, _yes_no),
            floor=read("volunteer", "floor", default.volunteer.floor, parse_size),
        ),
        limits=Limits(
            **{
                name: read("limits", name, getattr(default.limits, name), parser)
                for name, parser in _LIMITS.items()
            }
        ),
        retention=Retention(
            keep=read(
                "retention", "keep", default.retention.keep, _at_least(parse_duration, 3600, "1 h")
            ),
            archive=read("retention", "archive", default.retention.archive, _yes_no),
        ),
        trusted=trusted,
        followed=trusted | frozenset(lines("follow", "projects", parse_project)),
        interpreters=MappingProxyType(_interpreters(source, ini)),
        services=MappingProxyType(_services(source, ini)),
        peers=lines("network", "peers", _peer),
        bootstrap=read("network", "bootstrap", default.bootstrap, _yes_no),
        announce=lines("network", "announce", _reached),
        lan=read("network", "lan", default.lan, _yes_no),
        upnp=read("network", "upnp", default.upnp, _yes_no),
        relaying=Relaying(
            mode=read("network", "relay", default.relaying.mode, _relay_mode),
            places=read("network", "relay_places", default.relaying.places, _number(1, 1000)),
            bytes=read(
                "network",
                "relay_bytes",
                default.relaying.bytes,
                _at_least(parse_size, MIB, "1 MiB"),
            ),
            time=read(
                "network",
                "relay_time",
                default.relaying.time,
                _at_least(parse_duration, 60, "1 min"),
            ),
        ),
        web_port=read("web", "port", default.web_port, _number(1, 65_535)),
        notify=read("notify", "command", default.notify, _command),
    )


def _value(source: str, section: str, key: str, text: str, parser: Callable[[str], T]) -> T:
    try:
        return parser(text)
    except ValueError as fault:
        raise LocalError(f"{source}: [{section}] {key} = {text!r} {fault}") from fault
    except LocalError as fault:
        raise LocalError(f"{source}: [{section}] {key}: {fault}") from fault


def _meant(word: str, known: Iterable[str]) -> str:
    choices = list(known)
    close = difflib.get_close_matches(word, choices, n=1)
    return f": did you mean {close[0]!r}?" if close else f"; it can be {', '.join(choices)}"


def _items(value: str) -> list[tuple[str, str]]:
    """(item, note) of a list, one or several a line; '#' begins a note."""
    found = []
    for line in value.splitlines():
        text, _, note = line.partition("#")
        found += [(item, note.strip()) for item in text.replace(",", " ").split()]
    return found


def _interpreters(source: str, ini: ConfigParser) -> dict[str, Path]:
    if "interpreters" not in ini:
        return {}

    def absolute(text: str) -> Path:
        path = Path(os.path.expanduser(text))
        if not path.is_absolute():
            raise ValueError("is no full path: write one such as /usr/bin/python3.12")
        return path

    return {
        name: _value(source, "interpreters", name, text.strip(), absolute)
        for name, text in ini["interpreters"].items()
    }


def _services(source: str, ini: ConfigParser) -> dict[str, Service]:
    """``NAME = yes``, and further lines ``NAME.OPTION = …`` for the service NAME."""
    if "services" not in ini:
        return {}
    wanted: dict[str, bool] = {}
    options: dict[str, dict[str, str]] = {}
    for key, raw in ini["services"].items():
        name, dot, option = key.partition(".")
        text = raw.strip()
        where = f"{source}: [services] {key}"
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            raise LocalError(f"{where}: {name!r} is no service's name: write one such as redis")
        if not dot:
            wanted[name] = _value(source, "services", key, text, _yes_no)
            continue
        if option in ("password", "passwd", "url", "dsn"):
            raise LocalError(
                f"{where}: no secret belongs in this file: put the password into a file that "
                f"only you can read and write '{name}.password_file = …', or into the "
                f"environment and write '{name}.password_env = …'"
            )
        if option not in _SERVICE_KEYS:
            raise LocalError(
                f"{where}: a service has no option {option!r}{_meant(option, _SERVICE_KEYS)}"
            )
        if not text:
            raise LocalError(f"{where} is empty: give it a value or remove the line")
        options.setdefault(name, {})[option] = text
    made = {}
    for name in wanted | options:
        if not wanted.get(name, True):
            continue
        chosen = options.get(name, {})
        file, variable = chosen.pop("password_file", None), chosen.pop("password_env", None)
        if file and variable:
            raise LocalError(
                f"{source}: [services] has {name}.password_file and {name}.password_env: keep one"
            )
        made[name] = Service(
            name=name,
            options=MappingProxyType(chosen),
            password_file=Path(os.path.expanduser(file)) if file else None,
            password_env=variable,
        )
    return made


# --- lists of projects, edited in place ------------------------------------------------------


def projects(path: Path, section: str) -> list[tuple[bytes, str]]:
    """(project id, note) of ``[trust]`` or ``[follow]``, in the file's order."""
    text = _read(path)
    parse(text, str(path))
    ini = ConfigParser(interpolation=None, delimiters=("=",), default_section="")
    ini.read_string(text.removeprefix("\ufeff"))
    items = _items(ini.get(section, "projects", fallback=""))
    return [(parse_project(item), note) for item, note in items]


def add_project(path: Path, section: str, project: bytes, note: str = "") -> bool:
    """Add a line to ``[section] projects``; False when it is there already."""
    if any(known == project for known, _ in projects(path, section)):
        return False
    note = " ".join(note.split())
    line = f"{project.hex()}  # {note}" if note else project.hex()
    _edit(path, section, lambda lines: [*lines, line])
    return True


def remove_project(path: Path, section: str, project: bytes) -> bool:
    """Take a project out of ``[section] projects``; False when it is not there."""
    if not any(known == project for known, _ in projects(path, section)):
        return False

    def without(lines: list[str]) -> list[str]:
        kept = []
        for line in lines:
            text, mark, note = line.partition("#")
            items = text.replace(",", " ").split()
            rest = [item for item in items if item.lower() != project.hex()]
            if len(rest) < len(items):
                line = " ".join(rest) + (f"  #{note}" if mark else "")
            if rest or not items:
                kept.append(line)
        return kept

    _edit(path, section, without)
    return True


def offer_service(path: Path, name: str) -> None:
    """Write ``NAME = yes`` into ``[services]``; the owner's comments stay."""
    from configupdater import ConfigUpdater

    updater = ConfigUpdater(delimiters=("=",))
    updater.read_string(_read(path))
    if "services" not in updater:
        updater.add_section("services")
    updater["services"][name] = "yes"
    text = str(updater)
    parse(text, str(path))
    write(path, text)


def _edit(path: Path, section: str, change: Callable[[list[str]], list[str]]) -> None:
    from configupdater import ConfigUpdater

    updater = ConfigUpdater(delimiters=("=",))
    updater.read_string(_read(path))
    if section not in updater:
        updater.add_section(section)
        updater[section].add_before.space(1)
    if "projects" not in updater[section]:
        updater[section].set("projects")
    option = updater[section]["projects"]
    lines = [line.strip() for line in (option.value or "").splitlines() if line.strip()]
    option.set_values(change(lines), prepend_newline=True, indent="    ")
    text = re.sub(r"(?m)^projects = $", "projects =", str(updater))
    parse(text, str(path))
    write(path, text)


def write(path: Path, text: str) -> None:
    """Replace the file in one step, closed to other users; a link to it stays a link."""
    target = path.resolve()
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, target)
    except OSError as fault:
        raise LocalError(
            f"{path} cannot be written: {fault.strerror}; check who owns the folder, and that "
            "there is room"
        ) from fault
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink()


# --- a new file ---------------------------------------------------------------------------


def template(
    *,
    listen: str = DEFAULT_LISTEN,
    slots: int = 1,
    memory: int = 2 * GIB,
    interpreters: Mapping[str, str] | None = None,
    services: Iterable[str] = (),
) -> str:
    """A commented ponyswarm.ini. ``services`` are those found here, for a comment."""
    found = interpreters or {}
    listed = "\n".join(f"{name} = {path}" for name, path in found.items())
    here = ", ".join(services)
    return f"""\
# PonySwarm's settings on this machine. A line that begins with '#' is a comment;
# what stands in such a line is the value that holds without it, or an example.
# Sizes are written as '2 GiB' or '500 MB', durations as '30 min' or '1 h'.
# The node reads this file when it starts; changes of trust and of limits are seen at once.

[node]
# Where other nodes reach this one; more addresses on further, indented lines.
listen = {listen}
# How many runs at once.
slots = {slots}

[volunteer]
# When this machine takes jobs; what runs is given back when the hours end or the battery is
# in use. Empty: always. Such as: hours = mon-fri 19:00-08:00, sat-sun 00:00-24:00
hours =
# Nothing more is taken while other programs use more than this of each core.
load =
# Whether to take jobs while the machine runs on its battery.
battery = no
# Nothing more is taken while less than this is free on the disk.
floor = 1 GiB

[limits]
# What one run may use:
memory = {format_size(memory)}
disk = 2 GiB
processes = 256
output = 64 MiB
time = 1 h
# A run that prints nothing for so long is ended.
silence = 10 min
# How much a run weighs where it and other programs want the CPU; those have 100.
cpu_weight = 50
# What this node keeps on disk: files of jobs and outcomes, the ledger, environments.
blobs = 5 GiB
ledger = 5 GiB
cache = 10 GiB

[retention]
# Files of jobs and outcomes go after so long, sooner when 'blobs' above is nearly reached:
# first those of passing runs, last those of failing runs and of each project's latest job.
# Old results lose their details (sooner when 'ledger' above is nearly reached); headers,
# signatures and verdicts stay. What is wanted again is fetched again from who has it.
keep = 90 d
# yes keeps all of it for ever, and gets back what others dropped.
archive = no

[trust]
# The projects whose jobs may run here, one id a line ('ponyswarm trust add ID').
# Nothing runs for anyone else. A trusted project is followed, too.
projects =

[follow]
# Further projects whose ledger to keep, without running their jobs.
projects =

[web]
# Shows the node's ledger as pages to browsers on this machine ('ponyswarm web' does, too):
# 7640 is the usual port; empty: no pages.
port =

[interpreters]
# The Pythons that jobs may use, NAME = FULL PATH. With none here the node offers
# whatever it finds when it starts.
{listed or "# cpython-3.12.1 = /usr/bin/python3.12"}

[services]
# NAME = yes offers a service to jobs; each run gets a database of its own, which is
# dropped after it. A server is started for jobs alone, from the programs installed here
# ({f"found when this was written: {here}" if here else "'ponyswarm doctor' finds them"}):
# postgresql = yes
# postgresql.bin = /usr/lib/postgresql/15/bin
# mariadb = yes
# redis = yes
# Or a server of yours is used. Its password never stands in this file:
# postgresql.host = /run/postgresql
# postgresql.user = ponyswarm
# postgresql.password_file = ~/.config/ponyswarm/postgresql.password
# mariadb.host = 127.0.0.1
# mariadb.port = 3306
# mariadb.user = ponyswarm
# mariadb.password_env = PONYSWARM_MARIADB_PASSWORD

[network]
# Nodes to call first, one multiaddr a line, such as /ip4/192.0.2.7/tcp/7797/p2p/12D3KooW...
peers =
# Whether to call the public nodes that PonySwarm comes with as well.
bootstrap = yes
# Addresses at which others reach this node, if you know them, such as /ip4/192.0.2.7/tcp/7797
# or /dns4/node.example.org/tcp/7797; without any the node finds out.
announce =
# Whether to look for nodes on the local network, and to ask the router for a port (UPnP).
lan = yes
upnp = yes
# Whether to relay for nodes that cannot be called: auto (while this one can be), yes or no.
relay = auto
# How many nodes at once, and how much and how long one connection may last.
relay_places = 32
relay_bytes = 64 MiB
relay_time = 1 h

[notify]
# A program of yours that is told what is news in the projects kept here, as JSON on its
# standard input: a place of the matrix that fails for the first time, is fixed, or disputed.
# Such as: command = /usr/local/bin/tell-me --by mail
command =
"""
