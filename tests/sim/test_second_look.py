"""Who differs from others looks again: what tells a flaky test from a machine that is wrong."""

from __future__ import annotations

from collections import Counter

import pytest

from ponyswarm.ledger.verdicts import CONFIRMED, Verdict
from ponyswarm.messages import Project
from simulation.behaviours import Honest, Liar, Unsteady
from simulation.node import Node, job_for
from simulation.world import World

HOUR = 3600


def found(world: World, *behaviours: Honest) -> tuple[Node, bytes]:
    """A project whose volunteers behave so, with a slot for every cell."""
    maintainer = world.add(reads_only=True)
    for behaviour in behaviours:
        world.add(behaviour=behaviour, slots=8, seconds=(5, 10))
    project = world.found(maintainer, Project(name="demo", roots=(maintainer.me,)))
    return maintainer, project


@pytest.mark.parametrize("mode", ["open", "blind"])
def test_a_test_that_is_flaky_is_called_so_where_nobody_else_can_decide(world, mode):
    maintainer, project = found(world, Honest(), Unsteady())
    steady, unsteady = world.nodes[1:]
    maintainer.say(job_for(("3.12",), 3, 2, cross_check=mode), project)
    world.run(HOUR)
    findings = maintainer.findings().values()
    assert [finding.verdict for finding in findings] == [Verdict.FLAKY] * 3
    assert all(finding.wavering == (unsteady.me,) for finding in findings)
    assert all(finding.supporters == (steady.me,) for finding in findings)
    assert len(world.runs) == 2 * 2 * 3


@pytest.mark.parametrize("mode", ["open", "blind"])
def test_two_who_differ_each_time_stay_disputed_and_look_no_third_time(world, mode):
    maintainer, project = found(world, Honest(), Liar(0))
    maintainer.say(job_for(("3.12",), 3, 2, cross_check=mode), project)
    world.run(HOUR)
    findings = maintainer.findings().values()
    assert [finding.verdict for finding in findings] == [Verdict.DISPUTED] * 3
    assert len(world.runs) == 2 * 2 * 3


@pytest.mark.parametrize("mode", ["open", "blind"])
@pytest.mark.parametrize(("odd", "said"), [(Unsteady(), "wavering"), (Liar(0), "dissent")])
def test_who_is_outvoted_looks_again_and_those_who_agree_do_not(world, mode, odd, said):
    maintainer, project = found(world, odd, Honest(), Honest(), Honest())
    maintainer.say(job_for(("3.12",), 10, 2, cross_check=mode), project)
    world.run(900)
    findings = maintainer.findings()
    assert {finding.verdict for finding in findings.values()} <= CONFIRMED
    assert any(getattr(finding, said) for finding in findings.values())
    runs = Counter((run.cell, run.node) for run in world.runs)
    for cell, finding in findings.items():
        named = {"wavering": finding.wavering, "dissent": finding.dissent}
        others = {key for other in named.keys() - {said} for key in named[other]}
        assert not others
        outvoted = world.nodes[1].me in named[said]
        assert runs[cell, 1] == (2 if outvoted else runs[cell, 1] and 1)
        assert all(runs[cell, number] <= 1 for number in (2, 3, 4))
