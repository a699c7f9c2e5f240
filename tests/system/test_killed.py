"""A node that is killed with SIGKILL in any phase of a run: nothing is left after its next start.

The phase is known by the node's own log (`--verbose` has a line as each step begins), the
fetch by the part of the source that is there; a kill counts only when nothing later was seen.
The test's process takes in what a dead node leaves behind, as init would, so that no process
can hide. Databases and roles are looked for on servers that outlive the node: the owner's.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import trio
from click.testing import CliRunner
from exec_lab import REPOSITORY, holds
from sources import archive
from swarm_lab import found_project, runs, until

from ponyswarm import config
from ponyswarm.cli import main
from ponyswarm.demo import Member, Swarm, minor
from ponyswarm.exec.interpreters import discover
from ponyswarm.exec.provisioning import probe
from ponyswarm.exec.services import mariadb, postgresql
from ponyswarm.exec.services.hosting import mark_of
from ponyswarm.exec.services.service import Missing, Options

pytestmark = pytest.mark.slow

SERVICES = ("postgresql", "mariadb", "redis")
# How long after the beginning of each phase its node is killed: several times in those that
# do several things.
PHASES = {
    **dict.fromkeys(("fetch", "unpack", "resolve", "environment", "download", "build"), (0.0,)),
    "services": (0.0, 0.1),
    "test": (2.0,),
    "clean up": (0.0, 0.03),
    "collect": (0.0,),
}
SET_CHILD_SUBREAPER = 36
ATTEMPTS = 5

SPEC = """\
[tool.ponyswarm]
python = ["{python}"]
runner = "unittest"
services = ["postgresql + mariadb + redis"]
install = ["psw-wheel"]
redundancy = 1

[tool.ponyswarm.env]
URL = "{{postgresql.url}}"
"""

# Leaves more than one database, so that taking them away has something to do.
SUITE = """\
import os, subprocess, time, unittest

class Test(unittest.TestCase):
    def test_it(self):
        for number in range(3):
            subprocess.run(["psql", "-w", "-q", os.environ["URL"], "-c",
                            "CREATE DATABASE psw_more_%d" % number], check=True)
        time.sleep({seconds})
