"""A matrix on this machine, without a network of peers: what ``ponyswarm run`` does.

The maintainer's quick loop. Each cell goes through the very code that runs it on a
volunteer's node (`Volunteer.execute`), several at once; only what comes before differs:
the source may be a working tree with changes that are not committed, and the locks are
kept for a day, so that the second run of a matrix asks no index and starts at once.
Called by ``cli.run``.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from ponyswarm import matrix
from ponyswarm.codec import cell_id, decode_locks, encode_locks, outcome_digest
from ponyswarm.errors import InfraError, LocalError, PeerError, PonySwarmError
from ponyswarm.exec import index, resolve, source
from ponyswarm.exec.executor import Executor
from ponyswarm.exec.interpreters import Installed
from ponyswarm.exec.outcome import Outcome, Progress
from ponyswarm.messages import BAD_STATUSES, Announce, Cell, Lock, Reason, Spec
from ponyswarm.runs import Execute, Task, describe_cell
from ponyswarm.spec import from_pyproject
from ponyswarm.volunteer import choose_interpreter, machine, system

LOCK_SECONDS = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A source that is here, unpacked, with its spec."""

    archive: Path
    digest: bytes
    tree: Path
    title: str
    spec: Spec
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A cell of the matrix and the interpreter for it; None where this machine has none."""

    cell: Cell
    interpreter: Installed | None

    @property
    def name(self) -> str:
        return describe_cell(self.cell)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A cell that was run. ``steps`` are (name, seconds), in order; a step may come twice."""

    place: Place
    outcome: Outcome
    steps: tuple[tuple[str, float], ...]

    @property
    def bad(self) -> bool:
        return any(test.status in BAD_STATUSES for test in self.outcome.tests)

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.steps)

    @property
    def seconds_of(self) -> dict[str, float]:
        """Where the time went: the seconds of each step by its name."""
        total: dict[str, float] = {}
        for name, seconds in self.steps:
            total[name] = total.get(name, 0.0) + seconds
        return total


# --- the source --------------------------------------------------------------------------


async def pack(path: Path) -> source.WorkingTree:
    """Take up a git working tree as it is now, or an sdist. `LocalError` when it is neither."""
    if not path.is_dir():
        return source.WorkingTree(path.read_bytes(), ())
    if not (path / ".git").exists():
        raise LocalError(
            f"{path} is no git checkout: name the top folder of one, or an sdist (.tar.gz); "
            "'git init' and 'git add' make one of a folder"
        )
    return await trio.to_thread.run_sync(source.pack_working_tree, path)


async def prepare(
    executor: Executor,
    path: Path,
    packed: source.WorkingTree,
    spec_file: Path | None,
    folder: Path,
    arguments: Sequence[str] = (),
) -> Job:
    """What is to be run of a source that was packed. ``folder`` is for its archive.

    ``arguments`` are added to the tests' command. Raises `LocalError` when it has no spec.
    """
    archive = folder / ("source.tar.gz" if path.is_dir() else path.name)
    archive.write_bytes(packed.data)
    digest = hashlib.sha256(packed.data).digest()
    try:
        tree = await executor.tree(archive, digest)
    except PonySwarmError as fault:
        raise LocalError(
            f"{path} is not a source that can be used ({fault}): name a git checkout or an sdist"
        ) from fault
    if spec_file is not None:
        spec = from_pyproject(spec_file.read_text("utf-8"), spec_file.name)
    else:
        text = source.read_text(tree, "pyproject.toml")
        if text is None:
            raise LocalError(
                f"{path} has no pyproject.toml: 'ponyswarm init-project' proposes a "
                "[tool.ponyswarm] table for one; or name a file that has it by --spec"
            )
        spec = from_pyproject(text)
    if arguments:
        spec = replace(spec, command=(*spec.command, *arguments))
    called = source.named(tree)
    title = " ".join(part for part in (called.name or path.resolve().stem, called.version) if part)
    return Job(
        archive=archive,
        digest=digest,
        tree=tree,
        title=title,
        spec=spec,
        left_out=packed.left_out,
    )


# --- which cells -------------------------------------------------------------------------


def places(
    spec: Spec,
    installed: Sequence[Installed],
    *,
    pythons: Sequence[str] = (),
    wanted: Sequence[str] = (),
) -> tuple[Place, ...]:
    """The cells to run: of the whole matrix, or of other Pythons, or those that match.

    Each text of ``wanted`` is words of a cell's name, each of which may hold ``*``; a cell
    is wanted when all the words of one text are in its name. `LocalError` when none is.
    """
    for python in pythons:
        matrix.requirement(python)
    chosen = replace(spec, python=tuple(pythons)) if pythons else spec
    try:
        cells = matrix.cells(chosen)
    except PeerError as fault:
        raise LocalError(f"the matrix cannot be run: {fault.detail}") from fault
    found = [cell for cell in cells if not wanted or any(_means(text, cell) for text in wanted)]
    if not found:
        names = ", ".join(describe_cell(cell) for cell in cells[:20])
        raise LocalError(f"no cell is called {' or '.join(wanted)}: there are {names}")
    return tuple(
        Place(cell=cell, interpreter=choose_interpreter(cell.python, installed)) for cell in found
    )


