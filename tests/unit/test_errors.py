"""Every mistake that a person can make here is told: what happened, why, what to do next."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from authors import Author
from click.testing import CliRunner
from filled import Ledger

import ponyswarm
from ponyswarm import cli, config, keys
from ponyswarm.cli import main
from ponyswarm.errors import InfraError, LocalError, PeerError
from ponyswarm.messages import Status

SOURCE = Path(ponyswarm.__file__).parent
OTHER = keys.peer_id(keys.SecretKey(bytes([7]) * 32).public)


class Desk:
    """A home with a ledger, a project under git, and whatever a row of the table breaks."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.ledger = Ledger(self.home)
        self.mine = keys.SecretKey(bytes([1]) * 32)  # The maintainer of the ledger's project.
        keys.save(self.home / "key", self.mine)
        config.write(self.home / "ponyswarm.ini", config.template(listen="/ip4/127.0.0.1/tcp/0"))
        job, (cell, _) = self.ledger.job("demo 1.0", "ab" * 20)
        self.ledger.run(Author(2), job, cell, {"t::a": Status.PASSED})
        self.words = {"JOB": job.id.hex(), "CELL": cell.hex(), "KEY": OTHER, "DIR": str(folder)}
        self.app = folder / "app"
        self.app.mkdir()
        (folder / "empty").mkdir()
        (folder / "notes.txt").write_text("no archive\n")

    def git(self, *files: tuple[str, str]) -> None:
        for name, text in files:
            (self.app / name).write_text(text)
        for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x", "--allow-empty"]):
            subprocess.run(
                ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
                cwd=self.app,
                check=True,
            )

    def types(self, line: str) -> tuple[int, str]:
        words = [self.words.get(word, word) for word in line.split()]
        words = [word.replace("DIR", self.words["DIR"]) for word in words]
        done = CliRunner().invoke(main, ["--home", str(self.home), *words])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        return done.exit_code, " ".join(done.output.split())


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.ledger.store.close()


def ini(text: str):
    return lambda desk: (desk.home / "ponyswarm.ini").write_text(text)


def project(*files: tuple[str, str]):
    return lambda desk: desk.git(*files)


def nothing(desk: Desk) -> None:
    """The home as it is."""


def without(name: str):
    return lambda desk: (desk.home / name).unlink()


def open_key(desk: Desk) -> None:
    (desk.home / "key").chmod(0o644)


def key_text(text: str):
    return lambda desk: (desk.home / "key").write_text(text)


def stranger(desk: Desk) -> None:
    (desk.home / "key").write_text("22" * 32 + "\n")


