"""A node's own log of what it holds: the Merkle tree, its checkpoints, and proofs from them.

The tree is over the ids of all entries here, in the order in which they arrived. Only the
hashes of full blocks of 256 leaves and what stands above them are stored, in ledger.db,
which can be lost with it; they are made when a checkpoint is, so that appending an entry
costs nothing more. What was signed is kept apart, in witness.db (``synchronous = FULL``),
durable before anybody sees it, because of the one rule of a log: never sign two trees of
which one is not the beginning of the other. Where that cannot be known (the ledger was
lost, restored or copied) the log begins anew under another origin.

Formats are those of C2SP (signed-note, tlog-checkpoint, tlog-cosignature); docs/proofs.md
says how they are used here. `verifier` reads what this module makes.
"""

from __future__ import annotations

import base64
import sqlite3
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ponyswarm.errors import InfraError, LocalError, PeerError
from ponyswarm.keys import SecretKey, peer_id
from ponyswarm.ledger import merkle, verifier
from ponyswarm.ledger.database import connect, id_prefix, transaction

BLOCK_LEVEL = 8
BLOCK = 1 << BLOCK_LEVEL
# Blocks that one call hashes: less than 10 ms.
BLOCKS_A_TURN = 8
# A checkpoint may first find the stored tree at fault, and then the log.
TRIES = 3

DAY_MS = 86_400_000
KEEP_CHECKPOINTS_MS = 30 * DAY_MS
# How far ahead of our clock a witness may date what it signs.
WITNESS_AHEAD = 3600

TREE_SCHEMA = """
CREATE TABLE IF NOT EXISTS tree_block (
    position INTEGER PRIMARY KEY,
    first INTEGER NOT NULL UNIQUE,
    last INTEGER NOT NULL,
    hash BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS tree_node (
    level INTEGER NOT NULL,
    position INTEGER NOT NULL,
    hash BLOB NOT NULL,
    PRIMARY KEY (level, position)
) WITHOUT ROWID;
"""

_LOG_SCHEMA = """
CREATE TABLE IF NOT EXISTS log (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    origin TEXT NOT NULL UNIQUE,
    bound TEXT NOT NULL,
    begun INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS checkpoint (
    origin TEXT NOT NULL,
    size INTEGER NOT NULL,
    root BLOB NOT NULL,
    time INTEGER NOT NULL,
    note BLOB NOT NULL,
    PRIMARY KEY (origin, size)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cosignature (
    origin TEXT NOT NULL,
    size INTEGER NOT NULL,
    witness BLOB NOT NULL,
    line BLOB NOT NULL,
    PRIMARY KEY (origin, size, witness)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS wish (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    time INTEGER NOT NULL
);
"""


# --- signing --------------------------------------------------------------------------------


def signature_line(name: str, kind: int, key: bytes, signature: bytes) -> bytes:
    """One signature of a note, as its line."""
    encoded = base64.b64encode(verifier.key_id(name, kind, key) + signature)
    return f"{verifier.SIGNATURE_MARK}{name} ".encode() + encoded + b"\n"


def sign_checkpoint(key: SecretKey, origin: str, size: int, root: bytes) -> bytes:
    """A note that says how large a tree is, and its root."""
    text = f"{origin}\n{size}\n".encode() + base64.b64encode(root) + b"\n"
    line = signature_line(origin, verifier.ED25519, key.public, key.sign(text))
    return text + b"\n" + line


def cosign(key: SecretKey, text: bytes, seconds: int) -> bytes:
    """A witness's line for the text of a checkpoint that it found consistent."""
    signature = key.sign(verifier.cosigned_text(text, seconds))
    name = peer_id(key.public)
    stamped = seconds.to_bytes(8, "big") + signature
    return signature_line(name, verifier.COSIGNATURE, key.public, stamped)


def encode_proof(proof: verifier.Proof) -> bytes:
    """The bytes of a proof file."""
    return b"".join(
        (
            verifier.MAGIC,
            struct.pack(">QB", proof.index, len(proof.path)),
            *proof.path,
            len(proof.frame).to_bytes(2, "big"),
            proof.frame,
            proof.note,
        )
    )


