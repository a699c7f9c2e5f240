"""A witness's memory: what it cosigned of each log, so that it never cosigns two histories.

A node shows its checkpoint, with a proof that its tree only grew since the last one that
this witness cosigned. What is cosigned is written first (``synchronous = FULL``, one
transaction with the check) and signed then, so that a witness that is killed at any point
remembers at least what it may have handed out. Two signed trees of one size are proof
against their log: they are kept, and the log's origin is never cosigned again.

The answers are those of https://c2sp.org/tlog-witness, number for number.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from ponyswarm.keys import SecretKey
from ponyswarm.ledger import merkle, verifier
from ponyswarm.ledger.database import transaction
from ponyswarm.ledger.proofs import DAY_MS, cosign

# What strangers can make us remember: an origin costs about a kilobyte.
MAX_ORIGINS = 50_000
MAX_NEW_ORIGINS_A_DAY = 8
# Cosignatures for one peer: a few at once, then one a minute.
BURST = 4
REFILL_MS = 60_000
MAX_BUCKETS = 4_096

_SCHEMA = """
CREATE TABLE IF NOT EXISTS witnessed (
    origin TEXT PRIMARY KEY,
    key BLOB NOT NULL,
    size INTEGER NOT NULL,
    root BLOB NOT NULL,
    note BLOB NOT NULL,
    time INTEGER NOT NULL,
    begun INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS witnessed_key ON witnessed (key, begun);
CREATE TABLE IF NOT EXISTS split (
    origin TEXT PRIMARY KEY,
    first BLOB NOT NULL,
    second BLOB NOT NULL,
    time INTEGER NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a witness says to a request: a number of HTTP, a body, and what to count it under.

    ``reason`` is empty for what an honest log may run into.
    """

    status: int
    body: bytes = b""
    reason: str = ""


class Witness:
    """This node as a witness of other nodes' logs."""

    def __init__(self, db: sqlite3.Connection, key: SecretKey) -> None:
        self._db = db
        self._key = key
        self._buckets: dict[bytes, tuple[float, int]] = {}
        db.executescript(_SCHEMA)

    def cosign(
        self, peer: bytes, old: int, proof: tuple[bytes, ...], note: bytes, now: int
    ) -> Answer:
        """Answer a log that asks for a cosignature; ``now`` in milliseconds.

        ``peer`` is the key of whom the request came from: a log asks for itself.
        """
        try:
            opened = verifier.open_note(note)
            shown = verifier.open_checkpoint(opened.text)
            verifier.check_log(opened, shown.origin)
        except verifier.Invalid:
            return Answer(403, reason="bad-checkpoint")
        if verifier.log_key(shown.origin) != peer or len(opened.signatures) != 1:
            return Answer(403, reason="bad-checkpoint")
        if not 0 <= old <= shown.size or shown.size == 0:
            return Answer(400, reason="bad-checkpoint")
        if peer == self._key.public:
            return Answer(404)
        with transaction(self._db):
            refusal = self._judge(peer, old, proof, note, shown, now)
            if refusal is not None:
                return refusal
            self._db.execute(
                "INSERT INTO witnessed VALUES (:origin, :peer, :size, :root, :note, :now, :now)"
                " ON CONFLICT (origin) DO UPDATE SET size = :size, root = :root, note = :note,"
                " time = :now",
                {
                    "origin": shown.origin,
                    "peer": peer,
                    "size": shown.size,
                    "root": shown.root,
                    "note": note,
                    "now": now,
                },
            )
        # Only now, that it is remembered, is it signed.
        return Answer(200, cosign(self._key, opened.text, now // 1000))

    def _judge(
        self,
        peer: bytes,
        old: int,
        proof: tuple[bytes, ...],
        note: bytes,
        shown: verifier.Checkpoint,
        now: int,
    ) -> Answer | None:
        row = self._db.execute(
            "SELECT size, root, note FROM witnessed WHERE origin = ?", (shown.origin,)
        ).fetchone()
        if row is None and not self._has_room(peer, now):
            return Answer(507)
        size, root, last = (0, merkle.EMPTY, b"") if row is None else row
        known = Answer(409, b"%d\n" % size + last)
        if self.is_split(shown.origin):
            return known
        if shown.size == size and shown.root != root:
            self._db.execute(
                "INSERT INTO split VALUES (?, ?, ?, ?)", (shown.origin, last, note, now)
            )
            return Answer(409, known.body, "two-trees")
        if old != size:
            return known
        if not merkle.extends(size, root, shown.size, shown.root, proof):
            return Answer(422, reason="bad-consistency")
        return None if self._may(peer, now) else Answer(429)

    def is_split(self, origin: str) -> bool:
        """Whether a log of this origin showed us two trees."""
        row = self._db.execute("SELECT 1 FROM split WHERE origin = ?", (origin,)).fetchone()
        return row is not None

    def splits(self) -> list[tuple[str, bytes, bytes]]:
        """(origin, one checkpoint, the other) of every log that showed us two trees."""
        return self._db.execute("SELECT origin, first, second FROM split ORDER BY time").fetchall()

    def _has_room(self, peer: bytes, now: int) -> bool:
        (mine,) = self._db.execute(
            "SELECT count(*) FROM witnessed WHERE key = ? AND begun > ?", (peer, now - DAY_MS)
        ).fetchone()
        (all_,) = self._db.execute("SELECT count(*) FROM witnessed").fetchone()
        return bool(mine < MAX_NEW_ORIGINS_A_DAY and all_ < MAX_ORIGINS)

    def _may(self, peer: bytes, now: int) -> bool:
        """Take one from the peer's bucket of cosignatures."""
        left, since = self._buckets.pop(peer, (float(BURST), now))
        left = min(BURST, left + max(0, now - since) / REFILL_MS)
        while len(self._buckets) >= MAX_BUCKETS:
            del self._buckets[next(iter(self._buckets))]
        allowed = left >= 1
        self._buckets[peer] = (left - 1 if allowed else left, now)
        return allowed
