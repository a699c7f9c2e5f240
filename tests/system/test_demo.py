"""The demo leaves nothing behind, however it is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from exec_lab import holds
from sources import SLEEPS, archive
from swarm_lab import until

from ponyswarm.demo import Member, Swarm, choose_pythons, minor, open_swarm
from ponyswarm.exec.interpreters import discover

PYPROJECT = """\
[tool.ponyswarm]
python = ["{python}"]
runner = "unittest"
redundancy = 2
install = {{ project = false }}
"""


def nodes(folder: Path) -> list[int]:
    """Ids of the node processes whose homes are under this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # It has ended in between.
        if b"node" in words and any(word.startswith(os.fsencode(folder)) for word in words):
            found.append(int(process.name))
    return found


SWARM = """\
import sys, time
from ponyswarm.demo import open_swarm
with open_swarm(print) as swarm:
    for name in ("one", "two"):
        swarm.start(swarm.member(name, []), [], "--read-only")
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("what", "number"),
    [
        ("demo", signal.SIGTERM),
        ("swarm", signal.SIGINT),
        ("swarm", signal.SIGHUP),
        ("swarm", signal.SIGKILL),
    ],
)
def test_what_is_ended_ends_its_nodes(tmp_path: Path, what: str, number: signal.Signals) -> None:
    holds()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    words = ["-m", "ponyswarm", "demo", str(sleepy(tmp_path)), "--pythons", "1"]
    process = subprocess.Popen(
        [sys.executable, *(words if what == "demo" else ["-c", SWARM])],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # As from a terminal, whatever the one who runs the tests ignores.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        until("a node runs", lambda: nodes(temporary), 200)
        process.send_signal(number)
        process.wait(60)
        until("no node runs", lambda: nodes(temporary) == [], 60)
        if number is not signal.SIGKILL:
            assert not [path for path in temporary.iterdir() if path.name.startswith("ponyswarm-")]
        if what == "demo":
            assert process.returncode == 128 + signal.SIGTERM
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for node in nodes(temporary):
            os.kill(node, signal.SIGKILL)


def sleepy(folder: Path) -> Path:
    """A job that outlasts the test."""
    python = minor(choose_pythons(discover(), 1)[0])
    files = {
        "test_it.py": SLEEPS.format(seconds=120),
        "pyproject.toml": PYPROJECT.format(python=python),
    }
    return archive(folder, "sleepy", files)


@pytest.mark.parametrize("when", ["at work", "cleaning up"])
def test_a_signal_does_not_interrupt_the_cleaning_up(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    stop, before = Swarm.stop, signal.getsignal(signal.SIGTERM)

    def interrupted(swarm: Swarm, *members: Member) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        stop(swarm, *members)

    monkeypatch.setattr(Swarm, "stop", interrupted)
    with pytest.raises(SystemExit) as raised, open_swarm(print) as swarm:  # noqa: PT012
        root = swarm.root
        if when == "at work":
            os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.code == 128 + signal.SIGTERM
    assert not root.exists()
    assert signal.getsignal(signal.SIGTERM) == before
