"""The only writer of entries: one append, one transaction, derived rows kept with it.

What comes in is authentic (`codec.decode_entry` checked its signature, or
`codec.check_segment` that of a later entry which commits to it) and of a project that this
node follows. `Store` judges it against its feed (`chain.judge`) and its author's rights
(`policy.refusal`), and inserts frame and derived rows together or not at all. Nothing is
ever updated but feed heads, derived rows (`views`) and what is known of a signature; frames
stay as received.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ponyswarm.codec import (
    PAYLOAD_OFFSET,
    SignedHeader,
    decode_frame,
    decode_kept,
    decode_payload,
    fork_evidence,
    is_authentic,
    unpack_header,
)
from ponyswarm.errors import InfraError, LocalError, PeerError
from ponyswarm.frontier import Frontier
from ponyswarm.keys import peer_id
from ponyswarm.ledger.chain import (
    MAX_BYTES_PER_FEED,
    Accept,
    Completed,
    Duplicate,
    Forked,
    Head,
    Judgement,
    Refused,
    judge,
)
from ponyswarm.ledger.database import (
    SCHEMA_VERSION,
    Auth,
    bring_up,
    connect,
    id_prefix,
    schema_version,
    transaction,
)
from ponyswarm.ledger.notes import Notes
from ponyswarm.ledger.payloads import Payloads
from ponyswarm.ledger.views import Views
from ponyswarm.messages import (
    Announce,
    Approve,
    Commit,
    Entry,
    FeedMark,
    FeedRef,
    Fork,
    Kind,
    Payload,
    Project,
    Result,
    Revoke,
    Rotate,
    Vouch,
    Withdraw,
)
from ponyswarm.policy import ProjectState, advance, checked_payload, fold, refusal

# Feeds one author may open in one project. A fresh nonce is meant for accidents, but a home
# that is seldom online opens one after each start that no peer could confirm: a limit that
# such a home reached in years would silence it for good.
MAX_FEEDS_PER_AUTHOR = 1_024

# Feeds whose heads are kept in memory between two appends.
MAX_KEPT_FEEDS = 65_536

_FORKED_DOMAIN = b"ponyswarm/forked/v1\0"

# The entries that a project's rights rest on: undisputed records, vouches and revocations.
RIGHTS = """
    SELECT frame FROM entry JOIN feed USING (feed)
    WHERE project = ? AND kind != 5 AND kind IN (1, 6, 7, 10, 11)
    AND (forked_at IS NULL OR seq < forked_at)
