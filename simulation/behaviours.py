"""How volunteers behave: one honest way, and one small class for each way to cheat.

A behaviour decides only where a node could cheat: what it does with a claim that has
settled, what it says of a run, what it signs beside, and what it does about what it took.
The truth of a cell is a fixed function of its id, so that honest runs agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from ponyswarm.codec import cell_id, encode_gossip
from ponyswarm.matrix import cells
from ponyswarm.messages import (
    Announce,
    Claim,
    Commit,
    Entry,
    Payload,
    Result,
    Revoke,
    Status,
    Vouch,
    Withdraw,
)
from ponyswarm.p2p.jobs import GIVE_WAY_MS, TELL_MS
from ponyswarm.p2p.scheduling import LEASE_MS
from ponyswarm.p2p.topics import project_topic

if TYPE_CHECKING:
    from simulation.node import Node

TESTS = 5
# One cell in so many has a test that fails.
FAILING = 10


def truth(cell: bytes) -> list[Status]:
    """What an honest run of a cell gives."""
    first = Status.FAILED if cell[0] % FAILING == 0 else Status.PASSED
    return [first] + [Status.PASSED] * (TESTS - 1)


def lie(cell: bytes, variant: int) -> list[Status]:
    """A wrong answer: the opposite of the truth, with a mark of its own for each variant."""
    wrong = Status.PASSED if truth(cell)[0] is Status.FAILED else Status.FAILED
    marks = [Status.SKIPPED if variant >> bit & 1 else Status.PASSED for bit in range(12)]
    return [wrong, *marks]


class Honest:
    """Runs what it claims and says what it saw."""

    is_honest = True

    def run(self, node: Node, job: bytes, cell: bytes) -> None:
        node.begin(job, cell, node.chance.uniform(*node.seconds))

    def outcome(self, node: Node, job: bytes, cell: bytes) -> Result:
        from simulation.node import told

        return told(node, job, cell, truth(cell), sum(node.seconds) / 2)

    def reveal(self, node: Node, job: bytes, cell: bytes, seen: tuple[bytes, ...]) -> None:
        """It may tell what it committed to."""
        node.reveal(job, cell, seen)

    def signed(self, node: Node, entry: Entry, payload: Payload) -> None:
        """It is about to publish an entry."""

    def took(self, node: Node, entry: Entry, payload: Payload | None) -> None:
        """It took an entry of somebody else."""

    def heard(self, node: Node, origin: bytes, project: bytes, claim: Claim) -> None:
        """It heard a claim of somebody else."""

    def hourly(self, node: Node) -> None:
        """An hour passed."""


class Unsteady(Honest):
    """Honest, on a machine where a test fails the first time and passes from then on."""

    def __init__(self) -> None:
        self.tried: set[bytes] = set()

    def outcome(self, node: Node, job: bytes, cell: bytes) -> Result:
        from simulation.node import told

        statuses = truth(cell)
        if cell not in self.tried:
            self.tried.add(cell)
            statuses[-1] = Status.FAILED
        return told(node, job, cell, statuses)


class Liar(Honest):
    """Says the opposite, at once. Liars with one ``variant`` say the same: one operator's keys."""

    is_honest = False

    def __init__(self, variant: int) -> None:
        self.variant = variant

    def run(self, node: Node, job: bytes, cell: bytes) -> None:
        node.begin(job, cell, node.chance.uniform(1, 5))

    def outcome(self, node: Node, job: bytes, cell: bytes) -> Result:
        from simulation.node import told

        return told(node, job, cell, lie(cell, self.variant))


class Copier(Honest):
    """Never runs anything: it says what the first other said of the cell, as its own.

    In a blind job it commits to a guess, since there is nothing to copy yet, and opens the
    commit only if the guess turns out to be what the others tell.
    """

    is_honest = False

    def __init__(self) -> None:
        self.seen: dict[bytes, Result] = {}

    def run(self, node: Node, job: bytes, cell: bytes) -> None:
        node.begin(job, cell, 1.0 if cell in self.seen else node.seconds[1])

    def took(self, node: Node, entry: Entry, payload: Payload | None) -> None:
        if isinstance(payload, Result) and payload.state == "completed":
            self.seen.setdefault(payload.cell, payload)

    def reveal(self, node: Node, job: bytes, cell: bytes, seen: tuple[bytes, ...]) -> None:
        others, guess = self.seen.get(cell), node.secrets[job, cell][0]
        if others is not None and others.digest == guess.digest:
            node.reveal(job, cell, seen)

    def outcome(self, node: Node, job: bytes, cell: bytes) -> Result:
        from simulation.node import told

        # With nothing to copy it guesses what is likeliest.
        return self.seen.get(cell) or told(node, job, cell, [Status.PASSED] * TESTS)


