"""Blobs: kept by hash, fetched in ranges, and never believed before their hash is right."""

from __future__ import annotations

import contextlib
import hashlib
from functools import partial
from pathlib import Path

import pytest
from told import told
from wires import Handler, Pipe, Wire, run

from ponyswarm.codec import pack
from ponyswarm.errors import InfraError, PeerError
from ponyswarm.messages import Blob
from ponyswarm.p2p import blobs
from ponyswarm.p2p.blobs import MAX_FRAME, MAX_RANGE, BlobStore, Get, Have, fetch, has, serve

DATA = bytes(range(256)) * 12_000  # Three megabytes: four ranges.
BLOB = Blob(hash=hashlib.sha256(DATA).digest(), size=len(DATA))


def store_at(path: Path, budget: int = 1 << 30) -> BlobStore:
    return BlobStore(path, budget=budget, floor=0)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return store_at(tmp_path / "mine")


@pytest.fixture
def full(tmp_path: Path) -> BlobStore:
    made = store_at(tmp_path / "theirs")
    made.put(DATA)
    return made


def serving(store: BlobStore) -> Handler:
    return partial(serve, store=store)


async def empty_handed(stream: Pipe) -> None:
    await stream.receive(512)
    await stream.send(pack(Have(size=-1)))


async def lying(stream: Pipe) -> None:
    """Sends as many bytes as asked for, all of them wrong."""
    wish = blobs.convert(blobs.unpack(await stream.receive(512)), Get, "bad")
    await stream.send(pack(Have(size=BLOB.size)))
    for start in range(0, wish.length, MAX_FRAME):
        await stream.send(b"x" * min(MAX_FRAME, wish.length - start))


# --- on disk --------------------------------------------------------------------------


def test_a_blob_is_kept_under_its_hash(store):
    blob = store.put(b"hello")
    assert blob == Blob(hash=hashlib.sha256(b"hello").digest(), size=5)
    assert blob.hash in store
    assert store.size(blob.hash) == 5
    assert store.read(blob.hash) == b"hello"
    assert store.read(blob.hash, 1, 3) == b"ell"
    assert store.put(b"hello") == blob
    assert store.used == 5


def test_what_is_used_is_counted_again_on_opening(store, tmp_path):
    store.put(b"hello")
    store.put(b"")
    store.extend(BLOB, b"a part")
    assert store_at(tmp_path / "mine").used == 5


def test_a_blob_that_is_not_here_is_said_so(store):
    assert BLOB.hash not in store
    assert store.size(BLOB.hash) is None
    with told("the blob … is not here (…)"):
        store.read(BLOB.hash)


def test_the_budget_and_the_disks_floor_are_kept(tmp_path):
    small = store_at(tmp_path / "small", budget=10)
    small.put(b"12345678")
    with told(
        "no room for a blob of 3 bytes within the budget of 10: raise 'blobs' under [limits] in "
        "ponyswarm.ini"
    ):
        small.put(b"123")
    with pytest.raises(InfraError, match="budget"):
        small.extend(BLOB, b"x")
    with told("the disk is too full to take another blob: free some space"):
        BlobStore(tmp_path / "floor", budget=1 << 60, floor=1 << 60).put(b"1")


# --- fetching --------------------------------------------------------------------------


