"""Pulls over real streams between two real ledgers."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from authors import NOW, Author, announce, cell_ids, project_record
from wires import Handler, Pipe, Wire, run

from ponyswarm.codec import check_segment, pack_segment
from ponyswarm.errors import PeerError
from ponyswarm.ledger.chain import Accept
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Entry
from ponyswarm.p2p import replication, sync
from ponyswarm.p2p.replication import Pulled, pull, serve

LATER = NOW + 3_600_000


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    mine, theirs = Store(tmp_path / "mine"), Store(tmp_path / "theirs")
    yield mine, theirs
    mine.close()
    theirs.close()


def taking(store: Store) -> replication.Take:
    async def take(project: bytes, segments: Sequence[Sequence[Entry]], peer: bytes) -> int:
        for segment in segments:
            check_segment(segment)
        judged = store.append_segments(segments, LATER)
        return sum(judgements.count(Accept()) for judgements in judged)

    return take


def serving(store: Store) -> Handler:
    return partial(serve, frontier_of=store.live_frontier, segment=store.segment)


def pulling(store: Store, project: bytes):
    async def client(wire: Wire) -> tuple[Pulled, Wire]:
        answer = await pull(wire.open, b"a", project, store.live_frontier, taking(store))
        return answer, wire

    return client


def fill(store: Store, *, jobs: int = 3, volunteers: int = 4) -> bytes:
    root = Author(1)
    genesis = root.project()
    entries = [genesis]
    for number in range(jobs):
        job = root.announce(genesis.id, title=str(number))
        entries.append(job)
        cell = cell_ids(job, announce())[0]
        entries += [
            Author(n, nonce=bytes([number + 1]) * 8).result(genesis.id, job.id, cell)
            for n in range(2, 2 + volunteers)
        ]
    assert set(store.append_all(entries, LATER)) == {Accept()}
    return genesis.id


def test_a_pull_brings_everything(stores):
    mine, theirs = stores
    project = fill(theirs)
    answer, _ = run({b"a": serving(theirs)}, pulling(mine, project))
    assert answer == Pulled("differs", 16)
    assert mine.frontier(project) == theirs.frontier(project)


def test_a_pull_of_nothing_new_is_one_short_round(stores):
    mine, theirs = stores
    project = fill(theirs)
    fill(mine)
    answer, wire = run({b"a": serving(theirs)}, pulling(mine, project))
    assert answer == Pulled("same")
    ((_, near, far),) = wire.opened
    assert near.frames == far.frames == 1
    assert near.sent + far.sent == 49
    assert wire.faults == []


def test_a_project_that_the_peer_does_not_follow_is_unknown(stores):
    mine, theirs = stores
    project = fill(theirs)
    handler = partial(serve, frontier_of=lambda _: None, segment=theirs.segment)
    answer, wire = run({b"a": handler}, pulling(mine, project))
    assert answer == Pulled("unknown")
    assert wire.faults == []


def test_what_a_later_record_allows_comes_in_the_same_pull(stores):
    """Feeds go by key: an announcer's may come before the record that names it."""
    mine, theirs = stores
    people = sorted((Author(n) for n in range(1, 9)), key=lambda author: author.public)
    announcer, root = people[0], people[-1]
    genesis = root.project()
    names = root.sign(project_record(root, announcers=(announcer.public,)), genesis.id)
    job = announcer.announce(genesis.id)
    assert theirs.append_all([genesis, names, job], LATER) == [Accept()] * 3
    answer, _ = run({b"a": serving(theirs)}, pulling(mine, genesis.id))
    assert answer.new == 3
    assert mine.holds(job.id)


def test_a_pull_that_is_cut_keeps_what_came_and_goes_on(stores, monkeypatch):
    monkeypatch.setattr(sync, "MAX_CHUNK", 4_000)
    mine, theirs = stores
    project = fill(theirs, jobs=20)

    async def client(wire: Wire) -> None:
        wire.cuts = [6_000]
        with pytest.raises(PeerError, match="stream-closed"):
            await pull(wire.open, b"a", project, mine.live_frontier, taking(mine))
        assert 0 < mine.count() < theirs.count()
        await pull(wire.open, b"a", project, mine.live_frontier, taking(mine))

    run({b"a": serving(theirs)}, client)
    assert mine.frontier(project) == theirs.frontier(project)


def test_a_long_pull_takes_several_rounds(stores, monkeypatch):
    monkeypatch.setattr(sync, "MAX_CHUNK", 9_000)
    monkeypatch.setattr(sync, "MAX_REPLY", 20_000)
    mine, theirs = stores
    project = fill(theirs, jobs=20)
    answer, wire = run({b"a": serving(theirs)}, pulling(mine, project))
    assert answer.new == theirs.count()
    assert len(wire.opened) > 2
    assert mine.frontier(project) == theirs.frontier(project)


def test_a_forged_frame_ends_the_pull(stores):
    mine, theirs = stores
    project = fill(theirs)

    def forging(project: bytes, ref, start: int, most: int) -> list[bytes]:
        return [
            f[:170] + bytes([f[170] ^ 1]) + f[171:]
            for f in theirs.segment(project, ref, start, most)
        ]

    handler = partial(serve, frontier_of=theirs.live_frontier, segment=forging)

    async def client(wire: Wire) -> None:
        with pytest.raises(PeerError, match="bad-signature"):
            await pull(wire.open, b"a", project, mine.live_frontier, taking(mine))

    run({b"a": handler}, client)
    assert mine.count() == 0


def test_a_server_that_never_has_anything_new_does_not_keep_us_asking(stores):
    mine, theirs = stores
    project = fill(theirs)
    fill(mine)
    frames = [theirs.entry(project).frame]

    async def handler(stream: Pipe) -> None:
        await stream.receive(4096)
        await stream.send(b"\2" + b"junkjunkjunk" * 64)
        await stream.receive(1 << 20)
        await stream.send(b"\1" + zlib.compress(pack_segment(frames)))
        await stream.send(b"\0\1" + bytes(8))

    answer, wire = run({b"a": handler}, pulling(mine, project))
    assert answer == Pulled("differs", 0)
    assert len(wire.opened) == 1


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"\xc1",
        b"x" * (sync.MAX_MESSAGE + 1),
        b"\2",
        b"\3" + bytes(64 * 12),
    ],
)
def test_a_server_out_of_form_is_refused(stores, reply):
    mine, theirs = stores
    project = fill(theirs)

    async def handler(stream: Pipe) -> None:
        await stream.receive(4096)
        await stream.send(reply)

    async def client(wire: Wire) -> str:
        with pytest.raises(PeerError) as caught:
            await pull(wire.open, b"a", project, mine.live_frontier, taking(mine))
        return caught.value.reason

    assert run({b"a": handler}, client) in ("bad-msgpack", "bad-sync", "too-long")


@pytest.mark.parametrize("request_", [b"", b"\x90", b"x" * 5000, b"x" * 49])
def test_an_asker_out_of_form_is_refused(stores, request_):
    async def client(wire: Wire) -> str:
        stream = await wire.open(b"a")
        await stream.send(request_)
        with pytest.raises(PeerError, match="stream-closed"):
            await stream.receive(100)
        return wire.faults[0].reason

    assert run({b"a": serving(stores[1])}, client) in ("bad-msgpack", "bad-sync", "too-long")
