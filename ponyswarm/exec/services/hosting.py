"""Private throwaway servers: each in a sandbox of its own, reached by its UNIX socket alone.

A server is started when a run first needs it and lives on for the later runs of the same
slot, so that no two runs ever share one. It runs as a job would: no network, no file of
this machine, an unprivileged id, sized memory; its data lie in memory and vanish with it,
also when the node is killed. What takes long to initialize is kept in the cache as a
template, made in the same sandbox. Only folders of sockets are left to `sweep`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import platform
import shutil
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from ponyswarm.errors import InfraError
from ponyswarm.exec import cgroup, process
from ponyswarm.exec.process import Channel, Patience
from ponyswarm.exec.sandbox import MIB, Holds, Limits, Sandbox

log = logging.getLogger("ponyswarm")

# A server's folders inside its own sandbox.
DATA = "/data"
SOCKETS = "/sockets"
GIVEN = "/given"

# Servers of a slot run under an id of their own, away from those of jobs.
FIRST_SLOT = 500
LIMITS = Limits(
    memory_bytes=1024 * MIB,
    processes=1024,
    scratch_bytes=2048 * MIB,
    seconds=math.inf,
    silent_seconds=math.inf,
    open_files=8192,
)
START_SECONDS = 60.0
MAKE_SECONDS = 180.0
CLIENT_SECONDS = 60.0
MAX_BRIDGED = 200

START = 'set -e; if [ -e /given/template ]; then tar -x -C /data -f /given/template; fi; exec "$@"'
MAKE = """\
set -eu
{}
cd /data && tar -c * > /channels/template
"""


def mark_of(scratch: Path) -> str:
    """A short name of this home on this machine."""
    text = f"{platform.node()}\0{scratch.absolute()}"
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]


class Server:
    """A running server, and where its socket is on this machine."""

    def __init__(self, name: str, folder: Path, socket_name: str) -> None:
        self.name = name
        self.folder = folder
        self.socket = folder / "sockets" / socket_name
        self.ended = trio.Event()
        self.scope = trio.CancelScope()
        self.password = ""
        self.said = b""

    @property
    def alive(self) -> bool:
        return not self.ended.is_set()

    def trouble(self) -> str:
        return "" if self.alive else f"{self.name} ended during the run: {self.last_words}"

    @property
    def last_words(self) -> str:
        text = self.said.decode("utf-8", "replace").strip()
        return " ".join(text.split())[-300:] or "without a word"

    async def stop(self) -> None:
        self.scope.cancel()
        with trio.CancelScope(shield=True):
            await self.ended.wait()


class Hosting:
    """The servers of this node. Made by `open_hosting`."""

    def __init__(
        self, *, cache: Path, holds: Holds, mark: str, folder: Path, nursery: trio.Nursery
    ) -> None:
        self.mark = mark
        self._cache = cache
        self._holds = holds
        self._folder = folder
        self._nursery = nursery
        self._kept: dict[tuple[str, int], Server] = {}
        self._locks: dict[object, trio.Lock] = {}

    async def kept(self, name: str, slot: int, start: Callable[[], Awaitable[Server]]) -> Server:
        """The server of this slot, started if there is none that lives."""
        async with self._lock((name, slot)):
            server = self._kept.get((name, slot))
            if server is None or not server.alive:
                server = self._kept[name, slot] = await start()
            return server

    async def start(
        self,
        name: str,
        slot: int,
        argv: Sequence[str],
        *,
        socket_name: str,
        program: str,
        template: Path | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Server:
        """Start a server and wait until it listens. ``files`` lie in `GIVEN`.

        Raises `InfraError` with its last words when it does not come up.
        """
        server = Server(name, self.folder(name), socket_name)
        box = self._box(name, slot, program)
        server.socket.parent.mkdir(mode=0o700)
        if self._holds.root:
            os.chown(server.socket.parent, box.identity, box.identity)
        box = box.with_writable(server.socket.parent, SOCKETS)
        for file, content in (files or {}).items():
            path = server.folder / file
            path.write_text(content, "utf-8")
            path.chmod(0o644)  # The folder above is closed; the server's own id must read it.
            box = box.with_read_only(path, f"{GIVEN}/{file}")
        if template is not None:
            box = box.with_read_only(template, f"{GIVEN}/template")
        self._nursery.start_soon(self._serve, server, box, argv)
        try:
            with trio.move_on_after(START_SECONDS):
                while server.alive:
                    if _listens(server.socket):
                        return server
                    await trio.sleep(0.01)
        except BaseException:
            # Cancelled, above all: nobody else knows of the server yet.
            await server.stop()
            raise
        await server.stop()
        raise InfraError(f"{name} does not start here: {server.last_words}")

    async def _serve(self, server: Server, box: Sandbox, argv: Sequence[str]) -> None:
        try:
            with server.scope:
                confined = await box.run(
                    ["/bin/sh", "-c", START, "sh", *argv],
                    patience=Patience(seconds=math.inf, output_bytes=1 << 40),
                    keep_bytes=1 << 16,
                )
                server.said = confined.ended.output
                if not confined.ended.good:
                    log.warning("%s ended: %s", server.name, server.last_words)
        except InfraError as fault:
            server.said = str(fault).encode()
        finally:
            server.ended.set()
            shutil.rmtree(server.folder, ignore_errors=True)

    async def template(
        self, name: str, slot: int, script: str, *, program: str, environment: Mapping[str, str]
    ) -> tuple[Path, str]:
        """A tar of what ``script`` leaves in `DATA`, and its password; made once a cache.

        The script finds a password for the server's administrator in ``PASSWORD``.
        """
        key = hashlib.sha256(repr((MAKE, script, sorted(environment.items()))).encode()).hexdigest()
        home = self._cache / "services" / f"{name}-{key[:16]}"
        async with self._lock(home):
            if not home.exists():
                partial_ = home.with_name(f"{home.name}.partial-{os.getpid()}")
                shutil.rmtree(partial_, ignore_errors=True)
                partial_.mkdir(mode=0o700, parents=True)
                try:
                    await self._make(name, slot, script, program, environment, partial_)
                    with suppress(OSError):
                        partial_.rename(home)  # Another command on this home may have been first.
                finally:
                    shutil.rmtree(partial_, ignore_errors=True)
            return home / "template.tar", (home / "password").read_text("ascii")

    async def _make(
        self,
        name: str,
        slot: int,
        script: str,
        program: str,
        environment: Mapping[str, str],
        home: Path,
    ) -> None:
        password = new_password()
        channels = self.folder(f"{name}-template")
        with (home / "template.tar").open("wb") as file:
            channel = Channel(channels / "template", lambda data: void(file.write(data)))
            try:
                confined = await (
                    self._box(f"{name}-template", slot, program)
                    .with_environment({**environment, "PASSWORD": password})
                    .run(
                        ["/bin/sh", "-c", MAKE.format(script)],
                        patience=Patience(seconds=MAKE_SECONDS),
                        channels=[channel],
                    )
                )
            finally:
                channel.close()
                shutil.rmtree(channels, ignore_errors=True)
        if not confined.ended.good:
            said = " ".join(confined.ended.output.decode("utf-8", "replace").split())
            raise InfraError(f"{name} cannot be initialized: {said.replace(password, '…')[-300:]}")
        (home / "template.tar").chmod(0o644)
        (home / "password").write_text(password, "ascii")
        (home / "password").chmod(0o600)

    def folder(self, name: str) -> Path:
        """A new folder, closed to other users, whose path is short enough for a socket."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))

    @asynccontextmanager
    async def bridge(self, name: str, host: str, port: int) -> AsyncIterator[Path]:
        """A UNIX socket on which a TCP server of the owner's is reached, while it is open."""
        folder = self.folder(name)
        path = folder / "socket"
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        try:
            await listener.bind(str(path))
            path.chmod(0o777)
            listener.listen(64)
            scope = trio.CancelScope()
            limit = trio.CapacityLimiter(MAX_BRIDGED)
            handler = partial(_bridge, host=host, port=port, limit=limit)

            async def serve() -> None:
                with scope:
                    await trio.serve_listeners(handler, [trio.SocketListener(listener)])

            # Not in a nursery of its own: it would wrap what a run raises in a group.
            self._nursery.start_soon(serve)
            try:
                yield path
            finally:
                scope.cancel()
        finally:
            listener.close()
            shutil.rmtree(folder, ignore_errors=True)

    def _box(self, name: str, slot: int, program: str) -> Sandbox:
        box = Sandbox(
            holds=self._holds,
            limits=LIMITS,
            slot=FIRST_SLOT + slot % FIRST_SLOT,
            name=f"{self.mark}-{name}",
        ).with_scratch(DATA, LIMITS.scratch_bytes)
        prefix = Path(program).resolve().parent.parent
        if not prefix.is_relative_to("/usr") or prefix.is_relative_to("/usr/local"):
            box = box.with_read_only(prefix, str(prefix))
        return box.with_environment(
            {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8", "HOME": DATA, "TZ": "UTC"}
        )

    def _lock(self, key: object) -> trio.Lock:
        return self._locks.setdefault(key, trio.Lock())


def void(_: object) -> None:
    """Take a value that nobody needs."""


def new_password() -> str:
    return os.urandom(18).hex()


@asynccontextmanager
async def open_hosting(*, cache: Path, holds: Holds, mark: str) -> AsyncIterator[Hosting]:
    """Host servers while the context is open; first remove what a killed node left."""
    base = Path("/tmp") if os.access("/tmp", os.W_OK | os.X_OK) else Path(tempfile.gettempdir())  # noqa: S108
    name = f"ponyswarm-{mark}-"
    for left in base.glob(name + "*"):
        with suppress(OSError):
            facts = left.lstat()
            if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid():
                shutil.rmtree(left, ignore_errors=True)
    if cache.is_dir():
        for left in (cache / "services").glob("*.partial-*"):
            if not process.alive(int(left.name.rpartition("-")[2])):
                shutil.rmtree(left, ignore_errors=True)
    if holds.groups is not None:
        cgroup.sweep(holds.groups, mark)
    folder = Path(tempfile.mkdtemp(prefix=name, dir=base))
    try:
        async with trio.open_nursery() as nursery:
            yield Hosting(cache=cache, holds=holds, mark=mark, folder=folder, nursery=nursery)
            nursery.cancel_scope.cancel()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
        client.connect(str(path))
        return True
    return False


async def _bridge(
    client: trio.SocketStream, *, host: str, port: int, limit: trio.CapacityLimiter
) -> None:
    async def copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
        async for data in source:
            await target.send_all(data)
        await target.send_eof()

    with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError, BaseExceptionGroup):
        async with (
            limit,
            client,
            await trio.open_tcp_stream(host, port) as server,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(copy, client, server)
            nursery.start_soon(copy, server, client)


# --- programs on this machine, outside of sandboxes: the owner's servers' own clients -------


_versions: dict[tuple[str, ...], str] = {}


async def version_of(program: str, *arguments: str) -> str:
    """What a program prints of its version, asked again when it changed; "" if it fails."""
    try:
        key = (program, str(os.stat(program).st_mtime_ns), *arguments)
    except OSError:
        return ""
    if key not in _versions:
        _versions[key] = await _said(program, *arguments)
    return _versions[key]


async def _said(program: str, *arguments: str) -> str:
    try:
        ended = await process.run(
            [program, *(arguments or ("--version",))],
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"},
            patience=Patience(seconds=10.0, output_bytes=1 << 16),
        )
    except InfraError:
        return ""
    return ended.output.decode("utf-8", "replace").strip() if ended.good else ""


async def client(
    argv: Sequence[str], *, statements: str, environment: Mapping[str, str], who: str
) -> str:
    """Run a client program with statements on its standard input; what it prints.

    Neither statements nor passwords ever stand in an argument, which everybody could
    read. Raises `InfraError`, without a secret in its text.
    """
    descriptor = os.memfd_create("ponyswarm")
    os.write(descriptor, statements.encode())
    ended = await process.run(
        ["/bin/sh", "-c", f'exec "$@" < /proc/self/fd/{descriptor}', "sh", *argv],
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **environment},
        patience=Patience(seconds=CLIENT_SECONDS, output_bytes=4 << 20),
        pass_fds=[descriptor],
    )
    text = ended.output.decode("utf-8", "replace").strip()
    if ended.good:
        return text
    lines = [line for line in text.splitlines() if "rror" in line.lower() or "FATAL" in line]
    raise InfraError(f"{who}: {(lines or [text or f'{argv[0]} failed'])[0][:300]}")


def find_program(names: Sequence[str], folders: Sequence[str] = ()) -> str | None:
    """The first of these programs that is there, in ``folders`` before the usual places."""
    usual = os.pathsep.join(
        (*folders, *os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/usr/local/sbin")
    )
    for name in names:
        found = shutil.which(name, path=usual)
        if found is not None:
            return found
    return None