"""


@dataclass(slots=True)
class _Feed:
    """A row of ``feed`` as it will be when the transaction ends."""

    feed: int
    author: int
    project: bytes
    ref: FeedRef
    height: int
    head: Head | None
    size: int
    forked_at: int | None

    @classmethod
    def of_row(
        cls,
        feed: int,
        author: int,
        project: bytes,
        ref: FeedRef,
        height: int,
        head: bytes,
        time: int,
        size: int,
        forked_at: int | None,
    ) -> _Feed:
        known = Head(height - 1, head, time)
        return cls(feed, author, project, ref, height, known, size, forked_at)


_ACCEPT = Accept()


class _CutShort(Exception):
    """A segment's entries from ``length`` on may not stay: nothing here vouches for them.

    ``judgement`` is what the segment was stopped by.
    """

    def __init__(self, which: int, length: int, judgement: Judgement) -> None:
        self.which = which
        self.cut = (length, judgement)


class Store:
    """The ledger of one home, opened for writing."""

    def __init__(self, path: Path, *, budget: int | None = None) -> None:
        """``budget`` bounds the database in bytes; above it only maintainers are heard."""
        self.path = path
        self._budget = budget
        # Frames are some 800 bytes: in pages of 4 KiB a sixth would be lost at the ends.
        self._db = connect(path, synchronous="NORMAL", page_size=8192)
        self._db.execute("PRAGMA cache_size = -32768")
        self._db.execute("PRAGMA wal_autocheckpoint = 6000")
        version = schema_version(self._db, path)
        if version != SCHEMA_VERSION and not bring_up(self._db, version):
            raise LocalError(
                f"{path} was written by an earlier PonySwarm (schema {version}): end the node, and "
                "'ponyswarm fsck --repair' writes it anew; no entry is lost"
            )
        self._views = Views(self._db)
        self.notes = Notes(self._db)
        self.payloads = Payloads(self._db)
        self._page_size: int = self._db.execute("PRAGMA page_size").fetchone()[0]
        self._seen_version = -1
        # What the tables say, kept while nobody else writes.
        self._states: dict[bytes, ProjectState | None] = {}
        self._feeds: dict[tuple[bytes, FeedRef], _Feed] = {}
        self._frontiers: dict[bytes, Frontier] = {}
        # Rows of the transaction that is open, written together by `_flush`.
        self._touched: dict[int, _Feed] = {}
        self._entry_rows: list[tuple[object, ...]] = []
        self._arrival = 0
        self._full = False

    def close(self) -> None:
        self._db.close()

    # --- writing --------------------------------------------------------------------

    def append(self, entry: Entry, now: int) -> Judgement:
        """Judge one entry whose own signature was checked; keep it if it is the next."""
        return self.append_all([entry], now)[0]

    def append_all(self, entries: Sequence[Entry], now: int) -> list[Judgement]:
        """`append` for several in one transaction; each is judged on its own.

        Raises `InfraError` (and keeps none of them) when the disk does not take them.
        """
        with self._writing():
            return [self._append(entry, now, Auth.OWN) for entry in entries]

    def append_segment(self, entries: Sequence[Entry], now: int) -> list[Judgement]:
        """`append_segments` for one."""
        return self.append_segments([entries], now)[0]

    def append_segments(
        self, segments: Sequence[Sequence[Entry]], now: int
    ) -> list[list[Judgement]]:
        """Append consecutive entries of feeds, each segment vouched for by its last entry.

        The caller checked that each entry's prev is the id before, and the last one's own
        signature (`codec.unpack_segment`, `codec.check_segment`). The others are kept as
        `Auth.CHAIN`. A segment that is not taken whole ends at an entry whose own signature
        holds, so that what is kept can always be proved and given on. One transaction.
        """
        cuts: dict[int, tuple[int, Judgement]] = {}
        while True:
            try:
                with self._writing():
                    return [
                        self._append_segment(which, entries, cuts.get(which), now)
                        for which, entries in enumerate(segments)
                    ]
            except _CutShort as cut:
                cuts[cut.which] = cut.cut

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction; what is kept in memory is what the tables say after it."""
        try:
            with transaction(self._db):
                self._refresh()
                if len(self._feeds) > MAX_KEPT_FEEDS:
                    self._feeds.clear()
                self._arrival = self.count()
                self._full = self.fullness > 1
                yield
                self._flush()
        except BaseException:
            self._forget()
            raise
        for feed in self._touched.values():
            frontier = self._frontiers.get(feed.project)
            if frontier is not None:
                self._mark(frontier, feed)
        self._touched.clear()

    def _forget(self) -> None:
        self._entry_rows.clear()
        self._views.forget()
        self._touched.clear()
        self._feeds.clear()
        self._states.clear()
        self._frontiers.clear()

    def _refresh(self) -> None:
        """Forget what is kept in memory when another process of this home wrote meanwhile."""
        version = self._db.execute("PRAGMA data_version").fetchone()[0]
        if version != self._seen_version:
            self._forget()
            self._seen_version = version

    def _flush(self) -> None:
        """Write the rows that wait; whoever reads these tables calls it first."""
        if self._entry_rows:
            self._db.executemany(
                "INSERT INTO entry (arrival, feed, seq, kind, time, prefix, auth, id, frame)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                self._entry_rows,
            )
            self._entry_rows.clear()
            self._db.executemany(
                "UPDATE feed SET height = ?, head = ?, head_time = ?, bytes = ? WHERE feed = ?",
                [
                    (feed.height, head.id, head.time, feed.size, feed.feed)
                    for feed in self._touched.values()
                    if (head := feed.head) is not None
                ],
            )
        self._views.flush()

    def _append_segment(
        self,
        which: int,
        entries: Sequence[Entry],
        cut: tuple[int, Judgement] | None,
        now: int,
    ) -> list[Judgement]:
        judgements: list[Judgement] = []
        last = len(entries) - 1
        accepted = -1
        project, ref = entries[0].namespace, entries[0].feed
        feed = self._feed(project, ref)
        for at, entry in enumerate(entries if cut is None else entries[: cut[0]]):
            auth = Auth.OWN if at == last else Auth.CHAIN
            judgement = self._judge(entry, project, feed, now, auth)
            judgements.append(judgement)
            if judgement is _ACCEPT:
                accepted = at
                if feed is None:
                    feed = self._feed(project, ref)
                continue
            # A fork that was proved makes another row of the feed.
            feed = self._feed(project, ref)
            match judgement:
                case Duplicate() | Completed():
                    pass
                case Forked() if not self._is_proven(entry):
                    # The signature of one of the two is junk; a later place may prove it.
                    pass
                case _:
                    break
        if 0 <= accepted < last:
            if not is_authentic(entries[accepted]):
                stands = accepted
                while stands and not is_authentic(entries[stands - 1]):
                    stands -= 1
                raise _CutShort(which, stands, judgements[-1])
            self._flush()
            self._db.execute(
                "UPDATE entry SET auth = ? WHERE prefix = ? AND id = ?",
                (Auth.OWN, id_prefix(entries[accepted].id), entries[accepted].id),
            )
        end = judgements[-1] if cut is None else cut[1]
        return judgements + [end] * (len(entries) - len(judgements))

    def _is_proven(self, entry: Entry) -> bool:
        feed = self._feed(entry.namespace, entry.feed)
        return feed is not None and self._is_disputed(feed, entry.header.seq)

    def _append(self, entry: Entry, now: int, auth: Auth) -> Judgement:
        project = entry.namespace
        return self._judge(entry, project, self._feed(project, entry.feed), now, auth)

    def _judge(
        self, entry: Entry, project: bytes, feed: _Feed | None, now: int, auth: Auth
    ) -> Judgement:
        head = held = None
        if feed is not None:
            head = feed.head
            if entry.header.seq < feed.height:
                held = self._held(feed, entry.header.seq)
        judgement = judge(entry, head, held, now)
        if isinstance(judgement, Accept):
            return self._accept(entry, project, feed, auth)
        if isinstance(judgement, Completed) and feed is not None:
            return self._complete(entry, feed, judgement)
        # Only signed headers prove a fork; a link in a chain may have a junk signature.
        if held is not None and held.id != entry.id and is_authentic(held) and is_authentic(entry):
            self._keep_evidence(project, _half(held), _half(entry))
        return judgement

    def _feed(self, project: bytes, ref: FeedRef) -> _Feed | None:
        found = self._feeds.get((project, ref))
        if found is None:
            row = self._db.execute(
                "SELECT feed, author, height, head, head_time, bytes, forked_at FROM feed"
                " JOIN author USING (author)"
                " WHERE project = ? AND key = ? AND nonce = ? AND genesis = ?",
                (project, ref.author, ref.nonce, ref.genesis),
            ).fetchone()
            if row is not None:
                feed, author, *facts = row
                found = self._feeds[project, ref] = _Feed.of_row(feed, author, project, ref, *facts)
        return found

    def _held(self, feed: _Feed, seq: int) -> Entry:
        self._flush()
        row = self._db.execute(
            "SELECT frame FROM entry WHERE feed = ? AND seq = ?", (feed.feed, seq)
        ).fetchone()
        if row is None:
            raise InfraError(
                f"the ledger lacks entry {seq} of a feed of {feed.height}: it is damaged; "
                "'ponyswarm fsck --repair' mends it"
            )
        return decode_kept(row[0])

    def _accept(self, entry: Entry, project: bytes, feed: _Feed | None, auth: Auth) -> Judgement:
        try:
            payload = checked_payload(entry)
        except PeerError as fault:
            return Refused(fault.reason)
        state = self._state(project)
        reason = refusal(state, entry, payload)
        if reason is not None:
            return Refused(reason)
        header = entry.header
        if self._full and not (state is None or state.may_announce(header.author, header.time)):
            return Refused("ledger-full")
        if feed is None:
            opened = self._db.execute(
                "SELECT count(*) FROM feed JOIN author USING (author)"
                " WHERE project = ? AND key = ?",
                (project, header.author),
            ).fetchone()[0]
            if opened >= MAX_FEEDS_PER_AUTHOR:
                return Refused("too-many-feeds")
            feed = self._open_feed(entry, project)
        elif feed.size > MAX_BYTES_PER_FEED:
            return Refused("feed-too-large")
        self._keep(entry, payload, feed, auth)
        return _ACCEPT

    def _complete(self, entry: Entry, feed: _Feed, judgement: Completed) -> Judgement:
        """Give an entry that is held bare its payload back, and what is derived from it."""
        try:
            payload = decode_payload(entry)
        except PeerError as fault:
            return Refused(fault.reason)
        if self._full:
            return Refused("ledger-full")
        place = (feed.feed, entry.header.seq)
        self._db.execute(
            "UPDATE entry SET frame = ? WHERE feed = ? AND seq = ?", (entry.frame, *place)
        )
        if isinstance(payload, Result):
            row = "SELECT arrival FROM entry WHERE feed = ? AND seq = ?"
            arrival = self._db.execute(row, place).fetchone()[0]
            self._views.restore_result(payload, feed.author, entry.header.author, arrival)
        return judgement

    def _keep(self, entry: Entry, payload: Payload | None, feed: _Feed, auth: Auth) -> None:
        """Write an entry that may stay, and every row that is derived from it."""
        header, project = entry.header, feed.project
        self._arrival += 1
        arrival = self._arrival
        self._entry_rows.append(
            (
                arrival,
                feed.feed,
                header.seq,
                header.kind,
                header.time,
                id_prefix(entry.id),
                int(auth),  # SQLite's adapter takes its time with anything but plain numbers.
                entry.id,
                entry.frame,
            )
        )
        feed.height = header.seq + 1
        feed.head = Head(header.seq, entry.id, header.time)
        feed.size += PAYLOAD_OFFSET + header.length
        self._touched[feed.feed] = feed
        if isinstance(payload, Result):
            self._views.add_result(payload, feed.author, arrival)
            if payload.nonce:
                self._views.add_opening(payload, header.author, arrival)
            return
        disputed = self._is_disputed(feed, header.seq)
        state = self._state(project)
        if not disputed:
            self._states[project] = advance(state, entry, payload)
        match payload:
            case Project() | Vouch() | Revoke() | Rotate() | Approve():
                self._rights_changed(project)
            case Commit():
                self._views.add_commit(entry, payload, feed.author, arrival)
            case Announce():
                self._views.add_job(entry, payload, feed.author)
                self._views.end_job(state, entry, payload, disputed=disputed)
            case Withdraw():
                if payload.job in self.ended(project):
                    # Which reason is shown must not depend on which one came first.
                    self._rights_changed(project)
                else:
                    self._views.end_job(state, entry, payload, disputed=disputed)
            case Fork():
                first, second = fork_evidence(payload, entry)
                self._keep_evidence(project, first, second)
                place = first.header
                self._db.execute(
                    "INSERT INTO fork_told VALUES (?, ?, ?, ?, ?)",
                    (project, place.author, place.nonce, place.seq, arrival),
                )
            case _:
                pass

    @property
    def fullness(self) -> float:
        """The part of the budget that is used; 0 without one. Pages that are free again are not."""
        if self._budget is None:
            return 0.0
        pages = self._db.execute("PRAGMA page_count").fetchone()[0]
        free = self._db.execute("PRAGMA freelist_count").fetchone()[0]
        return float((pages - free) * self._page_size / self._budget)

    def _open_feed(self, entry: Entry, project: bytes) -> _Feed:
        key, ref = entry.header.author, entry.feed
        self._db.execute(
            "INSERT OR IGNORE INTO author (key, peer_id) VALUES (?, ?)", (key, peer_id(key))
        )
        author = self._db.execute("SELECT author FROM author WHERE key = ?", (key,)).fetchone()[0]
        forked = self._db.execute(
            "SELECT min(seq) FROM fork_evidence WHERE project = ? AND author = ? AND nonce = ?"
            " AND NOT ?",
            (project, key, ref.nonce, ref.genesis),
        ).fetchone()[0]
        feed = self._db.execute(
            "INSERT INTO feed (author, project, genesis, nonce, height, bytes, head, head_time,"
            " forked_at) VALUES (?, ?, ?, ?, 0, 0, ?, 0, ?)",
            (author, project, ref.genesis, ref.nonce, bytes(32), forked),
        ).lastrowid
        if feed is None:
            raise InfraError("the ledger did not keep a new feed")
        opened = _Feed(feed, author, project, ref, 0, None, 0, forked)
        self._feeds[project, ref] = opened
        return opened

    @staticmethod
    def _is_disputed(feed: _Feed, seq: int) -> bool:
        return feed.forked_at is not None and seq >= feed.forked_at

    def _keep_evidence(self, project: bytes, first: SignedHeader, second: SignedHeader) -> None:
        # The halves are ordered by id, so that every node keeps the same row.
        self._flush()
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
        self._feeds.clear()
        self._frontiers.pop(project, None)
        self._rights_changed(project)

    def _rights_changed(self, project: bytes) -> None:
        state = self._state(project)
        if state is not None:
            self._flush()
            self._views.derive_rights(project, state)

    # --- reading what the node needs ------------------------------------------------------

    def state(self, project: bytes) -> ProjectState | None:
        """The project's rights as its entries here give them; None when it is unknown."""
        self._refresh()
        return self._state(project)

    def _state(self, project: bytes) -> ProjectState | None:
        if project not in self._states:
            self._flush()
            entries = [decode_frame(frame) for (frame,) in self._db.execute(RIGHTS, (project,))]
            self._states[project] = fold((entry, decode_payload(entry)) for entry in entries)
        return self._states[project]

    def count(self) -> int:
        """How many entries there are (arrivals rise by one and none is ever removed)."""
        return int(self._db.execute("SELECT ifnull(max(arrival), 0) FROM entry").fetchone()[0])

    def ended(self, project: bytes) -> frozenset[bytes]:
        """The jobs that nobody should run: withdrawn, or announced without the right to."""
        return self._views.ended(project)

    def holds(self, id_: bytes) -> bool:
        return self.entry(id_) is not None

    def entry(self, id_: bytes) -> Entry | None:
        """The entry of this id, if it is held."""
        for (frame,) in self._db.execute(
            "SELECT frame FROM entry WHERE prefix = ? AND id = ?", (id_prefix(id_), id_)
        ):
            return decode_kept(frame)
        return None

    def frontier(self, project: bytes) -> dict[FeedRef, FeedMark]:
        """How far each feed of a project goes here, as it is now."""
        return dict(self.live_frontier(project).items())

    def live_frontier(self, project: bytes) -> Frontier:
        """How far each feed of a project goes here, kept up as entries come.

        A forked one is the same for everybody. Its mark is made of the last entry that
        stands. Where two nodes know of the fork by later entries only and hold different
        ones before, they find that by this. One that is forked from its first entry on is
        left out: nothing of it stands, and who knows only the proof has no such feed.
        """
        self._refresh()
        if project not in self._frontiers:
            frontier = self._frontiers[project] = Frontier()
            rows = self._db.execute(
                "SELECT feed, author, key, nonce, genesis, height, head, head_time, bytes,"
                " forked_at FROM feed JOIN author USING (author) WHERE project = ?",
                (project,),
            )
            for feed, author, key, nonce, genesis, *facts in rows.fetchall():
                ref = FeedRef(key, nonce, bool(genesis))
                self._mark(frontier, _Feed.of_row(feed, author, project, ref, *facts))
        return self._frontiers[project]

    def whole_frontier(self, project: bytes, since: int) -> Frontier | None:
        """The frontier as if each feed ended before its first bare entry of a time or later.

        Asking with it brings those entries once more, with their payloads where the peer has
        them. None when none is bare.
        """
        missing = self.payloads.missing(project, since)
        if not missing:
            return None
        frontier = Frontier(dict(self.live_frontier(project).items()))
        for feed, seq in missing:
            key, nonce, genesis = self._db.execute(
                "SELECT key, nonce, genesis FROM feed JOIN author USING (author) WHERE feed = ?",
                (feed,),
            ).fetchone()
            ref = FeedRef(key, nonce, bool(genesis))
            last = self._db.execute(
                "SELECT id FROM entry WHERE feed = ? AND seq = ?", (feed, seq - 1)
            ).fetchone()
            if last is None:
                frontier.discard(ref)
            else:
                frontier.set(ref, FeedMark(seq, last[0][:8]))
        return frontier

    def _mark(self, frontier: Frontier, feed: _Feed) -> None:
        if feed.forked_at is None and feed.head is not None:
            frontier.set(feed.ref, FeedMark(feed.height, feed.head.id[:8]))
            return
        stands = feed.height if feed.forked_at is None else min(feed.height, feed.forked_at)
        last = self._db.execute(
            "SELECT id FROM entry WHERE feed = ? AND seq = ?", (feed.feed, stands - 1)
        ).fetchone()
        if last is None:
            frontier.discard(feed.ref)
        else:
            frontier.set(feed.ref, FeedMark(stands, forked_mark(last[0])))

    def segment(self, project: bytes, ref: FeedRef, start: int, most: int) -> list[bytes]:
        """Frames of a feed from seq ``start`` on, about as many as fit in ``most`` bytes.

        The last one's own signature was checked, so that it vouches for those before it to
        whoever gets them; where no such one fits, they go on to the next.
        """
        frames: list[bytes] = []
        size = ends = 0
        for frame, auth in self._db.execute(
            "SELECT frame, auth FROM entry WHERE feed = (SELECT feed FROM feed JOIN author USING"
            " (author) WHERE project = ? AND key = ? AND nonce = ? AND genesis = ?)"
            " AND seq >= ? ORDER BY seq",
            (project, ref.author, ref.nonce, ref.genesis, start),
        ):
            size += len(frame)
            if size > most and ends:
                break
            frames.append(frame)
            if auth == Auth.OWN:
                ends = len(frames)
        return frames[:ends]

    def heads(self, key: bytes) -> list[Entry]:
        """The last entry of each feed of a key."""
        rows = self._db.execute(
            "SELECT frame FROM feed JOIN author USING (author) JOIN entry USING (feed)"
            " WHERE key = ? AND seq = height - 1",
            (key,),
        )
        return [decode_kept(frame) for (frame,) in rows]

    # --- rebuilding -------------------------------------------------------------------

    def restore_evidence(self, proofs: Iterable[tuple[bytes, SignedHeader, SignedHeader]]) -> None:
        """Take up (project, halves) of forks that were proved, before any entry."""
        with self._writing():
            self._db.executemany(
                "INSERT INTO fork_evidence VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        low.header.author,
                        project,
                        low.header.nonce,
                        low.header.seq,
                        low.raw,
                        low.signature,
                        high.raw,
                        high.signature,
                    )
                    for project, low, high in proofs
                ],
            )

    def restore(self, entries: Sequence[tuple[Entry, Auth]]) -> None:
        """Keep entries that `fsck` found good, in order of arrival, with all that is derived.

        Nobody's rights are asked: they were when each came, with what was known then.
        """
        with self._writing():
            for entry, auth in entries:
                project = entry.namespace
                feed = self._feed(project, entry.feed) or self._open_feed(entry, project)
                self._keep(entry, decode_payload(entry), feed, auth)

    def restore_runs(
        self,
        runs: Sequence[tuple[Any, ...]],
        failures: Sequence[tuple[Any, ...]],
        openings: Sequence[tuple[Any, ...]],
    ) -> None:
        """Take up what was derived from results whose payloads were dropped.

        ``runs`` are (entry, digest, state, reason, passed, failed, skipped, total, job, cell,
        environment's text and comparable, seconds); ``failures`` (entry, job, cell, test,
        message); ``openings`` (entry, job, cell, opens, seen). Those of entries that are not
        here bare are left out.
        """
        bare = {
            id_: (author, arrival)
            for id_, author, arrival in self._db.execute(
                "SELECT id, author, arrival FROM entry JOIN feed USING (feed)"
                " WHERE length(frame) = 224"
            )
        }
        with self._writing():
            for id_, *row, seconds in runs:
                if id_ in bare:
                    self._views.restore_run(*bare[id_], row, seconds)
            self._views.restore_openings(
                [
                    (job, cell, bare[id_][1], opens, seen)
                    for id_, job, cell, opens, seen in openings
                    if id_ in bare
                ]
            )
            self._views.restore_failures(
                [(bare[id_][1], *row) for id_, *row in failures if id_ in bare]
            )

    def finish_restore(self) -> None:
        """Derive what rests on rights once more, from all that is there."""
        with self._writing():
            self._states.clear()
            for (project,) in self._db.execute("SELECT DISTINCT project FROM feed").fetchall():
                self._rights_changed(project)
            # A feed that was cut ends at an entry whose signature was checked just now.
            self._db.execute(
                "UPDATE entry SET auth = 1 WHERE auth = 0"
                " AND seq + 1 = (SELECT height FROM feed WHERE feed.feed = entry.feed)"
            )

    # --- signatures that were not checked yet ------------------------------------------

    def auth(self, id_: bytes) -> Auth | None:
        """How the entry of this id is known to be its author's; None when it is not held."""
        row = self._db.execute(
            "SELECT auth FROM entry WHERE prefix = ? AND id = ?", (id_prefix(id_), id_)
        ).fetchone()
        return None if row is None else Auth(row[0])

    def unchecked(self, most: int) -> list[tuple[int, bytes]]:
        """(arrival, header and signature) of entries whose own signature nobody checked yet."""
        return self._db.execute(
            "SELECT arrival, substr(frame, 1, 224) FROM entry WHERE auth = 0"
            " ORDER BY arrival LIMIT ?",
            (most,),
        ).fetchall()

    def checked(self, found: Sequence[tuple[int, bool]]) -> None:
        """Record what checking gave: (arrival, whether its own signature holds)."""
        with self._writing():
            self._db.executemany(
                "UPDATE entry SET auth = ? WHERE arrival = ? AND auth = 0",
                [(Auth.OWN if holds else Auth.JUNK, arrival) for arrival, holds in found],
            )

    def entries(self, project: bytes, kinds: Sequence[Kind]) -> list[Entry]:
        """All entries of some kinds in a project, in order of arrival."""
        rows = self._db.execute(
            "SELECT frame FROM entry JOIN feed USING (feed) WHERE project = ?"
            + " AND kind != 5" * (Kind.RESULT not in kinds)
            + " AND kind IN (SELECT value FROM json_each(?)) ORDER BY arrival",
            (project, json.dumps(list(kinds))),
        )
        return [decode_kept(frame) for (frame,) in rows]

    def results(self, job: bytes) -> list[Entry]:
        """The entries that hold commits to cells of a job and their results, as they came."""
        rows = self._db.execute(
            "SELECT arrival, frame FROM result JOIN entry USING (arrival) WHERE job = :job"
            " UNION ALL"
            " SELECT arrival, frame FROM sealed JOIN entry USING (arrival) WHERE job = :job"
            " ORDER BY arrival",
            {"job": job},
        )
        return [decode_kept(frame) for _, frame in rows]

    def said(self, job: bytes, cell: bytes) -> list[Entry]:
        """The entries that hold commits to a cell and its results."""
        rows = self._db.execute(
            "SELECT frame FROM result JOIN entry USING (arrival) WHERE job = :job AND cell = :cell"
            " UNION ALL SELECT frame FROM sealed JOIN entry USING (arrival)"
            " WHERE job = :job AND cell = :cell",
            {"job": job, "cell": cell},
        )
        return [decode_kept(frame) for (frame,) in rows]

    def projects_of(self, key: bytes) -> list[bytes]:
        """The projects in which a key said anything, or is named by what has force."""
        mine = {
            row[0]
            for row in self._db.execute(
                "SELECT DISTINCT project FROM feed JOIN author USING (author) WHERE key = ?", (key,)
            )
        }
        for (project,) in self._db.execute("SELECT project FROM project").fetchall():
            state = self.state(project)
            if state is not None and (state.is_named(key) or key in state.operators):
                mine.add(project)
        return sorted(mine)

    def forked(self, project: bytes) -> frozenset[bytes]:
        """Authors whose results weigh nothing in a project (`forked_authors`)."""
        state = self.state(project)
        return forked_authors(self._db, project, {} if state is None else state.vouched)

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
            " WHERE project = :project AND NOT EXISTS (SELECT 1 FROM fork_evidence AS o WHERE"
            " o.project = :project AND o.author = e.author AND o.nonce = e.nonce AND o.seq < e.seq)"
            " AND NOT EXISTS (SELECT 1 FROM fork_told AS t JOIN entry USING (arrival)"
            " JOIN feed USING (feed) WHERE t.project = :project AND t.author = e.author"
            " AND t.nonce = e.nonce AND t.seq <= e.seq"
            " AND (forked_at IS NULL OR entry.seq < forked_at))",
            {"project": project},
        )
        return [
            Fork(first=row[0], first_signature=row[1], second=row[2], second_signature=row[3])
            for row in rows
        ]


