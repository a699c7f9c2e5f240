"""``ponyswarm run`` beside tox, tox-uv and nox: one suite over several Pythons, on one machine.

All of them get the same source, the same requirements and as many cells at once as there
are CPUs (nox runs one after the other). *Fresh* starts with neither environments nor caches,
each contender with its own; *repeated* is the median of three rounds in which every contender
runs once, in turn. Beside them runs plain pytest in ready environments, just as many at
once: what is above it is overhead. To add a contender, give `contenders` its command.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import trio

from bench.report import Row, main
from ponyswarm.exec import index, process, sandbox
from ponyswarm.exec.environment import uv_binary
from ponyswarm.exec.interpreters import Installed, discover
from ponyswarm.exec.process import Patience
from ponyswarm.exec.sandbox import Holds, Limits, Sandbox

MINORS = ("3.10", "3.11", "3.12", "3.13")
QUICK_MINORS = ("3.11", "3.12")
# --quick leaves out nox when the others took longer than this, and says so.
QUICK_SECONDS = 15.0
ROUNDS = 3
OURS, TOX, TOX_UV, NOX, NOX_UV = "ponyswarm run", "tox -p", "tox-uv -p", "nox", "nox with uv"
PLAIN = "plain pytest"
GOALS = {(TOX_UV, "fresh"): "<= 0.8x", (TOX, "repeated"): "<= 0.5x"}
SUITES = {"click": ("8.5.1", ["pytest"]), "itsdangerous": ("2.2.0", ["freezegun", "pytest"])}

TOX_INI = """\
[tox]
env_list = {envs}
[testenv]
deps =
{deps}
commands = pytest -q tests
"""
NOXFILE = """\
import nox

@nox.session(python={pythons!r})
def tests(session):
    session.install(".", *{deps!r})
    session.run("pytest", "-q", "tests")
"""
SPEC = """\
[tool.ponyswarm]
python = {pythons}
command = "pytest -q tests"
install = {deps}
"""


@dataclass(frozen=True)
class Contender:
    """A tool; ``again`` is its command where the first run's is another."""

    name: str
    command: list[str]
    again: list[str]
    environment: dict[str, str]


