"""A node on a terminal: a view that is redrawn, in a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from authors import Author
from filled import Ledger
from rich.cells import cell_len

from ponyswarm import config, keys
from ponyswarm.cli.plain import harmless
from ponyswarm.home import Home
from ponyswarm.ledger.queries import Reader
from ponyswarm.messages import Status
from ponyswarm.policy import ReaderPolicy

NOBODY = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWBBnZ9ApRy3g74dVsMYmyi95Wk91XBoGEottkWYyUNp4Y"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38;)")


def at_terminal(
    columns: int, arguments: list[str], until: str = "", seconds: float = 30, **environ: str
) -> tuple[str, int]:
    """What a command writes to a terminal of this width, ended by Ctrl-C once ``until`` is seen.

    Without ``until`` it ends by itself.
    """
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "ponyswarm", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), **environ},
    )
    os.close(theirs)
    text = b""
    deadline = time.monotonic() + seconds
    asked = False
    while time.monotonic() < deadline:
        if select.select([mine], [], [], 0.2)[0]:
            try:
                text += os.read(mine, 65536)
            except OSError:
                break  # The other side is closed.
        if until and not asked and until.encode() in text:
            process.send_signal(signal.SIGINT)
            asked = True
    os.close(mine)
    return text.decode("utf-8", "replace"), process.wait(10)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 200])
def test_a_node_shows_a_view_on_a_terminal_and_ends_well_by_ctrl_c(
    tmp_path: Path, columns: int
) -> None:
    home = Home.under(tmp_path / "home")
    home.create()
    keys.save(home.key, keys.SecretKey.generate())
    config.write(home.ini, config.template(listen="/ip4/127.0.0.1/tcp/0"))
    shown, code = at_terminal(
        columns, ["--home", str(home.data_dir), "node", "--read-only"], "connected", 30
    )
    assert code == 0, shown
    for word in (
        "node",
        "peers",
        "0 connected",
        "projects",
        "today",
        "disk",
        "queue",
        "listening on",
    ):
        assert word in shown, shown
    assert "Traceback" not in shown


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Ledger]:
    """A home with a job of two cells: one confirmed by two volunteers, one that fails."""
    ledger = Ledger(tmp_path)
    job, (first, second) = ledger.job("demo 1.0", "ab" * 20)
    for author in (Author(2), Author(3)):
        ledger.run(author, job, first, {"t::a": Status.PASSED})
        ledger.run(author, job, second, {"t::a": Status.FAILED}, version="3.13.0")
    yield ledger
    ledger.store.close()


COMMANDS = {
    "results": (["results", "demo"], 1),
    "watch": (["watch", "demo", "--peer", NOBODY], 1),
    "show": (["show", "CELL"], 0),
    "log": (["log"], 0),
    "volunteers": (["volunteers", "demo"], 0),
    "status": (["status"], 0),
    "doctor": (["doctor", "--quick"], 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("name", ["results", "watch", "show", "log"])
def test_a_view_fits_its_terminal(read: Ledger, name: str, columns: int) -> None:
    arguments, code = COMMANDS[name]
    shown, ended = at_terminal(columns, _words(read, arguments))
    assert ended == code, shown
    assert COLOUR.search(shown) or name == "log"
    lines = [CONTROL.sub("", line) for line in shown.replace("\r", "\n").split("\n")]
    assert max(cell_len(line.rstrip()) for line in lines) <= columns


@pytest.mark.slow
@pytest.mark.parametrize("name", ["results", "show", "doctor"])
def test_no_color_is_respected_on_a_terminal(read: Ledger, name: str) -> None:
    arguments, code = COMMANDS[name]
    shown, ended = at_terminal(80, _words(read, arguments), NO_COLOR="1")
    assert ended == code, shown
    assert not COLOUR.search(shown)
    if name == "results":
        assert "✔ confirmed pass" in shown  # A sign and a word, with or without colour.


@pytest.mark.slow
@pytest.mark.parametrize("name", list(COMMANDS))
def test_into_a_pipe_goes_plain_text_that_is_never_cut(read: Ledger, name: str) -> None:
    arguments, code = COMMANDS[name]
    done = subprocess.run(
        [sys.executable, "-m", "ponyswarm", *_words(read, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "20", "FORCE_COLOR": ""},
    )
    assert done.returncode == code, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    if name == "results":
        assert "3.12    ✔ confirmed pass 2/2" in done.stdout


def _words(ledger: Ledger, arguments: list[str]) -> list[str]:
    with Reader(ledger.path) as reader:
        cell = reader.matrix(reader.jobs()[0], ReaderPolicy(agreeing=2))[1].id.hex()[:16]
    filled = [cell if word == "CELL" else word for word in arguments]
    keys_there = ledger.home / "key"
    if not keys_there.exists():
        keys.save(keys_there, keys.SecretKey(bytes([9]) * 32))
        config.write(ledger.home / "ponyswarm.ini", config.template(listen="/ip4/127.0.0.1/tcp/0"))
    return ["--home", str(ledger.home), *filled]


def test_what_strangers_write_cannot_command_the_terminal() -> None:
    hostile = "\x1b]0;owned\x07name\x1b[2J\u202eevil\r\x9b31m"
    assert harmless(hostile) == "�]0;owned�name�[2J�evil��31m"
    assert harmless("tests/test_é.py::test[ü-日本]") == "tests/test_é.py::test[ü-日本]"
