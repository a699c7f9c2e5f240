"""What gossip brings is held against its forwarder only where the forwarder should have seen it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from authors import NOW, Author, announce, fork_of, result
from msgspec.structs import replace

from ponyswarm.codec import encode_gossip
from ponyswarm.intake import Intake
from ponyswarm.keeping import Keeping
from ponyswarm.ledger.journal import Journal
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Entry, Spec
from ponyswarm.p2p.blobs import BlobStore
from ponyswarm.p2p.protocol import Protocol
from ponyswarm.p2p.topics import project_topic
from ponyswarm.refusals import Refusals

ORIGIN, RELAY = b"o" * 32, b"r" * 32


class Home:
    """An intake over a real ledger that holds one project."""

    def __init__(self, folder: Path, ledger: Store, genesis: Entry) -> None:
        self.blamed: Counter[bytes] = Counter()
        self.refusals = Refusals(self._penalise)
        key = Author(9).key
        self._journal = Journal(
            folder / "journal",
            fence=folder / "fence",
            key=key,
            machine="here",
            nonce=lambda: bytes(8),
        )
        self._topic = project_topic(genesis.id)
        ledger.append(genesis, NOW)

        async def nothing(effects: object) -> None: ...

        self.intake = Intake(
            store=ledger,
            journal=self._journal,
            protocol=Protocol(key.public, None, random.Random(1)),
            keeping=Keeping(ledger, BlobStore(folder, budget=1, floor=0), budget=0, keep_ms=None),
            refuse=self.refusals.refuse,
            perform=nothing,
            clock=lambda: NOW,
        )

    def _penalise(self, peer: bytes, points: float) -> None:
        self.blamed[peer] += int(points)

    def relays(self, entry: Entry) -> bool:
        return self.intake.validate(self._topic, ORIGIN, RELAY, encode_gossip(entry))

    def is_named(self, author: Author) -> bool:
        return self.intake.is_named(self._topic, author.public)

    def close(self) -> None:
        self._journal.close()


@pytest.fixture
def genesis(maintainer: Author) -> Entry:
    return maintainer.project()


@pytest.fixture
def home(tmp_path: Path, ledger: Store, genesis: Entry) -> Iterator[Home]:
    async def opened() -> Home:
        return Home(tmp_path, ledger, genesis)

    home = trio.run(opened)
    yield home
    home.close()


def test_a_fork_that_proves_nothing_is_not_relayed_and_costs_its_forwarder(
    home: Home, genesis: Entry
) -> None:
    author = Author(5)
    one = author.result(genesis.id, bytes(32), bytes(32))
    same_twice = author.sign(fork_of(one, one), genesis.id)
    assert not home.relays(same_twice)
    assert home.refusals.counted == {"bad-fork": 1}
    assert home.blamed[RELAY] > 0


def test_a_matrix_without_cells_is_not_relayed_and_costs_its_forwarder(
    home: Home, genesis: Entry, maintainer: Author
) -> None:
    empty = replace(announce(), spec=Spec(python=("3",), factors={"django": {}}))
    assert not home.relays(maintainer.sign(empty, genesis.id))
    assert home.refusals.counted == {"bad-matrix": 1}
    assert home.blamed[RELAY] > 0


def test_what_only_a_ledger_can_refuse_is_relayed_and_costs_nobody(
    home: Home, genesis: Entry
) -> None:
    """A stranger's time falls: its first entry may have reached us and not our forwarder."""
    author = Author(5)
    first = author.sign(result(bytes(32), bytes(32)), genesis.id, time=NOW)
    second = author.sign(result(bytes(32), bytes(32)), genesis.id, time=NOW - 5000)
    for entry in (first, second):
        assert home.relays(entry)
        home.intake.admit(entry, RELAY, NOW)
    assert home.refusals.counted == {"time-falls": 1}
    assert not home.blamed


def test_who_is_named_or_vouched_for_is_none_of_the_strangers(
    home: Home, genesis: Entry, maintainer: Author, ledger: Store
) -> None:
    volunteer = Author(5)
    assert home.is_named(maintainer)
    assert not home.is_named(volunteer)
    ledger.append(maintainer.vouch(genesis.id, volunteer.public, "a company"), NOW + 60_000)
    assert home.is_named(volunteer)
    ledger.append(maintainer.revoke(genesis.id, volunteer.public, NOW), NOW + 60_000)
    assert not home.is_named(volunteer)
