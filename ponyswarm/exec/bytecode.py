"""Bytecode, made before a run so that no run has to: it saves many of them a second.

It is made for what is used again: compiling all of an environment takes longer than one run
needs for the few modules that it imports.

Two rules keep it from carrying anything from one job to the next. It is compiled in a
throwaway sandbox in which neither a project nor a ``.pth`` file runs: only the interpreter
and, for test modules, the environment's own pytest, which rewrites their assertions. And
it is kept under all that went into it: environment, path, time and content. What a run
itself compiled is never kept. What does not compile is left to the run. Called by
`environment` (for all that it installs) and `executor` (for a project's tests).
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import trio

from ponyswarm.errors import InfraError, PeerError
from ponyswarm.exec import source
from ponyswarm.exec.interpreters import Installed
from ponyswarm.exec.sandbox import Sandbox

SECONDS = 120.0
MAX_BYTES = 1 << 30
MAX_FILES = 2_000
MANY_FILES = 2_000
# A run compiles this much itself as soon as a sandbox and pytest start; of what was there
# before, and so may come again, less is worth it.
WORTH_BYTES = 100_000
WORTH_AGAIN_BYTES = 20_000
TEST_FILES = ("test_*.py", "*_test.py", "conftest.py")
CONFIGURATION = (
    "pyproject.toml",
    "pytest.toml",
    "pytest.ini",
    ".pytest.ini",
    "tox.ini",
    "setup.cfg",
)
# With it pytest rewrites assertions in another way.
OTHER_REWRITING = "enable_assertion_pass_hook"
FAILED = ".none"
SEEN = ".seen"
# In an environment: empty once it was used, with a word in it once it has its bytecode.
USED = ".used"
PROGRAM = Path(__file__).parent / "reporter" / "_ponyswarm_bytecode.py"

# The interpreter alone compiles, without any site.
# Packages' own tests are not run, nor most of the hundreds of lexers that pytest brings.
LEFT_OUT = (
    "/tests?/|/pygments/(lexers|styles|formatters)/(?!__init__|_mapping|python|default|terminal)"
)
ENVIRONMENT = """\
PYTHONPYCACHEPREFIX=/project/pyc "$1" -S -m compileall -q -j "$3" -x "$4" \
    --invalidation-mode unchecked-hash /env/lib > /dev/null || true
