"""The sandbox itself: what `probe` says, and what holds without any job in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from exec_lab import MIB, SMALL, holds, in_trio
from told import told

from ponyswarm.errors import InfraError
from ponyswarm.exec import cgroup, process, sandbox, seccomp
from ponyswarm.exec.process import How, Patience
from ponyswarm.exec.sandbox import Holds, Missing, Sandbox

QUICK = Patience(seconds=20.0, output_bytes=MIB)


def box() -> Sandbox:
    return Sandbox(holds=holds(), limits=SMALL, slot=3, name="test")


def test_the_probe_says_what_holds() -> None:
    found = holds()
    assert found.root == (os.geteuid() == 0)
    assert "bubblewrap" in found.description


def test_without_bubblewrap_the_probe_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda *_, **__: None)
    found = trio.run(sandbox.probe)
    assert isinstance(found, Missing)
    assert found.remedy == "sudo apt-get install bubblewrap"


def test_without_libseccomp_the_probe_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> bytes:
        raise InfraError("libseccomp is missing")

    monkeypatch.setattr(seccomp, "program", missing)
    found = trio.run(sandbox.probe)
    assert isinstance(found, Missing)
    assert found.remedy == "sudo apt-get install libseccomp2"


def test_a_sandbox_that_does_not_confine_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    holds()
    monkeypatch.setattr(sandbox.Sandbox, "_namespaces", lambda _: ["--clearenv"])
    assert isinstance(trio.run(sandbox.probe), Missing)


def test_an_ordinary_user_sandbox_is_a_namespace_that_makes_no_other() -> None:
    ordinary = Holds(bubblewrap="bwrap", version="0", root=False, memory="", processes="")
    options = Sandbox(holds=ordinary, limits=SMALL)._namespaces()
    assert {"--unshare-user", "--disable-userns"} <= set(options)


@in_trio
async def test_calls_into_the_kernels_depths_are_refused() -> None:
    script = (
        "import ctypes, errno, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def call(*arguments):\n"
        "    ctypes.set_errno(0)\n"
        "    return libc.syscall(*arguments), errno.errorcode.get(ctypes.get_errno())\n"
        "# x86-64: ptrace keyctl perf bpf userfaultfd io_uring unshare clone3 clone setns mount\n"
        "for number, *rest in ((101, 0, 0), (250, 0), (298, 0), (321, 0), (323, 0), (425, 1, 0),\n"
        "                      (272, 0x10000000), (435, 0, 0), (56, 0x10000000), (308, 0, 0),\n"
        "                      (165, 0, 0, 0, 0, 0)):\n"
        "    print(number, call(number, *rest)[1])\n"
        "print('ioctl', call(16, 0, 0x5412, 0)[1], call(16, 0, 0x1_0000_5412, 0)[1])\n"
    )
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers of the calls are those of x86-64")
    confined = await box().run(["/usr/bin/python3", "-c", script], patience=QUICK)
    told = dict(line.split(" ", 1) for line in confined.ended.output.decode().splitlines())
    assert told.pop("435") == "ENOSYS"
    assert told.pop("ioctl") == "EPERM EPERM"
    assert set(told.values()) == {"EPERM"}, told


@in_trio
async def test_the_environment_is_only_what_was_given() -> None:
    confined = await box().with_environment({"A": "1"}).run(["/usr/bin/env"], patience=QUICK)
    assert set(confined.ended.output.decode().split()) == {"A=1", "PWD=/"}


@in_trio
async def test_secrets_stand_on_no_command_line() -> None:
    confined = (
        await box()
        .with_environment({"PASSWORD": "hunter2"})
        .run(["/bin/sh", "-c", "cat /proc/[0-9]*/cmdline"], patience=QUICK)
    )
    assert b"setpriv" in confined.ended.output or b"prlimit" in confined.ended.output
    assert b"hunter2" not in confined.ended.output


@in_trio
async def test_a_job_longer_than_ten_seconds_outlives_every_thread() -> None:
    """trio's worker threads expire after ten seconds, and with them what they spawned."""
    confined = await box().run(["/bin/sleep", "11"], patience=QUICK)
    assert confined.ended.good, confined.ended


@in_trio
async def test_output_keeps_its_head_and_its_tail() -> None:
    ended = await process.run(
        ["/bin/sh", "-c", "echo first; yes | head -c 900000; echo last"],
        env={"PATH": "/usr/bin:/bin"},
        patience=QUICK,
        keep_bytes=1000,
    )
    assert ended.good
    assert ended.output.startswith(b"first\n")
    assert ended.output.endswith(b"last\n")
    assert b"bytes left out" in ended.output
    assert len(ended.output) < 1100


@in_trio
async def test_each_end_of_a_process_is_told_apart() -> None:
    async def end(script: str, patience: Patience) -> tuple[How, int]:
        ended = await process.run(
            ["/bin/sh", "-c", script], env={"PATH": "/usr/bin:/bin"}, patience=patience
        )
        return ended.how, ended.signal

    assert await end("exit 3", QUICK) == (How.EXITED, 0)
    assert await end("kill -11 $$", QUICK) == (How.EXITED, 11)
    assert (await end("sleep 60", Patience(seconds=0.3)))[0] is How.TIMEOUT
    silent = Patience(seconds=30, silent_seconds=0.3)
    assert (await end("echo x; sleep 60", silent))[0] is How.NO_OUTPUT
    flood = Patience(seconds=30, output_bytes=10_000)
    assert (await end("yes", flood))[0] is How.OUTPUT_LIMIT
    with told("/no/such/program does not start: there is no such program; install it"):
        await process.run(["/no/such/program"], env={}, patience=QUICK)


@in_trio
async def test_no_descriptor_is_left_open() -> None:
    async def one() -> None:
        await box().run(["/bin/true"], patience=QUICK)

    await one()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await one()
    assert len(os.listdir("/proc/self/fd")) == before


def test_groups_of_version_2_are_found_where_they_are_delegated(tmp_path: Path) -> None:
    """On plain files, as this machine may have version 1: names and limits, not enforcement."""
    parent = tmp_path / "user.slice" / "node.service"
    parent.mkdir(parents=True)
    (parent.parent / "cgroup.subtree_control").write_text("memory pids\n")
    found = cgroup.find(tmp_path, "0::/user.slice/node.service\n")
    assert found == cgroup.Groups(2, parent.parent, parent.parent)
    group = cgroup.make(found, "x", memory_bytes=1000, processes=7)
    assert (group.memory / "memory.max").read_text() == "1000"
    assert (group.memory / "pids.max").read_text() == "7"
    (group.memory / "memory.events").write_text("low 0\noom_kill 2\n")
    assert group.killed_for_memory() == 2
    assert group.joins == (str(group.memory / "cgroup.procs"),)


def test_without_delegation_there_are_no_groups(tmp_path: Path) -> None:
    assert cgroup.find(tmp_path, "0::/\n") is None
