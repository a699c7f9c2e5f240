"""Operators with a long record are checked less often, and lose it by the first lie caught."""

from __future__ import annotations

from test_blind import is_confirmed

from ponyswarm.agreement import LONG_RECORD
from ponyswarm.ledger.verdicts import CONFIRMED
from ponyswarm.messages import CrossCheck, Project, Vouch
from simulation.behaviours import Liar
from simulation.node import Node, job_for
from simulation.world import World

FLOOR = 10


def vouched(world: World, count: int) -> tuple[Node, bytes, list[Node]]:
    """A project that lets long records count, and volunteers that its maintainer knows."""
    maintainer = world.add(reads_only=True)
    volunteers = [world.add(seconds=(5, 10), slots=4) for _ in range(count)]
    wish = CrossCheck(mode="blind", floor=FLOOR)
    genesis = maintainer.say(Project(name="demo", roots=(maintainer.me,), cross_check=wish))
    for node in volunteers:
        assert node.store.append(genesis, node.now + 10_000)
    for node in world.nodes:
        node.follow(genesis.id)
    world.connect_all()
    for number, node in enumerate(volunteers):
        maintainer.say(Vouch(key=node.me, operator=f"operator {number}"), genesis.id)
    world.run(30)
    return maintainer, genesis.id, volunteers


def test_a_long_record_saves_runs_and_a_lie_that_is_caught_ends_it(world):
    maintainer, project, volunteers = vouched(world, 4)
    maintainer.say(job_for(("3.12",), 24, 2), project)
    world.run(200)
    assert is_confirmed(maintainer)
    assert len(world.runs) >= 48
    known = maintainer.learn(project)
    assert set(known) == {f"operator {number}" for number in range(4)}
    assert all(FLOOR / 100 <= one <= 1 / LONG_RECORD for one in known.values())

    for node in world.nodes:
        node.learn(project)
    before = len(world.runs)
    maintainer.say(job_for(("3.12",), 24, 2), project)
    world.run(200)
    assert is_confirmed(maintainer)
    spent = len(world.runs) - before
    print(f"{spent} runs for 24 cells that asked for 48")
    assert 24 <= spent < 42
    spared = [f for f in maintainer.findings().values() if f.on_record]
    assert spared
    assert all(finding.verdict in CONFIRMED for finding in spared)

    liar = volunteers[0]
    liar.behaviour = Liar(1)
    maintainer.say(job_for(("3.12",), 24, 2), project)
    for _ in range(4):
        world.run(90)
        for node in world.nodes:
            node.learn(project)
    assert "operator 0" not in maintainer.learn(project)
    findings = maintainer.findings().values()
    # Nothing rests on the liar's word alone any more, what it said before included.
    assert {finding.verdict for finding in findings} <= CONFIRMED
    assert all(liar.me not in f.supporters for f in findings if f.dissent)
    assert not [f for f in findings if f.on_record and liar.me in f.supporters]
