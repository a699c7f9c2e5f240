"""What the cache may take of the disk: what was used longest ago goes first, never what is in use.

An item is a folder of one of `KINDS`, and beside it lies a small file: its content is the
item's size, its time is when the item was last used, and a run that uses the item holds a
shared lock on it. Whoever evicts takes the lock for itself, without waiting, moves the item
away and removes the file; a run that waited meanwhile finds the file gone, and begins anew.
The locks are the kernel's, so a killed run holds nothing and several processes can share one
cache. Called by `executor`.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ponyswarm.errors import InfraError
from ponyswarm.exec import source

KINDS = ("sources", "environments", "projects", "bytecode")
USE = ".use"
EVICTED = ".evicted-"
KEEP_SECONDS = 90 * 86_400
FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(InfraError):
    """There is no room on this machine's disk; the job has no part in it."""

    def __init__(self, cache: Path) -> None:
        super().__init__(
            f"the disk that holds {cache} is full, after what can be done without was removed: "
            f"free some of it ('df -h {cache}'), or set XDG_CACHE_HOME or --home to another disk"
        )


@dataclass(frozen=True, slots=True)
class Item:
    """One evictable folder: its size in bytes, and when it was last used (epoch)."""

    path: Path
    size: int
    used: float


@dataclass(frozen=True, slots=True)
class Evicted:
    """What an eviction did: bytes that are left, and items and bytes that went."""

    left: int
    items: int = 0
    freed: int = 0


@contextmanager
def held(item: Path) -> Iterator[None]:
    """Keep an item from being evicted, whether it is there already or still to be made."""
    file = _use(item)
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(file)
    try:
        os.utime(descriptor)
        yield
    finally:
        # What was just made has its size written down once.
        with suppress(OSError):
            if os.fstat(descriptor).st_size == 0 and item.exists():
                os.write(descriptor, str(size_of(item)).encode())
            os.utime(descriptor)
        os.close(descriptor)


@contextmanager
def holding() -> Iterator[Callable[[Path], None]]:
    """A function that keeps each item it is given from being evicted until the context ends."""
    with ExitStack() as items:
        yield lambda item: items.enter_context(held(item))


def grown(item: Path) -> None:
    """Have the size of an item that is held written down again, when that ends."""
    with suppress(OSError):
        os.truncate(_use(item), 0)


def _locked(file: Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            # Evicted while we waited: this file is no longer the one that others see.
            if _same(descriptor, file):
                return descriptor
        except BaseException:
            # Also of an interrupt: the lock would be held for as long as this process lives.
            os.close(descriptor)
            raise
        os.close(descriptor)


def _same(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def evict(cache: Path, most_bytes: int, now: float, keep_seconds: float = KEEP_SECONDS) -> Evicted:
    """Remove items unused for ``keep_seconds``, then the oldest, until the rest fits."""
    found = items(cache)
    left = sum(item.size for item in found)
    gone = freed = 0
    for item in sorted(found, key=lambda item: item.used):
        if left <= most_bytes and now - item.used < keep_seconds:
            break
        if _evicted(item.path):
            left -= item.size
            freed += item.size
            gone += 1
    return Evicted(left, gone, freed)


def items(cache: Path) -> list[Item]:
    """All that could be evicted, in use or not."""
    return [
        _item(path)
        for kind in KINDS
        for path in (cache / kind).glob("*")
        if path.is_dir() and not path.is_symlink() and "." not in path.name
    ]


def taken(cache: Path) -> int:
    """Bytes that all of the cache takes."""
    return sum(item.size for item in items(cache)) + kept(cache)


def kept(cache: Path) -> int:
    """Bytes of what is no item: wheels, templates of databases, tools, locks."""
    folders = cache.iterdir() if cache.exists() else ()
    return sum(size_of(path) for path in folders if path.name not in KINDS)


def sweep(cache: Path) -> None:
    """Remove what a killed eviction left, and the files of items that are gone."""
    for kind in KINDS:
        for path in (cache / kind).glob(f"*{EVICTED}*"):
            source.remove(path)
        for file in (cache / kind).glob(f"*{USE}"):
            if not file.with_suffix("").exists():
                _evicted(file.with_suffix(""))


def size_of(folder: Path) -> int:
    """Bytes on disk below a folder; hard links within it count once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    stack = [os.fspath(folder)]
    while stack:
        with suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    facts = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    if (facts.st_dev, facts.st_ino) not in seen:
                        seen.add((facts.st_dev, facts.st_ino))
                        total += facts.st_blocks * 512
    return total


def _item(path: Path) -> Item:
    try:
        text, used = _use(path).read_text(), _use(path).stat().st_mtime
        if text.isdecimal() and path.parent.name != "bytecode":
            return Item(path, int(text), used)
    except (OSError, ValueError):
        used = path.stat().st_mtime if path.exists() else 0.0
    # In the making, from an earlier release, or of a kind that grows with use.
    return Item(path, size_of(path), used)


def _evicted(path: Path) -> bool:
    """Remove an item and its file, unless somebody uses it."""
    file = _use(path)
    away = path.with_name(f"{path.name}{EVICTED}{os.getpid()}")
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _same(descriptor, file):
            return False
        with suppress(FileNotFoundError):
            path.rename(away)
        file.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    source.remove(away)
    return True


def _use(item: Path) -> Path:
    return item.with_name(item.name + USE)
