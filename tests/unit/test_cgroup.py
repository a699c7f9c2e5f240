"""Where control groups can be made: version 2 as systemd delegates it, version 1, or nowhere.

The trees here are plain folders and files; that the limits bite is for the real sandbox's tests.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ponyswarm.exec import cgroup
from ponyswarm.exec.cgroup import Groups


def group(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"cgroup.procs": "", **files}.items():
        (folder / name.replace("_of_", ".")).write_text(text)
    return folder


SESSION = "user.slice/user-1000.slice/user@1000.service/app.slice"


@pytest.mark.parametrize(("enabled", "weighs"), [("cpu memory pids", True), ("memory pids", False)])
def test_an_ordinary_users_session_has_a_group_that_limits_its_children(tmp_path, enabled, weighs):
    slice_ = group(tmp_path / SESSION, cgroup_of_subtree_control=enabled)
    group(slice_ / "ponyswarm.scope", cgroup_of_controllers=enabled)
    found = cgroup.find(tmp_path, own=f"0::/{SESSION}/ponyswarm.scope\n")
    assert found == Groups(2, slice_, slice_, slice_ if weighs else None)


def test_a_unit_with_delegation_steps_down_into_a_leaf(tmp_path):
    own = group(
        tmp_path / "system.slice" / "ponyswarm.service",
        cgroup_of_controllers="cpu memory pids",
        cgroup_of_procs=f"{os.getpid()}\n",
    )
    found = cgroup.find(tmp_path, own="0::/system.slice/ponyswarm.service\n")
    assert found == Groups(2, own, own, own)
    assert (own / "ponyswarm-node" / "cgroup.procs").read_text() == "0"


def test_a_unit_that_others_share_is_not_ours_to_divide(tmp_path):
    group(
        tmp_path / "shared",
        cgroup_of_controllers="memory pids",
        cgroup_of_procs=f"{os.getpid()}\n1\n",
    )
    assert cgroup.find(tmp_path, own="0::/shared\n") is None


def test_a_session_without_controllers_has_none(tmp_path):
    group(tmp_path / SESSION / "x.scope")
    assert cgroup.find(tmp_path, own=f"0::/{SESSION}/x.scope\n") is None
    assert cgroup.find(tmp_path, own="") is None


def test_version_1_has_a_folder_a_controller_and_that_of_the_cpu_may_be_missing(tmp_path):
    own = "9:memory:/in/a/container\n8:pids:/\n3:cpu:/\n"
    with_cpu, without = tmp_path / "with", tmp_path / "without"
    memory, pids, cpu = (group(with_cpu / name) for name in ("memory", "pids", "cpu"))
    assert cgroup.find(with_cpu, own) == Groups(1, memory, pids, cpu)
    memory, pids = (group(without / name) for name in ("memory", "pids"))
    assert cgroup.find(without, own) == Groups(1, memory, pids)


def test_the_limits_of_a_run_are_written_in_each_versions_words(tmp_path):
    parent = group(tmp_path / "two")
    two = cgroup.make(
        Groups(2, parent, parent, parent), "a", memory_bytes=1 << 20, processes=7, cpu_weight=50
    )
    texts = {path.name: path.read_text() for path in two.memory.iterdir()}
    assert texts == {
        "memory.max": "1048576",
        "memory.swap.max": "0",
        "memory.oom.group": "0",
        "pids.max": "7",
        "cpu.weight": "50",
    }
    assert two.joins == (str(two.memory / "cgroup.procs"),)
    places = [group(tmp_path / name) for name in ("memory", "pids", "cpu")]
    one = cgroup.make(Groups(1, *places), "b", memory_bytes=1 << 20, processes=7, cpu_weight=50)
    assert one.cpu is not None
    assert (one.cpu / "cpu.shares").read_text() == "512"
    assert (one.pids / "pids.max").read_text() == "7"
    assert len(one.joins) == 3


def test_what_a_group_ran_into_is_read_in_each_versions_words(tmp_path):
    two = cgroup.Group(2, group(tmp_path / "two"), tmp_path / "two")
    (two.memory / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (two.pids / "pids.events").write_text("max 5\n")
    assert (two.killed_for_memory(), two.refused_processes()) == (2, 5)
    one = cgroup.Group(1, group(tmp_path / "one"), tmp_path / "one")
    (one.memory / "memory.oom_control").write_text("under_oom 0\noom_kill 1\n")
    assert (one.killed_for_memory(), one.refused_processes()) == (1, 0)
