"""Control groups: the only thing that bounds the memory and the processes of a whole tree.

They also say how much a run weighs against the owner's own programs where both want the CPU;
that is a courtesy and no promise, so it is left out where it cannot be had.

Version 2 where a group with the memory and pids controllers is delegated to us,
version 1 where those hierarchies are writable (usually: as root), or nothing, and the
sandbox falls back to limits per process. A group is made for a run, joined by a shell
before it becomes bubblewrap, and removed after; `sweep` removes what a killed node left.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

PREFIX = "ponyswarm-"
SWEEP_SECONDS = 5.0
ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Groups:
    """Where groups may be made: one parent (version 2), or one each for memory, pids and cpu.

    ``cpu`` is None where no weight can be set.
    """

    version: int
    memory: Path
    pids: Path
    cpu: Path | None = None

    @property
    def parents(self) -> tuple[Path, ...]:
        return _distinct(self)


@dataclass(frozen=True, slots=True)
class Group:
    """The group of one run."""

    version: int
    memory: Path
    pids: Path
    cpu: Path | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        return _distinct(self)

    @property
    def joins(self) -> tuple[str, ...]:
        """The files into which a process writes 0 to join."""
        return tuple(str(folder / "cgroup.procs") for folder in self.folders)

    def killed_for_memory(self) -> int:
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return _counter(self.memory / name, "oom_kill")

    def refused_processes(self) -> int:
        return _counter(self.pids / "pids.events", "max")

    def kill(self) -> None:
        with suppress(OSError):
            (self.memory / "cgroup.kill").write_text("1")
        for folder in self.folders:
            for process in _processes(folder):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)

    async def remove(self) -> None:
        """Kill what is left and remove; the kernel may need a moment."""
        for tries in range(200):
            if _removed(self.folders):
                return
            self.kill()
            await trio.sleep(0.02 if tries > 5 else 0.002)


def find(root: Path = ROOT, own: str | None = None) -> Groups | None:
    """Where this process may make groups; tried, not guessed."""
    try:
        own = Path("/proc/self/cgroup").read_text() if own is None else own
    except OSError:
        return None
    places = dict(_hierarchies(own))
    if "" in places:
        found = _version_2(root, places[""])
        if found is not None:
            return found
    if "memory" in places and "pids" in places:
        memory = _writable(root / "memory", places["memory"])
        pids = _writable(root / "pids", places["pids"])
        if memory is not None and pids is not None:
            return Groups(1, memory, pids, _writable(root / "cpu", places.get("cpu", "/")))
    return None


def make(
    groups: Groups, name: str, *, memory_bytes: int, processes: int, cpu_weight: int = 100
) -> Group:
    """A new group with its limits set; `OSError` when the kernel refuses.

    ``cpu_weight`` is from 1 to 10,000; a program that nobody weighed has 100.
    """
    memory, pids = groups.memory / (PREFIX + name), groups.pids / (PREFIX + name)
    cpu = None if groups.cpu is None else groups.cpu / (PREFIX + name)
    group = Group(groups.version, memory, pids, cpu)
    try:
        for folder in group.folders:
            folder.mkdir()
        if group.version == 2:
            (memory / "memory.max").write_text(str(memory_bytes))
            with suppress(OSError):
                (memory / "memory.swap.max").write_text("0")
            with suppress(OSError):
                (memory / "memory.oom.group").write_text("0")
        else:
            (memory / "memory.limit_in_bytes").write_text(str(memory_bytes))
            with suppress(OSError):
                (memory / "memory.memsw.limit_in_bytes").write_text(str(memory_bytes))
        (pids / "pids.max").write_text(str(processes))
        if cpu is not None:
            with suppress(OSError):
                _weigh(cpu, groups.version, cpu_weight)
    except OSError:
        _removed(group.folders)
        raise
    return group


def _weigh(folder: Path, version: int, weight: int) -> None:
    if version == 2:
        (folder / "cpu.weight").write_text(str(weight))
    else:
        (folder / "cpu.shares").write_text(str(max(2, weight * 1024 // 100)))


def _distinct(groups: Groups | Group) -> tuple[Path, ...]:
    folders = (groups.memory, groups.pids, groups.cpu)
    return tuple(dict.fromkeys(folder for folder in folders if folder is not None))


def sweep(groups: Groups, mark: str) -> None:
    """Remove groups whose name starts with ``mark``: leftovers of a killed node.

    Waits for what dies in them, at most `SWEEP_SECONDS`: a group can go only after it.
    """
    deadline = time.monotonic() + SWEEP_SECONDS
    for parent in groups.parents:
        for folder in parent.glob(PREFIX + mark + "*"):
            while not _removed((folder,)) and time.monotonic() < deadline:
                Group(groups.version, folder, folder).kill()
                time.sleep(0.01)


def _hierarchies(own: str) -> Iterator[tuple[str, str]]:
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _version_2(root: Path, path: str) -> Groups | None:
    own = root / path.lstrip("/")
    for folder in (own, *own.parents):
        if not folder.is_relative_to(root):
            break
        enabled = _words(folder / "cgroup.subtree_control")
        if {"memory", "pids"} <= enabled and _can_move_into(folder):
            return Groups(2, folder, folder, folder if "cpu" in enabled else None)
    # Our own group, delegated to us alone (a systemd unit with Delegate=yes): step down
    # into a leaf, for a group with processes of its own may not have limited children.
    if {"memory", "pids"} <= _words(own / "cgroup.controllers") and os.access(own, os.W_OK):
        if set(_processes(own)) != {os.getpid()} or own == root:
            return None
        try:
            leaf = own / (PREFIX + "node")
            leaf.mkdir(exist_ok=True)
            (leaf / "cgroup.procs").write_text("0")
            (own / "cgroup.subtree_control").write_text("+memory +pids")
        except OSError:
            return None
        with suppress(OSError):
            (own / "cgroup.subtree_control").write_text("+cpu")
            return Groups(2, own, own, own)
        return Groups(2, own, own)
    return None


def _can_move_into(folder: Path) -> bool:
    """Whether a child of ours could join a group made here: tried with a real child."""
    trial = folder / f"{PREFIX}trial-{os.getpid()}"
    try:
        trial.mkdir()
    except OSError:
        return False
    try:
        # Access to the common ancestor decides; opening for writing is not enough.
        child = os.posix_spawn("/bin/sh", ["sh", "-c", f"echo 0 > {trial}/cgroup.procs"], {})
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    except OSError:
        return False
    finally:
        _removed((trial,))


def _writable(hierarchy: Path, path: str) -> Path | None:
    # In a container the path is that of the host, and the hierarchy's root is ours.
    for folder in (hierarchy / path.lstrip("/"), hierarchy):
        if (folder / "cgroup.procs").exists() and _can_move_into(folder):
            return folder
    return None


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def _counter(path: Path, name: str) -> int:
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        pass
    return 0


def _processes(folder: Path) -> list[int]:
    try:
        return [int(line) for line in (folder / "cgroup.procs").read_text().split()]
    except (OSError, ValueError):
        return []


def _removed(folders: tuple[Path, ...]) -> bool:
    gone = True
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            gone = False
    return gone
