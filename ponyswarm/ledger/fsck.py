"""Everything in a ledger checked from its bytes, and rebuilt where it is damaged.

Frames are the truth. Each is decoded and its signature checked, in worker processes; the
chains are followed; and the whole ledger is derived again into a second database, with
which every table is compared, so that a changed row, view or index is found wherever it
is. A repair keeps each feed up to its first damaged entry and lets the second database
take the place of the first; peers give the rest back by sync, the journal our own.

Two things cannot be told from bytes: that a signature was checked before (``own`` turned
into ``chain`` is checked again, no harm), and what the table ``blob`` notes of files.
"""

# Queries are put together of constants in this file only.
# ruff: noqa: S608

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import trio
from anyio import to_process

from ponyswarm.codec import SignedHeader, decode_kept, decode_payload, decode_signed_header
from ponyswarm.codec import is_authentic as holds_own
from ponyswarm.errors import InfraError, PeerError
from ponyswarm.ledger.database import SCHEMA, SCHEMA_VERSION, Auth, bring_up, existing, id_prefix
from ponyswarm.ledger.proofs import TREE_SCHEMA, Tree
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Entry, FeedRef

BATCH = 1_000
# Below this many entries, processes would take longer to start than to check.
FEW = 4 * BATCH
MOST_FAULTS = 1_000

# SQLite's own words may quote damaged text.
_UNREADABLE = (sqlite3.Error, UnicodeError)

_AUTHOR = "JOIN author AS a ON a.author ="
_FEED = "hex(a.key), hex(f.project), f.genesis, hex(f.nonce)"
# What must be equal in both databases: numbers that only name rows are replaced by what
# they stand for.
TABLES = {
    "author": "SELECT key, peer_id FROM author",
    "feed": f"SELECT {_FEED}, height, bytes, head, head_time, forked_at"
    f" FROM feed AS f {_AUTHOR} f.author",
    "entry": f"SELECT hex(id), {_FEED}, seq, kind, time, prefix"
    f" FROM entry JOIN feed AS f USING (feed) {_AUTHOR} f.author",
    "fork_evidence": "SELECT * FROM fork_evidence",
    "fork_told": "SELECT t.project, t.author, t.nonce, t.seq, entry.id"
    " FROM fork_told AS t LEFT JOIN entry USING (arrival)",
    "project": "SELECT * FROM project",
    "job": 'SELECT job, project, hex(a.key), title, "commit", source, announced, expires,'
    f" redundancy FROM job LEFT {_AUTHOR} job.author",
    "withdrawal": "SELECT * FROM withdrawal",
    "cell": "SELECT * FROM cell",
    "environment": "SELECT text, comparable FROM environment",
    "target": "SELECT job, cell FROM target",
    "outcome": "SELECT digest, state, reason, passed, failed, skipped, total FROM outcome",
    "run": "SELECT t.job, t.cell, hex(a.key), entry.id, o.digest, o.state, o.reason, o.passed,"
    " o.failed, o.skipped, o.total, e.text, e.comparable, seconds FROM run"
    " LEFT JOIN target AS t USING (target) LEFT JOIN outcome AS o USING (outcome)"
    " LEFT JOIN entry USING (arrival) LEFT JOIN environment AS e USING (environment)"
    f" LEFT {_AUTHOR} run.author",
    "volunteer": "SELECT hex(a.key), results, completed, broken, tests FROM volunteer AS v"
    f" LEFT {_AUTHOR} v.author",
    "sealed": "SELECT job, cell, hex(a.key), entry.id, s.id, commitment, s.time, s.seen"
    f" FROM sealed AS s LEFT JOIN entry USING (arrival) LEFT {_AUTHOR} s.author",
    "opening": "SELECT job, cell, entry.id, opens, seen FROM opening"
    " LEFT JOIN entry USING (arrival)",
    # Messages come from lists of tests, which are elsewhere: the full-text index has them too.
    "failure": "SELECT entry.id, job, cell, CASE WHEN max(message) = '' THEN group_concat(test)"
    " END FROM (SELECT * FROM failure ORDER BY arrival, test) LEFT JOIN entry USING (arrival)"
    " GROUP BY arrival, job, cell",
}


@dataclass(slots=True)
class Report:
    """What was found, in words, and what was done about it."""

    entries: int = 0
    faults: list[str] = field(default_factory=list)
    dropped: int = 0
    repaired: bool = False

    def fault(self, text: str) -> None:
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(text)


@dataclass(slots=True)
class _Row:
    arrival: int
    columns: tuple[object, ...]
    auth: object
    frame: bytes


