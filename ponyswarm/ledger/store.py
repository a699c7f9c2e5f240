"""The only writer of the ledger: one append, one transaction, views kept with it.

What comes in is authentic (`codec.decode_entry` checked the signature) and of a project
that this node follows. `Store.append` judges it against its feed (`chain.judge`) and its
author's rights (`policy.refusal`), and inserts frame and derived rows together or not at
all. Nothing is ever updated but feed heads and derived rows; frames stay as received.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from ponyswarm.codec import (
    SignedHeader,
    cell_id,
    comparable,
    decode_frame,
    decode_payload,
    decode_signed_header,
)
from ponyswarm.errors import InfraError, LocalError, PeerError
from ponyswarm.keys import peer_id
from ponyswarm.ledger.chain import (
    Accept,
    Diverges,
    Duplicate,
    Early,
    Forked,
    Gap,
    Head,
    Judgement,
    Refused,
    judge,
)
from ponyswarm.ledger.retention import Held
from ponyswarm.matrix import cells
from ponyswarm.messages import (
    BAD_STATUSES,
    Announce,
    Entry,
    Environment,
    FeedMark,
    FeedRef,
    Fork,
    Kind,
    Project,
    Result,
    Revoke,
    Status,
    Vouch,
    Withdraw,
)
from ponyswarm.policy import ProjectState, advance, fold, has_force, refusal

SCHEMA_VERSION = 1

# Feeds one author may open in one project: a fresh nonce is meant for accidents.
MAX_FEEDS_PER_AUTHOR = 32

# What one author may make others keep in one project. A feed is then a valid prefix.
MAX_BYTES_PER_FEED = 64 << 20

_FORKED_DOMAIN = b"ponyswarm/forked/v1\0"

# The entries that a project's rights rest on: undisputed records, vouches and revocations.
RIGHTS = """
    SELECT frame FROM entry JOIN feed USING (feed)
    WHERE project = ? AND kind IN (1, 6, 7) AND (forked_at IS NULL OR seq < forked_at)
"""


def connect(path: Path, *, synchronous: str) -> sqlite3.Connection:
    """A connection with this project's settings; `LocalError` when the file is no database."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
    try:
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


