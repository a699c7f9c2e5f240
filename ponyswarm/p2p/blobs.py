"""Blobs: bytes named by their SHA-256, on disk, and fetched from peers in ranges.

``/ponyswarm/blob/1``: the asker sends {hash, offset, length}; the server answers {size}
(or size -1: not here) and then the bytes of that range in frames of at most 64 KiB. A
range is small enough that a slow reader does not make the writer's stream give up, and
what came is kept in a partial file, so that a fetch goes on where it stopped, from
whichever peer is there. A blob becomes visible only when its hash is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol

from msgspec import Meta

from ponyswarm.codec import convert, pack, unpack
from ponyswarm.errors import InfraError, PeerError
from ponyswarm.messages import Blob

PROTOCOL = "/ponyswarm/blob/1"
MAX_RANGE = 1 << 20
MAX_FRAME = 64 << 10
MAX_BLOB = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Get:
    hash: Annotated[bytes, Meta(min_length=32, max_length=32)]
    offset: Annotated[int, Meta(ge=0, le=MAX_BLOB)]
    length: Annotated[int, Meta(ge=0, le=MAX_RANGE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Have:
    size: Annotated[int, Meta(ge=-1, le=MAX_BLOB)]


class Stream(Protocol):
    """What of `network.Stream` is used here and in `replication`."""

    @property
    def peer(self) -> bytes: ...

    async def send(self, data: bytes) -> None: ...

    async def receive(self, limit: int) -> bytes: ...

    async def close(self) -> None: ...


# (peer) -> an open stream of this protocol
Open = Callable[[bytes], Awaitable[Stream]]


class OnDisk(NamedTuple):
    """A blob that is here; ``kept`` is in milliseconds since the epoch."""

    hash: bytes
    size: int
    kept: int


class BlobStore:
    """The blobs of one home: ``aa/bb…`` by hash, within a budget of bytes."""

    def __init__(self, root: Path, *, budget: int, floor: int) -> None:
        """``floor`` is how many bytes of the disk are always left free."""
        self._root = root
        self._partial = root / "partial"
        self._partial.mkdir(parents=True, exist_ok=True)
        self._budget = budget
        self._floor = floor
        self.make_room: Callable[[int], None] | None = None
        """Called with a size for which there is no room; it may drop blobs."""
        self._used = sum(
            file.stat().st_size for file in root.glob("??/*") if file.parent != self._partial
        )

    @property
    def used(self) -> int:
        """Bytes that whole blobs take."""
        return self._used

    def path(self, hash_: bytes) -> Path:
        """Where a blob is, or would be."""
        name = hash_.hex()
        return self._root / name[:2] / name[2:]

    def __contains__(self, hash_: object) -> bool:
        return isinstance(hash_, bytes) and self.path(hash_).exists()

    def size(self, hash_: bytes) -> int | None:
        try:
            return self.path(hash_).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, hash_: bytes, offset: int = 0, length: int = -1) -> bytes:
        """Bytes of a blob that is here; `InfraError` when it is not."""
        try:
            with self.path(hash_).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except OSError as fault:
            raise InfraError(
                f"the blob {hash_.hex()[:16]} is not here ({fault.strerror})"
            ) from fault

    def put(self, data: bytes) -> Blob:
        """Keep bytes made here."""
        blob = Blob(hash=hashlib.sha256(data).digest(), size=len(data))
        if blob.hash not in self:
            self._room(blob)
            part = self._partial / f"{blob.hash.hex()}.{os.getpid()}"
            try:
                part.write_bytes(data)
                self._keep(blob, part)
            except OSError as fault:
                part.unlink(missing_ok=True)
                raise InfraError(
                    f"a blob of {len(data)} bytes could not be kept ({fault.strerror}): see that "
                    f"the disk has room, and who owns {self._root}"
                ) from fault
        return blob

    def partial_size(self, blob: Blob) -> int:
        """How much of a blob came so far."""
        try:
            return self._part(blob).stat().st_size
        except FileNotFoundError:
            return 0

    def extend(self, blob: Blob, data: bytes) -> None:
        """Append what came of a blob. `InfraError` when there is no room for it."""
        if self.partial_size(blob) == 0:
            self._room(blob)
        try:
            with self._part(blob).open("ab") as file:
                file.write(data)
        except OSError as fault:
            raise InfraError(
                f"a blob could not be written ({fault.strerror}): see that the disk has room, and "
                f"who owns {self._root}"
            ) from fault

    def discard(self, blob: Blob) -> None:
        """Forget what came of a blob so far."""
        self._part(blob).unlink(missing_ok=True)

    def complete(self, blob: Blob) -> bool:
        """Check what came against the hash and keep it; False (and it is gone) when wrong."""
        part = self._part(blob)
        try:
            with part.open("rb") as file:
                right = hashlib.file_digest(file, "sha256").digest() == blob.hash
            if right:
                self._keep(blob, part)
            else:
                part.unlink()
        except OSError as fault:
            raise InfraError(
                f"what came of a blob could not be kept ({fault.strerror}): see that the disk has "
                f"room, and who owns {self._root}"
            ) from fault
        return right

    def _part(self, blob: Blob) -> Path:
        return self._partial / blob.hash.hex()

    def _keep(self, blob: Blob, part: Path) -> None:
        path = self.path(blob.hash)
        path.parent.mkdir(exist_ok=True)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        self._used += blob.size

    def held(self) -> list[OnDisk]:
        """All blobs that are here, with when each came."""
        found = []
        for file in self._root.glob("??/*"):
            try:
                facts = file.stat()
                hash_ = bytes.fromhex(file.parent.name + file.name)
            except (OSError, ValueError):
                continue  # Dropped meanwhile, or not ours.
            found.append(OnDisk(hash_, facts.st_size, int(facts.st_mtime * 1000)))
        return found

    def drop(self, hash_: bytes) -> None:
        """Remove a blob, if it is here."""
        size = self.size(hash_)
        if size is not None:
            self.path(hash_).unlink(missing_ok=True)
            self._used -= size

    def sweep_partial(self, before: float) -> None:
        """Give up blobs of which nothing came since a time, in seconds since the epoch."""
        for file in self._partial.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_mtime < before:
                    file.unlink()

    def _room(self, blob: Blob) -> None:
        if self._used + blob.size > self._budget and self.make_room is not None:
            self.make_room(blob.size)
        if self._used + blob.size > self._budget:
            raise InfraError(
                f"no room for a blob of {blob.size} bytes within the budget of {self._budget}: "
                "raise 'blobs' under [limits] in ponyswarm.ini"
            )
        if shutil.disk_usage(self._root).free - blob.size < self._floor:
            raise InfraError("the disk is too full to take another blob: free some space")


async def serve(stream: Stream, store: BlobStore) -> None:
    """Answer one request for a range."""
    wish = convert(unpack(await stream.receive(512)), Get, "bad-blob-request")
    size = store.size(wish.hash)
    await stream.send(pack(Have(size=-1 if size is None else size)))
    if size is None:
        return
    data = store.read(wish.hash, wish.offset, wish.length)
    for start in range(0, len(data), MAX_FRAME):
        await stream.send(data[start : start + MAX_FRAME])


async def has(open_: Open, peer: bytes, hash_: bytes) -> bool:
    """Whether a peer holds a blob whole."""
    stream = await open_(peer)
    try:
        await stream.send(pack(Get(hash=hash_, offset=0, length=0)))
        return convert(unpack(await stream.receive(64)), Have, "bad-blob-reply").size >= 0
    finally:
        await stream.close()


async def fetch(open_: Open, blob: Blob, peers: Iterable[bytes], store: BlobStore) -> bool:
    """Get a blob from the first of ``peers`` that has it; True when it is here now.

    Raises `InfraError` when this disk does not take it. What has the wrong hash in the end
    is thrown away and the next peer is asked; `PeerError` ("bad-blob") says that somebody
    sent wrong bytes and nobody the right ones.
    """
    if blob.size > MAX_BLOB:
        return False
    bad: PeerError | None = None
    for peer in peers:
        # Twice: what an earlier giver left may be what is wrong, and this peer's part right.
        for _ in range(2):
            if blob.hash in store:
                return True
            have = store.partial_size(blob)
            try:
                await _fetch_from(open_, peer, blob, store)
                break
            except PeerError as fault:
                if not fault.reason.startswith("bad-"):
                    break
                if have == 0:
                    bad = fault
                    break
    if blob.hash in store:
        return True
    if bad is not None:
        raise bad
    return False


async def _fetch_from(open_: Open, peer: bytes, blob: Blob, store: BlobStore) -> None:
    """Get the rest from one peer, if it has it; `PeerError` when all came and is wrong."""
    if store.partial_size(blob) > blob.size:
        # Left by somebody's claim that this hash is of a larger blob.
        store.discard(blob)
    while (offset := store.partial_size(blob)) < blob.size:
        if not await _fetch_range(open_, peer, blob, offset, store):
            return
    if blob.size == 0:
        store.extend(blob, b"")
    if not store.complete(blob):
        raise PeerError("bad-blob", f"{blob.hash.hex()[:16]} has another hash")


async def _fetch_range(open_: Open, peer: bytes, blob: Blob, offset: int, store: BlobStore) -> bool:
    length = min(MAX_RANGE, blob.size - offset)
    stream = await open_(peer)
    try:
        await stream.send(pack(Get(hash=blob.hash, offset=offset, length=length)))
        size = convert(unpack(await stream.receive(64)), Have, "bad-blob-reply").size
        if size != blob.size:
            # Not here, or whoever named the blob was wrong about its size: not this peer's fault.
            return False
        while length > 0:
            data = await stream.receive(MAX_FRAME)
            if not data or len(data) > length:
                store.discard(blob)
                raise PeerError("bad-blob", "a range of another length")
            store.extend(blob, data)
            length -= len(data)
        return True
    finally:
        await stream.close()
