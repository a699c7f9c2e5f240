"""Real nodes: a cell goes to who offers its services, and a killed node leaves no server."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
import trio
from sources import archive, unittest_spec
from swarm_lab import announce, cells, found_project, kill, running, runs, until

from ponyswarm import config, keys, status
from ponyswarm.demo import Member, Swarm
from ponyswarm.exec.interpreters import discover
from ponyswarm.exec.provisioning import probe
from ponyswarm.exec.services.hosting import mark_of
from ponyswarm.exec.services.service import Missing, Options
from ponyswarm.volunteer import minor_version

pytestmark = pytest.mark.slow

USES = """\
import os, socket, time, unittest

class Test(unittest.TestCase):
    def test_it(self):
        self.assertNotEqual(bool(os.environ["PLACE"]), "sqlite" in os.environ["DATABASE"])
        if os.environ["PLACE"]:
            redis = socket.socket(socket.AF_UNIX)
            redis.connect(os.environ["PLACE"])
            redis.sendall(b"PING\\r\\n")
            self.assertEqual(redis.recv(100), b"+PONG\\r\\n")
        time.sleep({seconds})
"""


def spec_of(folder: Path, python: str) -> Path:
    path = unittest_spec(folder, python)
    env = 'env = { PLACE = "{redis.socket}", DATABASE = "{database.url}" }\n'
    text = path.read_text().replace(
        "redundancy", f'services = ["redis>=5", "sqlite"]\n{env}redundancy'
    )
    path.write_text(text)
    return path


def servers(member: Member) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter(["cmdline"]):
        line = " ".join(one.info["cmdline"] or ())
        if "redis-server" in line and one.is_running() and one.ppid() != 0:
            found.append(one)
    return [one for one in found if _below(one, member)]


def _below(one: psutil.Process, member: Member) -> bool:
    assert member.process is not None
    return any(parent.pid == member.process.pid for parent in one.parents())


@pytest.mark.timeout(240)
def test_a_cell_goes_to_who_offers_its_services_and_a_kill_leaves_no_server(
    swarm: Swarm, tmp_path: Path
) -> None:
    redis = trio.run(probe, {"redis": Options()})["redis"]
    if isinstance(redis, Missing):
        pytest.skip(f"redis is not here: {redis.why}")
    python = next(one for one in discover() if one.implementation == "cpython")
    maintainer = swarm.member("maintainer", [python])
    able, unable = swarm.member("able", [python]), swarm.member("unable", [python])
    ini = able.home.ini
    config.write(ini, ini.read_text().replace("\n# redis = yes", "\nredis = yes"))
    project = found_project(swarm, maintainer)
    swarm.start(maintainer, [], "--read-only")
    for volunteer in (able, unable):
        swarm.command(volunteer, "trust", "add", project)
        swarm.start(volunteer, [swarm.address(maintainer)])
    swarm.wait_for(maintainer, lambda now: any(p.volunteers == 2 for p in now.projects))

    spec = spec_of(tmp_path, minor_version(python))
    source = archive(tmp_path, "uses", {"test_it.py": USES.replace("{seconds}", "0")})
    job = announce(swarm, maintainer, source, spec)
    until("both cells have a result", lambda: runs(maintainer, job) == 2, 90)
    by_services = {cell.services: cell for cell in cells(maintainer, job)}
    assert str(by_services["redis>=5"].results[0].state) == "completed"
    assert by_services["redis>=5"].results[0].author == keys.load(able.home.key).public

    swarm.stop(unable)
    source = archive(tmp_path, "slow", {"test_it.py": USES.replace("{seconds}", "60")})
    text = spec.read_text().replace(', "sqlite"', "").replace("{database.url}", "")
    spec.write_text(text)
    announce(swarm, maintainer, source, spec)
    until("the server is up", lambda: servers(able), 60)
    until("it runs", lambda: running(able), 60)
    time.sleep(1)
    left, mark = servers(able), mark_of(able.home.scratch)
    folders = list(Path("/tmp").glob(f"ponyswarm-{mark}-*"))
    kill(able)
    psutil.wait_procs(left, timeout=5)
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in left)
    assert len(folders) == 1
    assert folders[0].exists()
    swarm.start(able, [swarm.address(maintainer)])
    until("it is back", lambda: status.read(able.home.status), 60)
    assert not folders[0].exists()
    swarm.stop(able)
    assert list(Path("/tmp").glob(f"ponyswarm-{mark}-*")) == []