def test_a_blob_is_fetched_in_ranges(store, full):
    async def client(wire: Wire) -> int:
        assert await fetch(wire.open, BLOB, [b"a"], store)
        return len(wire.opened)

    assert run({b"a": serving(full)}, client) == -(-BLOB.size // MAX_RANGE)
    assert store.read(BLOB.hash) == DATA
    assert store.partial_size(BLOB) == 0


def test_an_empty_blob_is_fetched(store, full):
    empty = full.put(b"")

    async def client(wire: Wire) -> bool:
        return await fetch(wire.open, empty, [b"a"], store)

    assert run({b"a": serving(full)}, client)
    assert store.read(empty.hash) == b""


def test_what_is_here_is_not_fetched_again(store):
    store.put(DATA)

    async def client(wire: Wire) -> int:
        assert await fetch(wire.open, BLOB, [b"a"], store)
        return len(wire.opened)

    assert run({b"a": lying}, client) == 0


def test_a_fetch_that_was_cut_goes_on_where_it_stopped(store, full):
    async def client(wire: Wire) -> int:
        wire.cuts = [400_000]
        assert not await fetch(wire.open, BLOB, [b"a"], store)
        came = store.partial_size(BLOB)
        assert 0 < came < 500_000
        assert await fetch(wire.open, BLOB, [b"a"], store)
        return came + sum(far.sent for _, _, far in wire.opened[1:])

    assert BLOB.size <= run({b"a": serving(full)}, client) < BLOB.size + 200
    assert store.read(BLOB.hash) == DATA


def test_a_fetch_goes_on_with_the_next_peer(store, full):
    async def client(wire: Wire) -> list[bytes]:
        wire.cuts = [1 << 30, 400_000]
        assert await fetch(wire.open, BLOB, [b"gone", b"none", b"a", b"b"], store)
        return [peer for peer, _, _ in wire.opened]

    handlers = {b"none": empty_handed, b"a": serving(full), b"b": serving(full)}
    peers = run(handlers, client)
    assert set(peers) == {b"none", b"a", b"b"}
    assert store.read(BLOB.hash) == DATA


def test_wrong_bytes_are_thrown_away_and_said(store):
    async def client(wire: Wire) -> None:
        with pytest.raises(PeerError, match="bad-blob"):
            await fetch(wire.open, BLOB, [b"liar"], store)

    run({b"liar": lying}, client)
    assert BLOB.hash not in store
    assert store.partial_size(BLOB) == 0


def test_a_liar_does_not_keep_an_honest_peer_from_giving(store, full):
    async def client(wire: Wire) -> bool:
        return await fetch(wire.open, BLOB, [b"liar", b"honest"], store)

    assert run({b"liar": lying, b"honest": serving(full)}, client)
    assert store.read(BLOB.hash) == DATA


def test_what_a_liar_began_does_not_spoil_what_an_honest_peer_ends(store, full):
    async def client(wire: Wire) -> bool:
        wire.cuts = [400_000]
        return await fetch(wire.open, BLOB, [b"liar", b"honest"], store)

    assert run({b"liar": lying, b"honest": serving(full)}, client)
    assert store.read(BLOB.hash) == DATA


def test_a_blob_of_another_size_than_was_named_is_not_taken_and_nobodys_fault(store, full):
    wrong = Blob(hash=BLOB.hash, size=10)

    async def client(wire: Wire) -> bool:
        return await fetch(wire.open, wrong, [b"a"], store)

    assert run({b"a": serving(full)}, client) is False
    store.extend(BLOB, b"more than ten bytes")
    assert run({b"a": serving(full)}, client) is False


def test_a_blob_that_is_too_large_is_not_asked_for(store):
    async def client(wire: Wire) -> int:
        assert not await fetch(wire.open, Blob(hash=BLOB.hash, size=1 << 40), [b"a"], store)
        return len(wire.opened)

    assert run({b"a": lying}, client) == 0


@pytest.mark.parametrize("frames", [[b"x" * (MAX_FRAME + 1)], [b""], [b"x" * 1000] * 3])
def test_a_range_out_of_form_is_refused(store, frames):
    blob = Blob(hash=BLOB.hash, size=2500)

    async def handler(stream: Pipe) -> None:
        await stream.receive(512)
        await stream.send(pack(Have(size=2500)))
        for frame in frames:
            await stream.send(frame)

    async def client(wire: Wire) -> None:
        with contextlib.suppress(PeerError):
            assert not await fetch(wire.open, blob, [b"a"], store)

    run({b"a": handler}, client)
    assert blob.hash not in store


@pytest.mark.parametrize("reply", [b"", b"\xc0", b"\x80", b"\x81\xa4size\xfe", b"x" * 65])
def test_a_reply_out_of_form_is_refused(store, reply):
    async def handler(stream: Pipe) -> None:
        await stream.receive(512)
        await stream.send(reply)

    async def client(wire: Wire) -> None:
        with contextlib.suppress(PeerError):
            assert not await fetch(wire.open, BLOB, [b"a"], store)

    run({b"a": handler}, client)


def test_a_full_disk_ends_a_fetch(full, tmp_path):
    small = store_at(tmp_path / "small", budget=10)

    async def client(wire: Wire) -> None:
        with pytest.raises(InfraError, match="budget"):
            await fetch(wire.open, BLOB, [b"a"], small)

    run({b"a": serving(full)}, client)


# --- serving ---------------------------------------------------------------------------------


def test_whether_a_peer_has_a_blob_is_asked_with_no_bytes(full):
    async def client(wire: Wire) -> tuple[bool, bool]:
        return await has(wire.open, b"a", BLOB.hash), await has(wire.open, b"a", bytes(32))

    assert run({b"a": serving(full)}, client) == (True, False)


def test_a_range_beyond_the_end_is_empty(full):
    async def client(wire: Wire) -> None:
        stream = await wire.open(b"a")
        await stream.send(pack(Get(hash=BLOB.hash, offset=BLOB.size + 5, length=10)))
        assert blobs.unpack(await stream.receive(64)) == {"size": BLOB.size}
        with pytest.raises(PeerError, match="stream-closed"):
            await stream.receive(64)

    run({b"a": serving(full)}, client)


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\xc0",
        b"x" * 513,
        pack({"hash": bytes(31), "offset": 0, "length": 1}),
        pack({"hash": bytes(32), "offset": -1, "length": 1}),
        pack({"hash": bytes(32), "offset": 0, "length": MAX_RANGE + 1}),
        pack({"hash": "../../etc/passwd", "offset": 0, "length": 1}),
    ],
)
def test_a_request_out_of_form_is_the_askers_fault(full, request_):
    async def client(wire: Wire) -> PeerError:
        stream = await wire.open(b"a")
        await stream.send(request_)
        with pytest.raises(PeerError, match="stream-closed"):
            await stream.receive(64)
        return wire.faults[0]

    assert run({b"a": serving(full)}, client).reason in (
        "bad-blob-request", "bad-msgpack", "too-long",
    )  # fmt: skip
