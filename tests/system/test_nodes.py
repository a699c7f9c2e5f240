"""Real nodes in real processes on loopback: what a swarm must do whatever happens to it."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from sources import PASSES, SLEEPS, archive, unittest_spec
from swarm_lab import (
    announce,
    cells,
    entry_ids,
    found_project,
    kill,
    ponyswarm,
    running,
    runs,
    until,
)

from ponyswarm import keys
from ponyswarm.demo import Swarm
from ponyswarm.exec.interpreters import Installed
from ponyswarm.volunteer import minor_version

pytestmark = pytest.mark.slow


@pytest.mark.timeout(300)
def test_a_killed_nodes_cell_is_claimed_by_another_and_its_feed_never_forks(
    swarm: Swarm, python: Installed, tmp_path: Path
) -> None:
    maintainer = swarm.member("maintainer", [python])
    pair = [swarm.member("first", [python]), swarm.member("second", [python])]
    project = found_project(swarm, maintainer)
    swarm.start(maintainer, [], "--read-only")
    hub = swarm.address(maintainer)
    for volunteer in pair:
        swarm.command(volunteer, "trust", "add", project)
    swarm.start(pair[0], [hub])
    swarm.start(pair[1], [hub, swarm.address(pair[0])])
    swarm.wait_for(maintainer, lambda now: any(p.volunteers == 2 for p in now.projects))

    source = archive(tmp_path, "sleepy", {"test_it.py": SLEEPS.format(seconds=8)})
    once = unittest_spec(tmp_path, minor_version(python))
    job = announce(swarm, maintainer, source, once)
    until("somebody runs it", lambda: any(running(one) for one in pair), 30)
    time.sleep(1)
    victim, other = pair if running(pair[0]) else reversed(pair)
    kill(victim)
    until("the other has run it", lambda: runs(other, job) == 1, 150)
    key = keys.load(other.home.key).public
    assert cells(other, job)[0].results[0].author == key

    swarm.start(victim, [hub])
    until("the killed node knows the result", lambda: runs(victim, job) == 1, 60)
    twice = unittest_spec(tmp_path, minor_version(python), redundancy=2)
    second = announce(swarm, maintainer, archive(tmp_path, "quick", {"test_it.py": PASSES}), twice)
    for member in (maintainer, *pair):
        until("all hold both results", lambda m=member: runs(m, second) == 2, 90)
    until("the ledgers are equal", lambda: entry_ids(maintainer) == entry_ids(victim), 30)
    assert entry_ids(maintainer) == entry_ids(other)
    assert str(cells(victim, second)[0].finding.verdict) == "confirmed pass"


@pytest.mark.timeout(180)
def test_a_node_that_joins_late_gets_everything_and_one_that_was_away_what_it_missed(
    swarm: Swarm, python: Installed, tmp_path: Path
) -> None:
    maintainer = swarm.member("maintainer", [python])
    volunteer = swarm.member("volunteer", [python])
    reader = swarm.member("reader", [python])
    project = found_project(swarm, maintainer)
    swarm.start(maintainer, [], "--read-only")
    hub = swarm.address(maintainer)
    swarm.command(volunteer, "trust", "add", project)
    swarm.start(volunteer, [hub])
    spec = unittest_spec(tmp_path, minor_version(python))
    source = archive(tmp_path, "quick", {"test_it.py": PASSES})
    first = announce(swarm, maintainer, source, spec)
    until("the first job is run", lambda: runs(maintainer, first) == 1, 60)

    swarm.command(reader, "follow", "add", project)
    swarm.start(reader, [hub], "--read-only")
    until("the late one has the result", lambda: runs(reader, first) == 1, 30)
    swarm.stop(reader)
    second = announce(swarm, maintainer, source, spec)
    until("the second job is run", lambda: runs(maintainer, second) == 1, 60)
    assert runs(reader, second) == 0
    swarm.start(reader, [hub], "--read-only")
    until("it has what it missed", lambda: runs(reader, second) == 1, 30)
    assert entry_ids(reader) == entry_ids(maintainer)


@pytest.mark.timeout(120)
def test_a_job_of_an_untrusted_project_is_neither_fetched_nor_run_and_status_says_why(
    swarm: Swarm, python: Installed, tmp_path: Path
) -> None:
    maintainer = swarm.member("maintainer", [python])
    wary = swarm.member("wary", [python])
    project = found_project(swarm, maintainer)
    swarm.start(maintainer, [], "--read-only")
    hub = swarm.address(maintainer)
    swarm.command(wary, "follow", "add", project)
    swarm.start(wary, [hub])
    swarm.address(wary)
    source = archive(tmp_path, "quick", {"test_it.py": PASSES})
    spec = unittest_spec(tmp_path, minor_version(python))
    job = announce(swarm, maintainer, source, spec)
    now = swarm.wait_for(wary, lambda now: any(line.job == job for line in now.idle))
    assert "not trusted" in now.idle[0].why
    assert f"ponyswarm trust add {project}" in now.idle[0].why
    time.sleep(3)
    assert runs(wary, job) == 0
    assert not list(wary.home.blobs.glob("??/*")), "an untrusted source was fetched"

    swarm.command(wary, "trust", "add", project)
    until("trust is taken up while the node runs", lambda: runs(wary, job) == 1, 60)
    swarm.command(wary, "trust", "remove", project)


@pytest.mark.timeout(120)
def test_a_project_that_is_trusted_while_the_node_runs_is_served_at_once(
    swarm: Swarm, python: Installed, tmp_path: Path
) -> None:
    maintainer = swarm.member("maintainer", [python])
    volunteer = swarm.member("volunteer", [python])
    project = found_project(swarm, maintainer)
    swarm.start(maintainer, [], "--read-only")
    swarm.start(volunteer, [swarm.address(maintainer)])
    swarm.wait_for(maintainer, lambda now: len(now.peers) == 1)
    time.sleep(2)  # What is said on connecting was said.
    swarm.command(volunteer, "trust", "add", project)
    swarm.wait_for(maintainer, lambda now: any(line.volunteers for line in now.projects))
    source = archive(tmp_path, "quick", {"test_it.py": PASSES})
    job = announce(swarm, maintainer, source, unittest_spec(tmp_path, minor_version(python)))
    # Peers ask each other anyhow every 45 to 75 s.
    until("the job was heard by gossip", lambda: cells(volunteer, job), 15)
    until("it is run", lambda: runs(maintainer, job) == 1, 30)


@pytest.mark.timeout(120)
def test_announce_without_a_node_hands_entry_and_source_to_a_peer_and_says_to_how_many(
    swarm: Swarm, python: Installed, tmp_path: Path
) -> None:
    maintainer = swarm.member("maintainer", [python])
    volunteer = swarm.member("volunteer", [python])
    project = found_project(swarm, maintainer)
    swarm.command(volunteer, "trust", "add", project)
    spec = unittest_spec(tmp_path, minor_version(python))
    source = archive(tmp_path, "quick", {"test_it.py": PASSES})
    arguments = ["announce", str(source), "-p", "demo", "--spec", str(spec), "--json"]

    alone = ponyswarm(maintainer, *arguments)
    assert alone.returncode == 0, alone.stderr
    assert "nobody has it yet: no peer is known" in alone.stderr
    assert f"ponyswarm trust add {project}" in alone.stderr
    kept = json.loads(alone.stdout)["job"]
    waiting = ponyswarm(maintainer, *arguments, "--no-locks", "--wait")
    assert waiting.returncode == 3, "nobody is there whose verdict could be waited for"

    swarm.start(volunteer, [])
    address = swarm.address(volunteer)
    met = ponyswarm(maintainer, *arguments, "--peer", address)
    assert met.returncode == 0, met.stderr
    assert "handed to 1 peer, with its source" in met.stderr
    handed = json.loads(met.stdout)
    assert handed["handed_to"] == [keys.peer_id(keys.load(volunteer.home.key).public)]
    for job in (handed["job"], kept):
        until("the volunteer ran it", lambda j=job: runs(volunteer, j) == 1, 60)


@pytest.mark.timeout(120)
def test_ctrl_c_gives_a_running_cell_back_at_once(
    swarm: Swarm, python: Installed, tmp_path: Path
) -> None:
    maintainer = swarm.member("maintainer", [python])
    pair = [swarm.member("first", [python]), swarm.member("second", [python])]
    project = found_project(swarm, maintainer)
    swarm.start(maintainer, [], "--read-only")
    hub = swarm.address(maintainer)
    for volunteer in pair:
        swarm.command(volunteer, "trust", "add", project)
        swarm.start(volunteer, [hub])
    swarm.wait_for(maintainer, lambda now: any(p.volunteers == 2 for p in now.projects))
    source = archive(tmp_path, "sleepy", {"test_it.py": SLEEPS.format(seconds=5)})
    job = announce(swarm, maintainer, source, unittest_spec(tmp_path, minor_version(python)))
    until("somebody runs it", lambda: any(running(one) for one in pair), 30)
    stopped, other = pair if running(pair[0]) else reversed(pair)
    assert stopped.process is not None
    began = time.monotonic()
    stopped.process.send_signal(signal.SIGINT)
    assert stopped.process.wait(10) == 0
    until("the other has run it", lambda: runs(other, job) == 1, 30)
    assert time.monotonic() - began < 25


@pytest.mark.timeout(120)
def test_announce_wait_ends_with_the_verdict_and_node_once_when_nothing_is_left(
    swarm: Swarm, python: Installed, tmp_path: Path
) -> None:
    maintainer = swarm.member("maintainer", [python])
    volunteer = swarm.member("volunteer", [python])
    project = found_project(swarm, maintainer)
    swarm.command(volunteer, "trust", "add", project)
    said = ponyswarm(volunteer, "node", "--dry-run")
    assert f"offers     cpython {python.version}" in said.stdout
    assert f"runs for   {project}" in said.stdout

    swarm.start(volunteer, [], "--once")
    address = swarm.address(volunteer)
    failing = PASSES.replace("1 + 1, 2", "1 + 1, 3")
    for text, code in ((PASSES, 0), (failing, 1)):
        source = archive(tmp_path, "quick", {"test_it.py": text})
        spec = unittest_spec(tmp_path, minor_version(python))
        waited = ponyswarm(
            maintainer,
            *("announce", str(source), "-p", "demo", "--spec", str(spec)),
            *("--peer", address, "--wait"),
        )
        assert waited.returncode == code, waited.stderr
        results = ponyswarm(maintainer, "results", "demo", "--json")
        assert results.returncode == code
    assert volunteer.process is not None
    assert volunteer.process.wait(40) == 0
    volunteer.process = None


@pytest.mark.timeout(120)
def test_a_withdrawn_job_stops_while_it_runs(
    swarm: Swarm, python: Installed, tmp_path: Path
) -> None:
    maintainer = swarm.member("maintainer", [python])
    volunteer = swarm.member("volunteer", [python])
    project = found_project(swarm, maintainer)
    swarm.start(maintainer, [], "--read-only")
    swarm.command(volunteer, "trust", "add", project)
    swarm.start(volunteer, [swarm.address(maintainer)])
    swarm.wait_for(maintainer, lambda now: any(p.volunteers for p in now.projects))
    source = archive(tmp_path, "sleepy", {"test_it.py": SLEEPS.format(seconds=60)})
    job = announce(swarm, maintainer, source, unittest_spec(tmp_path, minor_version(python)))
    until("it runs", lambda: running(volunteer), 30)
    swarm.command(maintainer, "withdraw", job[:12], "--reason", "wrong commit")
    until("it is stopped", lambda: not running(volunteer), 20)
    assert runs(volunteer, job) == 0
    log = volunteer.log.read_text("utf-8")
    assert "its maintainer withdrew the job" in log
