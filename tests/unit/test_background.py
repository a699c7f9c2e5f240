"""The files that start a node with the machine, read by what will read them."""

from __future__ import annotations

import plistlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import CliRunner

from ponyswarm import background
from ponyswarm.cli import main

ODD = [sys.executable, "-m", "ponyswarm", "--home", "/home/a b/100%/$x\"'", "node"]
TASK = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    unit = tmp_path / background.UNIT
    unit.write_text(background.systemd(ODD, "/usr/bin:/bin"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        env={"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert background.UNIT not in done.stderr, done.stderr


def test_the_launch_agent_says_exactly_the_command() -> None:
    read = plistlib.loads(background.launchd(ODD, "/usr/bin", "/tmp/log"))
    assert read["ProgramArguments"] == ODD
    assert read["KeepAlive"] == {"SuccessfulExit": False}


def test_the_task_is_well_formed_whatever_is_in_the_names() -> None:
    root = ET.fromstring(background.windows(["C:\\a&b\\python.exe", "-m", "x y"], "<me>"))
    command = root.find(f"{TASK}Actions/{TASK}Exec/{TASK}Command")
    arguments = root.find(f"{TASK}Actions/{TASK}Exec/{TASK}Arguments")
    assert command is not None
    assert arguments is not None
    assert (command.text, arguments.text) == ("C:\\a&b\\python.exe", '-m "x y"')
    user = root.find(f"{TASK}Principals/{TASK}Principal/{TASK}UserId")
    assert user is not None
    assert user.text == "<me>"


def test_the_dockerfile_runs_as_an_ordinary_user_and_ends_by_sigterm() -> None:
    text = background.dockerfile("1.2.3")
    steps = re.findall(r"(?m)^([A-Z]+) ", text)
    assert steps[0] == "FROM"
    assert steps.index("USER") < steps.index("CMD")
    assert "ponyswarm==1.2.3" in text
    assert "exec ponyswarm node" in text  # The shell must not stand between it and SIGTERM.


@pytest.fixture
def types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)

    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(main, ["--home", str(tmp_path / "home"), "service", *words])
        assert done.exit_code == code, done.output
        return done.output

    return run


@pytest.mark.parametrize("kind", ["systemd", "launchd", "windows", "docker"])
def test_a_dry_run_prints_the_file_and_writes_nothing(types, tmp_path: Path, kind: str) -> None:
    said = types("install", "--kind", kind, "--dry-run")
    assert "ponyswarm" in said
    assert not list(tmp_path.rglob("*"))


def test_nothing_is_installed_without_a_home_and_the_remedy_is_said(types, tmp_path: Path) -> None:
    assert "make one with 'ponyswarm init'" in types("install", "--kind", "systemd", code=2)
    assert "none is installed" in types("show", "--kind", "systemd", code=2)
    assert "there is no" in types("remove", "--kind", "systemd")


def test_a_system_that_does_not_answer_leaves_the_file_and_says_what_to_type(
    types, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "ponyswarm.ini").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    said = types("install", "--kind", "systemd", code=2)
    assert "'systemctl' does not run here" in said
    assert "to start it yourself: systemctl --user daemon-reload" in said
    assert (tmp_path / ".config/systemd/user" / background.UNIT).exists()


# --- completion ---------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed_for_each_shell(shell: str) -> None:
    said = CliRunner().invoke(main, ["completion", shell])
    assert said.exit_code == 0
    assert "_PONYSWARM_COMPLETE" in said.output


def test_completing_a_word_imports_no_command() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ponyswarm"],
        capture_output=True,
        text=True,
        check=True,
        env={
            "_PONYSWARM_COMPLETE": "bash_complete",
            "COMP_WORDS": "ponyswarm an",
            "COMP_CWORD": "1",
        },
    )
    assert done.stdout == "plain,announce\n"
    assert "ponyswarm.cli.announce" not in done.stderr
    assert "libp2p" not in done.stderr
