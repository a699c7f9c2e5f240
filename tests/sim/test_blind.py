"""Blind jobs in a swarm on a virtual clock: commits, reveals, liars, stallers, partitions."""

from __future__ import annotations

from collections import Counter

import pytest
from test_swarm import SHORT, are_equal, done, is_served, swarm

from ponyswarm.ledger.verdicts import CONFIRMED, Verdict
from ponyswarm.messages import CrossCheck, Project, Vouch
from ponyswarm.policy import ReaderPolicy
from simulation.behaviours import Equivocator, Liar, Withholder
from simulation.node import Node, job_for
from simulation.world import Weather


def verdicts(node: Node, policy: ReaderPolicy | None = None) -> Counter[Verdict]:
    return Counter(finding.verdict for finding in node.findings(policy).values())


def is_confirmed(node: Node) -> bool:
    found = verdicts(node)
    return bool(found) and set(found) <= CONFIRMED


@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_all_are_confirmed_by_volunteers_that_could_not_copy(world, loss):
    world.weather = Weather(loss=loss)
    maintainer, project = swarm(world, 12)
    maintainer.say(job_for(SHORT, 5, 2, cross_check="blind"), project)
    world.run(2400, until=lambda: is_confirmed(maintainer))
    findings = maintainer.findings()
    assert {finding.verdict for finding in findings.values()} <= CONFIRMED
    assert all(finding.blind >= 2 for finding in findings.values())
    assert len(world.runs) <= 40 * 1.10
    world.run(120)
    assert are_equal(world, project)
    assert all(node.findings() == findings for node in world.nodes)


def test_a_liar_makes_a_cell_ask_for_two_more_and_is_outvoted(world):
    maintainer, project = swarm(world, 8, pythons=("3.12.1",))
    liar = world.add(pythons=("3.12.1",), behaviour=Liar(0), slots=4)
    assert liar.store.append(maintainer.store.entry(project), liar.now + 10_000)
    liar.follow(project)
    world.connect_all()
    world.run(5)
    maintainer.say(job_for(("3.12",), 20, 2, cross_check="blind"), project)
    world.run(3600, until=lambda: is_confirmed(maintainer))
    findings = maintainer.findings()
    assert {finding.verdict for finding in findings.values()} <= CONFIRMED
    dissent = [finding for finding in findings.values() if finding.dissent]
    assert dissent
    assert all(finding.dissent == (liar.me,) for finding in dissent)
    assert all(finding.agree == 3 and finding.blind == 2 for finding in dissent)


def test_who_never_tells_holds_up_nothing_for_good(world):
    maintainer, project = swarm(world, 5, pythons=("3.12.1",))
    staller = world.add(pythons=("3.12.1",), behaviour=Withholder(), slots=8)
    assert staller.store.append(maintainer.store.entry(project), staller.now + 10_000)
    staller.follow(project)
    world.connect_all()
    world.run(5)
    maintainer.say(job_for(("3.12",), 8, 2, cross_check="blind"), project)
    world.run(9000, until=lambda: is_confirmed(maintainer))
    findings = maintainer.findings().values()
    assert {finding.verdict for finding in findings} <= CONFIRMED
    assert any(staller.me in finding.sealed for finding in findings)


def test_a_volunteer_that_dies_between_commit_and_reveal_tells_when_it_is_back(world):
    maintainer, project = swarm(world, 3, pythons=("3.12.1",), seconds=(5, 5))
    first, second = world.nodes[1:]
    second.die()
    maintainer.say(job_for(("3.12",), 1, 2, cross_check="blind"), project)
    world.run(60, until=lambda: bool(first.secrets))
    assert first.secrets
    first.die()
    second.revive([project])
    second.connect(maintainer)
    world.run(60)
    first.revive([project])
    first.connect(maintainer)
    first.connect(second)
    world.run(600, until=lambda: is_confirmed(maintainer))
    (finding,) = maintainer.findings().values()
    assert finding.verdict in CONFIRMED
    assert finding.agree == 2


def test_both_sides_of_a_partition_tell_and_what_was_not_blind_is_made_up_for(world):
    maintainer, project = swarm(world, 7, pythons=("3.12.1",))
    maintainer.say(job_for(("3.12",), 6, 2, cross_check="blind"), project)
    world.run(2)
    world.part({node.number: node.number % 2 for node in world.nodes})
    world.run(1800)
    world.part({})
    world.connect_all()
    world.run(9000, until=lambda: is_confirmed(maintainer) and are_equal(world, project))
    assert is_confirmed(maintainer)


def test_one_volunteer_alone_tells_soon_and_confirms_nothing(world):
    maintainer, project = swarm(world, 2, pythons=("3.12.1",))
    maintainer.say(job_for(("3.12",), 2, 2, cross_check="blind"), project)
    world.run(120)
    assert verdicts(maintainer) == {Verdict.UNCONFIRMED: 2}


def test_a_forked_authors_result_fills_no_redundancy(world):
    maintainer, project = swarm(world, 5, pythons=("3.12.1",), slots=4)
    two_faced = world.add(pythons=("3.12.1",), behaviour=Equivocator(), slots=8)
    assert two_faced.store.append(maintainer.store.entry(project), two_faced.now + 10_000)
    two_faced.follow(project)
    world.connect_all()
    world.run(5)
    maintainer.say(job_for(("3.12",), 12, 2), project)
    world.run(3600, until=lambda: is_confirmed(maintainer))
    assert two_faced.me in maintainer.store.forked(project)
    assert is_confirmed(maintainer)
    assert min(done(maintainer).values()) >= 2


def test_where_only_vouched_keys_count_others_run_nothing(world):
    maintainer = world.add(reads_only=True)
    volunteers = [world.add() for _ in range(4)]
    genesis = maintainer.say(
        Project(name="demo", roots=(maintainer.me,), cross_check=CrossCheck(counts="vouched"))
    )
    for node in volunteers:
        assert node.store.append(genesis, node.now + 10_000)
    for node in world.nodes:
        node.follow(genesis.id)
    world.connect_all()
    for number, node in enumerate(volunteers[:3]):
        # Two keys of one operator are one voice: one of them runs a cell, never both.
        maintainer.say(Vouch(key=node.me, operator=str(min(number, 1))), genesis.id)
    world.run(60)
    maintainer.say(job_for(("3.12",), 5, 2), genesis.id)
    world.run(1200, until=lambda: is_served(maintainer, 2))
    assert set(verdicts(maintainer, ReaderPolicy(vouched_only=True))) <= CONFIRMED
    assert {run.node for run in world.runs} <= {1, 2, 3}
    assert len(world.runs) == 10
