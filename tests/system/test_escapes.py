"""The escape suite: every attempt in `escapes.py` is stopped, for root's and for anyone's node."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from exec_lab import as_ordinary_user, in_trio, run

from ponyswarm.messages import Status

ATTEMPTS = Path(__file__).with_name("escapes.py").read_text("utf-8")
AT_LEAST = 80


@in_trio
async def test_every_attempt_to_get_out_is_stopped(tmp_path: Path) -> None:
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
            outcome = await run(
                tmp_path / "run",
                ATTEMPTS,
                env={
                    "ESCAPE_SECRET": str(secret),
                    "ESCAPE_PORT": str(listener.getsockname()[1]),
                    "ESCAPE_ABSTRACT": abstract[1:],
                    "ESCAPE_PID": str(os.getpid()),
                },
            )
    finally:
        del os.environ["ESCAPE_HOST_ONLY"]
        os.chdir("/")
    escaped = {test.id: test.message for test in outcome.tests if test.status != Status.PASSED}
    assert not escaped, escaped
    assert outcome.state == "completed", outcome.detail
    assert len(outcome.tests) >= AT_LEAST


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
