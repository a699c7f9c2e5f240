"""Pulls over real streams between two real ledgers."""

from __future__ import annotations

import itertools
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from authors import NOW, Author, announce, cell_ids, project_record
from wires import Handler, Pipe, Wire, run

from ponyswarm.codec import check_segment, pack_segment
from ponyswarm.errors import PeerError
from ponyswarm.keys import SecretKey
from ponyswarm.ledger.chain import Accept
from ponyswarm.ledger.journal import Journal
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Entry
from ponyswarm.p2p import replication, sync
from ponyswarm.p2p.replication import Pulled, pull, serve
from ponyswarm.pulling import AT_ONCE, Pulls
from ponyswarm.refusals import _POINTS

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


# --- a peer that lies ----------------------------------------------------------------------------


class Liar:
    """A server that says that everything differs, and then whatever it is given to say."""

    def __init__(self, replies: Callable[[int], Iterator[bytes]]) -> None:
        self.rounds = self.said = 0
        self._replies = replies

    async def __call__(self, stream: Pipe) -> None:
        await stream.receive(4096)
        await stream.send(b"\2" + b"junkjunkjunk" * 64)
        await stream.receive(1 << 20)
        self.rounds += 1
        for message in self._replies(self.rounds):
            self.said += len(message)
            await stream.send(message)


def told(*entries: Entry) -> bytes:
    return b"\1" + zlib.compress(pack_segment([entry.frame for entry in entries]))


MORE, DONE = b"\0\1" + bytes(8), b"\0\0" + bytes(8)


def refused(stores: tuple[Store, Store], liar: Liar, project: bytes) -> str:
    async def client(wire: Wire) -> str:
        with pytest.raises(PeerError) as caught:
            await pull(wire.open, b"a", project, stores[0].live_frontier, taking(stores[0]))
        return caught.value.reason

    return run({b"a": liar}, client)


def test_a_reply_without_end_is_cut_and_held_against_its_server(stores, monkeypatch):
    """Good entries, again and again: each is cheap to send, and none is new."""
    monkeypatch.setattr(sync, "MAX_REPLY", 100_000)
    root = Author(1)
    genesis = root.project()
    message = told(*(root.announce(genesis.id, title=str(n)) for n in range(50)))
    liar = Liar(lambda _: itertools.chain([told(genesis)], itertools.repeat(message)))
    assert refused(stores, liar, genesis.id) == "bad-sync"
    assert stores[0].count() == 51
    assert liar.rounds == 1
    assert _POINTS["bad-sync"] > 0


def test_messages_that_say_nothing_are_no_way_to_hold_a_slot(stores):
    empty = b"\1" + zlib.compress(b"")
    project = fill(stores[1])
    liar = Liar(lambda _: itertools.repeat(empty))
    assert refused(stores, liar, project) == "bad-sync"


def test_endless_more_ends_with_the_rounds_of_a_pull(stores, monkeypatch):
    monkeypatch.setattr(replication, "MAX_ROUNDS", 5)
    root = Author(1)
    genesis = root.project()
    entries = [genesis, *(root.announce(genesis.id, title=str(n)) for n in range(20))]
    liar = Liar(lambda number: iter([told(entries[number - 1]), MORE]))
    answer, wire = run({b"a": liar}, pulling(stores[0], genesis.id))
    assert answer == Pulled("differs", 5)
    assert len(wire.opened) == liar.rounds == 5


@pytest.mark.parametrize("end", [MORE, DONE])
def test_who_claims_more_than_it_has_is_asked_twice_at_most(stores, end):
    mine = stores[0]
    project = fill(mine)
    before = mine.frontier(project)
    liar = Liar(lambda _: iter([end]))
    answer, _ = run({b"a": liar}, pulling(mine, project))
    assert answer == Pulled("differs", 0)
    assert liar.rounds <= 2
    assert mine.frontier(project) == before


@pytest.mark.parametrize("junk", ["a gap", "signatures", "bytes", "a bomb"])
def test_junk_segments_leave_nothing_behind(stores, junk):
    mine, theirs = stores
    root, stranger = Author(1), Author(9)
    genesis = root.project()
    runs = [stranger.result(genesis.id, genesis.id, bytes([n]) * 32) for n in range(6)]
    assert mine.append(genesis, LATER) == Accept()
    frame = bytearray(runs[1].frame)
    frame[200] ^= 1
    message = {
        "a gap": told(*runs[2:]),
        "signatures": b"\1" + zlib.compress(pack_segment([runs[0].frame, bytes(frame)])),
        "bytes": b"\1" + zlib.compress(b"junk" * 1000),
        "a bomb": b"\1" + zlib.compress(bytes(1 << 26), 9),
    }[junk]
    liar = Liar(lambda _: iter([message, DONE]))
    before = mine.count()
    tracemalloc.start()
    try:
        if junk == "a gap":
            run({b"a": liar}, pulling(mine, genesis.id))
            assert liar.rounds <= 2
        else:
            assert _POINTS[refused(stores, liar, genesis.id)] > 0
        assert tracemalloc.get_traced_memory()[1] < 8 * sync.MAX_EXPANDED
    finally:
        tracemalloc.stop()
    assert mine.count() == before
    theirs.append(genesis, LATER)
    # An honest peer is not kept from giving what the liar did not.
    theirs.append_all(runs, LATER)
    run({b"a": serving(theirs)}, pulling(mine, genesis.id))
    assert mine.holds(runs[-1].id)


# --- several peers at once ------------------------------------------------------------------------


class Stalling:
    """Opens streams to peers of whom some say nothing."""

    def __init__(self, silent: bytes, wire: Wire) -> None:
        self.silent = silent
        self.waiting = 0
        self._wire = wire

    async def open(self, peer: bytes) -> Pipe:
        if peer == self.silent:
            self.waiting += 1
            await trio.sleep_forever()
        return await self._wire.open(peer)


def test_a_peer_that_stalls_takes_one_slot_however_many_projects_it_has(stores, tmp_path):
    mine, theirs = stores
    project = fill(theirs)
    followed = frozenset({project, *(bytes([n]) * 32 for n in range(3 * AT_ONCE))})
    journal = Journal(
        tmp_path / "journal",
        fence=tmp_path / "fence",
        key=SecretKey(bytes([3]) * 32),
        machine="here",
        nonce=lambda: bytes(8),
    )

    async def client(wire: Wire) -> int:
        stalling = Stalling(b"slow", wire)
        pulls = Pulls(
            journal,
            open_=stalling.open,
            frontier_of=mine.live_frontier,
            take=taking(mine),
            peers=lambda: (b"slow", b"good"),
            followed=lambda: followed,
            refuse=lambda reason, peer: None,
            clock=lambda: NOW,
            pulled=lambda peer, project, *, knows: None,
        )
        async with trio.open_nursery() as nursery:
            for one in followed:
                nursery.start_soon(pulls.run, b"slow", one)
            await trio.testing.wait_all_tasks_blocked()
            await pulls.run(b"good", project)
            nursery.cancel_scope.cancel()
        assert pulls.idle
        return stalling.waiting

    assert run({b"good": serving(theirs)}, client) == 1
    assert mine.frontier(project) == theirs.frontier(project)
    journal.close()
