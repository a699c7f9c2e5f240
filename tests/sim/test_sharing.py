"""How work is shared out: enough runs, few too many, and to each project its part."""

from __future__ import annotations

from collections import Counter

from test_swarm import done

from ponyswarm.messages import Project
from simulation.node import Node, job_for
from simulation.world import Weather, World

PYTHONS = ("3.9.1", "3.10.1", "3.11.1", "3.12.1", "3.13.1")
SHORT = ("3.9", "3.10", "3.11", "3.12", "3.13")


def found(world: World, *names: str) -> tuple[Node, list[bytes]]:
    """A maintainer of these projects, which all the volunteers of the world run jobs of."""
    volunteers = list(world.nodes)
    maintainer = world.add(reads_only=True)
    projects = []
    for name in names:
        genesis = maintainer.say(Project(name=name, roots=(maintainer.me,)))
        for node in volunteers:
            assert node.store.append(genesis, node.now + 10_000)
        for node in world.nodes:
            node.follow(genesis.id)
        projects.append(genesis.id)
    world.connect_all()
    world.run(5)
    return maintainer, projects


def test_every_cell_that_somebody_can_run_gets_its_redundancy_and_no_other_holds_it_up(world):
    world.weather = Weather(loss=0.05)
    for number in range(20):
        # 3.13 is on two machines alone, 3.9 on one, and all have some of the others.
        some = world.chance.sample(PYTHONS[1:4], world.chance.randint(1, 3))
        rare = {0: ["3.9.1"], 5: ["3.13.1"], 9: ["3.13.1"]}.get(number, [])
        world.add(pythons=[*some, *rare], slots=2, seconds=(5, 20))
    maintainer, (project,) = found(world, "demo")
    job = maintainer.say(job_for(("3.8", *SHORT), 5, 2), project)
    world.run(900)
    counts = done(maintainer)
    pythons = {
        id_: cell.python for id_, cell in maintainer.protocol._jobs.get(job.id).points.items()
    }
    got = {python: {counts[id_] for id_ in pythons if pythons[id_] == python} for python in SHORT}
    assert {counts[id_] for id_ in pythons if pythons[id_] == "3.8"} == {0}
    assert got.pop("3.9") == {1}
    wanted = 5 + 2 * 5 * len(got)
    print(f"{len(world.runs)} runs of {wanted}")
    assert all(min(runs) >= 2 for runs in got.values())
    assert len(world.runs) <= 1.10 * wanted


def test_machines_that_are_faster_or_have_more_slots_run_more(world):
    kinds = {"fast": ((5, 10), 2), "slow": ((50, 100), 2), "wide": ((50, 100), 8)}
    of = {}
    for name in (*kinds, *kinds, *kinds):
        seconds, slots = kinds[name]
        of[world.add(seconds=seconds, slots=slots).number] = name
    maintainer, (project,) = found(world, "demo")
    maintainer.say(job_for(("3.12",), 150, 2), project)
    world.run(7200, until=lambda: min(done(maintainer).values()) >= 2)
    runs = Counter(of[run.node] for run in world.runs if run.published)
    print(runs)
    assert runs["fast"] > 3 * runs["slow"]
    assert runs["wide"] > 2 * runs["slow"]


def test_a_newer_commit_goes_before_what_is_left_of_an_older_one(world):
    for _ in range(4):
        world.add(slots=1, seconds=(10, 20))
    maintainer, (project,) = found(world, "demo")
    old = maintainer.say(job_for(("3.12",), 40, 1), project)
    world.run(60)
    new = maintainer.say(job_for(("3.12",), 20, 1), project)
    announced = world.now
    world.run(
        3600, until=lambda: len(done(maintainer)) == 60 and min(done(maintainer).values()) > 0
    )
    later = [run for run in world.runs if run.began > announced + 2_000]
    last_new = max(run.began for run in later if run.job == new.id)
    between = [run for run in later if run.job == old.id and run.began < last_new]
    print(f"{len(between)} older ones between")
    assert len(between) <= 2
    assert any(run.job == old.id for run in later)
