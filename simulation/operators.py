"""One operator with several keys, all telling the same lie: how many verdicts it gets wrong.

A reader who counts every key believes whoever brings more of them. One who lets each
operator speak once does not, as far as maintainers vouched for who runs which key.
"""

from __future__ import annotations

from dataclasses import dataclass

from ponyswarm.codec import outcome_digest
from ponyswarm.ledger.verdicts import CONFIRMED, Finding
from ponyswarm.messages import Project, Vouch
from ponyswarm.policy import ReaderPolicy
from simulation.behaviours import Honest, Liar, truth
from simulation.node import job_for
from simulation.world import World

VOLUNTEERS = 24


@dataclass(frozen=True, slots=True)
class Share:
    """The shares of cells that are wrongly confirmed under two policies."""

    volunteers: int
    by_all: float
    by_operators: float


def wrongly_confirmed(
    keys: int, *, mode: str, cells: int, seed: int, volunteers: int = VOLUNTEERS
) -> Share:
    """Run a job of so many cells among volunteers of which ``keys`` belong to one liar.

    Asked twice: nobody is vouched for, and then everybody is, the liar's keys as one operator.
    """
    shares = []
    for vouched in (False, True):
        world = World(seed=seed)
        maintainer = world.add(reads_only=True)
        for number in range(volunteers):
            world.add(behaviour=Liar(0) if number < keys else Honest(), seconds=(5, 20))
        project = world.found(maintainer, Project(name="demo", roots=(maintainer.me,)))
        if vouched:
            for number, node in enumerate(world.nodes[1:]):
                operator = "liar" if number < keys else f"honest {number}"
                maintainer.say(Vouch(key=node.me, operator=operator), project)
            world.run(30)
        variants = {"variants": max(1, cells), "redundancy": 2}
        maintainer.say(job_for(("3.12",), **variants, cross_check=mode), project)
        for _ in range(120):
            world.run(60)
            if _is_over(maintainer.findings(), cells):
                break
        found = maintainer.findings(ReaderPolicy(vouched_only=vouched))
        shares.append(sum(_is_wrong(cell, one) for cell, one in found.items()) / max(1, cells))
        world.close()
    return Share(volunteers, *shares)


def _is_over(found: dict[bytes, Finding], cells: int) -> bool:
    return len(found) == cells and all(one.verdict in CONFIRMED for one in found.values())


def _is_wrong(cell: bytes, finding: Finding) -> bool:
    tests = [(f"{cell.hex()[:8]}::{i}", status) for i, status in enumerate(truth(cell))]
    right = outcome_digest("completed", None, tests)
    return finding.verdict in CONFIRMED and finding.digest != right