def look(frames: Sequence[bytes]) -> list[tuple[str, bool]]:
    """For each frame, what is wrong with it ("" for nothing), and if its signature holds."""
    found = []
    for frame in frames:
        try:
            entry = decode_kept(frame)
            decode_payload(entry)
        except PeerError as fault:
            found.append((str(fault), False))
        else:
            found.append(("", holds_own(entry)))
    return found


def check(
    path: Path, *, repair: bool = False, progress: Callable[[int], None] = lambda _: None
) -> Report:
    """Check a ledger; with ``repair``, put in its place what could be rebuilt of it.

    Nobody else may write to it during a repair. Raises `LocalError` when there is none.
    """
    existing(path)
    report = Report()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="fsck-") as folder:
        copy, fresh = Path(folder) / "copy", Path(folder) / "fresh"
        rebuilt = Store(fresh)
        try:
            _examine(path, copy, rebuilt, report, progress)
        finally:
            rebuilt.close()
        if report.faults and repair:
            _replace(path, fresh)
            report.repaired = True
    return report


def _examine(
    path: Path, copy: Path, rebuilt: Store, report: Report, progress: Callable[[int], None]
) -> None:
    # A copy: one moment of a ledger that a node may be writing to, and free to be tried.
    try:
        with (
            closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    except _UNREADABLE as fault:
        report.fault(f"the file cannot be read as a database ({fault})")
        return
    with closing(sqlite3.connect(copy, isolation_level=None)) as db:
        db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        comparable = _brought_up(db, report)
        if comparable:
            _structure(db, report)
        halves = list(_evidence(db, report))
        rebuilt.restore_evidence(halves)
        trio.run(_entries, db, rebuilt, report, progress)
        _carry_runs(db, rebuilt, report)
        _tree(copy, db, report)
        with closing(sqlite3.connect(f"{rebuilt.path.as_uri()}?mode=ro", uri=True)) as good:
            good.text_factory = db.text_factory
            if comparable:
                _compare(db, good, report)
        if report.faults:
            _carry_over(db, rebuilt)


def _brought_up(db: sqlite3.Connection, report: Report) -> bool:
    """Whether the copy can be compared, after it was brought up as a node's start does it."""
    try:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version == SCHEMA_VERSION or (0 < version < SCHEMA_VERSION and bring_up(db, version)):
            return True
    except _UNREADABLE as fault:
        report.fault(f"the database's structure cannot be read ({fault})")
        return True
    report.fault(f"its schema is of version {version}, not {SCHEMA_VERSION}")
    return not 0 < version < SCHEMA_VERSION


def _structure(db: sqlite3.Connection, report: Report) -> None:
    try:
        for (line,) in db.execute("PRAGMA integrity_check(100)"):
            if line != "ok":
                report.fault(f"the database file is damaged: {line}")
        listing = "SELECT type, name, tbl_name, sql FROM sqlite_master"
        with closing(sqlite3.connect(":memory:")) as model:
            model.executescript(SCHEMA)
            wanted = set(model.execute(listing))
            model.executescript(TREE_SCHEMA)
            also = set(model.execute(listing)) - wanted
        # A ledger has the tree's tables once checkpoints were made of it.
        found = set(db.execute(listing)) - also
        for kind, name, *_ in sorted(wanted - found):
            report.fault(f"the {kind} {name!r} is missing or altered")
        for kind, name, *_ in sorted(found - wanted, key=str):
            if not any((kind, name) == known[:2] for known in wanted):
                report.fault(f"the {kind} {name!r} is not of this ledger")
    except _UNREADABLE as fault:
        report.fault(f"the database's structure cannot be read ({fault})")
    try:
        db.execute("INSERT INTO failure_text (failure_text, rank) VALUES ('integrity-check', 1)")
    except _UNREADABLE as fault:
        report.fault(f"the full-text index does not fit the failures ({fault})")


def _evidence(
    db: sqlite3.Connection, report: Report
) -> Iterator[tuple[bytes, SignedHeader, SignedHeader]]:
    """(project, two halves) of the rows that prove a fork."""
    try:
        rows = db.execute(
            "SELECT project, author, nonce, seq, first, first_signature, second,"
            " second_signature FROM fork_evidence"
        ).fetchall()
    except _UNREADABLE as fault:
        report.fault(f"the proofs of forks cannot be read ({fault})")
        return
    for project, author, nonce, seq, *halves in rows:
        try:
            low, high = _proof(halves, (project, author, nonce, seq))
        except PeerError as fault:
            report.fault(f"a proof of a fork does not hold ({fault})")
        else:
            yield project, low, high


def _proof(halves: list[object], place: tuple[object, ...]) -> tuple[SignedHeader, SignedHeader]:
    """The two halves of a row; `PeerError` unless they prove what it says."""
    found = []
    for raw, signature in (halves[:2], halves[2:]):
        if not isinstance(raw, bytes) or not isinstance(signature, bytes):
            raise PeerError("bad-fork", "not bytes")
        half = decode_signed_header(raw, signature)
        header = half.header
        if (header.project, header.author, header.nonce, header.seq) != place:
            raise PeerError("bad-fork", "it is for another place")
        found.append(half)
    if found[0].id >= found[1].id:
        raise PeerError("bad-fork", "not two histories in order")
    return found[0], found[1]


def _rows(db: sqlite3.Connection, report: Report) -> Iterator[list[_Row]]:
    """The readable rows of ``entry`` in order of arrival, in batches."""
    last, step, most = -(1 << 63), 1, (1 << 63) - 1
    batch: list[_Row] = []
    while True:
        try:
            rows = db.execute(
                "SELECT arrival, seq, kind, time, prefix, id, auth, frame"
                " FROM entry NOT INDEXED WHERE arrival > ? ORDER BY arrival",
                (last,),
            )
            for arrival, *columns, auth, frame in rows:
                last, step = arrival, 1
                if not isinstance(frame, bytes):
                    report.fault(f"entry {arrival}: its frame is not bytes")
                    frame = b""
                batch.append(_Row(arrival, tuple(columns), auth, frame))
                if len(batch) == BATCH:
                    yield batch
                    batch = []
        except _UNREADABLE as fault:
            report.fault(f"entries after {last} cannot be read ({fault})")
            if step > 1 << 40:
                break
            last, step = min(most, max(last, 0) + step), step * 2
        else:
            break
    if batch:
        yield batch


async def _looked_at(
    batches: Iterator[list[_Row]],
) -> list[tuple[list[_Row], list[tuple[str, bool]]]]:
    """The next batches with what was found in them, as many at once as there are cores."""
    workers = os.cpu_count() or 1
    wave = [batch for _, batch in zip(range(workers), batches, strict=False)]
    if sum(map(len, wave)) < min(FEW, workers * BATCH):
        return [(batch, look([row.frame for row in batch])) for batch in wave]
    found: dict[int, list[tuple[str, bool]]] = {}
    limiter = anyio.CapacityLimiter(workers)

    async def one(at: int) -> None:
        frames = [row.frame for row in wave[at]]
        try:
            found[at] = await to_process.run_sync(look, frames, limiter=limiter)
        except anyio.BrokenWorkerProcess as fault:
            raise InfraError(f"a process that checks entries ended ({fault})") from fault

    async with trio.open_nursery() as nursery:
        for at in range(len(wave)):
            nursery.start_soon(one, at)
    return [(batch, found[at]) for at, batch in enumerate(wave)]


async def _entries(
    db: sqlite3.Connection, rebuilt: Store, report: Report, progress: Callable[[int], None]
) -> None:
    """Follow every chain and hand on what stands."""
    batches = _rows(db, report)
    heads: dict[tuple[bytes, FeedRef], Entry] = {}
    broken: set[tuple[bytes, FeedRef]] = set()
    arrived = 0
    while wave := await _looked_at(batches):
        for batch, found in wave:
            good: list[tuple[Entry, Auth]] = []
            for row, (wrong, holds) in zip(batch, found, strict=True):
                report.entries += 1
                arrived += 1
                name = f"entry {row.arrival}"
                if row.arrival != arrived:
                    report.fault(f"{name}: {arrived} entries arrived by then, not {row.arrival}")
                    arrived = row.arrival
                if wrong:
                    report.fault(f"{name}: {wrong}")
                    report.dropped += 1
                    continue
                entry = decode_kept(row.frame)
                header, place = entry.header, (entry.namespace, entry.feed)
                if row.columns != (
                    header.seq, header.kind, header.time, id_prefix(entry.id), entry.id
                ):  # fmt: skip
                    report.fault(f"{name}: the row does not say what its frame says")
                before = heads.get(place)
                follows = header.seq == 0 if before is None else (
                    header.seq == before.header.seq + 1
                    and header.prev == before.id
                    and header.time >= before.header.time
                )  # fmt: skip
                if place in broken or not follows:
                    if place not in broken:
                        report.fault(f"{name}: the entry before it in its feed is missing")
                    broken.add(place)
                    report.dropped += 1
                    continue
                auth = _auth(row.auth, holds=holds, name=name, report=report)
                if auth is None:
                    broken.add(place)
                    report.dropped += 1
                    continue
                heads[place] = entry
                good.append((entry, auth))
            rebuilt.restore(good)
            progress(report.entries)
    rebuilt.finish_restore()


def _auth(said: object, *, holds: bool, name: str, report: Report) -> Auth | None:
    """How an entry is known now; None when its bytes are not what they were."""
    if said == Auth.JUNK and not holds:
        return Auth.JUNK
    if not holds:
        report.fault(f"{name}: its signature does not hold")
        return None
    if said not in (Auth.OWN, Auth.CHAIN):
        report.fault(f"{name}: its signature holds, and it is not marked so")
        return Auth.OWN
    return Auth.OWN if said == Auth.OWN else Auth.CHAIN


def _compare(db: sqlite3.Connection, good: sqlite3.Connection, report: Report) -> None:
    """Every table, as it is and as the frames give it."""
    for table, query in TABLES.items():
        places = ", ".join(str(1 + at) for at in range(_width(good, query)))
        ordered = f"SELECT * FROM ({query}) ORDER BY {places}"
        try:
            there, wanted = db.execute(ordered), good.execute(ordered)
            while True:
                one, two = there.fetchone(), wanted.fetchone()
                if one != two and not (table == "failure" and _explained(one, two)):
                    report.fault(f"the table {table!r} does not say what the entries say")
                    break
                if one is None:
                    break
        except _UNREADABLE as fault:
            report.fault(f"the table {table!r} cannot be read ({fault})")


def _explained(there: tuple[object, ...] | None, wanted: tuple[object, ...] | None) -> bool:
    """Whether a run's failures differ only as its list of tests came since."""
    return there is not None and wanted is not None and there == (*wanted[:-1], None)


def _width(db: sqlite3.Connection, query: str) -> int:
    return len(db.execute(f"SELECT * FROM ({query}) LIMIT 0").description)


def _carry_runs(db: sqlite3.Connection, rebuilt: Store, report: Report) -> None:
    """Take along what was derived from payloads that were dropped: nothing can tell it again."""
    try:
        runs = db.execute(
            "SELECT entry.id, o.digest, o.state, o.reason, o.passed, o.failed, o.skipped, o.total,"
            " t.job, t.cell, e.text, e.comparable, seconds FROM run JOIN entry USING (arrival)"
            " JOIN target AS t USING (target) JOIN outcome AS o USING (outcome)"
            " JOIN environment AS e USING (environment) WHERE length(frame) = 224"
        ).fetchall()
        failures = db.execute(
            "SELECT entry.id, job, cell, test, message FROM failure JOIN entry USING (arrival)"
            " WHERE length(frame) = 224"
        ).fetchall()
        openings = db.execute(
            "SELECT entry.id, job, cell, opens, seen FROM opening JOIN entry USING (arrival)"
            " WHERE length(frame) = 224"
        ).fetchall()
        rebuilt.restore_runs(runs, failures, openings)
    except (*_UNREADABLE, InfraError) as fault:
        report.fault(f"results whose payloads were dropped cannot be read ({fault})")


def _tree(copy: Path, db: sqlite3.Connection, report: Report) -> None:
    """Make the Merkle tree anew and compare. A repaired ledger has none: a node makes it."""
    blocks = "SELECT position, first, last, hash FROM tree_block ORDER BY position"
    nodes = "SELECT level, position, hash FROM tree_node"
    try:
        if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'tree_block'").fetchone():
            return
        stored, inner = db.execute(blocks).fetchall(), set(db.execute(nodes))
        tree = Tree(copy)
        try:
            tree.clear()
            while not tree.grow():
                pass
        finally:
            tree.close()
        made = db.execute(blocks).fetchall()[: len(stored)]
        if stored != made or not inner <= set(db.execute(nodes)):
            report.fault("the Merkle tree does not fit the entries")
    except (*_UNREADABLE, InfraError) as fault:
        report.fault(f"the Merkle tree cannot be read ({fault})")


def _carry_over(db: sqlite3.Connection, rebuilt: Store) -> None:
    """Take along what is of this machine only, where it can be read."""
    with suppress(*_UNREADABLE, InfraError):
        rebuilt.notes.restore(
            db.execute("SELECT * FROM blob").fetchall(),
            db.execute(
                "SELECT entry.id, test, message FROM failure JOIN entry USING (arrival)"
                " WHERE message != ''"
            ).fetchall(),
        )


def _replace(path: Path, fresh: Path) -> None:
    """Put the rebuilt database in place; the damaged one stays beside it."""
    damaged = path.with_name(path.name + ".damaged")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    os.replace(path, damaged)
    os.replace(fresh, path)