cd /project/pyc/env && tar -c -f - lib > "$2"
"""
TESTS = """\
"$1" -E -S /tools/bytecode.py /wanted /project/src /project/out $2 && cd /project/out &&
tar -c -f - . > /channels/tests
"""


def site_packages(environment: Path) -> list[Path]:
    """Where the packages of an environment are, or of one that was built into a folder."""
    return [
        *environment.glob("lib/python*/site-packages"),
        *environment.glob("lib/pypy*/site-packages"),
        *environment.glob("site-packages"),
    ]


def ahead(interpreter: Installed) -> bool:
    """Whether this interpreter can compile to another place, by content: since 3.8."""
    return not interpreter.version.startswith(("2.", "3.6.", "3.7."))


async def of_environment(
    sandbox: Sandbox, folder: Path, interpreter: Installed, channels: Path
) -> bool:
    """Add bytecode to an environment when it is used for the second time; whether it was added.

    Others may be using it meanwhile: each file comes whole, by a rename.
    """
    used = folder / USED
    if not ahead(interpreter) or not used.exists():
        with suppress(OSError):
            used.touch()
        return False
    if used.stat().st_size:
        return False
    archive = folder.with_name(f"{folder.name}.pyc.partial-{os.getpid()}")
    compiled = folder.with_name(f"{folder.name}.bytecode.partial-{os.getpid()}")
    channel = channels / f"compiled-{folder.name[:16]}"
    inside = f"/channels/{channel.name}"
    # Starting workers costs more than a small environment takes.
    large = sum(1 for _ in folder.rglob("*.py")) > MANY_FILES
    workers = "0" if large else "1"
    command = ["/bin/sh", "-c", ENVIRONMENT, "sh", interpreter.path, inside, workers, LEFT_OUT]
    box = sandbox.with_read_only(folder, "/env")
    try:
        confined = await box.export(command, archive, channel, SECONDS, MAX_BYTES)
        if confined.ended.good:
            await trio.to_thread.run_sync(_place, archive, compiled, folder)
    except (PeerError, InfraError):
        pass
    finally:
        archive.unlink(missing_ok=True)
        source.remove(compiled)
    # What failed would fail again before every run.
    used.write_text("compiled")
    return True


def _place(archive: Path, compiled: Path, folder: Path) -> None:
    """Move each file to where Python looks: beside its source, in ``__pycache__``."""
    source.unpack(archive, compiled, max_bytes=MAX_BYTES)
    for path in (compiled / "lib").rglob("*.pyc"):
        place = folder / path.parent.relative_to(compiled)
        module = place / f"{path.name.partition('.')[0]}.py"
        if path.is_file() and not path.is_symlink() and module.is_file():
            (place / "__pycache__").mkdir(exist_ok=True)
            (place / "__pycache__").chmod(0o755)
            path.replace(place / "__pycache__" / path.name)


@dataclass(frozen=True, slots=True)
class Module:
    """A module of a source tree: its path there, its size, and what its bytecode is kept by."""

    path: str
    size: int
    key: str


class TestBytecode:
    """The kept bytecode of test modules, under one folder; shared by all runs."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._modules: dict[tuple[Path, tuple[str, ...]], tuple[Module, ...]] = {}

    async def gather(
        self,
        sandbox: Sandbox,
        *,
        tree: Path,
        command: Sequence[str],
        environment: Path,
        interpreter: Installed,
        channels: Path,
        into: Path,
        hold: Callable[[Path], None],
    ) -> None:
        """Fill ``into`` with bytecode for the tests that a pytest command is going to import.

        Compiles what is not there, when that is worth it. Does nothing where it cannot.
        """
        modules = await trio.to_thread.run_sync(self._found, tree, tuple(command))
        place = self._folder / environment.name
        hold(place)
        kept = _listed(place)
        missing = [module for module in modules if not _made(kept.get(module.key))]
        again = [module for module in missing if module.key in kept]
        if _size(missing) > WORTH_BYTES or _size(again) > WORTH_AGAIN_BYTES:
            with suppress(PeerError, InfraError, OSError):
                await self._compile(
                    sandbox, tree, missing, environment, interpreter, channels, place
                )
            kept = _listed(place)
        else:
            _see(missing, kept, place)
        with suppress(OSError):
            await trio.to_thread.run_sync(_link, modules, kept, place, into)

    def _found(self, tree: Path, command: tuple[str, ...]) -> tuple[Module, ...]:
        if (tree, command) not in self._modules:
            if len(self._modules) > 100:
                self._modules.clear()
            self._modules[tree, command] = tuple(modules(tree, command))
        return self._modules[tree, command]

    async def _compile(
        self,
        sandbox: Sandbox,
        tree: Path,
        missing: Sequence[Module],
        environment: Path,
        interpreter: Installed,
        channels: Path,
        place: Path,
    ) -> None:
        place.mkdir(parents=True, exist_ok=True)
        listing, archive = channels / "wanted", channels / "tests.tar"
        compiled = place / f"{id(listing)}.partial-{os.getpid()}"
        listing.write_text("".join(f"{module.path}\n" for module in missing), "utf-8")
        listing.chmod(0o644)
        packages = " ".join(
            f"/env/{folder.relative_to(environment)}" for folder in site_packages(environment)
        )
        box = (
            sandbox.with_read_only(environment, "/env")
            .with_read_only(tree, "/project/src")
            .with_read_only(PROGRAM, "/tools/bytecode.py")
            .with_read_only(listing, "/wanted")
        )
        command = ["/bin/sh", "-c", TESTS, "sh", interpreter.path, packages]
        try:
            confined = await box.export(command, archive, channels / "tests", SECONDS, MAX_BYTES)
            if confined.ended.good:
                await trio.to_thread.run_sync(_keep, archive, compiled, missing, place)
            else:
                # It would fail again before every run.
                for module in missing:
                    (place / f"{module.key}{FAILED}").touch()
        finally:
            source.remove(compiled)