"""

# A build back end of its own, so that nothing but `psw-wheel` comes from the index.
BACKEND = """\
import time, zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        about = "{name}-1.dist-info"
        wheel.writestr(about + "/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1\\n")
        wheel.writestr(about + "/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr(about + "/RECORD", "")
    time.sleep({seconds})
    return name
"""
PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "{name}"
version = "1.0"
"""

OWNERS = """
import json, sys, trio
from pathlib import Path
from ponyswarm.exec import sandbox
from ponyswarm.exec.provisioning import open_services
from ponyswarm.exec.services.service import Options
from ponyswarm.messages import Cell

async def main():
    folder = Path(sys.argv[1])
    options = {"postgresql": Options(), "mariadb": Options()}
    async with open_services(
        options, cache=folder / "cache", scratch=folder / "scratch", holds=await sandbox.probe()
    ) as services:
        cell = Cell(python="3", services=tuple(options))
        async with services.provisioned(cell, slot=0, interpreter=None):
            pass
        kept = services._hosting._kept
        print(json.dumps({name: [str(kept[name, 0].socket), kept[name, 0].password]
                          for name in options}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)

trio.run(main)
"""


# --- the world around the node ------------------------------------------------------------------


class Index:
    """A package index with one wheel; it can hold back its page, or the wheel."""

    def __init__(self) -> None:
        self.wheel = _wheel()
        self.holds_back = ""
        self.release = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/simple"

    def hold(self, phase: str) -> None:
        self.holds_back = {"resolve": "psw-wheel/", "download": ".whl"}.get(phase, "")
        self.release.clear()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                held = index.holds_back and self.path.endswith(index.holds_back)
                if held:
                    index.release.wait(60)
                kind, data = index._answer(self.path)
                self.send_response(200 if data else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler

    def _answer(self, path: str) -> tuple[str, bytes]:
        name, data, metadata = self.wheel
        if path == f"/{name}":
            return "application/zip", data
        if path == f"/{name}.metadata":
            return "text/plain", metadata
        if path.rstrip("/") != "/simple/psw-wheel":
            return "text/plain", b""
        file = {
            "filename": name,
            "url": f"/{name}",
            "hashes": {"sha256": hashlib.sha256(data).hexdigest()},
            "core-metadata": {"sha256": hashlib.sha256(metadata).hexdigest()},
            "upload-time": "2020-01-01T00:00:00Z",
            "size": len(data),
        }
        page = {"meta": {"api-version": "1.1"}, "name": "psw-wheel", "files": [file]}
        return "application/vnd.pypi.simple.v1+json", json.dumps(page).encode()


def _wheel() -> tuple[str, bytes, bytes]:
    about = "psw_wheel-1.0.dist-info"
    metadata = b"Metadata-Version: 2.1\nName: psw-wheel\nVersion: 1.0\n"
    kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        wheel.writestr("psw_wheel.py", "")
        wheel.writestr(f"{about}/METADATA", metadata)
        wheel.writestr(f"{about}/WHEEL", kind)
        wheel.writestr(f"{about}/RECORD", "")
    return "psw_wheel-1.0-py3-none-any.whl", buffer.getvalue(), metadata


@dataclass(frozen=True, slots=True)
class Owners:
    """Servers that are there before and after any node."""

    postgresql: postgresql.Admin
    mariadb: mariadb.Admin
    settings: str
    environment: dict[str, str]

    def left(self) -> list[str]:
        """What nodes made on them and did not take away."""

        async def ask() -> list[str]:
            rows = await self.postgresql.run(
                "SELECT 'role ' || rolname FROM pg_roles WHERE rolname ~ '^psw' UNION ALL "
                "SELECT 'database ' || datname FROM pg_database WHERE datname ~ '^psw'"
            )
            rows += await self.mariadb.run(
                "SELECT CONCAT('user ', User) FROM mysql.user WHERE User LIKE 'psw%';"
                "SELECT CONCAT('schema ', SCHEMA_NAME) FROM information_schema.SCHEMATA "
                "WHERE SCHEMA_NAME LIKE 'psw%' OR SCHEMA_NAME LIKE 'test%';"
            )
            return [row[0] for row in rows]

        return trio.run(ask)


@pytest.fixture
def owners(tmp_path: Path) -> Iterator[Owners]:
    command = [sys.executable, "-c", OWNERS, str(tmp_path / "owner")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=REPOSITORY, **pipes) as child:  # type: ignore[call-overload]
        try:
            told = json.loads(child.stdout.readline())
            (pg_socket, pg_password), (my_socket, my_password) = told.values()
            pg_host = str(Path(pg_socket).parent)
            yield Owners(
                postgresql.Admin(
                    psql="psql", host=pg_host, port=5432, user="ponyswarm", password=pg_password
                ),
                mariadb.Admin(
                    client="mariadb", socket=my_socket, user="root", password=my_password, who="my"
                ),
                f"postgresql.host = {pg_host}\npostgresql.user = ponyswarm\n"
                "postgresql.password_env = PSW_PG\n"
                f"mariadb.host = {my_socket}\nmariadb.user = root\nmariadb.password_env = PSW_MY\n",
                {"PSW_PG": pg_password, "PSW_MY": my_password},
            )
        finally:
            child.communicate()


# --- the node -------------------------------------------------------------------------------------


@dataclass
class Victim:
    """A volunteer whose node is killed, and everything that it could leave."""

    swarm: Swarm
    maintainer: Member
    member: Member
    project: str
    spec: Path
    folder: Path
    index: Index
    thread: ThreadPoolExecutor
    count: int = 0
    others: set[int] = field(default_factory=set)

    def announce(self, seconds: float, size: int = 0) -> tuple[str, Future[str]]:
        """Announce a job that no cache knows: its title, and its id once it is out."""
        self.count += 1
        name = f"victim{self.count}"
        files = {
            "test_it.py": SUITE.replace("{seconds}", str(seconds)),
            "backend.py": BACKEND.replace("{name}", name).replace("{seconds}", str(seconds)),
            "pyproject.toml": PYPROJECT.replace("{name}", name),
            **{f"data/{number}": os.urandom(size // 2).hex() for number in range(200 * bool(size))},
        }
        source = archive(self.folder, name, files)
        words = ["announce", str(source), "-p", "demo", "--spec", str(self.spec), "--no-locks"]
        # At the same time, for the fetch begins before the command has ended.
        return name, self.thread.submit(lambda: str(json.loads(self.say(*words))["job"]))

    def say(self, *words: str) -> str:
        """A command of the maintainer's, within this process: dozens of starts take long."""
        home = str(self.maintainer.folder)
        done = CliRunner().invoke(main, ["--home", home, *words, "--json"])
        assert done.exit_code == 0, done.output
        return done.stdout

    def start(self, address: str) -> None:
        self.member.home.status.unlink(missing_ok=True)
        self.swarm.start(self.member, [address], "--verbose")
        self.swarm.wait_for(self.member, lambda now: bool(now.peers))

    def steps(self, name: str) -> list[str]:
        """The steps of a job that the node has logged so far."""
        text = self.member.log.read_text("utf-8", "replace")
        return re.findall(rf" D {name} [^:\n]*: ([a-z ]+)\n", text)

    def kill_in(self, phase: str, delay: float, name: str) -> bool:
        """Kill the node when it is seen in this phase; whether it was still in it."""
        assert self.member.process is not None
        partial = self.member.home.blobs / "partial"
        before = set(partial.iterdir())

        def seen() -> bool:
            if phase == "fetch":
                return bool(set(partial.iterdir()) - before)
            return phase in self.steps(name)

        deadline = time.monotonic() + 60
        while not seen():
            assert time.monotonic() < deadline, f"{phase} never came\n{self.tail()}"
            assert self.member.process.poll() is None, self.tail()
            time.sleep(0.001)
        time.sleep(delay)
        self.member.process.kill()
        self.member.process.wait()
        return seen() if phase == "fetch" else self.steps(name)[-1] == phase

    def tail(self) -> str:
        return self.member.log.read_text("utf-8", "replace")[-2000:]

    def left(self) -> list[str]:
        """What is left of killed runs on this machine while the node is up and idle."""
        home, node = self.member.home, self.member.process
        assert node is not None
        found = [f"process {one}" for one in orphans(self.others | {node.pid})]
        found += [f"scratch {path}" for path in home.scratch.iterdir()]
        found += [f"half made {path}" for path in home.cache.rglob("*partial-*")]
        found += [f"temporary {path}" for path in (self.folder / "tmp").iterdir()]
        mounts = Path("/proc/self/mountinfo").read_text()
        found += [
            f"mount {line}" for line in mounts.splitlines() if str(self.member.folder) in line
        ]
        scratch = hashlib.sha256(os.fsencode(home.scratch.absolute())).hexdigest()[:8]
        mark = mark_of(home.scratch)
        groups = holds().groups
        for parent in () if groups is None else groups.parents:
            for one in (*parent.glob(f"*{mark}*"), *parent.glob(f"*{scratch}*")):
                found.append(f"control group {one}")
        sockets = [path for path in Path("/tmp").glob(f"ponyswarm-{mark}-*") if path.is_dir()]
        if len(sockets) > 1 or any(any(path.iterdir()) for path in sockets):
            found.append(f"sockets {sockets}")
        return found


def orphans(known: set[int]) -> list[psutil.Process]:
    """Processes below this one that neither we nor a living node started, zombies reaped."""
    found = []
    for one in psutil.Process().children():
        if one.pid in known:
            continue
        if one.status() == psutil.STATUS_ZOMBIE:
            os.waitpid(one.pid, os.WNOHANG)
            continue
        found.append(one)
    return found


@pytest.fixture
def index() -> Iterator[Index]:
    served = Index()
    yield served
    served.close()


@pytest.fixture
def victim(
    swarm: Swarm, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Victim]:
    """A maintainer's node, and a volunteer that is set up and not yet started."""
    holds()
    for name, found in trio.run(probe, {name: Options() for name in SERVICES}).items():
        if isinstance(found, Missing):
            pytest.skip(f"{name} is not here: {found.why}")
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    python = next(one for one in discover() if one.implementation == "cpython")
    maintainer, member = swarm.member("maintainer", [python]), swarm.member("victim", [python])
    project = found_project(swarm, maintainer)
    swarm.start(maintainer, [], "--read-only")
    swarm.address(maintainer)
    # From here on nodes know this index alone, and put what is temporary where we look.
    monkeypatch.setenv("UV_DEFAULT_INDEX", index.url)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC.format(python=minor(python)), "utf-8")
    with ThreadPoolExecutor(1) as thread:
        yield Victim(swarm, maintainer, member, project, spec, tmp_path, index, thread)
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def offer(member: Member, settings: str) -> None:
    text = member.home.ini.read_text("utf-8")
    assert "[services]" in text
    config.write(member.home.ini, text.replace("[services]\n", f"[services]\n{settings}"))


def killed_in_each(
    victim: Victim, phases: Mapping[str, tuple[float, ...]], owners: Owners | None
) -> None:
    """Kill the node in each of these phases, start it, and see what is left."""
    address, member = victim.swarm.address(victim.maintainer), victim.member
    victim.swarm.command(member, "trust", "add", victim.project)
    victim.start(address)

    def left() -> list[str]:
        return victim.left() + (owners.left() if owners is not None else [])

    for phase, delay in ((one, delay) for one, delays in phases.items() for delay in delays):
        for _ in range(ATTEMPTS):
            early, long = phase in ("fetch", "unpack"), phase in ("build", "test")
            victim.index.hold(phase)
            name, announced = victim.announce(30 if long else 0, 50_000 * early)
            hit = victim.kill_in(phase, delay, name)
            victim.index.release.set()
            # The next start has nothing to do but clean up.
            victim.say("withdraw", announced.result(60)[:16], "--reason", "its node was killed")
            if phase == "test" and owners is not None:
                # There is something to take away: a role and a user with a database each,
                # and what the suite has made by now.
                assert len(owners.left()) >= 4
            victim.start(address)
            deadline = time.monotonic() + 10
            while (found := left()) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert found == [], f"after a kill in {phase!r}"
            if hit:
                break
        else:
            pytest.fail(f"no kill of {ATTEMPTS} fell into {phase!r}")
    victim.index.hold("")
    job = victim.announce(0)[1].result(60)
    until("the next job has its result", lambda: runs(victim.maintainer, job), 60)


@pytest.mark.timeout(600)
def test_killed_in_each_phase_a_node_leaves_nothing_on_the_owners_servers(
    victim: Victim, owners: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in owners.environment.items():
        monkeypatch.setenv(name, value)
    offer(victim.member, owners.settings + "redis = yes\n")
    victim.others = {one.pid for one in psutil.Process().children()}
    killed_in_each(victim, PHASES, owners)


@pytest.mark.timeout(300)
def test_killed_while_it_has_private_servers_a_node_leaves_none(victim: Victim) -> None:
    offer(victim.member, "postgresql = yes\nmariadb = yes\nredis = yes\n")
    victim.others = {one.pid for one in psutil.Process().children()}
    killed_in_each(victim, {"services": (0.1,), "test": (1.0,)}, None)
