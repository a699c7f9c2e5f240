"""``ponyswarm doctor``: what works on this machine, why the rest does not, and what would help."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
import psutil
import trio

from ponyswarm import config, keys, status
from ponyswarm.cli import EXIT_USAGE, json_option, print_json
from ponyswarm.cli.opening import node_is_running, service_options
from ponyswarm.cli.screen import console
from ponyswarm.errors import InfraError, LocalError
from ponyswarm.exec import (
    environment,
    eviction,
    interpreters,
    process,
    provisioning,
    sandbox,
)
from ponyswarm.exec.outcome import Broken
from ponyswarm.exec.process import Patience
from ponyswarm.exec.services.service import Missing, Offer, Options
from ponyswarm.home import Home
from ponyswarm.messages import Cell
from ponyswarm.volunteer import choose_interpreter

# Whatever a project is likely to ask for; a "t" at the end is a free-threaded build.
CURRENT = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.14t")
GOOD, WEAK, BAD, NOT_OFFERED = "good", "weak", "bad", "not offered"
MARKS = {GOOD: "✔", WEAK: "!", BAD: "✘", NOT_OFFERED: "·"}
LEAST_DISK = config.GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at. ``remedy`` is one line to copy, where there is one."""

    name: str
    state: str
    what: str
    remedy: str = ""


