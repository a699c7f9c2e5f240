"""Questions to the ledger: what differs, who agrees, what failed, and how fast."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from authors import FAR, NOW, Author, digest, fork_of, result
from click.testing import CliRunner
from filled import Ledger
from told import told

from ponyswarm import codec, keys
from ponyswarm.cli import main
from ponyswarm.ledger import analysis, diff, history
from ponyswarm.ledger.queries import Reader
from ponyswarm.ledger.store import RIGHTS
from ponyswarm.ledger.verdicts import Verdict
from ponyswarm.messages import Result, Spec, Status
from ponyswarm.policy import ReaderPolicy

LATER = NOW + 3_600_000
SPEC = Spec(python=("3.12", "3.13"), redundancy=2)
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def made(tmp_path: Path):
    for author in (A, B, C):
        author._heads.clear()
    ledger = Ledger(tmp_path)
    yield ledger
    ledger.store.close()


P, F, S = Status.PASSED, Status.FAILED, Status.SKIPPED
A, B, C = Author(2), Author(3), Author(4)


# --- diff ------------------------------------------------------------------------------------


def test_diff_of_two_jobs_names_the_tests_that_changed(made):
    old, before = made.job("old", "aaaa1111")
    new, after = made.job("new", "bbbb2222")
    made.run(A, old, before[0], {"t::a": P, "t::b": P, "t::gone": P})
    made.run(A, new, after[0], {"t::a": P, "t::b": F, "t::new": S})
    made.run(A, old, before[1], {"t::a": P}, version="3.13.0")
    made.run(A, new, after[1], {"t::a": P}, version="3.13.0")
    found = made.ask("diff", "aaaa", new.id.hex()[:12], code=1)
    by_cell = {one["cell"]: one for one in found}
    assert by_cell["3.13"]["same"]
    assert by_cell["3.12"]["tests"] == {
        "t::b": ["passed", "failed"],
        "t::gone": ["passed", "not run"],
        "t::new": ["not run", "skipped"],
    }
    assert made.ask("diff", "aaaa", "aaaa")[0]["same"]
    assert "t::b" in made.say("diff", "aaaa", "bbbb", code=1)


def test_diff_without_the_lists_compares_bad_tests_or_says_that_it_cannot(made):
    job, cells = made.job("one", "aaaa1111")
    made.run(A, job, cells[0], {"t::a": P, "t::b": P}, keep=False)
    made.run(B, job, cells[0], {"t::a": P, "t::b": F}, keep=False)
    a, b = (keys.peer_id(author.public) for author in (A, B))
    found = made.ask("diff", a, b[-8:], "--job", "aaaa", code=1)
    assert found[0]["tests"] == {"t::b": ["good", "bad"]}
    many = {f"t::{i}": F for i in range(4)}
    entry = made.run(C, job, cells[0], {"t::a": P, "t::b": S}, keep=False)
    assert entry is not None
    with Reader(made.path) as reader:
        row = reader.cells(reader.jobs()[0], ReaderPolicy())[0].results[0].result
    assert analysis.tests_of(row, lambda _: None) == analysis.Tests({}, whole=False)
    short = Result(
        **{f: getattr(row, f) for f in ("job", "cell", "state", "digest", "started", "seconds")},
        counts={F: len(many)},
        bad=("t::0",),
    )
    assert analysis.tests_of(short, lambda _: None) is None


def test_diff_of_two_pythons_of_one_job(made):
    job, cells = made.job("one", "aaaa1111")
    made.run(A, job, cells[0], {"t::a": P})
    made.run(A, job, cells[1], {"t::a": F}, version="3.13.0")
    found = made.ask("diff", "3.12", "3.13", "--job", "aaaa", code=1)
    assert [one["tests"] for one in found] == [{"t::a": ["passed", "failed"]}]
    assert "error: nothing in" in CliRunner().invoke(
        main, ["--home", str(made.home), "diff", "2.7", "3.13", "--job", "aaaa"]
    ).output  # fmt: skip


# --- results ----------------------------------------------------------------------------------


def test_results_count_the_majoritys_outcome_by_status_and_name_what_is_bad(made):
    job, cells = made.job("one", "aaaa1111")
    agreed = {"t::a": P, "t::b": F, "t::c": S, "t::d": Status.XFAILED}
    first = made.run(A, job, cells[0], agreed)
    made.run(B, job, cells[0], agreed)
    made.run(C, job, cells[0], {"t::a": P})
    told, open_ = made.ask("results", "demo", code=1)["cells"]
    assert told["counts"] == {"passed": 1, "failed": 1, "skipped": 1, "xfailed": 1}
    assert told["bad"] == ["t::b"]
    assert told["digest"] == codec.decode_payload(first).digest.hex()
    assert (open_["counts"], open_["bad"], open_["digest"]) == ({}, [], "")


# --- flaky and volunteers -----------------------------------------------------------------------


def test_flaky_tests_are_found_across_volunteers_and_jobs_of_one_source(made):
    one, cells = made.job("one", "aaaa1111")
    again, more = made.job("again", "aaaa1111")
    made.run(A, one, cells[0], {"t::a": P, "t::b": P})
    made.run(B, one, cells[0], {"t::a": P, "t::b": F})
    made.run(C, again, more[0], {"t::a": P, "t::b": P})
    # Another patch version is no comparison.
    made.run(Author(5), one, cells[0], {"t::a": F, "t::b": P}, version="3.12.9")
    found = made.ask("flaky", "demo", code=1)
    assert found["tests"] == [
        {"test": "t::b", "statuses": {"passed": 2, "failed": 1}, "cells": ["3.12"]}
    ]
    assert found["differing"] == 1
    assert "1 flaky tests" in made.say("flaky", "demo", code=1)


def test_a_forked_author_makes_nothing_flaky_and_is_marked(made):
    job, cells = made.job("one", "aaaa1111")
    made.run(A, job, cells[0], {"t::a": P})
    twin = B.branch()
    made.run(B, job, cells[0], {"t::a": F})
    made.fill(twin.result(made.project, job.id, cells[1]))
    assert made.ask("flaky", "demo")["tests"] == []
    marks = {one["volunteer"]: one["forked"] for one in made.ask("volunteers", "demo")}
    assert marks == {keys.peer_id(A.public): False}
    assert made.ask("results", "demo", code=3)["forked"] == [keys.peer_id(B.public)]
    assert "signed two histories" in made.say("results", "demo", code=3)
    assert "signed two histories" in made.say("verify")
    assert made.ask("verify")["forked"] == [keys.peer_id(B.public)]
    assert any(row["disputed"] for row in made.ask("log", "demo"))
    shown = made.ask("show", cells[0].hex()[:12])
    assert {one["forked"] for one in shown["results"]} == {True, False}
    assert "disputed" in made.say("show", cells[0].hex()[:12])


def test_the_record_of_a_volunteer_counts_agreement_by_operators(made):
    job, cells = made.job("one", "aaaa1111")
    good, bad = {"t::a": P}, {"t::a": F}
    for author in (A, B, C):
        made.run(author, job, cells[0], good)
    made.run(Author(5), job, cells[0], bad)
    made.run(A, job, cells[1], good)
    made.fill(
        C.sign(result(job.id, cells[1], state="broken", reason="timeout", passed=0), made.project)
    )
    found = {one["volunteer"]: one for one in made.ask("volunteers")}
    a, c, liar = (found[keys.peer_id(author.public)] for author in (A, C, Author(5)))
    assert (a["runs"], a["agreed"], a["alone"]) == (2, 1, 1)
    assert (c["runs"], c["agreed"], c["broken"]) == (2, 1, 1)
    assert (liar["runs"], liar["dissented"]) == (1, 1)
    # Three keys of one operator are one voice: then nobody has the majority.
    for author in (A, B, C):
        made.fill(made.maintainer.vouch(made.project, author.public, "one"))
    found = {one["volunteer"]: one for one in made.ask("volunteers", "demo")}
    assert found[keys.peer_id(A.public)]["open"] == 1
    assert found[keys.peer_id(Author(5).public)]["open"] == 1


# --- search and sql ---------------------------------------------------------------------------


def test_search_finds_names_at_once_and_messages_when_the_list_is_here(made):
    job, cells = made.job("one", "aaaa1111")
    made.run(A, job, cells[0], {"tests/test_net.py::test_slow_socket[ipv6]": F}, keep=False)
    found = made.ask("search", "slow", "ipv6")
    assert found[0]["test"] == "tests/test_net.py::test_slow_socket[ipv6]"
    assert found[0]["commit"] == "aaaa1111"
    made.ask("search", "Connection", code=3)
    made.run(B, job, cells[0], {"t::b": F}, message='ConnectionRefusedError: "nobody" there')
    assert made.ask("search", "nobody", "connectionref")[0]["test"] == "t::b"
    assert "nobody" in made.say("search", '"nobody"')
    for odd in ('"', "'; DROP TABLE entry", "a AND", "NEAR(", "*", "test:"):
        CliRunner().invoke(main, ["--home", str(made.home), "search", odd])
        assert made.store.count() > 0


def test_sql_reads_and_nothing_else(made, tmp_path):
    job, cells = made.job("one", "aaaa1111")
    made.run(A, job, cells[0], {"t::a": F})
    assert made.ask("sql", 'SELECT title, "commit" FROM jobs') == [
        {"title": "one", "commit": "aaaa1111"}
    ]
    assert made.ask("sql", "SELECT count(*) AS n FROM failure_text('t')") == [{"n": 1}]
    assert made.ask("sql", "SELECT id FROM entry LIMIT 1")[0]["id"] == made.project.hex()
    other = tmp_path / "other.db"
    for query in (
        "DELETE FROM entry",
        "UPDATE outcome SET failed = 0",
        "INSERT INTO project VALUES (1, 2, 3, 4)",
        "DROP TABLE entry",
        f"ATTACH '{other}' AS x",
        "PRAGMA query_only = OFF",
        "PRAGMA writable_schema = ON",
        "VACUUM",
        "SELECT load_extension('x')",
        "BEGIN",
        "SELECT 1; SELECT 2",
        "nonsense",
    ):
        made.say("sql", query, code=2)
    assert not other.exists()
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    with told(
        "the query took longer than 0.2 s and was ended: narrow it, or allow more with --timeout"
    ):
        analysis.sql(made.path, endless, seconds=0.2, most=10)
    cut = analysis.sql(made.path, endless.replace("max(i)", "i"), seconds=5, most=7)
    assert (len(cut.rows), cut.cut) == (7, True)
    names = {one["name"] for one in made.ask("sql", "--schema")}
    assert {"entry", "result", "results", "failures", "forks"} <= names


# --- verdicts from columns ----------------------------------------------------------------------


def test_an_author_that_says_two_things_supports_neither_whatever_arrived_first(made):
    job, cells = made.job("one", "aaaa1111")
    first, last = A.reopen(b"aaaaaaaa"), A.reopen(b"bbbbbbbb")
    late = last.sign(result(job.id, cells[0], failed=1), made.project, NOW + 9000)
    early = first.sign(result(job.id, cells[0]), made.project, NOW + 1000)
    made.fill(late, early, B.result(made.project, job.id, cells[0], failed=1))
    with Reader(made.path) as reader:
        cell = reader.matrix(reader.jobs()[0], ReaderPolicy())[0]
    assert cell.finding.verdict == Verdict.FLAKY
    assert cell.runs == 3
    assert cell.finding.supporters == (B.public,)
    assert cell.finding.wavering == (A.public,)
    assert cell.finding.differ == ("f0",)


# --- speed: no question may read a whole table of entries or results --------------------------

SCANS = re.compile(r"SCAN (?!found\b|json_each|told\b|e\b|\S+ VIRTUAL|CONSTANT|\()(\w+)")


def plans(made: Ledger, ask: Callable[[Reader], object]) -> list[str]:
    """How SQLite answers each statement of a question."""
    said: list[str] = []
    with Reader(made.path) as reader:
        reader._db.set_trace_callback(said.append)
        ask(reader)
        reader._db.set_trace_callback(None)
        found = []
        for statement in dict.fromkeys(said):
            # Not what FTS5 asks of its own tables.
            if statement.lstrip().startswith("SELECT") and "'main'." not in statement:
                rows = reader._db.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
                found += [f"{row[3]}  <- {statement}" for row in rows]
    return found


def test_no_question_about_a_project_or_a_commit_scans_entries_or_results(made):
    job, cells = made.job("one", "aaaa1111")
    for author in (A, B):
        made.run(author, job, cells[0], {"t::a": F})
    twin = C.branch()
    made.run(C, job, cells[0], {"t::a": P})
    made.fill(twin.result(made.project, job.id, cells[1]))
    made.fill(made.maintainer.revoke(made.project, A.public, FAR))

    def ask(reader: Reader) -> None:
        project = reader.find_project("demo")
        for row in (
            reader.find_job(project, None, None),
            reader.find_job(project, None, "aaaa"),
            reader.find_job(None, job.id.hex()[:10], None),
        ):
            reader.matrix(row, ReaderPolicy())
            reader.cells(row, ReaderPolicy(), cells[0])
        reader.find_cell(cells[0].hex()[:8])
        reader.projects()
        reader.forked(project)
        reader.jobs(project)
        reader.log(project=project)
        reader.log(author=A.public)
        analysis.flaky(reader, project, lambda _: None)
        analysis.records(reader, project, FAR)
        history.search(reader, "t", 10)
        latest = reader.find_job(project, None, None)
        diff.diff(diff.of_job(reader, latest), diff.within(reader, latest, "3.12"), lambda _: None)

    found = plans(made, ask)
    assert len(found) > 30
    for line in found:
        for table in SCANS.findall(line.partition("  <-")[0]):
            assert table in ("project", "fork_evidence", "feed"), line
    # The index, not the feed's every entry, finds what a project's rights rest on.
    assert any("entry_said" in line for line in found), RIGHTS


# --- the database for people ---------------------------------------------------------------------


def test_every_table_view_and_column_is_documented(made):
    text = (DOCS / "ledger.md").read_text("utf-8")
    sections = re.split(r"(?m)^### ", text)
    described = {part.split("\n", 1)[0].strip("` "): part for part in sections[1:]}
    for kind, name, columns in analysis.tables(made.path):
        assert name in described, f"the {kind} {name} is not in docs/ledger.md"
        for column in columns:
            assert f"`{column}`" in described[name], f"{name}.{column} is not in docs/ledger.md"


def test_the_queries_of_the_documentation_work(made):
    job, cells = made.job("one", "aaaa1111")
    made.run(A, job, cells[0], {"t::a": F})
    text = (DOCS / "ledger.md").read_text("utf-8")
    queries = re.findall(r"(?s)```sql\n(.*?)```", text)
    assert queries
    db = sqlite3.connect(f"file:{made.path}?mode=ro", uri=True)
    for query in queries:
        db.execute(query).fetchall()
    db.close()


def test_sqlite_utils_opens_the_ledger(made):
    import sqlite_utils

    job, cells = made.job("one", "aaaa1111")
    made.run(A, job, cells[0], {"t::a": F})
    db = sqlite_utils.Database(sqlite3.connect(made.path))
    assert {"results", "failures", "jobs"} <= set(db.view_names())
    for name in db.view_names():
        assert list(db[name].rows) or name == "forks", name
    assert next(iter(db["failures"].rows))["test"] == "t::a"
    # It finds the full-text index of a table by itself, as `sqlite-utils search` does.
    assert db["failure"].detect_fts() == "failure_text"
    assert [row["test"] for row in db["failure"].search("t a")] == ["t::a"]
    assert list(db["failure"].search("crocodile")) == []
    db.conn.close()


def test_a_fork_entry_is_readable_in_log_and_view(made):
    author = Author(9)
    twin = author.branch()
    one, two = (
        w.result(made.project, digest("j"), digest(c)) for w, c in ((author, "a"), (twin, "b"))
    )
    made.fill(Author(8).sign(fork_of(one, two), made.project), one)
    assert "forked its feed at #0" in made.ask("log", "demo")[1]["text"]
    assert made.ask("sql", "SELECT seq, entries FROM forks") == [{"seq": 0, "entries": 1}]
