"""Volunteers that break the rules of who runs what: honest ones get their work done anyway."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from test_blind import is_confirmed
from test_swarm import done, is_served

from ponyswarm.messages import Project
from simulation.behaviours import Honest, Idler, Pusher, Sealer, Staller, Usurper
from simulation.node import Node, job_for
from simulation.world import World

CELLS = 6


class Hoarder(Idler):
    rounds = 10_000


def found(world: World, hostile: Callable[[], Honest], count: int) -> tuple[Node, bytes]:
    """A project with six honest volunteers and some hostile ones."""
    maintainer = world.add(reads_only=True)
    for number in range(6 + count):
        behaviour = Honest() if number < 6 else hostile()
        world.add(behaviour=behaviour, slots=2, seconds=(20, 40))
    project = world.found(maintainer, Project(name="demo", roots=(maintainer.me,)))
    return maintainer, project


@pytest.mark.parametrize("hostile", [Hoarder, Staller, Pusher])
def test_who_claims_and_does_not_run_only_delays(world, hostile):
    maintainer, project = found(world, hostile, 2)
    maintainer.say(job_for(("3.12",), CELLS, 2, timeout=300), project)
    took = world.run(7200, until=lambda: is_served(maintainer, 2))
    print(f"{hostile.__name__}: {took:.0f} s, {len(world.runs)} runs")
    assert is_served(maintainer, 2)
    # A claim is respected for the time-out and a quarter of an hour at most.
    assert took <= 1500


def test_who_commits_to_everything_and_tells_nothing_only_delays(world):
    maintainer, project = found(world, Sealer, 2)
    maintainer.say(job_for(("3.12",), CELLS, 2, cross_check="blind"), project)
    took = world.run(7200, until=lambda: is_confirmed(maintainer))
    print(f"{took:.0f} s")
    assert is_confirmed(maintainer)
    assert took <= 900


def test_what_only_a_maintainer_may_say_is_worth_nothing_from_others(world):
    maintainer, project = found(world, Usurper, 2)
    maintainer.say(job_for(("3.12",), CELLS, 2), project)
    world.run(600, until=lambda: is_served(maintainer, 2))
    assert is_served(maintainer, 2)
    assert len(done(maintainer)) == CELLS
    honest = world.nodes[:7]
    state = maintainer.store.state(project)
    assert not state.revoked
    assert not state.operators
    assert all(node.refused["gossip"] >= 1 for node in honest)
    assert not any(node.store.ended(project) for node in honest)


@pytest.mark.parametrize("hours", [-10, 10])
def test_one_whose_clock_is_hours_off_hurts_itself_alone(world, hours):
    maintainer, project = found(world, Honest, 1)
    astray = world.nodes[-1]
    astray.skew = hours * 3_600_000
    maintainer.say(job_for(("3.12",), CELLS, 2), project)
    took = world.run(1800, until=lambda: is_served(maintainer, 2))
    print(f"{took:.0f} s, {len(world.runs)} runs")
    assert is_served(maintainer, 2)
    assert took <= 600
    others = sum(run.node != astray.number for run in world.runs)
    assert others <= 2 * CELLS + 3
