"""Frontier sync, sans-IO: what to say so that the asker gets every entry it lacks.

One side pulls, for one project, over one stream; the other pulls for itself when it wants
to. Messages are bytes, as `docs/protocol.md` lays them out:

    asker   project, root                16 bytes over all feeds and their heights
    server  same | unknown               nothing to say, or it does not follow the project
            differs, 64 pairs of hashes  for each bucket of feeds: of their names; of all
    asker   heights, bucket by bucket    by position where the names agree; otherwise, and
                                         where a difference stayed, with names and marks
    server  segments*, end               what is missing, feed by feed, in seq order

Gossip may lose anything; this repairs it. What follows from context is not sent, the rest
is compressed. The caller checks and appends what comes; a lying server wins nothing but
its score.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ponyswarm.codec import Cursor, inflate, pack_segment, unpack_segment, varint
from ponyswarm.errors import PeerError
from ponyswarm.frontier import (
    BUCKETS,
    HASH_SIZE,
    NAMES_SIZE,
    ROOT_SIZE,
    Frontier,
    bucket_of,
    fingerprint,
)
from ponyswarm.messages import Entry, FeedMark, FeedRef

PROTOCOL = "/ponyswarm/sync/1"
# A reply is cut here and the asker asks again, so that one peer does not keep a server for
# ever. It holds one message of a reply in memory, however long that is.
MAX_REPLY = 128 << 20
# Frames of one message. A segment ends where a signature was checked, which may be later.
MAX_CHUNK = 128 << 10
MAX_EXPANDED = 4 * MAX_CHUNK
MAX_ENTRIES = 4_096
MAX_REQUEST = 4 << 20
# Where heads differ, so many entries before them go too: the fork is mostly among these.
REWIND = 64
MAX_MESSAGE = MAX_EXPANDED + (16 << 10)
# Beyond this the bytes saved cost more time than a common line needs for them.
LEVEL = 3

_ASK_SIZE = 32 + ROOT_SIZE
_MAP_SIZE = BUCKETS // 8
_SAME, _UNKNOWN, _DIFFERS = b"\0", b"\1", b"\2"
_END, _SEGMENTS = 0, 1

# (project, feed, from seq, most bytes) -> frames
Segment = Callable[[bytes, FeedRef, int, int], list[bytes]]


@dataclass(frozen=True, slots=True)
class Part:
    """Some of what a server sends: segments, each the next entries of one feed."""

    segments: tuple[tuple[Entry, ...], ...]


@dataclass(frozen=True, slots=True)
class End:
    """The last of what a server sends. ``more``: it stopped at its limit; ask again.

    ``ahead`` are the buckets in which the asker has more of some feed than the server.
    """

    more: bool
    ahead: frozenset[int]


def _bitmap(buckets: set[int] | frozenset[int]) -> bytes:
    return sum(1 << bucket for bucket in buckets).to_bytes(_MAP_SIZE, "big")


def _buckets_of(bitmap: bytes) -> list[int]:
    number = int.from_bytes(bitmap, "big")
    return [bucket for bucket in range(BUCKETS) if number >> bucket & 1]


# --- the asker ------------------------------------------------------------------------------


class Asking:
    """One round of the asker: `ask`, then `want`, and when all came, `settle`.

    ``doubted`` are buckets that an earlier round left different though it should not have:
    they are spoken of by name and mark, so that a fork in them is found.
    """

    def __init__(
        self, project: bytes, frontier: Frontier, doubted: frozenset[int] = frozenset()
    ) -> None:
        self._project = project
        self._frontier = frontier
        self._doubted = doubted
        self._theirs: dict[int, bytes] = {}

    def ask(self) -> bytes:
        return self._project + self._frontier.root

    def want(self, reply: bytes) -> bytes | Literal["same", "unknown"]:
        """What to say to a server's first answer, or that there is nothing to say.

        Raises `PeerError` ("bad-sync") for an answer out of form.
        """
        if reply in (_SAME, _UNKNOWN):
            return "same" if reply == _SAME else "unknown"
        cursor = Cursor(reply)
        if cursor.take(1) != _DIFFERS:
            raise PeerError("bad-sync", "an answer out of form")
        frontier = self._frontier
        by_place: set[int] = set()
        by_name: set[int] = set()
        for bucket in range(BUCKETS):
            names, hash_ = cursor.take(NAMES_SIZE), cursor.take(HASH_SIZE)
            if hash_ == frontier.hash(bucket):
                continue
            self._theirs[bucket] = hash_
            alike = names == frontier.names(bucket) and bucket not in self._doubted
            (by_place if alike else by_name).add(bucket)
        if not cursor.ended:
            raise PeerError("bad-sync", "an answer out of form")
        parts = [_bitmap(by_place), _bitmap(by_name)]
        for bucket in sorted(by_place):
            parts += [varint(mark.height) for _, mark in frontier.feeds(bucket)]
        for bucket in sorted(by_name):
            feeds = frontier.feeds(bucket)
            parts.append(varint(len(feeds)))
            parts += [fingerprint(ref) + varint(mark.height) + mark.head for ref, mark in feeds]
        return b"".join(parts)

    def settle(self, end: End, frontier: Frontier) -> tuple[bool, frozenset[int]]:
        """(whether all is alike now, buckets to doubt), by the frontier after all was taken."""
        open_ = {b for b, hash_ in self._theirs.items() if frontier.hash(b) != hash_}
        if end.more:
            return False, frozenset()
        return not open_, frozenset(open_ - end.ahead - self._doubted)


def read(message: bytes, project: bytes) -> Part | End:
    """The next part of a server's reply; `PeerError` when it is none."""
    cursor = Cursor(message)
    tag = cursor.byte()
    if tag == _END:
        more, ahead = cursor.byte(), cursor.take(_MAP_SIZE)
        if more > 1 or not cursor.ended:
            raise PeerError("bad-sync", "an end out of form")
        return End(bool(more), frozenset(_buckets_of(ahead)))
    if tag != _SEGMENTS:
        raise PeerError("bad-sync", "an unknown message")
    cursor = Cursor(inflate(message[1:], "bad-sync", MAX_EXPANDED))
    segments = []
    left = MAX_ENTRIES
    while not cursor.ended:
        entries = unpack_segment(cursor, project, left)
        left -= len(entries)
        segments.append(tuple(entries))
    if not segments:
        raise PeerError("bad-sync", "a message that says nothing")
    return Part(tuple(segments))


