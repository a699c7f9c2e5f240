"""A node on a terminal: a view that is redrawn, in a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from ponyswarm import config, keys
from ponyswarm.cli.plain import harmless
from ponyswarm.home import Home


def at_terminal(columns: int, arguments: list[str], until: str, seconds: float) -> tuple[str, int]:
    """What a command writes to a terminal of this width, ended by Ctrl-C once ``until`` is seen."""
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "ponyswarm", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns)},
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
        if not asked and until.encode() in text:
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
    for word in ("node", "peers", "0 connected", "projects", "disk", "listening on", "stopping"):
        assert word in shown, shown
    assert "Traceback" not in shown


def test_what_strangers_write_cannot_command_the_terminal() -> None:
    hostile = "\x1b]0;owned\x07name\x1b[2J\u202eevil\r\x9b31m"
    assert harmless(hostile) == "�]0;owned�name�[2J�evil��31m"
    assert harmless("tests/test_é.py::test[ü-日本]") == "tests/test_é.py::test[ü-日本]"
