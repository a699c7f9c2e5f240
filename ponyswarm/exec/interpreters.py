"""Interpreters on this machine: found wherever tools put them, asked once what they are.

Candidates come from findpython (PATH, pyenv, asdf, rye, uv, the Windows registry, macOS
frameworks), from mise, and from the owner. A candidate that is a link, a shim or a
virtualenv counts as the real executable behind it. Each real executable is run once,
isolated, to say what it is; what cannot be used is kept with the reason. What satisfies
a cell is `ponyswarm.matrix.matches`'s affair.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from ponyswarm.errors import LocalError
from ponyswarm.matrix import IMPLEMENTATIONS

PROBE_SECONDS = 15
PROBES_AT_ONCE = 8
# Environments are made by virtualenvs that know nothing older, and nothing in between.
OLDEST = Version("2.7")
NEITHER = SpecifierSet(">=3,<3.6")

# (variable, usual place, folder below) of the tools that keep Pythons, for `_watched`.
TOOL_FOLDERS = (
    ("PYENV_ROOT", "~/.pyenv", "versions"),
    ("ASDF_DATA_DIR", "~/.asdf", "installs/python"),
    ("MISE_DATA_DIR", "~/.local/share/mise", "installs/python"),
    ("RYE_PY_ROOT", "~/.rye/py", ""),
    ("UV_PYTHON_INSTALL_DIR", "~/.local/share/uv/python", ""),
    ("XDG_DATA_HOME", "~/.local/share", "uv/python"),
)

# Runs under any Python from 2.7 on, isolated, and imports next to nothing: there may be twenty of
# them to ask (json would double the time). ``base`` is the executable behind a virtualenv.
_PROBE = """\
import os, sys
name = getattr(getattr(sys, "implementation", None), "name", "")
if not name:
    import platform
    name = platform.python_implementation().lower()
free = not getattr(sys, "_is_gil_enabled", lambda: True)() or "free-threading" in sys.version
base = getattr(sys, "_base_executable", None) or sys.executable
home = getattr(sys, "base_prefix", sys.prefix)
if home != sys.prefix and not os.path.exists(base):
    base = sys.executable
facts = {
    "implementation": name,
    "version": sys.version.split()[0],
    "prefix": home,
    "executable": base,
    "free_threaded": free,
    "debug": hasattr(sys, "gettotalrefcount"),
    "build": " ".join(sys.version.split()),
}
if bytes is str:
    ascii = repr
    for key, value in facts.items():
        facts[key] = value.decode("utf-8", "replace") if isinstance(value, str) else value
