"""Fifty hostile peers, one after the other, against one real node that goes on working.

`bench.attacks` measures how much slower the node answers meanwhile; here it must answer at
all, stay within its bounds, and do honest work when everything is over.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from bench.attacks import answers
from bench.claims import wait_for_results
from bench.hostile import PEERS
from bench.hostile.victim import Attackers, Victim, open_victim
from ponyswarm import status

pytestmark = pytest.mark.slow

SECONDS = 0.7
MEMORY_GROWTH = 60e6
DISK_GROWTH = 60e6


class Arena:
    """The victim, the attackers' process, and what the victim weighed before all of them."""

    def __init__(self, victim: Victim, attackers: Attackers) -> None:
        self.victim = victim
        self.attackers = attackers
        self.memory = victim.memory()
        self.disk = victim.disk()


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with open_victim() as victim, Attackers(victim, victim.prey(victim.works())) as attackers:
        yield Arena(victim, attackers)


@pytest.mark.parametrize("name", PEERS)
def test_a_node_answers_while_it_is_attacked_by(name: str, arena: Arena) -> None:
    arena.attackers.begin(name, SECONDS)
    during = trio.run(answers, arena.victim, SECONDS)
    assert arena.attackers.end() >= 1
    assert during.times
    assert not during.missing
    arena.victim.swarm.check(arena.victim.node)
    assert arena.victim.memory() - arena.memory < MEMORY_GROWTH
    assert arena.victim.disk() - arena.disk < DISK_GROWTH


def test_after_all_of_them_the_node_does_honest_work_and_has_counted_what_it_refused(
    arena: Arena,
) -> None:
    victim = arena.victim
    job = victim.works()
    # The maintainer's node got its share of the floods through the victim, which is honest.
    wait_for_results(victim.maintainer, job)
    heard = status.read(victim.maintainer.home.status)
    assert heard is not None
    assert heard.peers
    assert "banned" not in heard.refused
    assert len(victim.refused()) >= 10, victim.refused()