# --- the tree -------------------------------------------------------------------------------


class Tree:
    """The Merkle tree over a ledger's entry ids, kept block by block in the same file."""

    def __init__(self, path: Path) -> None:
        self._db = connect(path, synchronous="NORMAL")
        self._db.executescript(TREE_SCHEMA)

    def close(self) -> None:
        self._db.close()

    def grow(self, blocks: int = BLOCKS_A_TURN) -> bool:
        """Hash the next full blocks of entries; whether that was all. Call it until it is."""
        with transaction(self._db):
            position, last = self._end()
            rows = self._db.execute(
                "SELECT arrival, id FROM entry WHERE arrival > ? ORDER BY arrival LIMIT ?",
                (last, BLOCK * blocks),
            ).fetchall()
            for at in range(0, len(rows) - BLOCK + 1, BLOCK):
                part = rows[at : at + BLOCK]
                hash_ = merkle.full([merkle.leaf_hash(id_) for _, id_ in part])[-1][0]
                self._db.execute(
                    "INSERT INTO tree_block VALUES (?, ?, ?, ?)",
                    (position, part[0][0], part[-1][0], hash_),
                )
                self._carry(position, hash_)
                position += 1
        return len(rows) < BLOCK * blocks

    def _end(self) -> tuple[int, int]:
        """(the number of blocks, the last arrival in them)"""
        row = self._db.execute(
            "SELECT position + 1, last FROM tree_block ORDER BY position DESC LIMIT 1"
        ).fetchone()
        return (0, -1) if row is None else (int(row[0]), int(row[1]))

    def _carry(self, position: int, hash_: bytes) -> None:
        level = BLOCK_LEVEL
        while position & 1:
            hash_ = merkle.node_hash(self._node(level, position - 1), hash_)
            level, position = level + 1, position >> 1
            self._db.execute("INSERT INTO tree_node VALUES (?, ?, ?)", (level, position, hash_))

    def _node(self, level: int, position: int) -> bytes:
        if level == BLOCK_LEVEL:
            row = self._db.execute("SELECT hash FROM tree_block WHERE position = ?", (position,))
        else:
            row = self._db.execute(
                "SELECT hash FROM tree_node WHERE level = ? AND position = ?", (level, position)
            )
        found = row.fetchone()
        if found is None:
            raise InfraError("a hash of the tree is missing; it is made again")
        return bytes(found[0])

    def clear(self) -> None:
        """Forget all stored hashes, which do not fit the entries or may not; `grow` again."""
        with transaction(self._db):
            self._db.execute("DELETE FROM tree_block")
            self._db.execute("DELETE FROM tree_node")

    def newest(self) -> int:
        """The arrival of the last entry; 0 when there is none."""
        return int(self._db.execute("SELECT ifnull(max(arrival), 0) FROM entry").fetchone()[0])

    def view(self) -> View:
        """The tree as it is now: full blocks, and the entries after them (up to 255)."""
        self._db.execute("BEGIN")
        try:
            blocks, last = self._end()
            rows = self._db.execute(
                "SELECT arrival, id FROM entry WHERE arrival > ? ORDER BY arrival LIMIT ?",
                (last, BLOCK - 1),
            ).fetchall()
        finally:
            self._db.execute("COMMIT")
        return View(self, blocks, rows)

    def block(self, position: int) -> list[tuple[int, bytes]]:
        """The (arrival, id) of a full block's entries."""
        first, last, hash_ = self._db.execute(
            "SELECT first, last, hash FROM tree_block WHERE position = ?", (position,)
        ).fetchone()
        rows = self._db.execute(
            "SELECT arrival, id FROM entry WHERE arrival BETWEEN ? AND ? ORDER BY arrival",
            (first, last),
        ).fetchall()
        leaves = [merkle.leaf_hash(id_) for _, id_ in rows]
        if len(leaves) != BLOCK or merkle.full(leaves)[-1][0] != hash_:
            raise InfraError("entries that were in the tree are gone or changed; it is made again")
        return rows

    def place(self, id_: bytes) -> tuple[int, int | None] | None:
        """(arrival, position of its block or None when it is in none yet) of an entry."""
        row = self._db.execute(
            "SELECT arrival FROM entry WHERE prefix = ? AND id = ?", (id_prefix(id_), id_)
        ).fetchone()
        if row is None:
            return None
        block = self._db.execute(
            "SELECT position FROM tree_block WHERE first <= :arrival AND last >= :arrival"
            " ORDER BY first DESC LIMIT 1",
            {"arrival": row[0]},
        ).fetchone()
        return int(row[0]), None if block is None else int(block[0])


