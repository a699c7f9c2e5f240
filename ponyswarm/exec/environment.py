"""Environments: an interpreter plus hash-pinned wheels, made once, shared read-only.

``uv venv`` makes it, empty; one ``uv pip install`` fetches wheels by hash, the only step
with a network, and runs nothing of them. Once wheels are in, the environment's Python must
never run outside a sandbox: ``.pth`` files execute. The project, and each dependency that
the maintainer takes as an sdist, is built and installed inside the sandbox, offline, and
comes out as a tar that is unpacked as carefully as any stranger's. Everything is cached
under what made it, completed by a rename, and mounted read-only at fixed paths.
Called by `executor`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ponyswarm.errors import InfraError, LocalError, PeerError
from ponyswarm.exec import bytecode, eviction, index, legacy, process, sdists, source
from ponyswarm.exec.bytecode import site_packages
from ponyswarm.exec.interpreters import Installed
from ponyswarm.exec.outcome import Broken
from ponyswarm.exec.process import Ended, Patience
from ponyswarm.exec.sandbox import Sandbox
from ponyswarm.messages import Reason

# Part of every cache key: raise it when what an environment contains changes.
FORMAT = 5
INSTALL_SECONDS = 900.0
BUILD_SECONDS = 1800.0
MAX_INSTALLED = 1 << 30
MAX_LOCK = 4 << 20
MAX_PINS = 2000
REPORT_FOLDER = "/project/report"
# One line, because a .pth line is a statement; silent where the reporter is not mounted.
START_UP = (
    f"import os, sys; os.path.isfile('{REPORT_FOLDER}/_ponyswarm_site.py') and "
    f"(sys.path.append('{REPORT_FOLDER}') or __import__('_ponyswarm_site'))\n"
)
# Given an item of the cache, keeps it from being evicted for as long as its run lasts.
Hold = Callable[[Path], None]
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")

BUILD = """\
set -eu
cp -R --preserve=mode,timestamps,links /source /project/src
cd /project/src
/tools/uv build --wheel --no-build-isolation --offline --no-config --no-progress --color never \
    --python /env/bin/python --out-dir /project/out .