@click.command()
@click.option("--quick", is_flag=True, help="Do not start the services to see that they work.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, quick: bool, as_json: bool) -> None:
    """Say what works on this machine, and what to do about the rest.

    Looks at the home, its key and settings, the sandbox and its limits, interpreters,
    services, room and ports. Each service that is offered is really used once. Exits 0
    when all is good, else 2.
    """
    home: Home = ctx.obj
    checks = trio.run(partial(examine, home, quick=quick))
    good = all(check.state != BAD for check in checks)
    if as_json:
        print_json({"good": good, "checks": [asdict(check) for check in checks]})
    else:
        _show(checks, good)
    ctx.exit(0 if good else EXIT_USAGE)


async def examine(home: Home, *, quick: bool) -> list[Check]:
    """Look at everything; nothing that is wrong keeps the rest from being looked at."""
    checks = [*_home(home), *_key(home)]
    settings, said = _settings(home)
    checks += said
    holds = await sandbox.probe()
    checks += _sandbox(holds)
    checks.append(await _uv())
    checks += await _interpreters(settings)
    checks += await _services(home, settings, holds, quick=quick)
    checks += _room(home, settings)
    checks += _ports(home, settings)
    checks += _notify(settings)
    checks += _reach(home)
    return checks


def _show(checks: list[Check], good: bool) -> None:
    out = console()
    width = max(len(check.name) for check in checks)
    for check in checks:
        out.print(f"{MARKS[check.state]} {check.name:<{width}}  {check.what}", markup=False)
        if check.remedy:
            # Never wrapped: it is there to be copied.
            out.print(f"  {'':<{width}}  → {check.remedy}", markup=False, soft_wrap=True)
    bad = sum(check.state == BAD for check in checks)
    out.print("all good" if good else f"{bad} to mend: the lines after an arrow help")


# --- the home ----------------------------------------------------------------------------


def _home(home: Home) -> Iterator[Check]:
    folders = dict.fromkeys((home.config_dir, home.data_dir, home.state_dir, home.cache_dir))
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        what = f"{missing[0]} is missing: this home is not set up"
        yield Check(name="home", state=BAD, what=what, remedy="ponyswarm init")
        return
    for folder in folders:
        open_ = stat.S_IMODE(folder.stat().st_mode) & 0o077
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            what = f"{folder} cannot be written"
            remedy = f"chown -R {os.geteuid()} {shlex.quote(str(folder))}"
            yield Check(name="home", state=BAD, what=what, remedy=remedy)
        elif open_ & 0o022 or (open_ and folder == home.config_dir):
            what = f"{folder} is open to other users"
            remedy = f"chmod 700 {shlex.quote(str(folder))}"
            yield Check(name="home", state=BAD, what=what, remedy=remedy)
    yield Check(name="home", state=GOOD, what=str(home.config_dir))


def _key(home: Home) -> Iterator[Check]:
    if not home.key.exists():
        yield Check(name="key", state=BAD, what="there is none", remedy="ponyswarm init")
        return
    closed = _closed(home.key, "key")
    if closed is not None:
        yield closed  # Nothing reads it like that, and the remedy is the same.
        return
    try:
        public = keys.load(home.key).public
    except LocalError as fault:
        yield Check(name="key", state=BAD, what=str(fault))
    else:
        yield Check(name="key", state=GOOD, what=keys.peer_id(public))


def _closed(path: Path, name: str, mode: int = 0o077) -> Check | None:
    if stat.S_IMODE(path.stat().st_mode) & mode == 0:
        return None
    what = f"other users can {'read' if mode & 0o044 else 'change'} {path}"
    return Check(name=name, state=BAD, what=what, remedy=f"chmod 600 {shlex.quote(str(path))}")


def _settings(home: Home) -> tuple[config.Settings, list[Check]]:
    if not home.ini.exists():
        none = Check(name="settings", state=BAD, what="there are none", remedy="ponyswarm init")
        return config.Settings(), [none]
    found = [check for check in (_closed(home.ini, "settings", 0o022),) if check is not None]
    try:
        settings = config.load(home.ini)
    except LocalError as fault:
        return config.Settings(), [*found, Check(name="settings", state=BAD, what=str(fault))]
    trusted = len(settings.trusted)
    if trusted:
        what = f"{home.ini}, {trusted} projects trusted"
        return settings, [*found, Check(name="settings", state=GOOD, what=what)]
    what = f"{home.ini}; no project is trusted, so nothing will run here"
    remedy = "ponyswarm trust add PROJECT_ID"
    return settings, [*found, Check(name="settings", state=WEAK, what=what, remedy=remedy)]


# --- running jobs ----------------------------------------------------------------------------


def _sandbox(holds: sandbox.Holds | sandbox.Missing) -> Iterator[Check]:
    if isinstance(holds, sandbox.Missing):
        yield Check(name="sandbox", state=BAD, what=holds.why, remedy=holds.remedy)
        return
    who = "jobs get an id of their own" if holds.root else "as an ordinary user"
    yield Check(name="sandbox", state=GOOD, what=f"{holds.name}, {who}")
    what = f"memory by {holds.memory}, processes by {holds.processes}"
    if holds.groups is not None:
        yield Check(name="limits", state=GOOD, what=what)
        return
    yield Check(
        name="limits",
        state=WEAK,
        what=f"{what}: no control group is delegated, so a watch over the sum must do",
        remedy="systemd-run --user --scope -p Delegate=yes ponyswarm node",
    )


async def _uv() -> Check:
    try:
        binary = environment.uv_binary()
        ended = await process.run(
            [binary, "--version"], env={}, patience=Patience(seconds=20, output_bytes=1 << 16)
        )
    except (InfraError, OSError) as fault:
        return Check(name="uv", state=BAD, what=str(fault), remedy="python3 bootstrap.py setup")
    if not ended.good:
        said = ended.output.decode("utf-8", "replace").strip()
        what = f"{binary} does not run (exit code {ended.code}: {said})"
        return Check(name="uv", state=BAD, what=what, remedy="python3 bootstrap.py setup")
    return Check(name="uv", state=GOOD, what=ended.output.decode("utf-8", "replace").strip())


async def _interpreters(settings: config.Settings) -> list[Check]:
    named = settings.interpreters
    survey = await trio.to_thread.run_sync(
        partial(interpreters.survey, named.values(), search=not named)
    )
    checks = [
        Check(name="interpreter", state=GOOD, what=f"{one.name}  {one.path}")
        for one in survey.found
    ]
    state = BAD if named else WEAK
    checks += [
        Check(name="interpreter", state=state, what=f"{one.path}: {one.reason}")
        for one in survey.skipped
    ]
    if not survey.found:
        what = "there is no Python that jobs could use"
        checks.append(
            Check(name="interpreter", state=BAD, what=what, remedy="uv python install 3.12")
        )
    absent = [python for python in CURRENT if choose_interpreter(python, survey.found) is None]
    if absent and survey.found:
        what = f"{', '.join(absent)}: not here, jobs that ask for them are left to others"
        remedy = f"uv python install {' '.join(absent)}"
        checks.append(Check(name="interpreter", state=NOT_OFFERED, what=what, remedy=remedy))
    return checks


async def _services(
    home: Home,
    settings: config.Settings,
    holds: sandbox.Holds | sandbox.Missing,
    *,
    quick: bool,
) -> list[Check]:
    checks = [
        check
        for service in settings.services.values()
        if service.password_file is not None and service.password_file.exists()
        for check in (_closed(service.password_file, service.name),)
        if check is not None
    ]
    try:
        options = provisioning.with_always(service_options(settings))
        probed = await provisioning.probe(provisioning.whatever_is_here(options))
    except LocalError as fault:
        return [*checks, Check(name="services", state=BAD, what=str(fault))]
    tried: Mapping[str, str] = {}
    offered = {name: options[name] for name in options if isinstance(probed[name], Offer)}
    if not quick and isinstance(holds, sandbox.Holds):
        tried = await _tried(home, offered, holds)
    return [*checks, *(_service(name, one, options, tried) for name, one in probed.items())]


def _service(
    name: str, found: Offer | Missing, options: Mapping[str, Options], tried: Mapping[str, str]
) -> Check:
    if isinstance(found, Missing):
        state = BAD if name in options else NOT_OFFERED
        return Check(name=name, state=state, what=found.why, remedy=found.remedy)
    what = f"{found.version}, {found.how}".lstrip(", ")
    if name not in options:
        return Check(
            name=name,
            state=NOT_OFFERED,
            what=f"{what}: could be offered",
            remedy=f"write '{name} = yes' under [services] in ponyswarm.ini",
        )
    if tried.get(name):
        return Check(name=name, state=BAD, what=f"{what}, but: {tried[name]}")
    return Check(name=name, state=GOOD, what=what + (", tried" if name in tried else ""))


async def _tried(
    home: Home, offered: Mapping[str, Options], holds: sandbox.Holds
) -> dict[str, str]:
    """Use each of these services once; what went wrong, or "" where it went well."""
    found: dict[str, str] = {}
    scratch = home.cache / "doctor"
    async with provisioning.open_services(
        offered, cache=home.cache, scratch=scratch, holds=holds
    ) as services:
        for name in offered:
            cell = Cell(python="3", services=(name,))
            try:
                async with services.provisioned(cell, slot=0, interpreter=None) as given:
                    found[name] = given.trouble
            except Broken as fault:
                found[name] = fault.detail
    return found


# --- the machine ----------------------------------------------------------------------------


def _room(home: Home, settings: config.Settings) -> Iterator[Check]:
    for name, folder in (("ledger and blobs", home.data_dir), ("caches", home.cache_dir)):
        place = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(place).free
        what = f"{free / config.GIB:.1f} GiB free for {name}"
        if free < LEAST_DISK:
            yield Check(
                name="disk",
                state=BAD,
                what=f"{what}, and 1 GiB is the least",
                remedy=f"df -h {shlex.quote(str(place))}",
            )
        else:
            yield Check(name="disk", state=GOOD, what=what)
    kept = eviction.taken(home.cache) / config.GIB
    most = settings.limits.cache / config.GIB
    what = f"{kept:.1f} of {most:.1f} GiB taken by environments, wheels, sources and builds"
    yield Check(name="cache", state=GOOD, what=what)
    # Scratch is memory, too: see docs/adr/0005.
    wanted = settings.slots * (settings.limits.memory + settings.limits.disk)
    total = psutil.virtual_memory().total
    what = f"{total / config.GIB:.1f} GiB, of which runs may take {wanted / config.GIB:.1f}"
    if wanted <= total:
        yield Check(name="memory", state=GOOD, what=what)
    else:
        remedy = "lower 'slots', or 'memory' and 'disk' under [limits] in ponyswarm.ini"
        yield Check(name="memory", state=WEAK, what=what, remedy=remedy)


def _ports(home: Home, settings: config.Settings) -> Iterator[Check]:
    if node_is_running(home):
        yield Check(name="port", state=GOOD, what="the node running on this home listens")
        return
    for address in settings.listen:
        _, family, host, _, port = address.split("/")
        kind = socket.AF_INET6 if family == "ip6" else socket.AF_INET
        try:
            with socket.socket(kind) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind((host, int(port)))
        except OSError as fault:
            yield Check(
                name="port",
                state=BAD,
                what=f"{address}: {fault.strerror}",
                remedy=f"ss -ltnp 'sport = :{port}'",
            )
        else:
            yield Check(name="port", state=GOOD, what=f"{address} is free")


def _notify(settings: config.Settings) -> Iterator[Check]:
    if not settings.notify:
        return
    program = shlex.split(settings.notify)[0]
    if shutil.which(program):
        yield Check(name="notify", state=GOOD, what=settings.notify)
    elif not os.path.exists(program):
        what = f"there is no program {program}"
        remedy = "set 'command' under [notify] in ponyswarm.ini to one that is here"
        yield Check(name="notify", state=BAD, what=what, remedy=remedy)
    else:
        remedy = f"chmod +x {shlex.quote(program)}"
        what = f"{program} is no program that can be run"
        yield Check(name="notify", state=BAD, what=what, remedy=remedy)


def _reach(home: Home) -> Iterator[Check]:
    """Whether others can call this node: only a running one, which asked peers, can tell."""
    now = status.read(home.status) if node_is_running(home) else None
    if now is None:
        yield Check(
            name="reach",
            state=WEAK,
            what="whether others can reach this machine is found out by a running node",
            remedy="ponyswarm node",
        )
    elif now.reach:
        cannot = "cannot call" in now.reach or "this machine alone" in now.reach
        yield Check(name="reach", state=WEAK if cannot else GOOD, what=now.reach)
