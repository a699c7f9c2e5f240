"""What is said of a ledger that is damaged or lacks a thing, and of a source that is none."""

from __future__ import annotations

import io
import sqlite3
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio
from authors import FAR, Author, announce, project_record
from click.testing import CliRunner
from told import told

from ponyswarm import demo, local, matrix
from ponyswarm.cli import main
from ponyswarm.cli.opening import opened
from ponyswarm.exec.executor import Executor
from ponyswarm.exec.sandbox import Holds, Limits
from ponyswarm.exec.source import WorkingTree
from ponyswarm.home import Home
from ponyswarm.ledger.store import Store
from ponyswarm.session import Session

# --- the ledger -------------------------------------------------------------------------------


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    home = Home.under(tmp_path / "home")
    done = CliRunner().invoke(main, ["--home", str(home.config_dir), "init", "--yes"])
    assert done.exit_code == 0, done.output
    with opened(home) as made:
        yield made


def test_a_project_that_is_not_in_the_ledger_yet(session: Session) -> None:
    with told(
        "the project abababababababab is not in this ledger yet: 'ponyswarm follow add ID' and "
        "let a node fetch it"
    ):
        session.publish(announce(), project=b"\xab" * 32, now=FAR)


def test_a_record_that_no_root_could_change(session: Session) -> None:
    with told("this project record is not valid (…): check its keys and its threshold"):
        session.publish(project_record(Author(1), threshold=9), now=FAR)


def test_a_ledger_of_other_tables(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE entry (id); PRAGMA user_version = 1")
    with told(
        "… was written by an earlier PonySwarm (schema 1): end the node, and 'ponyswarm fsck "
        "--repair' writes it anew; no entry is lost"
    ):
        Store(path)


def test_an_entry_that_was_taken_out_of_its_feed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    author = Author(1)
    genesis = author.project()
    job = author.sign(announce(), genesis.id)
    with closing(Store(path)) as store:
        store.append_all([genesis, job], FAR)
    with closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM entry WHERE seq = 0")
        db.commit()
    with (
        closing(Store(path)) as store,
        told(
            "the ledger lacks entry 0 of a feed of …: it is damaged; 'ponyswarm fsck --repair' "
            "mends it"
        ),
    ):
        for entry in (genesis, job):
            store.append(entry, FAR)


# --- a source -----------------------------------------------------------------------------------


def test_a_folder_that_git_does_not_know(tmp_path: Path) -> None:
    with told(
        "… is no git checkout: name the top folder of one, or an sdist (.tar.gz); 'git init' and "
        "'git add' make one of a folder"
    ):
        trio.run(local.pack, tmp_path)


def prepared(folder: Path, data: bytes) -> None:
    """Take up an archive of these bytes; nothing of it is run."""
    holds = Holds(bubblewrap="bwrap", version="0", root=False, memory="", processes="")
    executor = Executor(
        cache=folder / "cache", scratch=folder / "scratch", limits=Limits(), sandbox=holds
    )
    path = folder / "demo-1.0.tar.gz"
    trio.run(local.prepare, executor, path, WorkingTree(data, ()), None, folder)


def test_a_source_that_is_no_archive_or_has_no_project(tmp_path: Path) -> None:
    with told("… is not a source that can be used (…): name a git checkout or an sdist"):
        prepared(tmp_path, b"no archive")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("demo-1.0/a.py"))
    with told(
        "… has no pyproject.toml: 'ponyswarm init-project' proposes a [tool.ponyswarm] table for "
        "one; or name a file that has it by --spec"
    ):
        prepared(tmp_path, archive.getvalue())


def test_a_word_that_names_no_service() -> None:
    with told("'?' names no service: write …", at="matrix.py service_requirement"):
        matrix.service_requirement("?")


# --- the demo -----------------------------------------------------------------------------------


@pytest.fixture
def swarm(tmp_path: Path) -> demo.Swarm:
    return demo.Swarm(tmp_path, print, patience=0)


def test_a_command_of_the_demo_that_fails(swarm: demo.Swarm) -> None:
    member = demo.Member("ada", Home.under(swarm.root / "ada"), swarm.root / "ada")
    with told("'ponyswarm log' failed for ada: …"):
        swarm.command(member, "log", "--nonsense")


def test_a_node_of_the_demo_that_is_not_there(swarm: demo.Swarm) -> None:
    member = demo.Member("ada", Home.under(swarm.root / "ada"), swarm.root)
    member.log.write_text("no room\n")
    with told("the node of ada did not get ready; its log: …no room"):
        swarm.wait_for(member, lambda _: True)
    member.process = demo.subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    member.process.wait()
    with told("the node of ada ended (3); its log: …no room"):
        swarm.check(member)