class Place:
    """The folders of a measurement, and who runs in them."""

    def __init__(self, root: Path, suite: str, pythons: Sequence[Installed]) -> None:
        self.root = root
        self.began = time.perf_counter()
        self.pythons = {".".join(one.version.split(".")[:2]): one for one in pythons}
        self.at_once = os.cpu_count() or 1
        self.version, self.needs = SUITES[suite]
        sdist = index.fetch_sdist(suite, self.version, None, root / "sdists")
        with tarfile.open(sdist) as tar:
            tar.extractall(root / "unpacked", filter="data")
        (self.tree,) = (root / "unpacked").iterdir()
        (self.tree / "tox.ini").unlink(missing_ok=True)
        self._write()
        for arguments in (["init", "-q"], ["add", "-A", "-f"]):
            subprocess.run(["git", *arguments], cwd=self.tree, check=True, capture_output=True)
        self.path = root / "bin"
        self.path.mkdir()
        for minor, one in self.pythons.items():
            (self.path / f"python{minor}").symlink_to(one.path)

    def _write(self) -> None:
        minors = list(self.pythons)
        deps = "\n".join(f"    {need}" for need in self.needs)
        envs = ",".join(f"py{minor.replace('.', '')}" for minor in minors)
        # tox and nox must not find the project's own settings, nor pytest other options.
        (self.tree / "tox.ini").write_text(TOX_INI.format(envs=envs, deps=deps))
        (self.tree / "noxfile.py").write_text(NOXFILE.format(pythons=minors, deps=self.needs))
        (self.root / "spec.toml").write_text(SPEC.format(pythons=minors, deps=self.needs))

    def tools(self, name: str, *packages: str) -> Path:
        """A virtualenv for a tool, made by uv."""
        folder = self.root / f"tools-{name}"
        if folder.exists():
            return folder / "bin"
        uv, quiet = uv_binary(), {**os.environ, **index.environment()}
        base = next(iter(self.pythons.values())).path
        for words in (
            ["venv", "-q", "--python", base, str(folder)],
            ["pip", "install", "-q", "--compile-bytecode", "--python", str(folder), *packages],
        ):
            subprocess.run([uv, *words], check=True, env=quiet, capture_output=True)
        return folder / "bin"

    def environment(self, name: str) -> dict[str, str]:
        """Caches of its own, the same index, Pythons found by PATH."""
        cache = self.root / f"cache-{name}"
        home = self.root / f"home-{name}"
        home.mkdir(exist_ok=True)
        ours = ("TOX", "NOX", "VIRTUAL", "PYTHON", "PIP", "UV", "PYTEST")
        keep = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        return {
            **keep,
            **index.environment(),
            "PIP_INDEX_URL": index.url(),
            "PATH": f"{self.path}:{Path(uv_binary()).parent}:/usr/bin:/bin",
            "HOME": str(home),
            "XDG_CACHE_HOME": str(cache),
            "XDG_DATA_HOME": str(cache / "data"),
            "PIP_CACHE_DIR": str(cache / "pip"),
            "UV_CACHE_DIR": str(cache / "uv"),
            "UV_LINK_MODE": "copy",
        }

    def contenders(self, quick: bool) -> Iterator[Contender]:
        """Each with its tool installed when its turn comes; those with a goal first."""
        at_once = str(self.at_once)
        ours = [
            *(sys.executable, "-m", "ponyswarm"),
            *("--home", str(self.root / "home"), "run", str(self.tree)),
            *("--spec", str(self.root / "spec.toml"), "-j", at_once),
        ]
        # Installed tools have their bytecode; so has ours, once it was imported.
        subprocess.run(
            [sys.executable, "-c", "import ponyswarm.cli.run"],
            env=self.environment("ponyswarm"),
            check=True,
        )
        yield Contender(OURS, ours, ours, self.environment("ponyswarm"))
        for name, packages in ((TOX_UV, ("tox", "tox-uv")), (TOX, ("tox",))):
            tox = str(self.tools(name, *packages) / "tox")
            command = [tox, "-q", "-p", at_once, "--workdir", str(self.root / name)]
            yield Contender(name, command, command, self.environment(name))
        for name in (NOX, NOX_UV):
            if quick and self.late():
                print(f"{name} is left out: no time for it in a quick run")
                continue
            nox = str(self.tools("nox", "nox") / "nox")
            backend = "uv" if name is NOX_UV else "virtualenv"
            session = [nox, "--envdir", str(self.root / name), "-db", backend]
            # -R keeps environments and installs nothing again, not even the project.
            yield Contender(name, session, [*session, "-R"], self.environment(name))

    def late(self) -> bool:
        return time.perf_counter() - self.began > QUICK_SECONDS

    def run(self, command: list[str], environment: dict[str, str]) -> float:
        began = time.perf_counter()
        done = subprocess.run(
            command, cwd=self.tree, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return time.perf_counter() - began

    def plain(self) -> float:
        """pytest alone, in tox's ready environments, as many at once."""
        names = [f"py{minor.replace('.', '')}" for minor in self.pythons]
        environment = self.environment("plain")
        began = time.perf_counter()
        with ThreadPoolExecutor(self.at_once) as pool:
            commands = [
                [
                    str(self.root / TOX / n / "bin" / "pytest"),
                    "-q",
                    "-p",
                    "no:cacheprovider",
                    "tests",
                ]
                for n in names
            ]
            list(pool.map(lambda command: self.run(command, environment), commands))
        return time.perf_counter() - began


def sandbox_cost(rounds: int) -> tuple[float, float]:
    """Seconds for /bin/true in a sandbox, and without one."""

    async def measure() -> tuple[float, float]:
        holds = await sandbox.probe()
        if not isinstance(holds, Holds):
            raise RuntimeError(holds.why)  # noqa: TRY004
        box = Sandbox(holds=holds, limits=Limits(), name="bench").with_scratch("/project", 1 << 20)
        patience = Patience(seconds=20)
        inside, outside = [], []
        for _ in range(rounds):
            began = time.perf_counter()
            await box.run(["/bin/true"], patience=patience)
            inside.append(time.perf_counter() - began)
            began = time.perf_counter()
            await process.run(["/bin/true"], env={}, patience=patience)
            outside.append(time.perf_counter() - began)
        return statistics.median(inside), statistics.median(outside)

    return trio.run(measure)


def measure(quick: bool) -> list[Row]:
    minors = QUICK_MINORS if quick else MINORS
    every = [one for one in discover() if one.implementation == "cpython" and not one.free_threaded]
    pythons = []
    for minor in minors:
        pythons += [one for one in every if one.version.startswith(f"{minor}.")][:1]
    if not pythons:
        raise SystemExit("none of the Pythons that this benchmark uses is here")
    rows = []
    for suite in ("itsdangerous",) if quick else SUITES:
        with tempfile.TemporaryDirectory(prefix="ponyswarm-bench-") as folder:
            place = Place(Path(folder).resolve(), suite, pythons)
            fresh: dict[str, float] = {}
            taken: list[Contender] = []
            for one in place.contenders(quick):
                fresh[one.name] = place.run(one.command, one.environment)
                taken.append(one)
            repeated = _repeated(place, taken)
        rows += _rows(f"{suite} x {len(pythons)}", len(pythons), fresh, repeated)
    inside, outside = sandbox_cost(20)
    rows.append(Row("a process in the sandbox, ms", inside * 1000, "one outside", outside * 1000))
    return rows


def _repeated(place: Place, taken: list[Contender]) -> dict[str, float]:
    """Each contender once a round, in turn, so that a noisy minute hits them alike."""
    runs: dict[str, Callable[[], float]] = {
        one.name: (lambda one=one: place.run(one.again, one.environment))  # type: ignore[misc]
        for one in taken
    }
    runs[PLAIN] = place.plain
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(run())
    return {name: statistics.median(found) for name, found in times.items()}


def _rows(
    what: str, cells: int, fresh: dict[str, float], repeated: dict[str, float]
) -> Iterator[Row]:
    for state, times in (("fresh", fresh), ("repeated", repeated)):
        for name, seconds in times.items():
            if name != OURS:
                goal = GOALS.get((name, state), "")
                yield Row(f"{what}, {state}, s", times[OURS], name, seconds, goal)
    over = (repeated[OURS] - repeated[PLAIN]) / cells * 1000
    yield Row(f"{what}: overhead over {PLAIN}, ms a cell", over, goal="<= 150")


if __name__ == "__main__":
    main("run_overhead", __doc__.splitlines()[0], measure)
