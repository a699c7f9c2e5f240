"""A volunteer's disk that is full: what can go goes, and then the fault is told as what it is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from exec_lab import SMALL, archive, executor, holds, this_python

from ponyswarm.exec.eviction import DiskFull, held
from ponyswarm.exec.executor import Executor
from ponyswarm.exec.outcome import Outcome
from ponyswarm.messages import Cell, Install, Lock, Spec

MB = 1 << 20
TEST = "import unittest\nclass T(unittest.TestCase):\n    def test(self): pass\n"


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 24 MB, as the cache of an executor in its parent."""
    holds()
    if os.geteuid() != 0:
        pytest.skip("only root can make a small disk")
    cache = tmp_path / "cache"
    cache.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=755", "tmpfs", str(cache)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield cache
    finally:
        subprocess.run(["umount", str(cache)], check=True)


def run(runs: Executor, folder: Path) -> Outcome:
    source = archive(folder, {"test_it.py": TEST, "data.bin": "x" * 10 * MB})
    interpreter = this_python()
    lock = Lock(
        implementation="cpython", python="3", system="", machine="", requirements="", build=""
    )

    async def once() -> Outcome:
        with trio.fail_after(60):
            return await runs.run(
                source=source,
                source_hash=bytes(32),
                spec=Spec(
                    python=("3",),
                    runner="unittest",
                    command=("python", "-m", "unittest"),
                    install=Install(project=False),
                ),
                cell=Cell(python="3"),
                interpreter=interpreter,
                lock=lock,
                resolve_before=0,
            )

    return trio.run(once)


def test_unused_items_make_room_and_without_any_it_is_the_disks_fault(small_disk, tmp_path):
    runs = executor(tmp_path, SMALL)
    unused = small_disk / "environments" / "unused"
    with held(unused):
        unused.mkdir(parents=True)
        (unused / "data").write_bytes(b"x" * 18 * MB)
    outcome = run(runs, tmp_path)
    assert (outcome.state, len(outcome.tests)) == ("completed", 1), outcome
    assert not unused.exists()
    for path in (small_disk / "sources").iterdir():
        subprocess.run(["rm", "-rf", str(path)], check=True)
    (small_disk / "mine").write_bytes(b"x" * 20 * MB)
    with pytest.raises(DiskFull, match="free some of it"):
        run(runs, tmp_path)


def test_a_run_leaves_the_cache_within_its_limit(tmp_path):
    unused = tmp_path / "cache" / "sources" / "unused"
    with held(unused):
        unused.mkdir(parents=True)
        (unused / "data").write_bytes(b"x" * 3 * MB)
    runs = Executor(
        cache=tmp_path / "cache",
        scratch=tmp_path / "scratch",
        limits=SMALL,
        sandbox=holds(),
        cache_bytes=12 * MB,
    )
    assert run(runs, tmp_path).state == "completed"
    assert not unused.exists()
    assert len(list((tmp_path / "cache" / "sources").glob("*/"))) == 1