def end(*, more: bool, ahead: set[int]) -> bytes:
    """The last message of a server's reply."""
    return bytes((_END, more)) + _bitmap(ahead)


# --- the server -----------------------------------------------------------------------------


class Serving:
    """What a server said of its feeds, which is what the asker's reply is about."""

    def __init__(self, project: bytes, frontier: Frontier) -> None:
        self._project = project
        # A copy: feeds may come while the asker thinks, and would shift the places.
        self._feeds = [frontier.feeds(bucket) for bucket in range(BUCKETS)]

    def serve(self, request: bytes, segment: Segment) -> Iterator[bytes]:
        """The messages that bring the asker what it lacks in the buckets it names.

        Where the asker's head is not ours at the same height, our entries before that
        height go first: two signed entries for one place are the proof of a fork, and the
        lowest such place is where it began. Raises `PeerError` ("bad-sync").
        """
        theirs = self._read(request)
        ahead = {
            bucket
            for bucket, feeds in theirs.items()
            for ref, mark in self._feeds[bucket]
            if (known := feeds.get(ref)) is not None and known.height > mark.height
        }
        feeds = [item for bucket in theirs for item in self._feeds[bucket]]
        # The genesis feed goes first: without the record, nothing else can be judged.
        feeds.sort(key=lambda item: (not item[0].genesis, item[0]))
        left = MAX_REPLY
        parts: list[bytes] = []
        size = entries = 0
        for ref, mark in feeds:
            start = self._start(theirs[bucket_of(ref)].get(ref), mark, ref, segment)
            while start is not None and start < mark.height:
                frames = segment(self._project, ref, start, max(MAX_CHUNK // 8, MAX_CHUNK - size))
                if not frames:
                    break
                taken = sum(map(len, frames))
                if parts and (size + taken > 2 * MAX_CHUNK or entries + len(frames) > MAX_ENTRIES):
                    yield _segments(parts)
                    parts, size, entries = [], 0, 0
                parts.append(pack_segment(frames))
                size += taken
                entries += len(frames)
                left -= taken
                start += len(frames)
                if size >= MAX_CHUNK or left <= 0:
                    yield _segments(parts)
                    parts, size, entries = [], 0, 0
                if left <= 0:
                    yield end(more=True, ahead=ahead)
                    return
        if parts:
            yield _segments(parts)
        yield end(more=False, ahead=ahead)

    def _read(self, request: bytes) -> dict[int, dict[FeedRef, FeedMark]]:
        """By bucket, how far the asker has each feed that we have too; a mark may be empty."""
        cursor = Cursor(request)
        by_place = _buckets_of(cursor.take(_MAP_SIZE))
        by_name = _buckets_of(cursor.take(_MAP_SIZE))
        if set(by_place) & set(by_name):
            raise PeerError("bad-sync", "a bucket stands twice")
        theirs: dict[int, dict[FeedRef, FeedMark]] = {}
        for bucket in by_place:
            theirs[bucket] = {ref: FeedMark(cursor.number(), b"") for ref, _ in self._feeds[bucket]}
        for bucket in by_name:
            known = {
                cursor.take(8): FeedMark(cursor.number(), cursor.take(8))
                for _ in range(cursor.number())
            }
            theirs[bucket] = {
                ref: known[name]
                for ref, _ in self._feeds[bucket]
                if (name := fingerprint(ref)) in known
            }
        if not cursor.ended:
            raise PeerError("bad-sync", "bytes after a request")
        return theirs

    def _start(
        self, theirs: FeedMark | None, mine: FeedMark, ref: FeedRef, segment: Segment
    ) -> int | None:
        """The first seq to send of a feed; None when the asker has all of it."""
        if theirs is None or theirs.height == 0:
            return 0
        if mine.height < theirs.height or mine == theirs:
            return None
        if not theirs.head:
            return theirs.height if theirs.height < mine.height else None
        if mine.height == theirs.height:
            return max(0, mine.height - REWIND)
        ours = segment(self._project, ref, theirs.height, 1)
        # The entry after the asker's head names that head in its prev (bytes 88 to 96).
        follows = bool(ours) and ours[0][88:96] == theirs.head
        return theirs.height if follows else max(0, theirs.height - REWIND)


def _segments(parts: Sequence[bytes]) -> bytes:
    return bytes((_SEGMENTS,)) + zlib.compress(b"".join(parts), LEVEL)


def answer(
    request: bytes, frontier_of: Callable[[bytes], Frontier | None]
) -> tuple[bytes, Serving | None]:
    """The first answer to an asker, and what is needed to serve it if there is more to say.

    ``frontier_of`` is None for a project that is not followed. Raises `PeerError`
    ("bad-sync").
    """
    if len(request) != _ASK_SIZE:
        raise PeerError("bad-sync", "a question out of form")
    project, root = request[:32], request[32:]
    frontier = frontier_of(project)
    if frontier is None:
        return _UNKNOWN, None
    if frontier.root == root:
        return _SAME, None
    hashes = [frontier.names(bucket) + frontier.hash(bucket) for bucket in range(BUCKETS)]
    return _DIFFERS + b"".join(hashes), Serving(project, frontier)