class Store:
    """The ledger of one home, opened for writing."""

    def __init__(self, path: Path, *, budget: int | None = None) -> None:
        """``budget`` bounds the database in bytes; above it only maintainers are heard."""
        self._budget = budget
        self._db = connect(path, synchronous="NORMAL")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise LocalError(
                f"{path} was written by a later PonySwarm (schema {version}): update this one"
            )
        schema = resources.files("ponyswarm.ledger").joinpath("schema.sql").read_text("utf-8")
        self._db.executescript(schema)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._page_size: int = self._db.execute("PRAGMA page_size").fetchone()[0]
        self._authors: dict[bytes, int] = {}
        self._states: dict[bytes, ProjectState | None] = {}
        self._seen_version = -1

    def close(self) -> None:
        self._db.close()

    # --- writing --------------------------------------------------------------------

    def append(self, entry: Entry, now: int) -> Judgement:
        """Judge one authentic entry and keep it if it is the next of its feed."""
        return self.append_all([entry], now)[0]

    def append_all(self, entries: Sequence[Entry], now: int) -> list[Judgement]:
        """`append` for several in one transaction; each is judged on its own.

        Raises `InfraError` (and keeps none of them) when the disk does not take them.
        """
        try:
            with transaction(self._db):
                return [self._append(entry, now) for entry in entries]
        except BaseException:
            self._authors.clear()
            self._states.clear()
            raise

    def _append(self, entry: Entry, now: int) -> Judgement:
        ref = entry.feed
        project = entry.namespace
        row = self._db.execute(
            "SELECT feed, height, head, head_time FROM feed JOIN author USING (author)"
            " WHERE project = ? AND key = ? AND nonce = ? AND genesis = ?",
            (project, ref.author, ref.nonce, ref.genesis),
        ).fetchone()
        head = None if row is None else Head(row[1] - 1, row[2], row[3])
        held = None
        if row is not None and entry.header.seq < row[1]:
            held = self._db.execute(
                "SELECT id FROM entry WHERE feed = ? AND seq = ?", (row[0], entry.header.seq)
            ).fetchone()[0]
        judgement = judge(entry, head, held, now)
        match judgement:
            case Accept():
                return self._accept(entry, project, None if row is None else row[0])
            case Forked(seq):
                other = self._db.execute(
                    "SELECT frame FROM entry WHERE feed = ? AND seq = ?", (row[0], seq)
                ).fetchone()[0]
                self._keep_evidence(project, _half(decode_frame(other)), _half(entry))
                return judgement
            case Duplicate() | Gap() | Diverges() | Early() | Refused():
                return judgement

    def _accept(self, entry: Entry, project: bytes, feed: int | None) -> Judgement:
        try:
            payload = decode_payload(entry)
            job_cells = cells(payload.spec) if isinstance(payload, Announce) else ()
            evidence = _evidence(payload, entry) if isinstance(payload, Fork) else None
        except PeerError as fault:
            return Refused(fault.reason)
        state = self.state(project)
        reason = refusal(state, entry, payload)
        if reason is not None:
            return Refused(reason)
        if self._is_full() and not (
            state is None or state.may_announce(entry.header.author, entry.header.time)
        ):
            return Refused("ledger-full")
        author = self._author(entry.header.author)
        if feed is None:
            opened = self._db.execute(
                "SELECT count(*) FROM feed WHERE project = ? AND author = ?", (project, author)
            ).fetchone()[0]
            if opened >= MAX_FEEDS_PER_AUTHOR:
                return Refused("too-many-feeds")
            feed = self._open_feed(entry, project, author)
        header = entry.header
        updated = self._db.execute(
            "UPDATE feed SET height = ?, head = ?, head_time = ?, bytes = bytes + ?"
            " WHERE feed = ? AND bytes <= ?",
            (header.seq + 1, entry.id, header.time, len(entry.frame), feed, MAX_BYTES_PER_FEED),
        ).rowcount
        if not updated:
            return Refused("feed-too-large")
        arrival = self._db.execute(
            "INSERT INTO entry (feed, seq, kind, time, prefix, id, frame)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                feed,
                header.seq,
                header.kind,
                header.time,
                id_prefix(entry.id),
                entry.id,
                entry.frame,
            ),
        ).lastrowid
        disputed = self._is_disputed(feed, header.seq)
        if not disputed:
            self._states[project] = advance(state, entry, payload)
        match payload:
            case Project() | Vouch() | Revoke():
                self._rights_changed(project)
            case Announce():
                self._keep_job(entry, payload, author)
                self._db.executemany(
                    "INSERT OR IGNORE INTO cell VALUES (?, ?, ?, ?, ?, ?)",
                    [
                        (
                            entry.id,
                            cell_id(entry.id, cell),
                            position,
                            cell.python,
                            " ".join(cell.services),
                            " ".join(f"{name}={value}" for name, value in cell.factors),
                        )
                        for position, cell in enumerate(job_cells)
                    ],
                )
                self._keep_withdrawal(state, entry, payload, disputed=disputed)
            case Withdraw():
                self._keep_withdrawal(state, entry, payload, disputed=disputed)
            case Result():
                self._keep_result(payload, author, arrival)
                if payload.bad and arrival is not None:
                    names = [(test, "") for test in payload.bad]
                    self._keep_failures(arrival, payload.job, payload.cell, names)
            case Fork():
                if evidence is not None:
                    place = evidence[0].header
                    self._db.execute(
                        "INSERT INTO fork_told VALUES (?, ?, ?, ?, ?)",
                        (project, place.author, place.nonce, place.seq, arrival),
                    )
                    self._keep_evidence(project, *evidence)
            case _:
                pass
        return Accept()

    def _is_full(self) -> bool:
        if self._budget is None:
            return False
        pages = self._db.execute("PRAGMA page_count").fetchone()[0]
        return bool(pages * self._page_size > self._budget)

    def _author(self, key: bytes) -> int:
        if key not in self._authors:
            self._db.execute(
                "INSERT OR IGNORE INTO author (key, peer_id) VALUES (?, ?)", (key, peer_id(key))
            )
            self._authors[key] = self._db.execute(
                "SELECT author FROM author WHERE key = ?", (key,)
            ).fetchone()[0]
        return self._authors[key]

    def _open_feed(self, entry: Entry, project: bytes, author: int) -> int:
        forked = self._db.execute(
            "SELECT min(seq) FROM fork_evidence WHERE project = ? AND author = ? AND nonce = ?"
            " AND NOT ?",
            (project, entry.header.author, entry.header.nonce, entry.is_genesis),
        ).fetchone()[0]
        feed = self._db.execute(
            "INSERT INTO feed (author, project, genesis, nonce, height, bytes, head, head_time,"
            " forked_at) VALUES (?, ?, ?, ?, 0, 0, ?, 0, ?)",
            (author, project, entry.is_genesis, entry.header.nonce, bytes(32), forked),
        ).lastrowid
        if feed is None:
            raise InfraError("the ledger did not keep a new feed")
        return feed

    def _keep_job(self, entry: Entry, announce: Announce, author: int) -> None:
        self._db.execute(
            "INSERT INTO job VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.id,
                entry.namespace,
                author,
                announce.title,
                announce.commit,
                announce.source,
                entry.header.time,
                announce.expires,
                announce.spec.redundancy,
            ),
        )

    def _keep_result(self, result: Result, author: int, arrival: int | None) -> None:
        counts = result.counts
        self._db.execute(
            "INSERT OR IGNORE INTO result VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                result.job,
                result.cell,
                author,
                arrival,
                result.state,
                result.reason,
                counts.get(Status.PASSED, 0),
                sum(counts.get(status, 0) for status in BAD_STATUSES),
                counts.get(Status.SKIPPED, 0),
                sum(counts.values()),
                result.digest,
                describe(result.environment),
                comparable(result.environment),
                result.seconds,
            ),
        )

    def _keep_failures(
        self, arrival: int, job: bytes, cell: bytes, failures: Iterable[tuple[str, str]]
    ) -> None:
        self._db.executemany(
            "INSERT INTO failure (arrival, job, cell, test, message) VALUES (?, ?, ?, ?, ?)",
            [(arrival, job, cell, test, message) for test, message in failures],
        )

    def explain(self, result: bytes, failures: Sequence[tuple[str, str]]) -> None:
        """Keep (test, message) of a result whose list of tests arrived, for full-text search."""
        row = self._db.execute(
            "SELECT arrival, frame FROM entry WHERE prefix = ? AND id = ?",
            (id_prefix(result), result),
        ).fetchone()
        payload = None if row is None else decode_payload(decode_frame(row[1]))
        if not isinstance(payload, Result):
            return
        with transaction(self._db):
            self._db.execute("DELETE FROM failure WHERE arrival = ?", (row[0],))
            self._keep_failures(row[0], payload.job, payload.cell, failures)

    def keep_blob(self, blob: Held) -> None:
        """Note what a blob that is here is for."""
        with transaction(self._db):
            self._db.execute(
                "INSERT OR REPLACE INTO blob VALUES (?, ?, ?, ?, ?, ?)",
                (blob.hash, blob.size, blob.role, blob.job, blob.failing, blob.kept),
            )

    def drop_blobs(self, hashes: Iterable[bytes]) -> None:
        """Forget blobs that are here no more."""
        with transaction(self._db):
            self._db.executemany("DELETE FROM blob WHERE hash = ?", [(hash_,) for hash_ in hashes])

    def blobs(self) -> list[Held]:
        """What is noted of the blobs that are here, with how new their jobs are."""
        rows = self._db.execute(
            "SELECT hash, size, role, blob.job, failing, kept, ifnull(expires, 0), announced IS NOT"
            " NULL AND announced = (SELECT max(announced) FROM job AS other"
            " WHERE other.project = job.project) FROM blob LEFT JOIN job USING (job)"
        )
        return [
            Held(
                hash=row[0],
                size=row[1],
                role=row[2],
                job=row[3],
                failing=bool(row[4]),
                kept=row[5],
                expires=row[6],
                latest=bool(row[7]),
            )
            for row in rows
        ]

    def _is_disputed(self, feed: int, seq: int) -> bool:
        forked = self._db.execute("SELECT forked_at FROM feed WHERE feed = ?", (feed,)).fetchone()[
            0
        ]
        return forked is not None and seq >= forked

    def _rights_changed(self, project: bytes) -> None:
        """Derive again what rests on the project's rights: its record and what ends its jobs."""
        state = self.state(project)
        if state is None:
            return
        record = state.record
        updated = state.records[-1][0] or state.said[0].time
        self._db.execute(
            "INSERT OR REPLACE INTO project VALUES (?, ?, ?, ?)",
            (project, record.name, record.url, updated),
        )
        self._db.execute("DELETE FROM withdrawal WHERE project = ?", (project,))
        rows = self._db.execute(
            "SELECT frame, forked_at IS NOT NULL AND seq >= forked_at"
            " FROM entry JOIN feed USING (feed) WHERE project = ? AND kind IN (?, ?)"
            " ORDER BY time, id",
            (project, Kind.ANNOUNCE, Kind.WITHDRAW),
        ).fetchall()
        for frame, disputed in rows:
            entry = decode_frame(frame)
            payload = decode_payload(entry)
            assert isinstance(payload, Announce | Withdraw)
            self._keep_withdrawal(state, entry, payload, disputed=bool(disputed))

    def _keep_withdrawal(
        self,
        state: ProjectState | None,
        entry: Entry,
        payload: Announce | Withdraw,
        *,
        disputed: bool,
    ) -> None:
        """What ends a job: its withdrawal, or that its announcement has no force."""
        force = not disputed and state is not None and has_force(state, entry, payload)
        if isinstance(payload, Withdraw) and force:
            job, reason = payload.job, payload.reason
        elif isinstance(payload, Announce) and not force:
            job, reason = entry.id, "the key that announced it had no right to"
        else:
            return
        self._db.execute(
            "INSERT OR IGNORE INTO withdrawal VALUES (?, ?, ?)", (entry.namespace, job, reason)
        )

    def _keep_evidence(self, project: bytes, first: SignedHeader, second: SignedHeader) -> None:
        # The halves are ordered by id, so that every node keeps the same row.
        low, high = sorted((first, second), key=lambda half: half.id)
        header = low.header
        earlier = self._db.execute(
            "SELECT 1 FROM fork_evidence WHERE project = ? AND author = ? AND nonce = ?"
            " AND seq < ?",
            (project, header.author, header.nonce, header.seq),
        ).fetchone()
        if earlier is not None:
            return
        kept = self._db.execute(
            "INSERT OR IGNORE INTO fork_evidence VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                header.author,
                project,
                header.nonce,
                header.seq,
                low.raw,
                low.signature,
                high.raw,
                high.signature,
            ),
        ).rowcount
        if not kept:
            return
        self._db.execute(
            "UPDATE feed SET forked_at = min(ifnull(forked_at, ?), ?) WHERE project = ?"
            " AND nonce = ? AND author = (SELECT author FROM author WHERE key = ?)"
            " AND NOT genesis",
            (header.seq, header.seq, project, header.nonce, header.author),
        )
        # What the author directed from there on has no force any more.
        self._states.pop(project, None)
        self._rights_changed(project)

    # --- reading what the node needs ------------------------------------------------------

    def state(self, project: bytes) -> ProjectState | None:
        """The project's rights as its entries here give them; None when it is unknown."""
        version = self._db.execute("PRAGMA data_version").fetchone()[0]
        if version != self._seen_version:
            # Another process of this home (a command) wrote meanwhile.
            self._states.clear()
            self._seen_version = version
        if project not in self._states:
            entries = [decode_frame(frame) for (frame,) in self._db.execute(RIGHTS, (project,))]
            self._states[project] = fold((entry, decode_payload(entry)) for entry in entries)
        return self._states[project]

    def count(self) -> int:
        """How many entries there are (arrivals rise by one and none is ever removed)."""
        return int(self._db.execute("SELECT ifnull(max(arrival), 0) FROM entry").fetchone()[0])

    def ended(self, project: bytes) -> frozenset[bytes]:
        """The jobs that nobody should run: withdrawn, or announced without the right to."""
        rows = self._db.execute("SELECT job FROM withdrawal WHERE project = ?", (project,))
        return frozenset(row[0] for row in rows)

    def holds(self, id_: bytes) -> bool:
        return self.entry(id_) is not None

    def entry(self, id_: bytes) -> Entry | None:
        """The entry of this id, if it is held."""
        for (frame,) in self._db.execute(
            "SELECT frame FROM entry WHERE prefix = ? AND id = ?", (id_prefix(id_), id_)
        ):
            return decode_frame(frame)
        return None

    def frontier(self, project: bytes) -> dict[FeedRef, FeedMark]:
        """How far each feed of a project goes here. A forked one is the same for everybody.

        Its mark is made of the last entry that stands. Where two nodes know of the fork by
        later entries only and hold different ones before, they find that by this.

        One that is forked from its first entry on is left out: nothing of it stands, and
        who knows only the proof has no such feed.
        """
        rows = self._db.execute(
            "SELECT key, nonce, genesis, height, head, forked_at, feed FROM feed"
            " JOIN author USING (author) WHERE project = ? AND ifnull(forked_at, 1) > 0",
            (project,),
        )
        marks: dict[FeedRef, FeedMark] = {}
        for key, nonce, genesis, height, head, forked_at, feed in rows.fetchall():
            mark = FeedMark(height, head[:8])
            if forked_at is not None:
                stands = min(height, forked_at)
                last = self._db.execute(
                    "SELECT id FROM entry WHERE feed = ? AND seq = ?", (feed, stands - 1)
                ).fetchone()[0]
                mark = FeedMark(stands, forked_mark(last))
            marks[FeedRef(key, nonce, bool(genesis))] = mark
        return marks

    def heads(self, author: bytes) -> list[Entry]:
        """The last entry of each feed of an author."""
        rows = self._db.execute(
            "SELECT frame FROM feed JOIN author USING (author) JOIN entry USING (feed)"
            " WHERE key = ? AND seq = height - 1",
            (author,),
        )
        return [decode_frame(frame) for (frame,) in rows]

    def segment(self, project: bytes, ref: FeedRef, start: int, most: int) -> list[bytes]:
        """Frames of a feed from seq ``start`` on, as many as fit in ``most`` bytes."""
        frames: list[bytes] = []
        size = 0
        for (frame,) in self._db.execute(
            "SELECT frame FROM entry WHERE feed = (SELECT feed FROM feed JOIN author USING"
            " (author) WHERE project = ? AND key = ? AND nonce = ? AND genesis = ?)"
            " AND seq >= ? ORDER BY seq",
            (project, ref.author, ref.nonce, ref.genesis, start),
        ):
            size += len(frame)
            if size > most:
                break
            frames.append(frame)
        return frames

    def entries(self, project: bytes, kinds: Sequence[Kind]) -> list[Entry]:
        """All entries of some kinds in a project, in order of arrival."""
        rows = self._db.execute(
            "SELECT frame FROM entry JOIN feed USING (feed)"
            " WHERE project = ? AND kind IN (SELECT value FROM json_each(?)) ORDER BY arrival",
            (project, json.dumps(list(kinds))),
        )
        return [decode_frame(frame) for (frame,) in rows]

    def results(self, job: bytes) -> list[Entry]:
        """The entries that hold results of a job."""
        rows = self._db.execute(
            "SELECT frame FROM result JOIN entry USING (arrival) WHERE job = ? ORDER BY arrival",
            (job,),
        )
        return [decode_frame(frame) for (frame,) in rows]

    def evidence(self, project: bytes, author: bytes) -> Fork | None:
        """The proof that an author forked a feed of this project, for a `fork` entry."""
        row = self._db.execute(
            "SELECT first, first_signature, second, second_signature FROM fork_evidence"
            " WHERE project = ? AND author = ? ORDER BY seq LIMIT 1",
            (project, author),
        ).fetchone()
        if row is None:
            return None
        return Fork(first=row[0], first_signature=row[1], second=row[2], second_signature=row[3])

    def untold_forks(self, project: bytes) -> list[Fork]:
        """Proofs of forks here that no `fork` entry in an undisputed place tells of."""
        rows = self._db.execute(
            "SELECT first, first_signature, second, second_signature FROM fork_evidence AS e"
            " WHERE project = ?1 AND NOT EXISTS (SELECT 1 FROM fork_evidence AS o WHERE"
            " o.project = ?1 AND o.author = e.author AND o.nonce = e.nonce AND o.seq < e.seq)"
            " AND NOT EXISTS (SELECT 1 FROM fork_told AS t JOIN entry USING (arrival)"
            " JOIN feed USING (feed) WHERE t.project = ?1 AND t.author = e.author"
            " AND t.nonce = e.nonce AND t.seq <= e.seq"
            " AND (forked_at IS NULL OR entry.seq < forked_at))",
            (project,),
        )
        return [
            Fork(first=row[0], first_signature=row[1], second=row[2], second_signature=row[3])
            for row in rows
        ]


