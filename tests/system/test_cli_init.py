"""The command line's first steps, as real processes in homes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ponyswarm import cli, config
from ponyswarm.errors import InfraError, LocalError, PeerError

A = "aa" * 32
BASE = os.path.realpath(sys.executable)


class Person:
    """Someone at a terminal with a home of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ini = home / "ponyswarm.ini"

    def types(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "ponyswarm", "--home", str(self.home), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def asks(self, *words: str):
        return json.loads(self.types(*words, "--json").stdout)


@pytest.fixture
def person(tmp_path):
    return Person(tmp_path / "a home")


def test_init_makes_a_home_that_can_be_read(person):
    done = person.types("init", "--yes")
    settings = config.load(person.ini)
    assert settings.interpreters
    for name, path in settings.interpreters.items():
        assert f"{name} " in done.stdout
        assert str(path) in done.stdout
    key = person.types("key", "show").stdout.strip()
    assert key.startswith("12D3KooW")
    assert key in done.stdout
    if os.name == "posix":
        assert person.ini.stat().st_mode & 0o777 == 0o600
        assert (person.home / "key").stat().st_mode & 0o777 == 0o600


def test_init_again_changes_nothing(person):
    person.types("init", "--yes", "--python", BASE)
    person.ini.write_text(person.ini.read_text() + "# mine\n")
    before = (person.ini.read_text(), (person.home / "key").read_text())
    assert "there is a home already" in person.types("init", "--yes").stdout
    refused = person.types("init", "--listen", "/ip4/127.0.0.1/tcp/1", code=2)
    assert "--force" in refused.stderr
    assert before == (person.ini.read_text(), (person.home / "key").read_text())


def test_force_replaces_the_settings_and_never_the_key(person):
    person.types("init", "--yes", "--python", BASE)
    person.types("trust", "add", A)
    old, key = person.ini.read_text(), (person.home / "key").read_text()
    person.types("init", "--yes", "--force", "--python", BASE, "--listen", "/ip4/127.0.0.1/tcp/1")
    assert config.load(person.ini).listen == ("/ip4/127.0.0.1/tcp/1",)
    assert config.load(person.ini).trusted == frozenset()
    assert (person.home / "ponyswarm.ini.old").read_text() == old
    assert (person.home / "key").read_text() == key


def test_init_json_and_only_these_pythons(person):
    facts = person.asks("init", "--python", sys.executable)
    assert facts["created"]
    assert facts["key_created"]
    assert facts["settings"] == str(person.ini)
    (only,) = facts["interpreters"]
    assert not Path(only["path"]).is_relative_to(sys.prefix) or sys.prefix == sys.base_prefix
    assert only["version"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    again = person.asks("init")
    assert not again["created"]
    assert again["key"] == facts["key"]


def test_init_with_a_python_that_is_none_leaves_no_home(person):
    done = person.types("init", "--yes", "--python", "/no/such/python", code=2)
    assert done.stderr.startswith("error: /no/such/python cannot be run")
    assert not person.home.exists()


def test_init_with_a_bad_address(person):
    done = person.types("init", "--yes", "--listen", "localhost:80", code=2)
    assert "/ip4/0.0.0.0/tcp/7797" in done.stderr
    assert not person.home.exists()


def test_a_lost_key_is_made_again_by_init_and_a_broken_one_is_not(person):
    person.types("init", "--yes", "--python", BASE)
    (person.home / "key").unlink()
    assert "ponyswarm init" in person.types("key", "show", code=2).stderr
    person.types("init")
    (person.home / "key").write_text("nonsense")
    assert "damaged" in person.types("init", code=2).stderr


def test_key_new(person):
    made = person.asks("key", "new")
    assert made["key"] == person.types("key", "show").stdout.strip()
    assert "never replaced" in person.types("key", "new", code=2).stderr


@pytest.mark.parametrize("group", ["trust", "follow"])
def test_lists_of_projects(person, group):
    assert "ponyswarm init" in person.types(group, "list", code=2).stderr
    person.types("init", "--yes", "--python", BASE)
    assert person.asks(group, "list") == []
    person.types(group, "add", A, "--note", "Django")
    assert "already" in person.types(group, "add", A.upper()).stdout
    assert person.types(group, "list").stdout == f"{A}  Django\n"
    assert person.asks(group, "list") == [{"project": A, "note": "Django"}]
    assert bytes.fromhex(A) in config.load(person.ini).followed
    assert person.asks(group, "remove", A) == {"project": A, "changed": True}
    assert person.asks(group, "remove", A) == {"project": A, "changed": False}
    assert "64" in person.types(group, "add", A[:10], code=2).stderr


def test_faults_in_the_settings_are_said_plainly(person):
    person.types("init", "--yes", "--python", BASE)
    person.ini.write_text(person.ini.read_text().replace("slots =", "slot ="))
    stderr = person.types("trust", "add", A, code=2).stderr
    assert stderr.startswith("error: ")
    assert "did you mean 'slots'?" in stderr


def test_a_home_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    done = Person(tmp_path / "file" / "home").types("init", "--yes", "--python", BASE, code=2)
    assert done.stderr.startswith("error: the folder ")


def test_help_and_version_load_nothing_heavy(person):
    script = (
        "import sys\nfrom ponyswarm.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "heavy = {'trio', 'libp2p', 'nacl', 'rich', 'sqlite3', 'findpython', 'msgspec'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    for words in ("--help", "-h", "--version"):
        done = subprocess.run([sys.executable, "-c", script, words], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "[]"
    began = time.perf_counter()
    person.types("--help")
    # 0.14 s on a quiet machine; the limit only catches an import of libp2p (0.6 s).
    assert time.perf_counter() - began < 0.7 or os.getloadavg()[0] > (os.cpu_count() or 1)


@pytest.mark.parametrize("name", ["announce", "watch", "try"])
def test_a_command_that_may_join_the_network_loads_libp2p_only_when_it_does(name):
    script = (
        "import sys\nfrom ponyswarm.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print('libp2p' in sys.modules)"
    )
    words = [sys.executable, "-c", script, name, "--help"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_an_unknown_command_is_guessed():
    result = CliRunner().invoke(cli.main, ["trsut"])
    assert result.exit_code == 2
    assert "did you mean 'trust'?" in result.output


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_each_command_of_the_table_is_there_and_has_help(name):
    line = cli.COMMANDS[name][1]
    assert line.endswith(".")
    assert len(line) < 65
    command = cli.main.get_command(click.Context(cli.main), name)
    assert command is not None
    assert command.name == name
    assert command.help


# --- the one end for errors ---------------------------------------------------------------------


def group_of(*faults: BaseException) -> BaseExceptionGroup:
    return BaseExceptionGroup("nursery", [BaseExceptionGroup("inner", list(faults))])


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        (LocalError("no such thing"), 2, "error: no such thing\n"),
        (InfraError("the disk is full"), 2, "error: the disk is full\n"),
        (PeerError("bad-signature", "of x"), 4, "error: bad-signature: of x\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (group_of(LocalError("a"), PeerError("b")), 2, "error: a\nerror: b\n"),
        (group_of(PeerError("b"), PeerError("b")), 4, "error: b\n"),
        (group_of(LocalError("a"), KeyboardInterrupt()), 130, "interrupted\n"),
    ],
)
def test_an_error_becomes_a_line_and_an_exit_code(monkeypatch, fault, code, text):
    @click.command()
    def fails() -> None:
        raise fault

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: fails)
    result = CliRunner().invoke(cli.main, ["init"])
    assert (result.exit_code, result.stderr) == (code, text)


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    @click.command()
    def fails() -> None:
        raise group_of(LocalError("a"), ZeroDivisionError())

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: fails)
    result = CliRunner().invoke(cli.main, ["init"])
    assert isinstance(result.exception, BaseExceptionGroup)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_with_one_line(person, tmp_path):
    hangs = tmp_path / "python"
    hangs.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexec sleep 60\n")
    hangs.chmod(0o755)
    command = [sys.executable, "-m", "ponyswarm", "--home", str(person.home), "init", "--yes"]
    process = subprocess.Popen(
        [*command, "--python", str(hangs)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "interrupted\n")
    assert not person.home.exists()
