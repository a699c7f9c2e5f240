"""What was committed to stays on the disk until it is told, whatever ends the node between."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from authors import FAR, NOW, Author, announce, cell_ids, digest, result
from msgspec import structs

from ponyswarm.codec import commitment, decode_payload
from ponyswarm.ledger.chain import Accept
from ponyswarm.ledger.seals import Seals
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Commit, Entry, Payload, Result
from ponyswarm.p2p.claims import ALONE_MS
from ponyswarm.p2p.effects import Effect, Reveal
from ponyswarm.p2p.jobs import TELL_MS
from ponyswarm.p2p.offers import Capacity
from ponyswarm.p2p.protocol import Protocol
from ponyswarm.p2p.scheduling import still_wanted
from ponyswarm.policy import window_ms
from ponyswarm.sealing import Sealing

ME = Author(50)


class Home:
    """A home whose node may die: files stay, the rest is made again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.maintainer = Author(1)
        genesis = self.maintainer.project()
        self.project = genesis.id
        said = announce()
        job = self.maintainer.sign(said, self.project)
        self.job, (self.cell,) = job.id, cell_ids(job, said)
        self.me = Author(50)
        self.fails = False
        self.start()
        assert self.store.append_all([genesis, job], FAR) == [Accept()] * 2

    def start(self) -> None:
        self.seals = Seals(self.folder / "seals.db", self.me.public)
        self.store = Store(self.folder / "ledger.db")
        self.sealing = Sealing(self.seals, self.store, self.me.public, self.publish)

    def die(self) -> None:
        self.seals.close()
        self.store.close()

    async def publish(self, payload: Payload, project: bytes) -> Entry:
        if self.fails:
            raise OSError("the node was killed here")
        entry = self.me.sign(payload, project)
        assert self.store.append(entry, FAR) == Accept()
        return entry

    def said(self) -> list[Payload | None]:
        return [decode_payload(entry) for entry in self.store.said(self.job, self.cell)]

    def run(self, what, *words) -> object:
        return trio.run(what, *words)


@pytest.fixture
def home(tmp_path: Path):
    made = Home(tmp_path)
    yield made
    made.die()


def test_a_commit_opens_to_what_was_kept(home):
    outcome = result(home.job, home.cell)
    home.run(home.sealing.commit, outcome, home.project, ())
    home.run(home.sealing.tell, home.job, home.cell, (digest("a commit"),))
    told, sealed = home.said()
    assert isinstance(sealed, Commit)
    assert isinstance(told, Result)
    assert sealed.commitment == commitment(told.nonce, told.digest, home.me.public)
    assert (told.digest, told.seen) == (outcome.digest, (digest("a commit"),))
    assert len(told.nonce) == 32
    assert home.seals.count() == 0


def test_a_node_killed_before_its_commit_was_signed_commits_when_it_is_back(home):
    home.fails = True
    with pytest.raises(OSError, match="killed"):
        home.run(home.sealing.commit, result(home.job, home.cell), home.project, ())
    assert home.said() == []
    home.die()
    home.fails = False
    home.start()
    home.run(home.sealing.resume, home.project)
    assert [type(payload) for payload in home.said()] == [Commit]
    assert home.run(home.sealing.tell, home.job, home.cell, ())


def test_a_node_killed_after_it_told_does_not_tell_twice(home):
    home.run(home.sealing.commit, result(home.job, home.cell), home.project, ())
    (seal,) = home.seals.of_project(home.project)
    home.run(home.publish, seal.result, home.project)
    home.die()
    home.start()
    home.run(home.sealing.resume, home.project)
    assert home.seals.count() == 0
    assert len([one for one in home.said() if isinstance(one, Result)]) == 1


def test_who_lost_its_nonce_says_so(home):
    assert not home.run(home.sealing.tell, home.job, home.cell, ())


# --- when it is told -------------------------------------------------------------------------


class Scene:
    """A volunteer that committed to the one cell of a blind job."""

    def __init__(self, redundancy: int = 2) -> None:
        self.protocol = Protocol(
            ME.public,
            Capacity(interpreters=(), services=(), system="linux", machine="x86_64", slots=1),
            random.Random(1),
        )
        self.now = NOW + 60_000
        self.maintainer = Author(1)
        genesis = self.maintainer.project()
        self.project = genesis.id
        self.protocol.follow(self.project, trusted=True, genesis=genesis, now=self.now)
        self.announce = announce(redundancy=redundancy)
        self.announce = structs.replace(
            self.announce, spec=replace(self.announce.spec, cross_check="blind")
        )
        self.job = self.maintainer.sign(self.announce, self.project)
        (self.cell,) = cell_ids(self.job, self.announce)
        self.admit(self.job)
        self.mine = self.commit(Author(50))

    def admit(self, entry: Entry) -> list[Effect]:
        payload = decode_payload(entry)
        return self.protocol.admitted(entry, payload, self.now, peer=None, own=False)

    def commit(self, author: Author) -> Entry:
        sealed = Commit(job=self.job.id, cell=self.cell, commitment=digest(str(author.number)))
        entry = author.sign(sealed, self.project)
        self.admit(entry)
        return entry

    def reveals(self, after: int = 0) -> list[Reveal]:
        self.now += after
        return [one for one in self.protocol.tick(self.now) if isinstance(one, Reveal)]


def test_it_is_told_when_as_many_have_committed_as_were_asked_for():
    scene = Scene()
    assert scene.reveals() == []
    other = scene.commit(Author(51))
    assert scene.reveals() == [Reveal(scene.job.id, scene.cell, (other.id,))]
    assert scene.reveals(1000) == []  # Once is enough, while it is being published.


def test_it_is_told_when_nobody_else_is_there():
    scene = Scene()
    assert scene.reveals(ALONE_MS - 1) == []
    assert scene.reveals(2) == [Reveal(scene.job.id, scene.cell, ())]


def test_it_is_told_when_the_window_ends_though_others_are_there():
    from ponyswarm.messages import Interpreter, Offer

    scene = Scene()
    offer = Offer(
        interpreters=(Interpreter(implementation="cpython", version="3.12.1"),),
        system="linux", machine="x86_64", slots=1, until=FAR * 2,
    )  # fmt: skip
    window = window_ms(scene.announce)
    waited = 0
    while waited < window - 240_000:
        scene.protocol.gossip(scene.project, Author(52).public, Author(52).public, offer, scene.now)
        assert scene.reveals(240_000) == []
        waited += 240_000
    assert scene.reveals(window - waited + 1) == [Reveal(scene.job.id, scene.cell, ())]


def test_it_is_told_when_the_job_is_withdrawn():
    scene = Scene()
    scene.protocol.ended(scene.project, [scene.job.id], scene.now)
    assert scene.reveals() == [Reveal(scene.job.id, scene.cell, ())]


def test_whoever_committed_keeps_no_lease_and_runs_no_more():
    scene = Scene()
    assert scene.protocol.sealed == {scene.cell}
    assert scene.protocol.mine == {}
    scene.commit(Author(51))
    assert scene.protocol.why_idle(scene.now) == {}


def test_two_that_commit_and_never_tell_hold_a_cell_up_for_minutes_and_not_for_a_window():
    scene = Scene()
    scene.protocol.lost(scene.cell)
    scene.commit(Author(51))
    job = scene.protocol._jobs.get(scene.job.id)
    assert job is not None
    assert job.open_cells == []
    scene.reveals(TELL_MS + 1)
    (cell,) = job.open_cells
    assert still_wanted(cell) == 2
