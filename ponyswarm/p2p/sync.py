"""Frontier sync, sans-IO: what to say so that the asker gets every entry it lacks.

One side pulls, for one project, over one stream; the other pulls for itself when it
wants to. Messages are msgpack maps:

    asker   {project, root}              root: 16 bytes over all feeds and their heights
    server  {state: "same"}              nothing to say
            {state: "unknown"}           the server does not follow this project
            {state: "differs", buckets}  64 hashes of 8 bytes, feeds sorted into them by key
    asker   {buckets, feeds}             the differing buckets, and the asker's feeds in them
    server  {frames}*  {done, more}      what is missing, feed by feed, in seq order

Gossip may lose anything; this repairs it. Whatever arrives is only bytes: the caller
decodes, verifies and appends each frame, and a lying server wins nothing but its score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from ponyswarm.codec import convert, pack, unpack
from ponyswarm.errors import PeerError
from ponyswarm.messages import FeedMark, FeedRef

PROTOCOL = "/ponyswarm/sync/1"
BUCKETS = 64
# A reply is cut here and the asker asks again: no round holds much memory on either side.
MAX_REPLY = 4 << 20
MAX_CHUNK = 128 << 10
MAX_REQUEST = 4 << 20
# Where heads differ, so many entries before them go too: the fork is mostly among these.
REWIND = 64
MAX_MESSAGE = MAX_CHUNK + (16 << 10)

Frontier = Mapping[FeedRef, FeedMark]
# (project, feed, from seq, most bytes) -> frames
Segment = Callable[[bytes, FeedRef, int, int], list[bytes]]

Hash16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Short = Annotated[bytes, Meta(min_length=8, max_length=8)]
Bucket = Annotated[int, Meta(ge=0, lt=BUCKETS)]
Height = Annotated[int, Meta(ge=0, le=1 << 53)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    project: Key
    root: Hash16


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    state: Literal["same", "unknown", "differs"]
    buckets: Annotated[tuple[Short, ...], Meta(max_length=BUCKETS)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    buckets: Annotated[tuple[Bucket, ...], Meta(max_length=BUCKETS)]
    feeds: tuple[tuple[Key, Short, bool, Height, Short], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    frames: tuple[bytes, ...] = ()
    done: bool = False
    more: bool = False


def bucket_of(ref: FeedRef) -> int:
    return hashlib.sha256(ref.author + ref.nonce).digest()[0] % BUCKETS


def _digest(feeds: Iterable[tuple[FeedRef, FeedMark]]) -> bytes:
    state = hashlib.sha256()
    for ref, mark in sorted(feeds, key=lambda item: item[0]):
        state.update(ref.author + ref.nonce + bytes([ref.genesis]))
        state.update(mark.height.to_bytes(8, "big") + mark.head)
    return state.digest()


def root(frontier: Frontier) -> bytes:
    """16 bytes that two nodes share exactly when their frontiers are equal."""
    return _digest(frontier.items())[:16]


def buckets(frontier: Frontier) -> tuple[bytes, ...]:
    """8 bytes for each of the 64 buckets of a frontier."""
    sorted_in: list[list[tuple[FeedRef, FeedMark]]] = [[] for _ in range(BUCKETS)]
    for ref, mark in frontier.items():
        sorted_in[bucket_of(ref)].append((ref, mark))
    return tuple(_digest(feeds)[:8] for feeds in sorted_in)


# --- the asker ------------------------------------------------------------------------------


def ask(project: bytes, frontier: Frontier) -> bytes:
    return pack(Ask(project=project, root=root(frontier)))


def want(reply: bytes, frontier: Frontier) -> bytes | Literal["same", "unknown"]:
    """What to say to a server's first answer, or that there is nothing to say.

    Raises `PeerError` ("bad-sync") for an answer out of form.
    """
    answer = convert(unpack(reply), Answer, "bad-sync")
    if answer.state != "differs":
        return answer.state
    if len(answer.buckets) != BUCKETS:
        raise PeerError("bad-sync", "not 64 buckets")
    mine = buckets(frontier)
    differing = [i for i in range(BUCKETS) if mine[i] != answer.buckets[i]]
    chosen = set(differing)
    feeds = [
        (ref.author, ref.nonce, ref.genesis, mark.height, mark.head)
        for ref, mark in sorted(frontier.items())
        if bucket_of(ref) in chosen
    ]
    return pack(Want(buckets=tuple(differing), feeds=tuple(feeds)))


def chunk(reply: bytes) -> Chunk:
    """The next part of a server's reply; `PeerError` ("bad-sync") when it is none."""
    return convert(unpack(reply), Chunk, "bad-sync")


# --- the server -----------------------------------------------------------------------------


def answer(request: bytes, frontier_of: Callable[[bytes], Frontier | None]) -> tuple[bytes, bytes]:
    """(project, first answer) to an asker's request. ``frontier_of`` is None if not followed."""
    wish = convert(unpack(request), Ask, "bad-sync")
    frontier = frontier_of(wish.project)
    if frontier is None:
        return wish.project, pack(Answer(state="unknown"))
    if root(frontier) == wish.root:
        return wish.project, pack(Answer(state="same"))
    return wish.project, pack(Answer(state="differs", buckets=buckets(frontier)))


def serve(request: bytes, project: bytes, frontier: Frontier, segment: Segment) -> Iterator[bytes]:
    """The messages that bring the asker what it lacks in the buckets it names.

    Where the asker's head is not ours at the same height, our entries before that height
    go first: two signed entries for one place are the proof of a fork, and the lowest such
    place is where it began.
    """
    wish = convert(unpack(request), Want, "bad-sync")
    chosen = set(wish.buckets)
    theirs = {
        FeedRef(author, nonce, genesis): FeedMark(height, head)
        for author, nonce, genesis, height, head in wish.feeds
    }
    left = MAX_REPLY
    # The genesis feed goes first: without the record, nothing else can be judged.
    order = sorted(frontier.items(), key=lambda item: (not item[0].genesis, item[0]))
    for ref, mark in order:
        if bucket_of(ref) not in chosen:
            continue
        start = _start(theirs.get(ref), mark, project, ref, segment)
        while start is not None and start < mark.height:
            if left <= 0:
                yield pack(Chunk(done=True, more=True))
                return
            frames = segment(project, ref, start, min(MAX_CHUNK, left + MAX_CHUNK // 8))
            if not frames:
                break
            left -= sum(map(len, frames))
            start += len(frames)
            yield pack(Chunk(frames=tuple(frames)))
    yield pack(Chunk(done=True))


def _start(
    theirs: FeedMark | None, mine: FeedMark, project: bytes, ref: FeedRef, segment: Segment
) -> int | None:
    """The first seq to send of a feed; None when the asker has all of it."""
    if theirs is None or theirs.height == 0:
        return 0
    if mine.height < theirs.height or mine == theirs:
        return None
    if mine.height == theirs.height:
        return max(0, mine.height - REWIND)
    ours = segment(project, ref, theirs.height, MAX_CHUNK)
    # The entry after the asker's head names that head in its prev (bytes 88 to 96 of a frame).
    follows = bool(ours) and ours[0][88:96] == theirs.head
    return theirs.height if follows else max(0, theirs.height - REWIND)


__all__: Sequence[str] = (
    "BUCKETS",
    "MAX_MESSAGE",
    "MAX_REQUEST",
    "PROTOCOL",
    "Chunk",
    "answer",
    "ask",
    "chunk",
    "root",
    "serve",
    "want",
)
