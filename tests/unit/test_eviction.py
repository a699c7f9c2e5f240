"""The cache within its limit: the oldest goes first, and nothing that a run uses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from ponyswarm.exec import eviction
from ponyswarm.exec.environment import Environments
from ponyswarm.exec.eviction import evict, held, items, taken

NOW = 1_800_000_000.0
DAY = 86_400
SIZE = 1 << 16


def item(cache: Path, name: str, days_ago: float, size: int = SIZE) -> Path:
    path = cache / name
    with held(path):
        path.mkdir(parents=True)
        (path / "data").write_bytes(os.urandom(size))
    used = NOW - days_ago * DAY
    os.utime(path.with_name(path.name + ".use"), (used, used))
    return path


def test_the_oldest_go_until_the_rest_fits(tmp_path):
    old = item(tmp_path, "environments/old", 3)
    older = item(tmp_path, "sources/older", 4)
    new = item(tmp_path, "projects/new", 1)
    size = sum(one.size for one in items(tmp_path))
    assert taken(tmp_path) == size
    done = evict(tmp_path, size, NOW)
    assert (done.items, done.left) == (0, size)
    done = evict(tmp_path, size - SIZE, NOW)
    assert done.items == 1
    assert not older.exists()
    assert old.exists()
    evict(tmp_path, SIZE * 3 // 2, NOW)
    assert [path.exists() for path in (old, new)] == [False, True]


def test_what_nobody_used_for_long_goes_though_there_is_room(tmp_path):
    old, new = item(tmp_path, "sources/old", 91), item(tmp_path, "sources/new", 89)
    evict(tmp_path, 1 << 40, NOW)
    assert [path.exists() for path in (old, new)] == [False, True]


def test_what_is_in_use_stays_until_it_is_not(tmp_path):
    used = item(tmp_path, "environments/used", 5)
    with held(used):
        assert evict(tmp_path, 0, NOW).items == 0
        assert (used / "data").exists()
    assert evict(tmp_path, 0, NOW).items == 1
    assert list((tmp_path / "environments").iterdir()) == []


def test_another_process_holds_too_and_a_killed_one_nothing(tmp_path):
    used = item(tmp_path, "environments/used", 5)
    code = (
        "import sys, time; from pathlib import Path; from ponyswarm.exec.eviction import held\n"
        "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, used], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    assert evict(tmp_path, 0, NOW).items == 0
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdout.close()
    assert evict(tmp_path, 0, NOW).items == 1


def test_runs_and_evictions_at_once_never_pull_a_folder_from_under_a_run(tmp_path):
    path = tmp_path / "environments" / "shared"
    faults: list[str] = []
    stop = threading.Event()

    def use() -> None:
        for _ in range(40):
            with held(path):
                if not path.exists():
                    partial = path.with_name(f"shared.partial-{threading.get_ident()}")
                    partial.mkdir()
                    (partial / "data").write_text("x")
                    try:
                        partial.rename(path)
                    except OSError:
                        (partial / "data").unlink()
                        partial.rmdir()
                for _ in range(3):
                    if not (path / "data").exists():
                        faults.append("gone")

    def remove() -> None:
        while not stop.is_set():
            evict(tmp_path, 0, NOW)

    users = [threading.Thread(target=use) for _ in range(3)]
    remover = threading.Thread(target=remove)
    for thread in (*users, remover):
        thread.start()
    for thread in users:
        thread.join()
    stop.set()
    remover.join()
    assert faults == []


def test_sizes_are_written_down_once_and_a_link_counts_once(tmp_path):
    path = item(tmp_path, "projects/linked", 0, size=1 << 20)
    assert (1 << 20) <= items(tmp_path)[0].size < (3 << 19)
    os.link(path / "data", path / "again")
    assert eviction.size_of(path) < (3 << 19)
    (path / "more").write_bytes(b"x" * (1 << 20))
    assert items(tmp_path)[0].size < (3 << 19)


def test_an_item_that_grew_while_it_was_held_is_measured_again(tmp_path):
    path = item(tmp_path, "environments/a", 1)
    with held(path):
        (path / "more").write_bytes(os.urandom(SIZE))
        eviction.grown(path)
    assert items(tmp_path)[0].size >= 2 * SIZE


def test_what_cannot_be_evicted_counts_as_taken_too(tmp_path):
    item(tmp_path, "sources/a", 1)
    before = taken(tmp_path)
    for name in ("uv", "services", "locks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_bytes(os.urandom(SIZE))
    assert taken(tmp_path) - before >= 3 * SIZE


def test_a_sweep_takes_what_a_killed_eviction_left(tmp_path):
    path = item(tmp_path, "sources/one", 0)
    path.rename(path.with_name("one.evicted-123"))
    eviction.sweep(tmp_path)
    assert list((tmp_path / "sources").iterdir()) == []


def test_what_a_killed_process_left_half_made_goes_at_the_next_start(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [
        tmp_path / place / f"x.partial-{dead.pid}"
        for place in ("environments", "projects", "tools", "bytecode/environment")
    ]
    alive = tmp_path / "environments" / f"x.partial-{os.getppid()}"
    for path in (*left, alive):
        path.mkdir(parents=True)
    Environments(tmp_path).sweep()
    assert [path.exists() for path in (*left, alive)] == [False] * len(left) + [True]