def _means(text: str, cell: Cell) -> bool:
    names = describe_cell(cell).split()
    return all(any(fnmatch.fnmatchcase(name, word) for name in names) for word in text.split())


# --- locks -------------------------------------------------------------------------------


class Locks:
    """Locks that were made here, kept for a day under what went into them."""

    def __init__(self, folder: Path, executor: Executor, *, fresh: bool = False) -> None:
        self._folder = folder
        self._executor = executor
        self._oldest = math.inf if fresh else time.time() - LOCK_SECONDS
        self._made: set[Path] = set()
        self._busy: dict[Path, trio.Lock] = {}

    async def lock(self, job: Job, cell: Cell, interpreter: Installed) -> Lock:
        """The lock of a cell. Raises what resolving raises."""
        path = self._folder / self._name(job, cell, interpreter)
        async with self._busy.setdefault(path, trio.Lock()):
            with contextlib.suppress(OSError, PonySwarmError):
                if path in self._made or path.stat().st_mtime >= self._oldest:
                    return replace(decode_locks(path.read_bytes())[0], factors=cell.factors)
            made = await self._executor.lock(
                tree=job.tree,
                spec=job.spec,
                cell=cell,
                interpreter=interpreter,
                resolve_before=int(time.time() * 1000),
            )
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}")
            partial.write_bytes(encode_locks([made]))
            partial.replace(path)
            self._made.add(path)
            self._forget()
            return made

    def _forget(self) -> None:
        """Remove locks that are too old to be used again."""
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - LOCK_SECONDS:
                    path.unlink()

    def _name(self, job: Job, cell: Cell, interpreter: Installed) -> str:
        facts = (
            source.named(job.tree).name,
            matrix.requirements(job.spec, cell),
            resolve.project_requirements(job.tree, job.spec),
            resolve.build_requirements(job.tree) if job.spec.install.project else (),
            sorted(matrix.source_pins(job.spec).items()),
            (interpreter.path, interpreter.name, interpreter.build, system(), machine()),
            {name: os.environ.get(name, "") for name in index.CHOOSING},
        )
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:40]


# --- running -----------------------------------------------------------------------------


@dataclass(slots=True)
class Watched:
    """A cell under way, for those who watch."""

    place: Place
    began: float
    progress: Progress = field(default_factory=lambda: Progress(step="resolve"))
    steps: list[tuple[str, float]] = field(default_factory=list)
    _since: float = 0.0

    def notice(self, progress: Progress) -> None:
        now = trio.current_time()
        if progress.step != self.progress.step:
            self.steps.append((self.progress.step, now - (self._since or self.began)))
            self._since = now
        self.progress = progress

    def finished(self, outcome: Outcome) -> Ended:
        now = trio.current_time()
        self.steps.append((self.progress.step, now - (self._since or self.began)))
        return Ended(place=self.place, outcome=outcome, steps=tuple(self.steps))


async def run(
    job: Job,
    todo: Iterable[Place],
    execute: Execute,
    locks: Locks,
    *,
    at_once: int,
    began: Callable[[Watched], None],
    ended: Callable[[Ended], None],
) -> None:
    """Run these cells, at most so many at once; ``ended`` is told of each as it is done.

    When it is cancelled everything that runs is torn down first.
    """
    limit = trio.CapacityLimiter(at_once)
    announce = Announce(
        title=job.title[:500],
        source=job.digest,
        source_size=job.archive.stat().st_size,
        source_name=job.archive.name[:100],
        spec=job.spec,
        resolve_before=int(time.time() * 1000),
        expires=int(time.time() * 1000),
    )

    async def one(place: Place, interpreter: Installed) -> None:
        async with limit:
            watched = Watched(place, trio.current_time())
            began(watched)
            try:
                lock = await locks.lock(job, place.cell, interpreter)
            except PonySwarmError as fault:
                ended(watched.finished(_unresolved(fault)))
                return
            task = Task(
                job=bytes(32),
                cell_id=cell_id(bytes(32), place.cell),
                cell=place.cell,
                announce=announce,
                source=job.archive,
                locks=(lock,),
            )
            try:
                outcome = await execute(task, watched.notice)
            except InfraError as fault:
                outcome = Outcome(state="broken", reason=Reason.SANDBOX, detail=str(fault)[:500])
            ended(watched.finished(outcome))

    async with trio.open_nursery() as nursery:
        for place in todo:
            if place.interpreter is not None:
                nursery.start_soon(one, place, place.interpreter)


def digest(outcome: Outcome) -> bytes:
    """What two runs share exactly when they gave the same outcome."""
    tests = [(test.id, test.status) for test in outcome.tests]
    return outcome_digest(outcome.state, outcome.reason, tests)


def _unresolved(fault: PonySwarmError) -> Outcome:
    reason = Reason.SOURCE if isinstance(fault, PeerError) else Reason.INSTALL
    return Outcome(state="broken", reason=reason, detail=str(fault)[:500], log=str(fault).encode())