class View:
    """The tree at one moment. Earlier sizes are still in it."""

    def __init__(self, tree: Tree, blocks: int, tail: list[tuple[int, bytes]]) -> None:
        self._tree = tree
        self._blocks = blocks
        self._tail = tail
        self._levels: dict[int, list[list[bytes]]] = {
            blocks: merkle.full([merkle.leaf_hash(id_) for _, id_ in tail])
        }
        self.size = blocks * BLOCK + len(tail)

    def node(self, level: int, position: int) -> bytes:
        if level >= BLOCK_LEVEL:
            return self._tree._node(level, position)
        block, at = divmod(position << level, BLOCK)
        if block not in self._levels:
            rows = self._tree.block(block)
            self._levels[block] = merkle.full([merkle.leaf_hash(id_) for _, id_ in rows])
        return self._levels[block][level][at >> level]

    def root(self, size: int) -> bytes:
        return merkle.root(size, self.node)

    def index(self, id_: bytes) -> int | None:
        """The number of an entry in the tree; None when it is not in it."""
        place = self._tree.place(id_)
        if place is None:
            return None
        arrival, block = place
        if block is None or block >= self._blocks:
            rows, block = self._tail, self._blocks
        else:
            rows = self._tree.block(block)
        for at, (number, _) in enumerate(rows):
            if number == arrival:
                return block * BLOCK + at
        return None


# --- the log --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """A checkpoint of our own log, with the cosignatures that came."""

    origin: str
    size: int
    root: bytes
    time: int
    note: bytes
    witnesses: tuple[bytes, ...] = ()

    @property
    def text(self) -> bytes:
        return verifier.open_note(self.note).text

    @property
    def own_note(self) -> bytes:
        """The checkpoint with our own signature alone."""
        end = self.note.index(b"\n", len(self.text) + 1)
        return self.note[: end + 1]