/tools/uv pip install --python /env/bin/python --target /project/install --no-deps --offline \
    --no-index --no-config --no-progress --color never --link-mode=copy /project/out/*.whl
if [ "$1" = compile ]; then
    test "$(find /project/install -name '*.py' | wc -l)" -gt 2000 && workers=0 || workers=1
    /env/bin/python -m compileall -q -j "$workers" --invalidation-mode unchecked-hash \
        -d /project/site /project/install > /dev/null || true
fi
tar -c -f - -C /project/install . > /channels/installed
"""


@dataclass(frozen=True, slots=True)
class Pin:
    """One locked package: a canonical name, an exact version, the hashes of its files."""

    name: str
    version: str
    hashes: tuple[str, ...]


def parse_lock(text: str) -> tuple[Pin, ...]:
    """The pins of a lock; `PeerError` ("bad-lock") for anything but exact, hashed names.

    A lock is a stranger's, and a requirements file could otherwise name other indexes,
    files of this machine, or source trees.
    """
    if len(text) > MAX_LOCK:
        raise PeerError("bad-lock", "longer than allowed")
    pins: list[Pin] = []
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        words = re.sub(r"(^|\s)#.*", "", line).strip()
        if not words:
            continue
        hashes = tuple(sorted(_HASH.findall(words)))
        bare = _HASH.sub("", words).strip()
        try:
            requirement = Requirement(bare)
        except InvalidRequirement as fault:
            raise PeerError("bad-lock", f"not a pinned package: {bare[:100]!r}") from fault
        specifiers = list(requirement.specifier)
        exact = len(specifiers) == 1 and specifiers[0].operator == "=="
        if requirement.url or not exact or not hashes or "*" in specifiers[0].version:
            raise PeerError("bad-lock", f"neither exact nor hashed: {bare[:100]!r}")
        if requirement.marker is not None:
            raise PeerError("bad-lock", f"a lock is for one platform, so no marker: {bare[:100]!r}")
        pins.append(Pin(canonicalize_name(requirement.name), specifiers[0].version, hashes))
    if len(pins) > MAX_PINS or len({pin.name for pin in pins}) != len(pins):
        raise PeerError("bad-lock", "too many packages, or one of them twice")
    return tuple(sorted(pins, key=lambda pin: pin.name))


def format_lock(pins: tuple[Pin, ...]) -> str:
    """The one text of these pins: what caches are named by, and uv is given."""
    return "".join(
        f"{pin.name}=={pin.version}"
        + "".join(f" --hash=sha256:{hash_}" for hash_ in pin.hashes)
        + "\n"
        for pin in pins
    )


def installed(*folders: Path) -> tuple[str, ...]:
    """The sorted ``name==version`` lines of what is installed under these folders."""
    return tuple(sorted({line for folder in folders for line in _distributions(folder)}))


def _distributions(folder: Path) -> Iterator[str]:
    for place in (folder, *site_packages(folder)):
        for path in place.glob("*.dist-info"):
            name, _, version = path.name.removesuffix(".dist-info").partition("-")
            yield f"{canonicalize_name(name)}=={version}"


def uv_binary() -> str:
    """The uv that came with this package."""
    import uv

    return uv.find_uv_bin()


class Environments:
    """The cache of environments and of installed projects, under one folder."""

    def __init__(self, cache: Path) -> None:
        self._environments = cache / "environments"
        self._projects = cache / "projects"
        self.uv_cache = cache / "uv"
        self._tools = cache / "tools"
        self._bytecode = cache / "bytecode"
        self._busy: dict[str, trio.Lock] = {}
        self.uv = uv_binary()

    async def environment(
        self,
        lock: str,
        interpreter: Installed,
        *,
        sandbox: Sandbox,
        channels: Path,
        step: Callable[[str], None],
        hold: Hold,
        from_source: Collection[str] = (),
        build_environment: Path | None = None,
    ) -> Path:
        """The environment of a lock; made when it is not there, and ``step`` told how far it is.

        ``hold`` keeps what it is given from being evicted. Packages in ``from_source`` (canonical
        names) are built from their sdists with ``build_environment``. Raises `Broken` (install).
        """
        try:
            pins = parse_lock(lock)
        except PeerError as fault:
            raise Broken(Reason.INSTALL, f"the lock is refused: {fault}") from fault
        text = format_lock(pins)
        facts = [interpreter.path, interpreter.version, interpreter.build]
        sources = tuple(pin for pin in pins if pin.name in from_source)
        if sources:
            assert build_environment is not None
            facts += [build_environment.name, *(pin.name for pin in sources)]
        wheels = format_lock(tuple(pin for pin in pins if pin not in sources))
        target = self._environments / _digest(text, *facts)
        hold(target)
        async with self._lock(target.name):
            if not target.exists():
                partial = _partial(target)
                try:
                    await self._make(partial, wheels, interpreter, step)
                    for pin in sources:
                        assert build_environment is not None
                        step("build")
                        await self._add_built(
                            partial, pin, sandbox, build_environment, interpreter, channels, hold
                        )
                    _complete(partial, target)
                finally:
                    source.remove(partial)
        return target

    async def project(
        self,
        sandbox: Sandbox,
        *,
        tree: Path,
        source_hash: bytes,
        build_environment: Path,
        interpreter: Installed,
        settings: dict[str, str],
        channels: Path,
        hold: Hold,
        called: str = "the project",
    ) -> Path:
        """The project, built in a sandbox and installed into a folder of its own."""
        facts = (
            interpreter.path,
            interpreter.version,
            interpreter.build,
            json.dumps(settings, sort_keys=True),
        )
        target = self._projects / _digest(source_hash.hex(), build_environment.name, *facts)
        hold(target)
        async with self._lock(target.name):
            if not target.exists():
                await self.compile(sandbox, build_environment, interpreter, channels)
                partial = _partial(target)
                try:
                    await self._build(
                        sandbox,
                        tree,
                        build_environment,
                        settings,
                        channels,
                        partial,
                        interpreter,
                        called,
                    )
                    _complete(partial, target)
                finally:
                    source.remove(partial)
        return target

    async def compile(
        self, sandbox: Sandbox, environment: Path, interpreter: Installed, channels: Path
    ) -> None:
        """Add bytecode to an environment that is about to be used, unless it is for the first time.

        Most of it a run never imports: to compile all takes longer than one run without.
        """
        async with self._lock(environment.name):
            if await bytecode.of_environment(sandbox, environment, interpreter, channels):
                eviction.grown(environment)

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """A folder for as long as the context is open, which a kill leaves to `sweep`."""
        self._environments.mkdir(parents=True, exist_ok=True)
        folder = Path(
            tempfile.mkdtemp(
                prefix="lock-", suffix=f".partial-{os.getpid()}", dir=self._environments
            )
        )
        try:
            yield folder
        finally:
            source.remove(folder)

    def sweep(self) -> None:
        """Remove what a killed process left half made."""
        kept = (self._environments, self._projects, self._tools, *self._bytecode.glob("*"))
        for folder in kept:
            for path in folder.glob("*.partial-*"):
                if not _alive(path.name.rpartition("-")[2]):
                    source.remove(path) if path.is_dir() else path.unlink(missing_ok=True)

    async def uv_run(self, arguments: list[str], seconds: float = INSTALL_SECONDS) -> Ended:
        """Run uv outside the sandbox, with a network and an environment of our own.

        `OSError` when the disk is full.
        """
        self.uv_cache.mkdir(parents=True, exist_ok=True)
        ended = await process.run(
            [self.uv, *arguments, "--cache-dir", str(self.uv_cache), "--no-progress"],
            env={
                **index.environment(),
                "PATH": "/usr/bin:/bin",
                "HOME": str(self.uv_cache),
                "LANG": "C.UTF-8",
                "NO_COLOR": "1",
                "UV_NO_CONFIG": "1",
                "UV_PYTHON_DOWNLOADS": "never",
            },
            patience=Patience(seconds=seconds),
        )
        if not ended.good and b"(os error 28)" in ended.output:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.uv_cache))
        return ended

    async def _make(
        self, folder: Path, lock: str, interpreter: Installed, step: Callable[[str], None]
    ) -> None:
        step("environment")
        folder.parent.mkdir(parents=True, exist_ok=True)
        old = legacy.needed(interpreter)
        if old:
            async with self._lock("legacy"):
                await legacy.create(self.uv_run, self._tools, folder, interpreter)
        else:
            await self._create(folder, interpreter)
        for place in site_packages(folder):
            # A patch of distutils that prints a SyntaxError on 3.6 and 3.7, and is of no use to
            # an environment that nothing is installed into any more.
            for name in ("_virtualenv.py", "_virtualenv.pth"):
                (place / name).unlink(missing_ok=True)
        unpacked = folder.with_name(folder.name.replace(".partial-", ".unpacked.partial-"))
        into = ["--python", str(folder)]
        if old:
            into = [*legacy.target(interpreter), "--target", str(unpacked)]
        requirements = folder.with_name(folder.name.replace(".partial-", ".txt.partial-"))
        if lock:
            step("download")
            requirements.write_text(lock)
            try:
                ended = await self.uv_run(
                    [
                        *("pip", "install", *into, "--no-deps"),
                        *("--require-hashes", "--no-build", "--link-mode=copy", "--no-config"),
                        *("-r", str(requirements)),
                    ]
                )
            finally:
                requirements.unlink(missing_ok=True)
            if not ended.good:
                source.remove(unpacked)
                raise Broken(Reason.INSTALL, "its dependencies do not install", ended.output)
            if old:
                try:
                    await _placed(unpacked, folder)
                finally:
                    source.remove(unpacked)
        for place in site_packages(folder):
            (place / "_ponyswarm.pth").write_text(START_UP)
        settings = folder / "pyvenv.cfg"
        # Only scripts written above had to be relocatable: the rest is made at /env itself.
        kept = [line for line in settings.read_text().splitlines() if _is_kept(line)]
        settings.write_text("\n".join(kept) + "\n")
        await trio.to_thread.run_sync(_open_to_read, folder)

    async def _add_built(
        self,
        folder: Path,
        pin: Pin,
        sandbox: Sandbox,
        build_environment: Path,
        interpreter: Installed,
        channels: Path,
        hold: Hold,
    ) -> None:
        """Fetch a pinned sdist, build it as a project is built, and copy it into an environment."""
        called = f"{pin.name} {pin.version}, which is taken as an sdist,"
        if len(pin.hashes) != 1:
            raise Broken(
                Reason.INSTALL, f"{called} has {len(pin.hashes)} hashes in the lock, not 1"
            )
        with self.workplace() as place:
            try:
                sdist = await sdists.fetch(pin.name, pin.version, pin.hashes[0], place)
            except (LocalError, InfraError) as fault:
                raise Broken(Reason.INSTALL, f"{called} was not to be had: {fault}") from fault
            built = await self.project(
                sandbox,
                tree=sdist.tree,
                source_hash=bytes.fromhex(sdist.sha256),
                build_environment=build_environment,
                interpreter=interpreter,
                settings={},
                channels=channels,
                hold=hold,
                called=called,
            )
        await _placed(built, folder)

    async def _create(self, folder: Path, interpreter: Installed) -> None:
        words = ("venv", "--quiet", "--no-project", "--no-config", "--relocatable")
        ended = await self.uv_run([*words, "--python", interpreter.path, str(folder)])
        if not ended.good:
            detail = f"no environment for Python {interpreter.version}"
            raise Broken(Reason.INSTALL, detail, ended.output)

    async def _build(
        self,
        sandbox: Sandbox,
        tree: Path,
        build_environment: Path,
        settings: dict[str, str],
        channels: Path,
        folder: Path,
        interpreter: Installed,
        called: str,
    ) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        archive = folder.with_name(folder.name.replace(".partial-", ".tar.partial-"))
        box = (
            sandbox.with_read_only(build_environment, "/env")
            .with_read_only(tree, "/source")
            .with_read_only(self.uv, "/tools/uv")
            .with_environment(
                {
                    **settings,
                    "PATH": "/env/bin:/usr/bin:/bin",
                    "UV_CACHE_DIR": "/tmp/uv",  # noqa: S108
                    "UV_PYTHON_DOWNLOADS": "never",
                }
            )
        )
        script = legacy.BUILD if legacy.needed(interpreter) else BUILD
        confined = await box.export(
            ["/bin/sh", "-c", script, "sh", "compile" if bytecode.ahead(interpreter) else ""],
            archive,
            channels / "installed",
            BUILD_SECONDS,
            MAX_INSTALLED,
        )
        try:
            if confined.killed_for_memory:
                detail = f"building {called} took more memory than allowed"
                raise Broken(Reason.OUT_OF_MEMORY, detail, confined.ended.output)
            if not confined.ended.good:
                detail = f"{called} does not build"
                raise Broken(Reason.INSTALL, detail, confined.ended.output)
            try:
                await trio.to_thread.run_sync(_unpack_installed, archive, folder)
            except PeerError as fault:
                detail = f"what building {called} gave is refused: {fault}"
                raise Broken(Reason.INSTALL, detail) from fault
        finally:
            archive.unlink(missing_ok=True)

    def _lock(self, name: str) -> trio.Lock:
        return self._busy.setdefault(name, trio.Lock())


async def _placed(built: Path, environment: Path) -> None:
    try:
        await trio.to_thread.run_sync(sdists.place, built, environment)
    except PeerError as fault:
        raise Broken(Reason.INSTALL, f"what a dependency holds is refused: {fault}") from fault


def _unpack_installed(archive: Path, folder: Path) -> None:
    source.unpack(archive, folder, max_bytes=MAX_INSTALLED)
    _open_to_read(folder)


def _is_kept(line: str) -> bool:
    """Not how it was made, which names the node's own paths."""
    return line.split("=", 1)[0].strip() not in ("relocatable", "command", "virtualenv", "uv")


def _digest(*facts: str) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *facts]).encode()).hexdigest()[:40]


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial-{os.getpid()}")


def _complete(partial: Path, target: Path) -> None:
    try:
        partial.rename(target)
    except OSError as fault:
        # Another process of this home was quicker; its result is the same.
        if not target.exists():
            raise InfraError(
                f"{target.parent} cannot be written ({fault.strerror}): check who owns it"
            ) from fault


def _open_to_read(folder: Path) -> None:
    """Let the job's own id read everything, whatever the umask here."""
    for root, folders, files in os.walk(folder):
        for path in (Path(root), *(Path(root, name) for name in files)):
            if not path.is_symlink():
                mode = path.stat().st_mode
                wanted = mode | 0o444 | (0o111 if mode & 0o100 else 0)
                if wanted != mode:
                    path.chmod(wanted)
        folders[:] = [name for name in folders if not Path(root, name).is_symlink()]


def _alive(pid: str) -> bool:
    return pid.isdecimal() and int(pid) != os.getpid() and process.alive(int(pid))
