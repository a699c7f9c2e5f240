"""The ledger's file: how it is opened, its transactions, and columns that need a word.

`store` writes it, `queries` reads it; the journal, the Merkle tree and the witness keep
files of their own with the same settings.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from importlib import resources
from pathlib import Path

from ponyswarm.errors import InfraError, LocalError

SCHEMA_VERSION = 2

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
    """The ledger's version, 0 for a new file; `LocalError` when this program cannot use it."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise LocalError(
            f"{path} was written by a later PonySwarm (schema {version}): update this one"
        )
    if 0 < version < SCHEMA_VERSION:
        raise LocalError(
            f"{path} was written by an earlier PonySwarm (schema {version}): end the node, and "
            "'ponyswarm fsck --repair' writes it anew; no entry is lost"
        )
    return version


class Auth(IntEnum):
    """How an entry is known to be its author's (the column ``auth``)."""

    CHAIN = 0
    OWN = 1
    JUNK = 2


def id_prefix(id_: bytes) -> int:
    """The first 8 bytes of an id as SQLite's signed integer."""
    return int.from_bytes(id_[:8], "big", signed=True)