class Log:
    """What this key has signed about its own tree. Several processes of a home may use it."""

    def __init__(
        self,
        db: sqlite3.Connection,
        tree: Tree,
        key: SecretKey,
        *,
        bound: str,
        random: Callable[[int], bytes],
    ) -> None:
        """``bound`` differs between copies of a home; ``random`` gives that many bytes."""
        self._db = db
        self._tree = tree
        self._key = key
        self._bound = bound
        self._random = random
        self._signed_newest: int | None = None
        db.executescript(_LOG_SCHEMA)

    # --- checkpoints ------------------------------------------------------------------------

    def due(self, now: int, interval: int) -> bool:
        """Whether entries may have come since the last checkpoint, ``interval`` ms ago."""
        last = self.latest()
        if last is not None and 0 <= now - last.time < interval:
            return False
        return self._tree.newest() != self._signed_newest

    def grow(self) -> bool:
        """Hash entries that came; whether all are. Call it until it is, before `checkpoint`."""
        return self._tree.grow()

    def clear(self) -> None:
        """Forget what was hashed, which does not fit the entries; `grow` makes it again."""
        self._tree.clear()

    def checkpoint(self, now: int) -> Held | None:
        """Sign the tree as it is, unless that was done; None while there are no entries.

        When it cannot have grown from the one last signed, a log of a new origin begins; that,
        and a fault in what is stored of the tree, give None as well: call `grow` and it again.
        """
        with transaction(self._db):
            # Seen under the lock of all signers: it holds whatever was signed before.
            newest, view = self._tree.newest(), self._tree.view()
            origin, last = self._current()
            follows = last is None or self._follows(view, last)
            if not follows:
                # What is stored may be at fault, and not the entries: hash them first.
                self._tree.clear()
                if follows is False:
                    self._begin(now)
                return None
            self._signed_newest = newest
            if view.size == 0:
                return None
            if origin is None:
                origin = self._begin(now)
            if last is not None and last.size == view.size:
                return last
            root = view.root(view.size)
            note = sign_checkpoint(self._key, origin, view.size, root)
            self._db.execute(
                "INSERT INTO checkpoint VALUES (?, ?, ?, ?, ?)",
                (origin, view.size, root, now, note),
            )
            self._drop_old(now)
            return Held(origin, view.size, root, now, note)

    def fresh(self, now: int) -> Held | None:
        """A checkpoint of all that is here, without turns for others; None for no entries."""
        for _ in range(TRIES):
            while not self.grow():
                pass
            held = self.checkpoint(now)
            if held is not None:
                return held
        return None

    def _follows(self, view: View, last: Held) -> bool | None:
        """Whether the tree grew from the one last signed; None when it cannot be told."""
        try:
            return last.size <= view.size and view.root(last.size) == last.root
        except InfraError:
            return None

    def _drop_old(self, now: int) -> None:
        before = (now - KEEP_CHECKPOINTS_MS,)
        self._db.execute(
            "DELETE FROM cosignature WHERE (origin, size) IN"
            " (SELECT origin, size FROM checkpoint WHERE time < ?)",
            before,
        )
        self._db.execute("DELETE FROM checkpoint WHERE time < ?", before)

    def _current(self) -> tuple[str | None, Held | None]:
        """The origin in use, if any, and the last checkpoint of it."""
        row = self._db.execute(
            "SELECT origin, bound FROM log ORDER BY number DESC LIMIT 1"
        ).fetchone()
        if row is None or row[1] != self._bound:
            return None, None
        held = self._held("origin = ? ORDER BY size DESC LIMIT 1", row[0])
        return row[0], held[0] if held else None

    def _begin(self, now: int) -> str:
        origin = f"{peer_id(self._key.public)}/{self._random(4).hex()}"
        self._db.execute(
            "INSERT INTO log (origin, bound, begun) VALUES (?, ?, ?)", (origin, self._bound, now)
        )
        return origin

    def abandon(self, origin: str, now: int) -> None:
        """Sign nothing more under an origin: a witness knows another tree of it."""
        with transaction(self._db):
            if self._current()[0] == origin:
                self._begin(now)
                self._signed_newest = None

    def _held(self, where: str, *values: object) -> list[Held]:
        rows = self._db.execute(
            f"SELECT origin, size, root, time, note FROM checkpoint WHERE {where}",  # noqa: S608
            values,
        ).fetchall()
        return [self._with_cosignatures(*row) for row in rows]

    def _with_cosignatures(
        self, origin: str, size: int, root: bytes, time: int, note: bytes
    ) -> Held:
        rows = self._db.execute(
            "SELECT witness, line FROM cosignature WHERE origin = ? AND size = ? ORDER BY witness",
            (origin, size),
        ).fetchall()
        lines = b"".join(line for _, line in rows)
        return Held(origin, size, root, time, note + lines, tuple(key for key, _ in rows))

    def latest(self) -> Held | None:
        """The last checkpoint of the origin in use."""
        return self._current()[1]

    # --- witnesses --------------------------------------------------------------------------

    def cosigned_size(self, witness: bytes, origin: str) -> int:
        """The largest size of an origin that a witness is known to have cosigned; else 0."""
        row = self._db.execute(
            "SELECT ifnull(max(size), 0) FROM cosignature WHERE origin = ? AND witness = ?",
            (origin, witness),
        ).fetchone()
        return int(row[0])

    def growth(self, old: int, held: Held) -> list[bytes]:
        """The proof that a checkpoint's tree grew from an earlier size of it."""
        return merkle.consistency(old, held.size, self._tree.view().node)

    def is_ours(self, size: int, note: bytes, held: Held) -> bool:
        """Whether what a witness last cosigned of our origin is of the tree that we have.

        Raises `PeerError` ("bad-witness") when we never signed what it shows.
        """
        try:
            opened = verifier.open_note(note)
            shown = verifier.open_checkpoint(opened.text)
            verifier.check_log(opened, shown.origin)
        except verifier.Invalid as fault:
            raise PeerError("bad-witness", str(fault)) from fault
        if (shown.origin, shown.size) != (held.origin, size):
            raise PeerError("bad-witness", "it shows another log's checkpoint")
        view = self._tree.view()
        return shown.size <= view.size and view.root(shown.size) == shown.root

    def add_cosignature(self, held: Held, witness: bytes, line: bytes, now: int) -> None:
        """Keep a witness's line. Raises `PeerError` ("bad-cosignature") when it does not hold."""
        try:
            note = verifier.open_note(held.text + b"\n" + line)
            key, time = verifier.check_cosignature(note.text, *note.signatures[-1])
        except verifier.Invalid as fault:
            raise PeerError("bad-cosignature", str(fault)) from fault
        if key != witness or len(note.signatures) != 1 or time > now // 1000 + WITNESS_AHEAD:
            raise PeerError(
                "bad-cosignature", "not one signature, of another key, or of a time to come"
            )
        with transaction(self._db):
            self._db.execute(
                "INSERT OR REPLACE INTO cosignature VALUES (?, ?, ?, ?)",
                (held.origin, held.size, witness, line),
            )

    # --- proofs -----------------------------------------------------------------------------

    def wish(self, now: int) -> None:
        """Ask the node that runs on this home for a fresh checkpoint with cosignatures."""
        with transaction(self._db):
            self._db.execute("INSERT INTO wish (time) VALUES (?)", (now,))

    def take_wishes(self) -> bool:
        """Whether somebody asked since the last call."""
        if self._db.execute("SELECT 1 FROM wish LIMIT 1").fetchone() is None:
            return False
        with transaction(self._db):
            self._db.execute("DELETE FROM wish")
        return True

    def covering(self, id_: bytes) -> Held | None:
        """The checkpoint with the most cosignatures that an entry is in, the latest of those."""
        origin = self._current()[0]
        index = self._tree.view().index(id_)
        if origin is None or index is None:
            return None
        found = self._held("origin = ? AND size > ? ORDER BY size", origin, index)
        return max(found, key=lambda held: (len(held.witnesses), held.size), default=None)

    def prove(self, id_: bytes, frame: bytes, held: Held) -> bytes:
        """The proof file of an entry under a checkpoint.

        Raises `LocalError` when the entry cannot be quoted alone, and when the tree does not
        bear it out; the stored hashes are then made again, and the next checkpoint begins a
        new log if they differ.
        """
        try:
            verifier.open_frame(frame)
        except verifier.Invalid as fault:
            raise LocalError(
                f"this entry cannot be quoted alone: {fault}. What it says may still stand in "
                "its feed, where a later signature covers it"
            ) from fault
        try:
            view = self._tree.view()
            index = view.index(id_)
            if index is None or index >= held.size:
                raise LocalError(
                    "the entry is not in that checkpoint's tree yet: prove it under a later one"
                )
            path = tuple(merkle.inclusion(index, held.size, view.node))
            proof = encode_proof(verifier.Proof(index, path, frame, held.note))
            verifier.check(proof)
        except (verifier.Invalid, InfraError) as fault:
            self._tree.clear()
            while not self.grow():
                pass
            raise LocalError(
                f"no proof can be made from this ledger ({fault}): its entries or the tree over "
                "them were changed; 'ponyswarm verify' says what does not hold, then try again"
            ) from fault
        return proof
