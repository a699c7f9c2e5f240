"""Nodes that ask each other to cosign, over streams in memory: what each concludes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from authors import Author

from ponyswarm.errors import PeerError
from ponyswarm.keys import SecretKey, peer_id
from ponyswarm.ledger import merkle, proofs
from ponyswarm.ledger.store import Store
from ponyswarm.notary import Notary, open_notary
from ponyswarm.p2p import witness
from ponyswarm.witnessing import Witnessing


class Side:
    """One end of a stream."""

    def __init__(
        self, peer: bytes, send: trio.MemorySendChannel, receive: trio.MemoryReceiveChannel
    ):
        self.peer = peer
        self._send = send
        self._receive = receive

    async def send(self, data: bytes) -> None:
        await self._send.send(data)

    async def receive(self, limit: int) -> bytes:
        try:
            data = await self._receive.receive()
        except trio.EndOfChannel as fault:
            raise PeerError("stream-closed") from fault
        assert len(data) <= limit
        return data

    async def close(self) -> None:
        await self._send.aclose()


class Peer:
    """A home with its notary, connected to others in memory."""

    def __init__(self, folder: Path, number: int) -> None:
        folder.mkdir()
        self.key = SecretKey(bytes([number]) * 32)
        self.store = Store(folder / "ledger.db")
        self._opened = open_notary(
            key=self.key, ledger=folder / "ledger.db", witness=folder / "witness.db"
        )
        self.notary: Notary = self._opened.__enter__()
        self.refused: Counter[str] = Counter()
        self.rounds = 0
        self.others: dict[bytes, Peer | bytes] = {}
        self.witnessing = Witnessing(
            self.notary,
            open_=self._open,
            peers=lambda: tuple(self.others),
            refuse=lambda reason, peer: self.refused.update([reason]),
        )
        self._author = Author(number)

    def close(self) -> None:
        self._opened.__exit__(None, None, None)
        self.store.close()

    def entry(self, name: str) -> None:
        entry = self._author.project(name=name)
        self.store.append(entry, entry.header.time)

    async def _open(self, peer: bytes) -> Side:
        other = self.others[peer]
        self.rounds += 1
        there, here = trio.open_memory_channel[bytes](4), trio.open_memory_channel[bytes](4)
        if isinstance(other, Peer):
            served = Side(self.key.public, here[0], there[1])
            trio.lowlevel.spawn_system_task(other._serve, served)
        elif other:
            here[0].send_nowait(other)
        else:
            raise PeerError("no-stream")
        return Side(peer, there[0], here[1])

    async def _serve(self, stream: Side) -> None:
        try:
            await self.witnessing.serve(stream)
        except PeerError as fault:
            self.refused[fault.reason] += 1
        await stream.close()

    def look(self) -> proofs.Held | None:
        """One turn of the loop, as if a command wished for a checkpoint."""
        self.notary.log.wish(0)
        trio.run(self.witnessing._look)
        return self.notary.log.latest()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Peer, Peer]]:
    log, other = Peer(tmp_path / "log", 1), Peer(tmp_path / "other", 2)
    log.others[other.key.public] = other
    yield log, other
    for peer in (log, other):
        peer.close()


def test_one_round_when_it_is_known_what_the_witness_saw(pair: tuple[Peer, Peer]) -> None:
    log, other = pair
    assert log.look() is None, "nothing to sign yet"
    log.entry("one")
    held = log.look()
    assert held is not None
    assert (held.size, held.witnesses, log.rounds) == (1, (other.key.public,), 1)
    log.entry("two")
    held = log.look()
    assert held is not None
    assert (held.size, held.witnesses, log.rounds) == (2, (other.key.public,), 2)
    assert log.look() == held
    assert log.rounds == 2, "who cosigned is not asked again"
    assert not log.refused
    assert not other.refused


def test_two_rounds_when_it_was_forgotten(pair: tuple[Peer, Peer]) -> None:
    log, other = pair
    log.entry("one")
    log.look()
    log.notary.log._db.execute("DELETE FROM cosignature")
    log.entry("two")
    held = log.look()
    assert held is not None
    assert (held.witnesses, log.rounds) == ((other.key.public,), 3)


def test_a_witness_that_knows_another_tree_of_ours_makes_us_begin_anew(
    pair: tuple[Peer, Peer],
) -> None:
    """As after a rolled back machine: nothing here knows that something else was signed."""
    log, other = pair
    log.entry("one")
    first = log.look()
    assert first is not None
    elsewhere = proofs.sign_checkpoint(log.key, first.origin, 9, b"x" * 32)
    other.notary.witness._db.execute("UPDATE witnessed SET size = 9, note = ?", (elsewhere,))
    log.entry("two")
    log.look()
    held = log.look()
    assert held is not None
    assert held.origin != first.origin
    assert (held.size, held.witnesses) == (2, (other.key.public,))
    assert not log.refused


def test_a_tree_that_was_lost_is_made_again(pair: tuple[Peer, Peer]) -> None:
    log, other = pair
    for number in range(600):
        log.entry(f"entry {number}")
    held = log.look()
    assert held is not None
    log.notary.log._db.execute("DELETE FROM cosignature")
    log.notary.log._tree._db.execute("DELETE FROM tree_node")
    log.entry("one more")
    again = log.look()
    assert again is not None
    assert (again.size, again.witnesses) == (601, (other.key.public,))
    assert again.origin == held.origin, "the entries are the same"

    log.notary.log._db.execute("DELETE FROM cosignature")
    log.notary.log._tree._db.execute("DELETE FROM tree_block WHERE position = 0")
    log.witnessing._waits.clear()
    log.witnessing._held = again
    trio.run(log.witnessing._gather, log.notary.log.latest())
    trio.run(log.witnessing._look)
    last = log.notary.log.latest()
    assert last is not None
    assert last.witnesses == (other.key.public,)


def lies(log: Peer, other: Peer) -> dict[str, bytes]:
    origin = f"{peer_id(log.key.public)}/00000000"
    forged = proofs.sign_checkpoint(other.key, origin, 9, b"x" * 32)
    return {
        "a note that we never signed": b"409\n9\n" + forged,
        "no note": b"409\n9\n",
        "no size": b"409\n",
        "no number": b"junk",
        "a cosignature of something else": b"200\n"
        + proofs.cosign(other.key, b"something\n", 1_700_000_000),
        "an empty cosignature": b"200\n",
    }


@pytest.mark.parametrize("lie", range(6))
def test_a_lying_witness_is_refused_and_changes_nothing(pair: tuple[Peer, Peer], lie: int) -> None:
    log, other = pair
    log.others[other.key.public] = list(lies(log, other).values())[lie]
    log.entry("one")
    held = log.look()
    assert held is not None
    assert held.witnesses == ()
    assert sum(log.refused.values()) == 1
    assert set(log.refused) <= {"bad-witness", "bad-cosignature"}
    log.entry("two")
    again = log.look()
    assert again is not None
    assert again.origin == held.origin


def test_a_peer_that_does_not_witness_is_left_alone_for_longer_and_longer(
    pair: tuple[Peer, Peer],
) -> None:
    log, other = pair
    log.others[other.key.public] = b""
    log.entry("one")

    async def minutes() -> None:
        log.notary.log.wish(0)
        for _ in range(60):
            await log.witnessing._look()
            await trio.sleep(60)

    trio.run(minutes, clock=trio.testing.MockClock(autojump_threshold=0))
    assert 4 <= log.rounds <= 8
    assert not log.refused


def test_junk_is_counted_against_who_sent_it(pair: tuple[Peer, Peer]) -> None:
    log, other = pair

    async def talk(data: bytes) -> None:
        stream = await log._open(other.key.public)
        await stream.send(data)
        with pytest.raises(PeerError):
            await stream.receive(100)

    trio.run(talk, b"junk")
    assert other.refused == {"bad-witness": 1}
    assert merkle.EMPTY
    assert witness.MAX_REQUEST > 64 * 45 + 500
