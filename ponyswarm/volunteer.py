"""This machine as a volunteer: what it offers, and how it serves one cell.

It picks the interpreter that satisfies a cell and the maintainer's lock for it; without
a lock for this platform, `exec.executor` resolves as of the announcement's own time.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ponyswarm.errors import InfraError
from ponyswarm.exec.executor import Executor
from ponyswarm.exec.interpreters import Installed
from ponyswarm.exec.outcome import Outcome, Progress
from ponyswarm.matrix import matches
from ponyswarm.messages import Interpreter, Lock
from ponyswarm.runs import Task

if TYPE_CHECKING:
    from ponyswarm.p2p.offers import Capacity


def system() -> str:
    """The operating system, as offers and locks name it: linux, darwin, windows."""
    return platform.system().lower()


def machine() -> str:
    """The architecture, as offers and locks name it: x86_64, aarch64."""
    return platform.machine().lower()


def capacity(installed: Sequence[Installed], slots: int, services: Sequence[str] = ()) -> Capacity:
    """What a machine with these interpreters and services (``name version``) offers."""
    from ponyswarm.p2p.offers import Capacity

    return Capacity(
        interpreters=tuple(
            Interpreter(
                implementation=found.implementation,
                version=found.version,
                free_threaded=found.free_threaded,
            )
            for found in installed
        ),
        services=tuple(services),
        system=system(),
        machine=machine(),
        slots=slots,
    )


def choose_interpreter(python: str, installed: Sequence[Installed]) -> Installed | None:
    """The interpreter for a cell: the latest that satisfies it."""
    fitting = [
        found
        for found in installed
        if matches(python, found.implementation, found.version, found.free_threaded)
    ]
    return max(fitting, key=lambda found: _numbers(found.version), default=None)


def minor_version(interpreter: Installed) -> str:
    """``3.12`` of ``3.12.1``, as `Installed.minor`."""
    return interpreter.minor


def choose_lock(
    locks: Sequence[Lock], interpreter: Installed, factors: tuple[tuple[str, str], ...]
) -> Lock | None:
    """The maintainer's lock for this interpreter, platform and choice of factors."""
    place = (interpreter.implementation, minor_version(interpreter), system(), machine())
    for lock in locks:
        if (lock.implementation, lock.python, lock.system, lock.machine) == place and (
            sorted(lock.factors) == sorted(factors)
        ):
            return lock
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


class Volunteer:
    """Runs tasks, each in a slot of its own."""

    def __init__(self, executor: Executor, installed: Sequence[Installed]) -> None:
        self._executor = executor
        self._installed = tuple(installed)
        self._busy: set[int] = set()

    async def execute(self, task: Task, watch: Callable[[Progress], None]) -> Outcome:
        """Run one task. `InfraError` when this machine cannot even start it."""
        interpreter = choose_interpreter(task.cell.python, self._installed)
        if interpreter is None:
            raise InfraError(f"no interpreter here satisfies {task.cell.python!r}")
        slot = next(number for number in range(len(self._busy) + 1) if number not in self._busy)
        self._busy.add(slot)
        try:
            return await self._executor.run(
                source=task.source,
                source_hash=task.announce.source,
                spec=task.announce.spec,
                cell=task.cell,
                interpreter=interpreter,
                lock=choose_lock(task.locks, interpreter, task.cell.factors),
                resolve_before=task.announce.resolve_before,
                slot=slot,
                progress=watch,
            )
        finally:
            self._busy.discard(slot)
