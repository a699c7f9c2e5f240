"""Whatever is changed in a ledger's file is found, and a repair brings back what it can."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from authors import (
    NOW,
    Author,
    announce,
    cell_ids,
    digest,
    fork_of,
    project_record,
    sealed_result,
)
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ponyswarm.cli import main
from ponyswarm.errors import LocalError
from ponyswarm.ledger import fsck
from ponyswarm.ledger.chain import Accept
from ponyswarm.ledger.fsck import check
from ponyswarm.ledger.queries import Reader
from ponyswarm.ledger.store import Store

LATER = NOW + 3_600_000


def fill(path: Path) -> bytes:
    """A ledger with a row in every table but ``blob``; its project."""
    store = Store(path)
    root, announcer, *volunteers = (Author(n) for n in range(1, 7))
    genesis = root.project(announcers=(announcer.public,))
    project = genesis.id
    job, over = announcer.announce(project, python=("3.11", "3.12")), announcer.announce(project)
    entries = [genesis, job, over, announcer.withdraw(project, over.id)]
    entries.append(root.withdraw(project, over.id))
    entries.append(root.vouch(project, volunteers[0].public, "alice"))
    for at, cell in enumerate(cell_ids(job, announce(python=("3.11", "3.12")))):
        entries += [a.result(project, job.id, cell, failed=at) for a in volunteers[:3]]
    sealed, told = sealed_result(volunteers[0], job.id, digest("cell"), seen=(genesis.id,))
    entries += [volunteers[0].sign(sealed, project), volunteers[0].sign(told, project)]
    liar = volunteers[3]
    twin = liar.branch()
    one, two = liar.result(project, job.id, digest("c")), twin.withdraw(project, job.id)
    entries += [one, volunteers[0].sign(fork_of(one, two), project)]
    entries.append(root.sign(project_record(root, name="renamed"), project))
    entries.append(root.revoke(project, volunteers[2].public, LATER))
    assert set(store.append_all(entries, LATER)) == {Accept()}
    chain = [volunteers[1].result(project, job.id, digest(str(n))) for n in range(5)]
    assert set(store.append_segment(chain, LATER)) == {Accept()}
    store.close()
    return project


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "ledger.db"
    fill(path)
    return path


def content(path: Path) -> object:
    """All that a reader can see of a database; None when it cannot be read."""
    try:
        db = sqlite3.connect(path)
        db.text_factory = bytes
        try:
            names = [
                name.decode()
                for (name,) in db.execute(
                    "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
                )
            ]
            return [
                db.execute("SELECT * FROM sqlite_master").fetchall(),
                db.execute("PRAGMA user_version").fetchone(),
                *(sorted(map(repr, db.execute(f'SELECT * FROM "{name}"'))) for name in names),
            ]
        finally:
            db.close()
    except (sqlite3.Error, UnicodeError):
        return None


def test_a_good_ledger_is_good_in_all_tables(model):
    report = check(model)
    assert report.faults == []
    assert report.entries == 23
    db = sqlite3.connect(model)
    assert all(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in fsck.TABLES)
    db.close()


def test_every_table_is_compared(model):
    db = sqlite3.connect(model)
    tables = {
        name
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        if not name.startswith(("failure_text", "sqlite_"))
    }
    assert tables == {*fsck.TABLES, "blob"}
    db.close()


def cells_of(model: Path) -> list[tuple[str, str]]:
    db = sqlite3.connect(model)
    found = []
    for table in fsck.TABLES:
        found += [(table, row[1]) for row in db.execute(f"PRAGMA table_info({table})")]
    db.close()
    return found


def changed(value: object) -> object:
    match value:
        case bytes():
            return value[:-1] + bytes([value[-1] ^ 1]) if value else b"x"
        case str():
            return value + "x"
        case None:
            return 7
        case int():
            return value ^ 1
        case float():
            return value + 1
    raise AssertionError(value)


def test_a_change_of_any_column_of_any_table_is_found_and_mended(model, tmp_path):
    before = content(model)
    for number, (table, column) in enumerate(cells_of(model)):
        path = tmp_path / f"{table}.{column}"
        shutil.copy(model, path)
        db = sqlite3.connect(path)
        if (table, column) == ("entry", "auth"):
            key, value = db.execute("SELECT arrival, auth FROM entry WHERE auth = 1").fetchone()
            db.execute("UPDATE entry SET auth = 2 WHERE arrival = ?", (key,))
        else:
            (value,) = db.execute(f'SELECT "{column}" FROM "{table}"').fetchone()
            try:
                db.execute(
                    f'UPDATE OR IGNORE "{table}" SET "{column}" = ? WHERE "{column}" IS ?',
                    (changed(value), value),
                )
            except sqlite3.IntegrityError:
                db.close()
                continue
        db.commit()
        same = db.total_changes == 0
        db.close()
        report = check(path, repair=True)
        assert report.faults or same, (table, column)
        if number % 4:
            continue
        assert check(path).faults == [], (table, column)
        if table not in ("entry", "fork_evidence", "failure") and not same:
            assert report.dropped == 0
            assert content(path) == before, (table, column)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entry WHERE arrival = 3",
        "DELETE FROM entry WHERE arrival = 23",
        "DELETE FROM run WHERE arrival IN (SELECT arrival FROM run LIMIT 1)",
        "DELETE FROM outcome",
        "INSERT INTO target (job, cell) VALUES (x'01', x'02')",
        "DELETE FROM job",
        "DELETE FROM withdrawal",
        "DELETE FROM cell WHERE position = 1",
        "DELETE FROM fork_told",
        "DELETE FROM fork_evidence",
        "DELETE FROM failure",
        "DELETE FROM author WHERE author = 2",
        "INSERT INTO author (key, peer_id) VALUES (x'00', 'nobody')",
        "INSERT INTO withdrawal SELECT project, x'01', 'no' FROM project",
        "DROP VIEW results",
        "DROP INDEX entry_prefix",
        "CREATE TABLE more (x)",
        "CREATE TRIGGER t AFTER INSERT ON run BEGIN DELETE FROM run; END",
        "PRAGMA user_version = 0",
        "PRAGMA user_version = 4",
    ],
)
def test_what_is_missing_or_too_much_is_found_and_mended(model, tmp_path, statement):
    path = tmp_path / "ledger.db"
    shutil.copy(model, path)
    db = sqlite3.connect(path)
    db.execute(statement)
    db.commit()
    db.close()
    assert check(path).faults
    assert check(path, repair=True).repaired
    assert check(path).faults == []


def of_version_two(model: Path, path: Path) -> sqlite3.Connection:
    """A ledger as version 2 wrote it: without the counts by volunteer, and other words for FTS."""
    shutil.copy(model, path)
    db = sqlite3.connect(path)
    db.executescript(
        """
        DROP TABLE volunteer; DROP VIEW volunteers; DROP INDEX job_title;
        CREATE VIEW volunteers AS SELECT count(*) AS results FROM run GROUP BY author;
        DROP TABLE failure_text;
        CREATE VIRTUAL TABLE failure_text USING fts5 (
            test, message, content = 'failure', content_rowid = 'failure'
        );
        INSERT INTO failure_text (failure_text) VALUES ('rebuild');
        PRAGMA user_version = 2;
        """
    )
    return db


def test_a_ledger_of_an_earlier_version_is_no_damage_and_is_brought_up_when_opened(model, tmp_path):
    path = tmp_path / "ledger.db"
    of_version_two(model, path).close()
    assert check(path).faults == []
    with pytest.raises(LocalError, match="earlier PonySwarm"):
        Reader(path)
    Store(path).close()
    assert check(path).faults == []
    db, other = sqlite3.connect(path), sqlite3.connect(model)
    for view in ("volunteers", "results", "failures"):
        question = f"SELECT * FROM {view} ORDER BY 1, 2, 3, 4, 5"
        assert db.execute(question).fetchall() == other.execute(question).fetchall() != []
    for each in (db, other):
        each.close()


def test_an_earlier_version_with_other_tables_is_written_anew_by_fsck(model, tmp_path):
    path = tmp_path / "ledger.db"
    db = of_version_two(model, path)
    db.execute("ALTER TABLE run ADD COLUMN more")
    db.close()
    with pytest.raises(LocalError, match="fsck --repair"):
        Store(path)
    report = check(path, repair=True)
    assert report.faults == ["its schema is of version 2, not 3"]
    assert (report.dropped, report.repaired) == (0, True)
    Store(path).close()
    assert content(path) == content(model)


def test_a_changed_view_is_found_and_mended(model, tmp_path):
    path = tmp_path / "ledger.db"
    shutil.copy(model, path)
    db = sqlite3.connect(path)
    (text,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'volunteers'").fetchone()
    db.execute("DROP VIEW volunteers")
    db.execute(text.replace("results", "results + 1"))
    db.commit()
    db.close()
    assert check(path).faults == ["the view 'volunteers' is missing or altered"]
    check(path, repair=True)
    assert content(path) == content(model)


def test_a_damaged_entry_is_dropped_with_those_after_it_and_comes_back(model, tmp_path):
    path = tmp_path / "ledger.db"
    shutil.copy(model, path)
    whole = Store(model)
    db = sqlite3.connect(path)
    arrival, frame, feed = db.execute(
        "SELECT arrival, frame, feed FROM entry WHERE seq = 2 AND kind = 5"
    ).fetchone()
    db.execute("UPDATE entry SET frame = ? WHERE arrival = ?", (changed(frame), arrival))
    after = db.execute("SELECT count(*) FROM entry WHERE feed = ? AND seq >= 2", (feed,))
    dropped = after.fetchone()[0]
    db.commit()
    db.close()
    report = check(path, repair=True)
    assert (report.dropped, report.repaired) == (dropped, True)
    assert path.with_name("ledger.db.damaged").exists()
    mended = Store(path)
    project = whole._db.execute("SELECT project FROM project").fetchone()[0]
    for ref, mark in whole.frontier(project).items():
        held = mended.frontier(project)[ref].height
        if held < mark.height:
            frames = whole.segment(project, ref, held, 1 << 20)
            mended.append_segment([fsck.decode_kept(frame) for frame in frames], LATER)
    assert mended.frontier(project) == whole.frontier(project)
    for store in (mended, whole):
        store.close()
    assert check(path).faults == []


def test_flipped_bytes_anywhere_in_the_file_are_found_or_change_nothing(model, tmp_path):
    chance = random.Random(7)
    data, before = model.read_bytes(), content(model)
    used = [at for at, byte in enumerate(data) if byte]
    found = 0
    for number in range(60):
        path = tmp_path / "ledger.db"
        flipped = bytearray(data)
        flipped[chance.choice(used)] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        for suffix in ("-wal", "-shm", ".damaged"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        after = content(path)
        report = check(path)
        assert report.faults or after == before, number
        found += bool(report.faults)
    assert found > 20


@given(st.binary(max_size=400), st.integers(0, 200_000))
@settings(max_examples=15)
def test_whatever_a_file_holds_nothing_is_raised_and_a_repair_makes_it_good(
    model, tmp_path_factory, junk, place
):
    path = tmp_path_factory.mktemp("junk") / "ledger.db"
    data = bytearray(model.read_bytes())
    place %= len(data)
    data[place : place + len(junk)] = junk
    path.write_bytes(data)
    check(path, repair=True)
    assert check(path).faults == []


def test_messages_that_came_with_lists_of_tests_are_no_fault_and_survive(model, tmp_path):
    path = tmp_path / "ledger.db"
    shutil.copy(model, path)
    store = Store(path)
    query = "SELECT entry.id FROM failure JOIN entry USING (arrival)"
    store.notes.explain(
        store._db.execute(query).fetchone()[0], [("f0", "it broke"), ("g", "it too")]
    )
    store.close()
    assert check(path).faults == []
    db = sqlite3.connect(path)
    db.execute("DELETE FROM job")
    db.commit()
    db.close()
    check(path, repair=True)
    db = sqlite3.connect(path)
    found = db.execute("SELECT rowid FROM failure_text WHERE failure_text MATCH 'broke'").fetchall()
    assert len(found) == 1
    db.close()


def test_a_file_that_is_no_database_is_said_so(tmp_path):
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database at all" * 100)
    assert "cannot be read as a database" in check(path).faults[0]
    assert check(path, repair=True).repaired
    assert check(path).faults == []
    with pytest.raises(LocalError, match="no ledger"):
        check(tmp_path / "nothing")


def test_processes_find_what_one_finds(model, tmp_path, monkeypatch):
    path = tmp_path / "ledger.db"
    shutil.copy(model, path)
    db = sqlite3.connect(path)
    db.execute("UPDATE entry SET frame = zeroblob(300) WHERE arrival = 12")
    db.commit()
    db.close()
    one = check(path)
    monkeypatch.setattr(fsck, "FEW", 0)
    monkeypatch.setattr(fsck, "BATCH", 7)
    assert check(path) == one


def test_the_command_says_what_it_found_and_did(model, tmp_path):
    run = CliRunner()
    home = tmp_path / "home"
    said = run.invoke(main, ["--home", str(home), "fsck"])
    assert said.exit_code == 2
    from ponyswarm.home import Home

    path = Home.under(home).ledger
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(model, path)
    said = run.invoke(main, ["--home", str(home), "fsck"])
    assert (said.exit_code, said.output) == (0, "23 entries: every byte is as it must be\n")
    db = sqlite3.connect(path)
    db.execute("UPDATE outcome SET failed = 9")
    db.commit()
    db.close()
    said = run.invoke(main, ["--home", str(home), "fsck"])
    assert said.exit_code == 4
    assert "the table 'outcome' does not say what the entries say" in said.output
    said = run.invoke(main, ["--home", str(home), "fsck", "--repair"])
    assert said.exit_code == 4
    assert "nothing was lost" in said.output
    assert run.invoke(main, ["--home", str(home), "fsck", "--json"]).exit_code == 0
