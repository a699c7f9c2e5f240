"""The ledger's file: how it is opened, its transactions, and columns that need a word.

`store` writes it, `queries` reads it; the journal, the Merkle tree and the witness keep
files of their own with the same settings.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import IntEnum
from importlib import resources
from pathlib import Path

from ponyswarm.errors import InfraError, LocalError

SCHEMA_VERSION = 3

SCHEMA = resources.files("ponyswarm.ledger").joinpath("schema.sql").read_text("utf-8")


def connect(path: Path, *, synchronous: str, page_size: int = 4096) -> sqlite3.Connection:
    """A connection with this project's settings; `LocalError` when the file is no database.

    ``page_size`` is that of a new file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
    try:
        db.execute(f"PRAGMA page_size = {page_size}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {synchronous}")
    except sqlite3.DatabaseError as fault:
        db.close()
        raise LocalError(
            f"{path} cannot be opened as a database ({fault}): if it is damaged, move it "
            "away; peers give the ledger back"
        ) from fault
    return db


def existing(path: Path) -> Path:
    """The path of a ledger that is there; `LocalError` when none is."""
    if not path.exists():
        raise LocalError(f"there is no ledger at {path} yet: start 'ponyswarm node'")
    return path


def open_to_read(path: Path, *, any_thread: bool = False) -> sqlite3.Connection:
    """A connection that only reads; `LocalError` when no ledger is there, or it is damaged."""
    address = f"{existing(path).absolute().as_uri()}?mode=ro"
    try:
        db = sqlite3.connect(address, uri=True, timeout=10, check_same_thread=not any_thread)
        try:
            db.execute("PRAGMA user_version").fetchone()
        except BaseException:
            db.close()
            raise
    except sqlite3.DatabaseError as fault:
        raise LocalError(
            f"{path} cannot be read as a ledger ({fault}): if it is damaged, move it away; peers "
            "give it back"
        ) from fault
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; a full disk or an I/O fault becomes `InfraError` after the rollback."""
    try:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
    except sqlite3.OperationalError as fault:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise InfraError(
            f"the ledger could not be written ({fault}): free some disk space; nothing was lost"
        ) from fault


def schema_version(db: sqlite3.Connection, path: Path) -> int:
    """The ledger's version, 0 for a new file; `LocalError` for one of a later program."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise LocalError(
            f"{path} was written by a later PonySwarm (schema {version}): update this one"
        )
    return version


def bring_up(db: sqlite3.Connection, version: int) -> bool:
    """Make the tables of a new file (version 0), or bring an earlier one up to this version.

    Whether that was possible: entries and what is derived from their payloads must stand in
    the same tables as now. Views, text search and what other tables give are made anew.
    """
    script = ""
    if version:
        with closing(sqlite3.connect(":memory:")) as model:
            model.executescript(SCHEMA)
            if not set(model.execute(_KEPT)) <= set(db.execute(_KEPT)):
                return False
            named = "SELECT type, name FROM sqlite_schema WHERE type IN ('view', 'trigger')"
            ours = set(model.execute(named)) & set(db.execute(named))
        script = "".join(f"DROP {kind} {name};" for kind, name in sorted(ours)) + (
            "DROP TABLE IF EXISTS failure_text; DROP TABLE IF EXISTS volunteer;"
        )
    try:
        db.executescript(
            f"BEGIN IMMEDIATE; {script} {SCHEMA}; {_DERIVED if version else ''}"
            f" PRAGMA user_version = {SCHEMA_VERSION}; COMMIT"
        )
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return True


# The tables that cannot be made of others.
_KEPT = """
    SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'
    AND name NOT LIKE 'failure_text%' AND name != 'volunteer'
"""
_DERIVED = """
    INSERT INTO failure_text (failure_text) VALUES ('rebuild');
    INSERT INTO volunteer SELECT author, count(*), sum(state = 'completed'),
        sum(state = 'broken'), sum(total) FROM run JOIN outcome USING (outcome) GROUP BY author;
"""


class Auth(IntEnum):
    """How an entry is known to be its author's (the column ``auth``)."""

    CHAIN = 0
    OWN = 1
    JUNK = 2


def id_prefix(id_: bytes) -> int:
    """The first 8 bytes of an id as SQLite's signed integer."""
    return int.from_bytes(id_[:8], "big", signed=True)