def forked_authors(
    db: sqlite3.Connection, project: bytes, vouched: Mapping[bytes, int]
) -> frozenset[bytes]:
    """Authors with a proven fork in a project: their results weigh nothing.

    A vouch that is later than every `fork` entry about them says that a maintainer trusts
    the key again. Until an entry tells of a fork, its own headers' times stand in.
    """
    told: dict[tuple[bytes, bytes], int] = {}
    for author, nonce, time in db.execute(
        "SELECT told.author, told.nonce, max(entry.time) FROM fork_told AS told"
        " JOIN entry USING (arrival) JOIN feed USING (feed) WHERE told.project = ?"
        " AND (forked_at IS NULL OR entry.seq < forked_at) GROUP BY told.author, told.nonce",
        (project,),
    ):
        told[author, nonce] = time
    since: dict[bytes, int] = {}
    for author, nonce, first, second in db.execute(
        "SELECT author, nonce, first, second FROM fork_evidence WHERE project = ?", (project,)
    ):
        time = told.get((author, nonce))
        if time is None:
            time = max(unpack_header(first).time, unpack_header(second).time)
        since[author] = max(time, since.get(author, 0))
    return frozenset(a for a, time in since.items() if vouched.get(a, -1) <= time)


def forked_mark(last: bytes) -> bytes:
    """What a frontier says of a forked feed in place of its head; ``last`` is what stands."""
    return hashlib.sha256(_FORKED_DOMAIN + last).digest()[:8]


def _half(entry: Entry) -> SignedHeader:
    return SignedHeader(entry.header, entry.id, entry.frame[:160], entry.signature)
