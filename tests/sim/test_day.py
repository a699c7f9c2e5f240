"""A few hours of a hostile swarm: everything that `simulation.day` can do to it, in small."""

from __future__ import annotations

import pytest

from simulation.day import Day, Plan
from simulation.operators import wrongly_confirmed
from simulation.world import SEED


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_hostile_swarm_serves_every_cell_agrees_everywhere_and_confirms_nothing_wrong():
    print(f"PONYSWARM_SEED={SEED}")
    plan = Plan(
        nodes=50,
        projects=1,
        outcomes=80,
        hours=0.7,
        hostile=0.15,
        partitions=1,
        partition_hours=0.1,
        seed=SEED,
    )
    report = Day(plan).run()
    print(report)
    assert report.cells == 40
    assert report.unserved == 0
    assert report.unequal_projects == 0
    assert report.unequal_verdicts == 0
    assert report.wrong == 0
    assert report.deaths > 0
    assert report.refused["gossip"] > 0, "the flooder's rubbish"
    assert report.extra <= 0.15  # Of so few runs; bench/swarm.py holds 10 % over a day.


@pytest.mark.slow
def test_an_operator_with_many_keys_gets_nothing_wrong_where_operators_speak_once():
    share = wrongly_confirmed(6, mode="open", cells=16, seed=SEED, volunteers=12)
    assert share.by_all > 0
    assert share.by_operators == 0
