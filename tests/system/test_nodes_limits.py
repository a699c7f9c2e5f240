"""A running node and its owner's word: pause, resume, hours that change, drain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sources import PASSES, SLEEPS, archive, unittest_spec
from swarm_lab import announce, found_project, ponyswarm, running, runs, until

from ponyswarm import status
from ponyswarm.demo import Member, Swarm
from ponyswarm.exec.interpreters import Installed
from ponyswarm.volunteer import minor_version


def holds(member: Member, word: str) -> bool:
    now = status.read(member.home.status)
    return now is not None and word in now.hold


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_owner_pauses_resumes_and_drains_a_running_node(
    swarm: Swarm, python: Installed, tmp_path: Path
) -> None:
    maintainer = swarm.member("maintainer", [python])
    volunteer = swarm.member("volunteer", [python])
    project = found_project(swarm, maintainer)
    swarm.start(maintainer, [], "--read-only")
    hub = swarm.address(maintainer)
    swarm.command(volunteer, "trust", "add", project)

    paused = json.loads(swarm.command(volunteer, "pause", "--for", "2h", "--json"))
    assert paused["paused"]
    assert not paused["node_runs"]
    swarm.start(volunteer, [hub])
    until("the pause survives a start", lambda: holds(volunteer, "paused by its owner"), 60)
    spec = unittest_spec(tmp_path, minor_version(python))
    job = announce(swarm, maintainer, archive(tmp_path, "a", {"test_it.py": PASSES}), spec)
    now = swarm.wait_for(volunteer, lambda now: any(line.job == job for line in now.idle))
    assert "paused by its owner, until" in now.idle[0].why
    assert "resting   paused by its owner, until" in ponyswarm(volunteer, "status").stdout
    assert json.loads(swarm.command(volunteer, "resume", "--json"))["was_paused"]
    until("it runs again", lambda: runs(volunteer, job) == 1, 60)

    sleepy = archive(tmp_path, "b", {"test_it.py": SLEEPS.format(seconds=6)})
    second = announce(swarm, maintainer, sleepy, spec)
    until("it runs", lambda: running(volunteer), 60)
    ini = volunteer.home.ini
    before = ini.read_text("utf-8")
    assert "\nfloor = 1 GiB\n" in before
    ini.write_text(before.replace("floor = 1 GiB", "floor = 900000 TiB"), "utf-8")
    until("the changed floor is seen", lambda: holds(volunteer, "less than the floor"), 20)
    until("what ran has ended", lambda: runs(volunteer, second) == 1, 60)
    ini.write_text(before, "utf-8")
    until("the floor is gone", lambda: not holds(volunteer, "floor"), 20)

    longer = archive(tmp_path, "c", {"test_it.py": SLEEPS.format(seconds=25)})
    third = announce(swarm, maintainer, longer, spec)
    until("it runs", lambda: running(volunteer), 60)
    swarm.command(volunteer, "pause")
    until("a pause gives back at once", lambda: not running(volunteer), 20)
    assert runs(volunteer, third) == 0
    swarm.command(volunteer, "resume")
    until("it is taken again", lambda: running(volunteer), 100)
    drained = ponyswarm(volunteer, "drain", "--wait", "--json")
    assert json.loads(drained.stdout)["stopped"]
    assert volunteer.process is not None
    assert volunteer.process.wait(20) == 0
    volunteer.process = None
    assert runs(volunteer, third) == 1
    again = ponyswarm(volunteer, "drain")
    assert again.returncode == 2
    assert "no node runs on this home" in again.stderr
    assert not volunteer.home.control.exists()