def forked_mark(last: bytes) -> bytes:
    """What a frontier says of a forked feed in place of its head; ``last`` is what stands."""
    return hashlib.sha256(_FORKED_DOMAIN + last).digest()[:8]


def id_prefix(id_: bytes) -> int:
    """The first 8 bytes of an id as SQLite's signed integer."""
    return int.from_bytes(id_[:8], "big", signed=True)


def describe(environment: Environment | None) -> str:
    """An environment in one short line for people."""
    if environment is None:
        return ""
    services = "".join(f" {name} {v}" for name, v in sorted(environment.services.items()))
    return (
        f"{environment.implementation} {environment.version}"
        f" {environment.system} {environment.machine}{services}"
    )


def _half(entry: Entry) -> SignedHeader:
    return SignedHeader(entry.header, entry.id, entry.frame[:160], entry.signature)


def _evidence(fork: Fork, entry: Entry) -> tuple[SignedHeader, SignedHeader]:
    """The two halves of a `fork` entry; `PeerError` ("bad-fork") unless they prove one."""
    first = decode_signed_header(fork.first, fork.first_signature)
    second = decode_signed_header(fork.second, fork.second_signature)
    places = {(h.author, h.project, h.nonce, h.seq) for h in (first.header, second.header)}
    if len(places) != 1 or first.id == second.id:
        raise PeerError("bad-fork", "the two headers are not two histories of one place")
    if first.header.project != entry.header.project:
        raise PeerError("bad-fork", "it is about another project")
    return first, second