TABLE = 'python = ["3.12"]\n'
# (what is prepared, what is typed, what happened and why, what to do)
MISTAKES = [
    # --- words ---
    (nothing, "anounce", "there is no command 'anounce'", "did you mean 'announce'"),
    (nothing, "xyzzy", "there is no command 'xyzzy'", "'ponyswarm --help' lists them"),
    (
        nothing,
        "announce DIR/app -p demo --expires soon",
        "--expires: 'soon' is no duration",
        "30 min",
    ),
    (nothing, "watch JOB --timeout 3x", "--timeout: '3x' is no duration", "write"),
    (nothing, "trust add 123", "has 3 digits and a project id has 64", "copy the whole id"),
    (nothing, "trust add hello", "is no project id", "ponyswarm project show"),
    (
        nothing,
        "project add-maintainer demo me",
        "'me' is not an Ed25519 peer id",
        "a key looks like",
    ),
    (nothing, "results demo --policy mine", "'mine' is not", "a key looks like"),
    (nothing, "init --listen here", "no address to listen on", "write one such as /ip4/"),
    (nothing, "init --python /no/such", "there is", "--force"),
    (nothing, "export -o x", "say one of", "--junit"),
    (nothing, "verify -n 1", "about a proof", "--proof FILE"),
    # --- what is not there ---
    (nothing, "results nothing", "no project 'nothing' in this ledger", "follow add ID"),
    (nothing, "results demo --job ffff", "there is no job ffff", "'ponyswarm log'"),
    (nothing, "show zz", "not a cell's id", "'ponyswarm results PROJECT'"),
    (nothing, "show ffffffff", "no cell 'ffffffff' here", "'ponyswarm results PROJECT'"),
    (nothing, "watch nothing", "neither a job, nor a commit, nor a project", "'ponyswarm log'"),
    (nothing, "withdraw ffff", "there is no job ffff", "'ponyswarm log'"),
    (
        nothing,
        "export --badge demo -o DIR/no/b.svg",
        "cannot be written",
        "name another file by -o",
    ),
    (nothing, "export --in-toto demo -o -", "cells are not confirmed yet", "'ponyswarm watch"),
    (without("ledger.db"), "log", "there is no ledger", "start 'ponyswarm node'"),
    (without("key"), "announce DIR/app", "there is no key", "'ponyswarm init'"),
    (without("key"), "key show", "there is no key", "'ponyswarm init'"),
    (without("ponyswarm.ini"), "node", "there are no settings", "'ponyswarm init'"),
    (without("ponyswarm.ini"), "trust add " + "aa" * 32, "there is no", "'ponyswarm init'"),
    (without("ponyswarm.ini"), "service install", "there are no settings", "'ponyswarm init'"),
    # --- the key ---
    (open_key, "key show", "can be read by other users", "chmod 600"),
    (key_text("zz"), "key show", "is damaged", "restore it from a backup"),
    (nothing, "key new", "there is a key", "another home with --home DIR"),
    (stranger, "withdraw JOB", "does not allow this to your key", "ask one of its roots"),
    (stranger, "announce DIR/app", "may announce in no project", "'ponyswarm project create NAME'"),
    # --- settings ---
    (ini("slots = 1\n"), "doctor --quick", "is no ini file", "ponyswarm init --force"),
    (ini("[nod]\n"), "node", "there is no section [nod]", "did you mean 'node'"),
    (ini("[node]\nslot = 1\n"), "node", "[node] has no key 'slot'", "did you mean 'slots'"),
    (ini("[node]\nslots = many\n"), "node", "slots = 'many'", "is no whole number from"),
    (ini("[limits]\nmemory = 1\n"), "node", "memory = '1' is no size", "write a number and a unit"),
    (ini("[limits]\nmemory = 1 KB\n"), "node", "is too little", "64 MiB is the least"),
    (ini("[network]\nbootstrap = maybe\n"), "node", "neither yes nor no", "write yes or no"),
    (ini("[network]\npeers = /ip4/1.2.3.4/tcp/1\n"), "node", "which peer is there", "add /p2p/"),
    (ini("[interpreters]\nx = python3\n"), "node", "is no full path", "write one such as"),
    (ini("[services]\nredis.password = x\n"), "node", "no secret belongs", "password_file"),
    (ini("[notify]\ncommand = 'x\n"), "node", "is no command", "quote it as in a shell"),
    # --- projects on disk ---
    (nothing, "announce DIR/empty -p demo", "is no git checkout", "'git init'"),
    (nothing, "announce DIR/notes.txt -p demo", "not a source archive", "sdist"),
    (project(), "announce DIR/app -p demo", "git tracks no file", "git add"),
    (project(("a", "")), "announce DIR/app -p demo", "no pyproject.toml", "init-project --write"),
    (
        project(("pyproject.toml", "[project]\nname = 'a'\n")),
        "announce DIR/app -p demo",
        "has no [tool.ponyswarm] table",
        "init-project --write",
    ),
    (
        project(("pyproject.toml", "[tool.ponyswarm\n")),
        "announce DIR/app -p demo",
        "pyproject.toml cannot be read: Expected ']'",
        "mend that file",
    ),
    (
        project(("pyproject.toml", "[tool.ponyswarm]\npithon = 3\n")),
        "announce DIR/app -p demo",
        "unknown key 'pithon'",
        "known are",
    ),
    (
        project(("pyproject.toml", f"[tool.ponyswarm]\n{TABLE}")),
        "announce DIR/app -p demo --commit nonsense",
        "there is no commit 'nonsense'",
        "'git log'",
    ),
    (
        project(("pyproject.toml", f"[tool.ponyswarm]\n{TABLE}")),
        "init-project DIR/app --write",
        "has a [tool.ponyswarm] table already",
        "take it out",
    ),
    (project(("tox.ini", "[tox\n")), "init-project DIR/app", "tox.ini cannot be read", "tox.ini"),
    (nothing, "hook install DIR/empty", "no git repository", "'git init'"),
    (nothing, "try DIR/empty", "is no git checkout", "'git init'"),
    # --- questions ---
    (nothing, "sql DELETE", "the query is refused", "'ponyswarm sql --schema'"),
    (nothing, "diff ffff ffff", "there is no job", "'ponyswarm log'"),
]


@pytest.mark.parametrize(
    ("prepare", "line", "what", "remedy"), MISTAKES, ids=[line for _, line, _, _ in MISTAKES]
)
def test_a_mistake_is_told_with_its_reason_and_its_remedy(
    desk: Desk, prepare, line: str, what: str, remedy: str
) -> None:
    prepare(desk)
    code, said = desk.types(line)
    assert code == 2, (code, said)
    assert what in said, said
    assert remedy in said, said
    assert "Traceback" not in said


# --- where an error ends ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        ([LocalError("a")], 2),
        ([InfraError("a")], 2),
        ([PeerError("bad-signature")], 4),
        ([PeerError("bad-frame"), LocalError("a")], 2),
        ([KeyboardInterrupt()], 130),
    ],
)
def test_each_kind_of_error_has_its_exit_code(faults: list[BaseException], code: int) -> None:
    assert cli._report(faults) == code


def raised() -> Iterator[tuple[str, str]]:
    """(place, text) of each error for a person that the command line and its files raise."""
    for path in sorted(SOURCE.rglob("*.py")):
        inside = path.relative_to(SOURCE)
        if inside.parts[0] not in ("cli", "config.py", "hooks.py", "spec.py", "announcing.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            if getattr(node.exc.func, "id", "") in ("LocalError", "InfraError"):
                texts = [
                    part.value
                    for argument in node.exc.args
                    for part in ast.walk(argument)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                ]
                yield f"{inside}:{node.lineno}", "".join(texts)


# Texts whose second half comes from a value that says what would be right.
BY_VALUE = re.compile(
    r"what may help|did you mean|^:  $|\[|: $|there is $|known are|no (key|section|service)"
)


def test_every_error_of_the_command_line_says_more_than_what_happened() -> None:
    mute = [
        f"{place}: {text!r}"
        for place, text in raised()
        if not re.search(r"[:;,(] ?.{4,}", text) and not BY_VALUE.search(text)
    ]
    assert not mute, "say why, and what to do next:\n" + "\n".join(mute)
