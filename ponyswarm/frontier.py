"""How far each feed of a project goes here, with digests that cost little to keep.

The ledger keeps it as entries come, sync compares it with a peer's. Feeds lie in 64
buckets by the hash of their name. A bucket has a hash of its feeds' names, which tells
whether two nodes can speak of them by position, and a hash of names, heights and marks,
which tells whether they are alike there; the root is over all of those. A change makes
one bucket's hashes stale, no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import ItemsView, Mapping
from functools import lru_cache

from ponyswarm.messages import FeedMark, FeedRef

BUCKETS = 64
NAMES_SIZE = 4
HASH_SIZE = 8
ROOT_SIZE = 16


@lru_cache(maxsize=16384)
def fingerprint(ref: FeedRef) -> bytes:
    """8 bytes that stand for a feed of a project."""
    return hashlib.sha256(_name(ref)).digest()[:8]


def _name(ref: FeedRef) -> bytes:
    return ref.author + ref.nonce + bytes([ref.genesis])


def bucket_of(ref: FeedRef) -> int:
    return fingerprint(ref)[0] % BUCKETS


class _Bucket:
    """The feeds of one bucket; its digests are None while they are stale."""

    __slots__ = ("digest", "marks", "names", "order")

    def __init__(self) -> None:
        self.marks: dict[FeedRef, FeedMark] = {}
        self.order: list[FeedRef] | None = None
        self.names: bytes | None = None
        self.digest: bytes | None = None


class Frontier:
    """The feeds of one project and how far they go."""

    def __init__(self, marks: Mapping[FeedRef, FeedMark] | None = None) -> None:
        self._marks: dict[FeedRef, FeedMark] = {}
        self._buckets = [_Bucket() for _ in range(BUCKETS)]
        self._root: bytes | None = None
        for ref, mark in (marks or {}).items():
            self.set(ref, mark)

    def __len__(self) -> int:
        return len(self._marks)

    def get(self, ref: FeedRef) -> FeedMark | None:
        return self._marks.get(ref)

    def items(self) -> ItemsView[FeedRef, FeedMark]:
        return self._marks.items()

    def set(self, ref: FeedRef, mark: FeedMark) -> None:
        bucket = self._buckets[bucket_of(ref)]
        if ref not in bucket.marks:
            bucket.order = bucket.names = None
        self._marks[ref] = bucket.marks[ref] = mark
        bucket.digest = self._root = None

    def discard(self, ref: FeedRef) -> None:
        if self._marks.pop(ref, None) is not None:
            bucket = self._buckets[bucket_of(ref)]
            del bucket.marks[ref]
            bucket.order = bucket.names = bucket.digest = self._root = None

    def feeds(self, bucket: int) -> list[tuple[FeedRef, FeedMark]]:
        """The feeds of a bucket in the order in which nodes speak of them."""
        marks = self._buckets[bucket].marks
        return [(ref, marks[ref]) for ref in self._order(bucket)]

    def _order(self, bucket: int) -> list[FeedRef]:
        held = self._buckets[bucket]
        if held.order is None:
            held.order = sorted(held.marks)
        return held.order

    def names(self, bucket: int) -> bytes:
        """4 bytes over the names of a bucket's feeds."""
        held = self._buckets[bucket]
        if held.names is None:
            names = b"".join(map(_name, self._order(bucket)))
            held.names = hashlib.sha256(names).digest()[:NAMES_SIZE]
        return held.names

    def _digest(self, bucket: int) -> bytes:
        held = self._buckets[bucket]
        if held.digest is None:
            rows = [
                _name(ref) + mark.height.to_bytes(8, "big") + mark.head
                for ref, mark in self.feeds(bucket)
            ]
            held.digest = hashlib.sha256(b"".join(rows)).digest()
        return held.digest

    def hash(self, bucket: int) -> bytes:
        """8 bytes over the names, heights and marks of a bucket's feeds."""
        return self._digest(bucket)[:HASH_SIZE]

    @property
    def root(self) -> bytes:
        """16 bytes that two nodes share exactly when their frontiers are equal."""
        if self._root is None:
            digests = b"".join(self._digest(bucket) for bucket in range(BUCKETS))
            self._root = hashlib.sha256(digests).digest()[:ROOT_SIZE]
        return self._root