class Equivocator(Honest):
    """Runs honestly, and tells every second node another history of its feed."""

    is_honest = False

    def signed(self, node: Node, entry: Entry, payload: Payload) -> None:
        from simulation.node import twin_of

        if isinstance(payload, Result):
            node.two_faces[encode_gossip(entry)] = encode_gossip(twin_of(node, entry, payload))


class Staller(Honest):
    """Claims, renews its claims, and never ends a run."""

    is_honest = False

    def run(self, node: Node, job: bytes, cell: bytes) -> None:
        """Nothing: the protocol renews what is claimed."""


class Withholder(Honest):
    """Runs, commits, and never tells."""

    is_honest = False

    def reveal(self, node: Node, job: bytes, cell: bytes, seen: tuple[bytes, ...]) -> None:
        """Nothing."""


class Idler(Honest):
    """Claims every cell of every job as soon as it hears of it, again and again, and runs none."""

    is_honest = False
    rounds = 6

    def run(self, node: Node, job: bytes, cell: bytes) -> None:
        """Nothing."""

    def took(self, node: Node, entry: Entry, payload: Payload | None) -> None:
        if isinstance(payload, Announce):
            self._claim(node, entry, self.rounds)

    def _claim(self, node: Node, job: Entry, rounds: int) -> None:
        found = node.protocol.job(job.id)
        if not node.alive or found is None or not rounds:
            return
        for cell in cells(found[1].spec):
            claim = Claim(job=job.id, cell=cell_id(job.id, cell), until=node.now + LEASE_MS)
            node.world.gossip(node, project_topic(job.namespace), encode_gossip(claim))
        node.world.at(LEASE_MS - 10_000, self._claim, node, job, rounds - 1)


class Flooder(Honest):
    """Results of cells that never were, and rubbish between them."""

    is_honest = False

    def __init__(self, hourly: int = 30) -> None:
        self.entries = hourly

    def hourly(self, node: Node) -> None:
        for project in node.protocol.followed:
            for number in range(self.entries):
                node.world.at(node.chance.randint(0, 3_500_000), self._junk, node, project, number)

    def _junk(self, node: Node, project: bytes, number: int) -> None:
        from simulation.node import told

        if not node.alive or project not in node.protocol.followed:
            return
        topic = project_topic(project)
        if number % 10 == 0:
            node.world.gossip(node, topic, node.chance.randbytes(200))
        else:
            node.say(told(node, node.chance.randbytes(32), node.chance.randbytes(32), []), project)


class Sealer(Honest):
    """Commits to every cell of a job as soon as it hears of it, again and again, and tells nothing.

    A commit that is waited for keeps others away as a claim does.
    """

    is_honest = False

    def run(self, node: Node, job: bytes, cell: bytes) -> None:
        """Nothing."""

    def reveal(self, node: Node, job: bytes, cell: bytes, seen: tuple[bytes, ...]) -> None:
        """Nothing."""

    def took(self, node: Node, entry: Entry, payload: Payload | None) -> None:
        if isinstance(payload, Announce):
            self._commit(node, entry)

    def _commit(self, node: Node, job: Entry) -> None:
        found = node.protocol.job(job.id)
        if not node.alive or found is None:
            return
        for cell in cells(found[1].spec):
            id_ = cell_id(job.id, cell)
            secret = node.chance.randbytes(32)
            node.say(Commit(job=job.id, cell=id_, commitment=secret), job.namespace)
        node.world.at(TELL_MS - 10_000, self._commit, node, job)


class Pusher(Honest):
    """Says of each cell that another claims that it was there before, and soon gives it back.

    Whoever hears it stops its young run and makes way, as it should; and claims the cell again.
    """

    is_honest = False

    def __init__(self) -> None:
        self.until: dict[bytes, int] = {}

    def run(self, node: Node, job: bytes, cell: bytes) -> None:
        """Nothing."""

    def heard(self, node: Node, origin: bytes, project: bytes, claim: Claim) -> None:
        if claim.until and node.now >= self.until.get(claim.cell, 0):
            self.until[claim.cell] = node.now + GIVE_WAY_MS
            for delay, until in ((100, claim.until - 1_000), (GIVE_WAY_MS - 3_000, 0)):
                said = encode_gossip(Claim(job=claim.job, cell=claim.cell, until=until))
                node.world.at(delay, node.world.gossip, node, project_topic(project), said)


class Usurper(Honest):
    """Says what only a maintainer may: it withdraws jobs, announces its own, ends others' keys."""

    is_honest = False

    def took(self, node: Node, entry: Entry, payload: Payload | None) -> None:
        from simulation.node import Pen

        if isinstance(payload, Announce):
            pen = Pen(node.key, node.chance.randbytes(8))
            said = (
                Withdraw(job=entry.id),
                replace(payload, title="mine"),
                Revoke(key=entry.header.author, since=0),
                Vouch(key=node.me, operator="friend"),
            )
            for forbidden in said:
                forged = pen.sign(forbidden, project=entry.namespace, now=node.now)
                node.world.gossip(node, project_topic(entry.namespace), encode_gossip(forged))
