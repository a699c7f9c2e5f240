"""The escape suite: every attempt in `escapes.py` is stopped, for root's and for anyone's node."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from pathlib import Path

import pytest
from exec_lab import (
    NOW,
    archive,
    as_ordinary_user,
    executor,
    in_trio,
    needs_nothing,
    run,
    this_python,
)

from ponyswarm.exec import seccomp
from ponyswarm.exec.outcome import Outcome
from ponyswarm.messages import Cell, Reason, Spec, Status

ATTEMPTS = Path(__file__).with_name("escapes.py").read_text("utf-8")
AT_LEAST = 90
OF_THE_FILTER = 25
# One instruction, which allows every call: BPF_RET of SECCOMP_RET_ALLOW.
ALLOWS_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)


@in_trio
async def test_every_attempt_to_get_out_is_stopped(tmp_path: Path) -> None:
    outcome = await attempted(tmp_path)
    escaped = {test.id: test.message for test in outcome.tests if test.status != Status.PASSED}
    assert not escaped, escaped
    assert outcome.state == "completed", outcome.detail
    assert len(outcome.tests) >= AT_LEAST


@in_trio
async def test_without_the_filter_a_second_layer_stops_what_could_get_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seccomp, "program", lambda: ALLOWS_ALL)
    outcome = await attempted(tmp_path, ESCAPE_NO_FILTER="root" if os.geteuid() == 0 else "user")
    escaped = {test.id: test.message for test in outcome.tests if test.status != Status.PASSED}
    assert not escaped, escaped
    assert len(outcome.tests) >= OF_THE_FILTER


async def attempted(tmp_path: Path, **env: str) -> Outcome:
    """Run the attempts as a job, with on the host what they are after."""
    secret = tmp_path / "home" / "key"
    secret.parent.mkdir()
    secret.write_text("a key")
    abstract = f"\0ponyswarm-escape-{os.getpid()}"
    os.environ["ESCAPE_HOST_ONLY"] = "yes"
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.socket(socket.AF_UNIX) as hidden,
            socket.socket(socket.AF_UNIX) as named,
        ):
            hidden.bind(abstract)
            hidden.listen()
            os.chdir(secret.parent)  # The path of a socket may have 107 bytes only.
            named.bind("key.sock")
            named.listen()
            return await run(
                tmp_path / "run",
                ATTEMPTS,
                env={
                    **env,
                    "ESCAPE_SECRET": str(secret),
                    "ESCAPE_PORT": str(listener.getsockname()[1]),
                    "ESCAPE_ABSTRACT": abstract[1:],
                    "ESCAPE_PID": str(os.getpid()),
                },
            )
    finally:
        del os.environ["ESCAPE_HOST_ONLY"]
        os.chdir("/")


LEAVES = """
import os, sys, unittest
PLACES = ("/", "/tmp", "/dev/shm", "/project", "/project/src", "/project/home", "/project/site",
          "/project/report", "/env", "/env/bin", "/source", "/overlay", "/channels", "/services",
          sys.base_prefix, os.path.dirname(os.__file__), "/run")

class Test(unittest.TestCase):
    def test_plant(self):
        planted = []
        for place in PLACES:
            for name in ("sitecustomize.py", "planted.pth", "__pycache__"):
                path = os.path.join(place, "planted-" + name)
                try:
                    with open(path, "x") as file:
                        file.write("raise SystemExit(1)")
                    planted.append(path)
                except FileExistsError:
                    self.fail("an earlier job left " + path)
                except OSError:
                    pass
        self.assertIn("/tmp/planted-sitecustomize.py", planted)
        self.assertEqual(os.environ.get("LEFT"), None)
        os.environ["LEFT"] = "yes"
"""


@in_trio
async def test_what_a_job_leaves_anywhere_the_next_one_does_not_find(tmp_path: Path) -> None:
    for _ in range(2):
        outcome = await run(tmp_path, LEAVES)
        assert [test.status for test in outcome.tests] == [Status.PASSED], outcome.log.decode()


BUILDS = """
import os, socket, sys

def build_wheel(folder, config_settings=None, metadata_directory=None):
    escaped = []
    for path in ("/env/bin/python", "/env/pyvenv.cfg", "/source/pyproject.toml", "/usr/bin/env",
                 os.__file__, "/tools/uv", "/etc/passwd"):
        try:
            open(path, "ab").close()
            escaped.append(path)
        except OSError:
            pass
    try:
        open("{secret}").close()
        escaped.append("the secret")
    except OSError:
        pass
    try:
        socket.create_connection(("127.0.0.1", {port}), 2)
        escaped.append("the host's loopback")
    except OSError:
        pass
    raise SystemExit("escaped by " + repr(escaped) if escaped else "all was stopped")
"""
BUILT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "hostile"
version = "1.0"
"""


@in_trio
async def test_a_build_is_held_as_tests_are(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a key")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        backend = BUILDS.replace("{secret}", str(secret))
        backend = backend.replace("{port}", str(listener.getsockname()[1]))
        source = archive(tmp_path, {"backend.py": backend, "pyproject.toml": BUILT})
        python = this_python()
        outcome = await executor(tmp_path).run(
            source=source,
            source_hash=hashlib.sha256(source.read_bytes()).digest(),
            spec=Spec(python=("3",), runner="unittest", command=("true",)),
            cell=Cell(python="3"),
            interpreter=python,
            lock=needs_nothing(python),
            resolve_before=NOW,
        )
    assert outcome.reason is Reason.INSTALL
    assert "all was stopped" in outcome.log.decode(), outcome.log.decode()[-2000:]


@in_trio
async def test_a_flood_of_empty_files_ends_inside_its_limits(tmp_path: Path) -> None:
    body = """
import unittest
class Flood(unittest.TestCase):
    def test_inodes(self):
        for number in range(10_000_000):
            open('/tmp/%d' % number, 'w').close()
"""
    outcome = await run(tmp_path, body)
    assert outcome.state == "broken" or outcome.tests[0].status in (Status.ERROR, Status.FAILED)
    good = await run(
        tmp_path / "good",
        "import unittest\nclass T(unittest.TestCase):\n    def test_it(self): pass\n",
    )
    assert good.state == "completed"


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user")
def test_all_of_this_holds_for_an_ordinary_user_too() -> None:
    as_ordinary_user(Path(__file__))