def modules(tree: Path, command: Sequence[str]) -> Iterator[Module]:
    """The test modules of a source tree that a pytest command would import, and what is by them.

    That is below the paths that the command names, or else in each folder that holds tests.
    """
    if _rewritten_otherwise(tree, command):
        return
    count = 0
    for folder in _named(tree, command):
        for root, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            scripts = [name for name in sorted(files) if name.endswith(".py")]
            if not any(is_test(name) for name in scripts):
                continue
            for name in scripts:
                path = Path(root, name)
                if path.is_symlink() or not path.is_file():
                    continue
                count += 1
                if count > MAX_FILES:
                    return
                yield _module(tree, path)


def is_test(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in TEST_FILES)


def _module(tree: Path, path: Path) -> Module:
    data, facts = path.read_bytes(), path.stat()
    inside = path.relative_to(tree).as_posix()
    known = (inside, facts.st_mtime_ns, hashlib.sha256(data).hexdigest())
    key = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:40]
    return Module(inside, len(data), key)


def _named(tree: Path, command: Sequence[str]) -> list[Path]:
    """The folders and files that a command names, or the whole tree."""
    found: dict[Path, None] = {}
    for word in command[1:]:
        pure = PurePosixPath(word.partition("::")[0])
        if word.startswith("-") or pure.is_absolute() or ".." in pure.parts:
            continue
        path = tree / pure
        if path.is_dir() and not path.is_symlink():
            found[path] = None
        elif path.suffix == ".py" and path.is_file():
            found[path.parent] = None
    return [path for path in found if not any(p in found for p in path.parents)] or [tree]


def _rewritten_otherwise(tree: Path, command: Sequence[str]) -> bool:
    texts = [source.read_text(tree, name) or "" for name in CONFIGURATION]
    return any(OTHER_REWRITING in text for text in (*texts, *command))


def _size(modules: Iterable[Module]) -> int:
    return sum(module.size for module in modules)


def _listed(place: Path) -> dict[str, str]:
    """File names by key; of bytecode, where there is some."""
    try:
        names = sorted(os.listdir(place), key=_made)
    except OSError:
        return {}
    return {name.partition(".")[0]: name for name in names}


def _made(name: str | None) -> bool:
    return name is not None and not name.endswith(SEEN)


def _see(missing: Iterable[Module], kept: dict[str, str], place: Path) -> None:
    """Remember modules that came by, for the next time."""
    with suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        for module in missing:
            if module.key not in kept:
                (place / f"{module.key}{SEEN}").touch()


def _keep(archive: Path, compiled: Path, missing: Iterable[Module], place: Path) -> None:
    """Take from the sandbox what was asked for, by name, and nothing else."""
    source.unpack(archive, compiled, max_bytes=MAX_BYTES)
    within = compiled.resolve()
    for module in missing:
        path = PurePosixPath(module.path)
        folder = compiled / path.parent / "__pycache__"
        made = [
            one
            for one in folder.glob(f"{glob.escape(path.stem)}.*.pyc")
            if one.is_file() and one.resolve() == within / one.relative_to(compiled)
        ]
        if made:
            tail = made[0].name.removeprefix(path.stem)
            made[0].replace(place / f"{module.key}{tail}")
        else:
            (place / f"{module.key}{FAILED}").touch()


def _link(modules: Iterable[Module], kept: dict[str, str], place: Path, into: Path) -> None:
    """Lay kept files out as a tree; a copy where the cache is on another file system."""
    for module in modules:
        name = kept.get(module.key, SEEN)
        if name.endswith((FAILED, SEEN)):
            continue
        path = PurePosixPath(module.path)
        folder = into / path.parent / "__pycache__"
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{path.stem}{name.removeprefix(module.key)}"
        try:
            os.link(place / name, target)
        except OSError:
            shutil.copyfile(place / name, target)
            target.chmod(0o644)
