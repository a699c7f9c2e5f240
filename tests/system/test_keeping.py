"""Files that were dropped come back when somebody asks, and messages can be searched for."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from authors import Author, announce, cell_ids, project_record, result, sealed_result
from sources import PASSES, archive, unittest_spec
from swarm_lab import announce as announce_by
from swarm_lab import cells, found_project, ponyswarm, runs, until

from ponyswarm.demo import Member, Swarm
from ponyswarm.exec.interpreters import discover
from ponyswarm.ledger.chain import Accept
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Entry
from ponyswarm.volunteer import minor_version

pytestmark = pytest.mark.slow


@pytest.mark.timeout(180)
def test_a_dropped_output_is_asked_of_peers_and_failures_are_searchable(
    swarm: Swarm, tmp_path: Path
) -> None:
    python = next(one for one in discover() if one.implementation == "cpython")
    maintainer, volunteer = (swarm.member(name, [python]) for name in ("maintainer", "volunteer"))
    project = found_project(swarm, maintainer)
    swarm.command(volunteer, "trust", "add", project)
    swarm.start(volunteer, [])
    swarm.start(maintainer, [swarm.address(volunteer)], "--read-only")
    swarm.address(maintainer)
    fails = PASSES.replace("1 + 1, 2", "1 + 1, 3, 'arithmetic surprise'")
    source = archive(tmp_path, "fails", {"test_it.py": fails})
    job = announce_by(swarm, maintainer, source, unittest_spec(tmp_path, minor_version(python)))
    until("it is run", lambda: runs(maintainer, job) == 1, 60)
    cell = cells(maintainer, job)[0]
    log = cell.results[0].result.log
    assert log is not None
    path = maintainer.home.blobs / log.hash.hex()[:2] / log.hash.hex()[2:]
    until("its output came along", path.exists, 30)

    def found() -> list[dict[str, str]]:
        return json.loads(ponyswarm(maintainer, "search", "surprise", "--json").stdout)

    until("its message is searchable", found, 30)
    assert found()[0]["job"] == "fails-1.0" or found()[0]["test"].endswith("test_it")
    db = sqlite3.connect(maintainer.home.ledger)
    noted = {(role, failing) for role, failing in db.execute("SELECT role, failing FROM blob")}
    db.close()
    assert {("log", 1), ("tests", 1)} <= noted

    path.unlink()
    shown = ponyswarm(maintainer, "show", cell.id.hex()[:16], "--log")
    assert "arithmetic surprise" in shown.stdout
    assert path.exists()
    swarm.stop(maintainer)
    path.unlink()
    shown = ponyswarm(maintainer, "show", cell.id.hex()[:16], "--log")
    assert "not on this machine" in shown.stdout


HOUR = 3_600_000


def old_results() -> tuple[Entry, list[Entry]]:
    """A project and all it said three days ago: two jobs that are over, run blind and openly."""
    root, at = Author(1), int(time.time() * 1000) - 72 * HOUR
    genesis = root.sign(project_record(root), time=at)
    said = announce(expires=at + HOUR)
    entries = [genesis]
    for number in range(2):
        job = root.sign(said, genesis.id, at + number)
        cell = cell_ids(job, said)[0]
        entries.append(job)
        for volunteer in (2, 3):
            author = Author(volunteer, nonce=bytes([volunteer, number] * 4))
            commit, told = sealed_result(author, job.id, cell)
            entries.append(author.sign(commit, genesis.id, at + 1000))
            entries.append(author.sign(told, genesis.id, at + 2000))
        entries.append(
            Author(4, nonce=bytes([number]) * 8).sign(
                result(job.id, cell, failed=1), genesis.id, at + 3000
            )
        )
    return genesis, entries


def settle(member: Member, project: Entry, keep: str, *, archive: bool = False) -> None:
    """How long a member keeps payloads, and that it follows the project."""
    ini = member.home.ini
    text = ini.read_text("utf-8")
    for name, value in (("keep", keep), ("archive", "yes" if archive else "no")):
        lines = [
            f"{name} = {value}" if line.startswith(f"{name} = ") else line
            for line in text.splitlines()
        ]
        text = "\n".join(lines) + "\n"
    ini.write_text(text, "utf-8")
    ponyswarm(member, "follow", "add", project.id.hex())


def rows(member: Member, sql: str) -> list[tuple[object, ...]]:
    if not member.home.ledger.exists():
        return []
    with closing(sqlite3.connect(f"file:{member.home.ledger}?mode=ro", uri=True)) as db:
        try:
            return db.execute(sql).fetchall()
        except sqlite3.OperationalError:
            return []  # Its node is making the tables.


BARE = "SELECT id FROM entry WHERE length(frame) = 224 ORDER BY id"
ENTRIES = "SELECT id FROM entry ORDER BY id"
# Numbers of rows differ between homes: what is compared is what they stand for.
DERIVED = """
    SELECT entry.id, job, cell, state, passed, failed, digest FROM result
    JOIN entry USING (arrival) ORDER BY entry.id
"""
OPENINGS = """
    SELECT entry.id, job, cell, opens, seen FROM opening
    JOIN entry USING (arrival) ORDER BY entry.id
"""


@pytest.mark.timeout(180)
def test_old_payloads_go_and_come_back_from_who_has_them(swarm: Swarm) -> None:
    project, entries = old_results()
    full, forgetful, newcomer = (swarm.member(n, []) for n in ("full", "forgetful", "newcomer"))
    for member in (full, forgetful):
        store = Store(member.home.ledger)
        assert store.append_all(entries, int(time.time() * 1000)) == [Accept()] * len(entries)
        store.close()
    settle(full, project, "90 d", archive=True)
    settle(forgetful, project, "1 h")
    settle(newcomer, project, "90 d")
    before = {sql: rows(full, sql) for sql in (ENTRIES, DERIVED, OPENINGS)}
    assert len(before[DERIVED]) == 6
    assert len(before[OPENINGS]) == 4

    swarm.start(forgetful, [], "--read-only")
    # The results of the earlier job; the project's latest keeps its own.
    until("old payloads are dropped", lambda: len(rows(forgetful, BARE)) == 3, 60)
    assert {sql: rows(forgetful, sql) for sql in before} == before

    swarm.start(newcomer, [swarm.address(forgetful)], "--read-only")
    until("headers come", lambda: rows(newcomer, ENTRIES) == before[ENTRIES], 60)
    assert rows(newcomer, BARE) == rows(forgetful, BARE)
    assert len(rows(newcomer, OPENINGS)) == 2, "what a bare result opens nobody knows yet"
    assert ponyswarm(newcomer, "verify").returncode == 0

    swarm.start(full, [swarm.address(newcomer)], "--read-only")
    until("payloads come from who has them", lambda: rows(newcomer, BARE) == [], 100)
    assert {sql: rows(newcomer, sql) for sql in before} == before

    # Who wants them back after all asks whoever has them.
    swarm.stop(forgetful)
    assert len(rows(forgetful, BARE)) == 3
    settle(forgetful, project, "90 d")
    swarm.start(forgetful, [swarm.address(full)], "--read-only")
    until("they are all there again", lambda: rows(forgetful, BARE) == [], 60)
    assert {sql: rows(forgetful, sql) for sql in before} == before
    swarm.stop(forgetful)
    assert ponyswarm(forgetful, "fsck").returncode == 0