print(ascii(facts))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """One interpreter of this machine.

    ``path`` is the real executable (symlinks and shims resolved), ``prefix`` its
    ``sys.base_prefix``; ``implementation`` is ``cpython``, ``pypy`` or ``graalpy``;
    ``version`` the full language version, such as ``3.12.1``; ``build`` is
    ``sys.version`` on one line.
    """

    path: str
    prefix: str
    implementation: str
    version: str
    free_threaded: bool = False
    build: str = ""

    @property
    def name(self) -> str:
        """``cpython-3.13.0t``: a name that no other interpreter of a machine has."""
        return f"{self.implementation}-{self.version}{'t' if self.free_threaded else ''}"

    @property
    def minor(self) -> str:
        """``3.13`` of 3.13.0, ``3.13t`` of its free-threaded build: what wheels are made for."""
        return ".".join(self.version.split(".")[:2]) + ("t" if self.free_threaded else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A candidate that cannot be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a search found, best first, and what it passed over."""

    found: tuple[Installed, ...]
    skipped: tuple[Skipped, ...] = ()


def probe(path: Path) -> Installed:
    """Run one interpreter to learn what it is. Raises `LocalError` when it cannot be used."""
    return _ask(path)[0]


def discover(extra: Iterable[Path] = ()) -> list[Installed]:
    """The usable interpreters of this machine, best first, one of each kind."""
    return list(survey(extra).found)


def survey(extra: Iterable[Path] = (), *, search: bool = True, known: Path | None = None) -> Survey:
    """Probe ``extra`` and, if ``search``, all that this machine's tools know.

    ``known`` is a file that keeps the answers: folders that did not change since are not
    searched again, and executables that did not are not asked.

    There is one result for each implementation, full version and ABI kind; of several,
    the owner's comes first, then a tool's own build, then the system's, a debug build last.
    """
    named = list(extra)
    kept = _Kept.read(known)
    watched, candidates = kept.watched, kept.candidates
    if search and (sys.platform != "linux" or watched != (watched := _watched())):
        candidates = [str(path) for path in _candidates()]
    real: dict[Path, Path] = {}
    for path in chain(named, map(Path, candidates) if search else ()):
        real.setdefault(_resolve(path), path)
    best: dict[tuple[str, str, bool], tuple[tuple[bool, bool, int], Installed]] = {}
    skipped: list[Skipped] = []
    answers = _answers(list(real), kept.answers)
    now = _Kept(watched, candidates, _sound(real, answers))
    if known is not None and now != kept:
        now.write(known)
    for place, ((target, path), answer) in enumerate(zip(real.items(), answers, strict=True)):
        if isinstance(answer, LocalError):
            skipped.append(Skipped(path=str(path), reason=str(answer)))
            continue
        installed, debug = answer
        rank = (path not in named, debug or _is_system(target), place)
        kind = (installed.implementation, installed.version, installed.free_threaded)
        if kind not in best or rank < best[kind][0]:
            best[kind] = (rank, installed)
    found = sorted((installed for _, installed in best.values()), key=lambda i: Version(i.version))
    found.reverse()
    found.sort(key=lambda i: (IMPLEMENTATIONS.index(i.implementation), i.free_threaded))
    return Survey(found=tuple(found), skipped=tuple(skipped))


@dataclass(frozen=True, slots=True)
class _Kept:
    """What an earlier survey left in a file, so that the next need not ask.

    ``watched`` are folders with their times, ``candidates`` what was found in them, and
    ``answers`` each executable's stamp, facts, and whether it is a debug build.
    """

    watched: list[list[object]]
    candidates: list[str]
    answers: dict[str, list[object]]

    @classmethod
    def read(cls, known: Path | None) -> _Kept:
        if known is not None:
            with suppress(OSError, ValueError, TypeError, KeyError):
                data = json.loads(known.read_text("utf-8"))
                return cls(data["watched"], list(data["candidates"]), dict(data["answers"]))
        return cls([], [], {})

    def write(self, known: Path) -> None:
        with suppress(OSError):
            known.parent.mkdir(parents=True, exist_ok=True)
            partial = known.with_name(f"{known.name}.{os.getpid()}")
            partial.write_text(json.dumps(asdict(self)), "utf-8")
            partial.replace(known)


def _answers(
    paths: list[Path], kept: dict[str, list[object]]
) -> list[tuple[Installed, bool] | LocalError]:
    """What each executable is; those that did not change since are not asked again."""
    found: dict[Path, tuple[Installed, bool] | LocalError] = {}
    for path in paths:
        with suppress(KeyError, ValueError, TypeError):
            was, facts, debug = kept[str(path)]
            if was == _stamp(path) and isinstance(facts, dict):
                found[path] = (Installed(**facts), bool(debug))
    asked = [path for path in paths if path not in found]
    if asked:
        with ThreadPoolExecutor(PROBES_AT_ONCE) as pool:
            found.update(zip(asked, pool.map(_try, asked), strict=True))
    return [found[path] for path in paths]


def _sound(
    paths: Iterable[Path], answers: Iterable[tuple[Installed, bool] | LocalError]
) -> dict[str, list[object]]:
    """The answers to keep: only the good ones."""
    return {
        str(path): [_stamp(path), asdict(answer[0]), answer[1]]
        for path, answer in zip(paths, answers, strict=True)
        if not isinstance(answer, LocalError)
    }


def _watched() -> list[list[object]]:
    """The folders in which candidates come and go, each with its time of change."""
    folders = [name for name in os.environ.get("PATH", "").split(os.pathsep) if name]
    for variable, usual, below in TOOL_FOLDERS:
        folders.append(os.path.join(os.environ.get(variable) or os.path.expanduser(usual), below))
    watched: list[list[object]] = []
    for folder in folders:
        try:
            watched.append([folder, os.stat(folder).st_mtime_ns])
        except OSError:
            watched.append([folder, 0])
    return watched


def _stamp(path: Path) -> list[int]:
    try:
        facts = path.stat()
    except OSError:
        return []
    return [facts.st_mtime_ns, facts.st_size, facts.st_ino]


def _candidates() -> Iterator[Path]:
    # findpython would run each candidate several times to rank it; only its places count here.
    from findpython.providers import ALL_PROVIDERS

    names = sorted(ALL_PROVIDERS, key=lambda name: name == "path")  # A tool's own folders first.
    for name in names:
        provider = ALL_PROVIDERS[name].create()
        for version in provider.find_pythons() if provider else ():
            path: Path = version.executable
            if not _is_shim(path):
                yield path
    mise = os.environ.get("MISE_DATA_DIR") or os.path.expanduser("~/.local/share/mise")
    yield from Path(mise, "installs", "python").glob("*/bin/python3")
    yield Path(getattr(sys, "_base_executable", None) or sys.executable)


def _is_shim(path: Path) -> bool:
    """pyenv's, asdf's and mise's shims are scripts that stand for what those tools hold."""
    if path.parent.name != "shims":
        return False
    try:
        with path.open("rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return True


def _is_system(path: Path) -> bool:
    # Distributions take parts out of theirs (ensurepip, distutils), a tool's build is whole.
    return path.is_relative_to("/usr") and not path.is_relative_to("/usr/local")


def _resolve(path: Path) -> Path:
    try:
        return path.expanduser().resolve()
    except (OSError, RuntimeError):  # A loop of links, or no such user.
        return path.absolute()


def _try(path: Path) -> tuple[Installed, bool] | LocalError:
    try:
        return _ask(path)
    except LocalError as fault:
        return fault


def _run(path: Path, *isolated: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [path, *isolated, "-S", "-c", _PROBE],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PROBE_SECONDS,
        check=False,
    )


def _ask(path: Path) -> tuple[Installed, bool]:
    """(the interpreter, whether it is a debug build)."""
    path = _resolve(path)
    try:
        done = _run(path, "-I")
        if b"Unknown option: -I" in done.stderr:
            done = _run(path, "-E", "-s")
    except subprocess.TimeoutExpired as fault:
        raise LocalError(f"{path} did not answer within {PROBE_SECONDS} seconds") from fault
    except (OSError, ValueError) as fault:
        raise LocalError(f"{path} cannot be run: {getattr(fault, 'strerror', fault)}") from fault
    try:
        facts = ast.literal_eval(done.stdout.decode("ascii").strip())
        version = Version(facts["version"].rstrip("+"))  # "+": built from between two releases.
        executable = _resolve(Path(facts["executable"]))
        installed = Installed(
            path=str(executable),
            prefix=facts["prefix"],
            implementation=facts["implementation"],
            version=str(version),
            free_threaded=facts["free_threaded"],
            build=facts["build"],
        )
        debug = bool(facts["debug"])
    except (ValueError, SyntaxError, TypeError, KeyError, InvalidVersion) as fault:
        complaint = done.stderr.decode("utf-8", "replace").strip().splitlines()
        said = f": {complaint[-1][:200]}" if complaint else ""
        raise LocalError(
            f"{path} is not a Python that works (exit code {done.returncode}){said}"
        ) from fault
    if version < OLDEST or version in NEITHER:
        raise LocalError(f"{path} is Python {version}: jobs run on {OLDEST}, and from 3.6 on")
    if installed.implementation not in IMPLEMENTATIONS:
        raise LocalError(f"{path} is {installed.implementation}, which no job can ask for")
    return installed, debug
