"""A swarm of real protocols on a virtual clock: redundancy, convergence, recovery."""

from __future__ import annotations

from collections import Counter

from authors import Author

from ponyswarm.codec import ZERO, decode_payload, unpack_header
from ponyswarm.ledger.queries import Reader
from ponyswarm.ledger.verdicts import CONFIRMED, Verdict
from ponyswarm.messages import Kind, Project, Revoke, Vouch, Withdraw
from ponyswarm.p2p.scheduling import LEASE_MS
from ponyswarm.policy import ReaderPolicy
from simulation.behaviours import Equivocator, Honest, Liar
from simulation.node import Node, job_for
from simulation.world import Weather, World

PYTHONS = ("3.10.1", "3.11.2", "3.12.1", "3.13.0")
SHORT = ("3.10", "3.11", "3.12", "3.13")


def swarm(world: World, count: int, **facts: object) -> tuple[Node, bytes]:
    """A maintainer (which runs nothing) and volunteers with differing interpreters."""
    maintainer = world.add(reads_only=True)
    for _ in range(count - 1):
        some = world.chance.sample(PYTHONS, world.chance.randint(2, 4))
        world.add(**{"pythons": some, **facts})
    project = world.found(maintainer, Project(name="demo", roots=(maintainer.me,)))
    return maintainer, project


def done(node: Node) -> Counter[bytes]:
    """How many completed results each cell of every job has in a node's ledger."""
    rows = node.store._db.execute(
        "SELECT cell.cell, count(DISTINCT result.author) FROM cell LEFT JOIN result"
        " ON result.cell = cell.cell AND result.state = 'completed' GROUP BY cell.cell"
    )
    return Counter(dict(rows.fetchall()))


def is_served(node: Node, redundancy: int) -> bool:
    counts = done(node)
    return bool(counts) and min(counts.values()) >= redundancy


def are_equal(world: World, project: bytes) -> bool:
    return len({node.root(project) for node in world.nodes if node.alive}) == 1


def extra_runs(world: World, wanted: int) -> float:
    return (len(world.runs) - wanted) / wanted


def assert_agreed(world: World, project: bytes, *, confirmed: bool = False) -> None:
    alive = [node for node in world.nodes if node.alive]
    assert are_equal(world, project)
    findings = [node.findings() for node in alive]
    assert all(finding == findings[0] for finding in findings)
    if confirmed:
        assert {finding.verdict for finding in findings[0].values()} <= CONFIRMED


def test_a_calm_network_runs_little_more_than_was_asked(world):
    maintainer, project = swarm(world, 30)
    maintainer.say(job_for(SHORT, 10, 2), project)
    took = world.run(1200, until=lambda: is_served(maintainer, 2))
    assert is_served(maintainer, 2)
    extra = extra_runs(world, 80)
    print(f"{took:.0f} s, {len(world.runs)} runs, {extra:.1%} extra, {dict(world.sent)}")
    assert extra <= 0.10
    world.run(120)
    assert_agreed(world, project, confirmed=True)


def test_a_swarm_larger_than_its_matrix_runs_little_more_than_was_asked(world):
    maintainer, project = swarm(world, 30, seconds=(1, 5))
    for number in range(5):
        job = job_for(("3.12",), 4, 2)
        maintainer.say(job, project)
        world.run(600, until=lambda: is_served(maintainer, 2))
        assert is_served(maintainer, 2), number
    extra = extra_runs(world, 40)
    print(f"{len(world.runs)} runs, {extra:.1%} extra")
    assert extra <= 0.10


def test_with_loss_every_cell_gets_its_redundancy_and_all_ledgers_become_equal(world):
    world.weather = Weather(loss=0.05)
    maintainer, project = swarm(world, 30)
    maintainer.say(job_for(SHORT, 10, 2), project)
    took = world.run(1200, until=lambda: is_served(maintainer, 2))
    assert is_served(maintainer, 2)
    extra = extra_runs(world, 80)
    equal = world.run(300, until=lambda: are_equal(world, project))
    print(f"{took:.0f} s, {extra:.1%} extra, equal after {equal:.0f} s more, {dict(world.sent)}")
    assert extra <= 0.25
    assert_agreed(world, project, confirmed=True)


def test_a_swarm_with_too_few_slots_still_serves_every_cell(world):
    maintainer, project = swarm(world, 6, slots=1, seconds=(5, 20), pythons=PYTHONS)
    maintainer.say(job_for(("3.10", "3.11", "3.12", "3.13"), 8, 2), project)
    took = world.run(3600, until=lambda: is_served(maintainer, 2))
    extra = extra_runs(world, 64)
    print(f"{took:.0f} s, {extra:.1%} extra")
    assert is_served(maintainer, 2)
    # Five volunteers with one slot each and 12.5 s a run: 160 s if none were ever idle.
    assert took < 320
    assert extra <= 0.10


def test_a_cell_of_a_dead_node_is_claimed_again_after_its_lease(world):
    maintainer, project = swarm(world, 8, seconds=(20, 40))
    maintainer.say(job_for(("3.12",), 6, 2), project)
    world.run(15)
    victim = next(node for node in world.nodes if node.tasks)
    lost = set(victim.tasks)
    died = world.now
    victim.die()
    before = {node.number: node.store.count() for node in world.nodes if node.alive}
    world.run(1200, until=lambda: is_served(maintainer, 2))
    assert is_served(maintainer, 2)
    again = [run for run in world.runs if run.cell in lost and run.began > died]
    assert again
    assert min(run.began for run in again) - died <= LEASE_MS + 60_000
    for node in world.nodes:
        if node.alive:
            assert node.store.count() >= before[node.number]
    extra = len(world.runs) - 12 - len(lost)
    print(f"{len(again)} runs again for {len(lost)} lost cells, {extra} extra")
    assert extra <= 2 + len(lost)
    victim.revive([project])
    for other in world.nodes[:3]:
        victim.connect(other)
    world.run(120, until=lambda: are_equal(world, project))
    assert_agreed(world, project, confirmed=True)


def test_both_sides_of_a_partition_go_on_and_become_one_again(world):
    maintainer, project = swarm(world, 16)
    world.part({node.number: node.number % 2 for node in world.nodes})
    maintainer.say(job_for(("3.12",), 6, 2), project)
    world.run(300, until=lambda: is_served(maintainer, 2))
    assert is_served(maintainer, 2)
    other_side = world.nodes[1]
    assert done(other_side) == {}
    world.part({})
    world.connect_all()
    took = world.run(300, until=lambda: are_equal(world, project))
    print(f"equal {took:.0f} s after the partition healed, {len(world.runs)} runs")
    assert_agreed(world, project, confirmed=True)


def test_a_partition_in_mid_run_costs_runs_and_no_results(world):
    maintainer, project = swarm(world, 16)
    maintainer.say(job_for(("3.12",), 6, 2), project)
    world.run(4)
    world.part({node.number: node.number % 2 for node in world.nodes})
    world.run(400)
    world.part({})
    world.connect_all()
    world.run(300, until=lambda: are_equal(world, project))
    assert_agreed(world, project, confirmed=True)
    published = sum(run.published for run in world.runs)
    assert sum(done(maintainer).values()) == published


def test_churn_delays_and_loses_nothing(world):
    world.weather = Weather(loss=0.05)
    maintainer, project = swarm(world, 14)
    maintainer.say(job_for(("3.11", "3.12"), 8, 2), project)
    for _ in range(12):
        world.run(15)
        victim = world.chance.choice(world.nodes[1:])
        if victim.alive:
            victim.die()
        else:
            victim.revive([project])
            for other in world.chance.sample(world.nodes, 4):
                if other is not victim:
                    victim.connect(other)
    for node in world.nodes:
        if not node.alive:
            node.revive([project])
    world.connect_all()
    world.run(1800, until=lambda: is_served(maintainer, 2))
    assert is_served(maintainer, 2)
    world.run(300, until=lambda: are_equal(world, project))
    assert_agreed(world, project, confirmed=True)


def test_a_late_joiner_gets_everything(world):
    maintainer, project = swarm(world, 10)
    maintainer.say(job_for(("3.12",), 8, 2), project)
    world.run(600, until=lambda: is_served(maintainer, 2))
    runs = len(world.runs)
    late = world.add(pythons=PYTHONS)
    late.follow(project)
    late.connect(world.nodes[3])
    took = world.run(30, until=lambda: late.root(project) == maintainer.root(project))
    print(f"equal {took:.0f} s after it joined")
    assert took < 10
    world.run(60)
    assert_agreed(world, project, confirmed=True)
    assert len(world.runs) == runs


def test_who_follows_a_project_while_connected_is_told_all_at_once(world):
    maintainer, project = swarm(world, 6)
    maintainer.say(job_for(("3.12",), 4, 1), project)
    world.run(300, until=lambda: is_served(maintainer, 1))
    late = world.add(pythons=PYTHONS)
    late.connect(world.nodes[2])
    world.run(5)
    late.follow(project)
    world.run(3)
    assert late.root(project) == maintainer.root(project)
    assert late.me in world.nodes[2].protocol.offers(project, world.nodes[2].now)


def test_who_asked_before_its_peer_followed_asks_again_as_soon_as_it_does(world):
    maintainer, project = swarm(world, 6)
    maintainer.say(job_for(("3.12",), 4, 1), project)
    world.run(300, until=lambda: is_served(maintainer, 1))
    early, middle = world.add(pythons=PYTHONS), world.add(pythons=PYTHONS)
    early.follow(project)
    early.connect(middle)
    middle.connect(world.nodes[2])
    world.run(5)
    assert early.root(project) != maintainer.root(project)
    middle.follow(project)
    world.run(6)
    assert early.root(project) == maintainer.root(project)


def test_where_all_gossip_is_lost_everything_comes_by_asking(world):
    maintainer, project = swarm(world, 8)
    world.weather = Weather(loss=1.0)
    maintainer.say(job_for(("3.12",), 3, 2), project)
    # Each peer is asked every 75 s at most, and what one has goes on to the next.
    took = world.run(300, until=lambda: all(node.store.count() >= 2 for node in world.nodes))
    assert took <= 2 * 75
    world.run(900, until=lambda: is_served(maintainer, 2))
    assert is_served(maintainer, 2)


def test_a_peer_that_follows_another_project_is_asked_seldom_and_at_once_when_it_joins(world):
    maintainer, project = swarm(world, 3)
    elsewhere, early = world.add(pythons=PYTHONS), world.add(pythons=PYTHONS)
    early.follow(project)
    early.connect(elsewhere)
    before = world.sent["pulls"]
    world.run(3600)
    others = 2 * sum(len(node.peers) for node in world.nodes[:3])
    assert world.sent["pulls"] - before <= 60 * others + 20
    elsewhere.connect(maintainer)
    elsewhere.follow(project)
    world.run(10, until=lambda: are_equal(world, project))
    assert are_equal(world, project)


def test_a_late_joiner_gets_the_jobs_of_a_former_announcer(world):
    maintainer, project = swarm(world, 6)
    announcer = world.nodes[1]
    names = {"name": "demo", "roots": (maintainer.me,)}
    maintainer.say(Project(**names, announcers=(announcer.me,)), project)
    world.run(5)
    announcer.say(job_for(("3.12",), 3, 1), project)
    world.run(300, until=lambda: is_served(maintainer, 1))
    maintainer.say(Project(**names), project)
    world.run(5)
    late = world.add(pythons=PYTHONS)
    late.follow(project)
    late.connect(world.nodes[4])
    world.run(30, until=lambda: are_equal(world, project))
    assert_agreed(world, project)
    assert is_served(late, 1)


def test_a_revocation_that_races_with_an_announcement_ends_the_same_everywhere(world):
    maintainer, project = swarm(world, 10)
    announcer = world.nodes[1]
    record = Project(name="demo", roots=(maintainer.me,), announcers=(announcer.me,))
    maintainer.say(record, project)
    world.run(5)
    maintainer.say(Revoke(key=announcer.me, since=world.now - 1000), project)
    announcer.say(job_for(("3.12",), 3, 1), project)
    world.run(200, until=lambda: are_equal(world, project))
    assert_agreed(world, project)
    assert all(len(node.store.ended(project)) == 1 for node in world.nodes)
    began = len(world.runs)
    world.run(100)
    assert len(world.runs) == began


def test_a_withdrawn_job_stops_everywhere(world):
    maintainer, project = swarm(world, 10, seconds=(60, 90))
    job = maintainer.say(job_for(("3.12",), 6, 2), project)
    world.run(10)
    assert any(node.tasks for node in world.nodes)
    maintainer.say(Withdraw(job=job.id), project)
    world.run(5)
    assert not any(node.tasks for node in world.nodes)
    assert not any(node.protocol.mine for node in world.nodes)


def test_a_liar_leads_to_a_dispute_a_third_run_and_its_own_dissent(world):
    maintainer = world.add(reads_only=True)
    for number in range(8):
        world.add(behaviour=Liar(0) if number == 0 else Honest())
    project = world.found(maintainer, Project(name="demo", roots=(maintainer.me,)))
    maintainer.say(job_for(("3.12",), 12, 2), project)
    liar = world.nodes[1]
    disputed: set[bytes] = set()

    def watch() -> bool:
        findings = maintainer.findings()
        disputed.update(
            cell for cell, found in findings.items() if found.verdict == Verdict.DISPUTED
        )
        verdicts = {found.verdict for found in findings.values()}
        return bool(findings) and verdicts <= CONFIRMED

    world.run(600, until=watch)
    world.run(90, until=lambda: are_equal(world, project))
    assert_agreed(world, project, confirmed=True)
    findings = maintainer.findings()
    lied = {cell for cell, found in findings.items() if found.dissent}
    assert lied
    assert disputed
    assert disputed <= lied
    assert all(findings[cell].dissent == (liar.me,) for cell in lied)
    assert all(findings[cell].of == 3 for cell in lied)


def test_a_forked_author_is_found_and_all_frontiers_become_equal(world):
    maintainer, project = swarm(world, 10)
    author = Author(200)
    first = author.result(project, ZERO, ZERO)
    twin = author.branch()
    left = [author.result(project, ZERO, ZERO, passed=n) for n in range(3)]
    right = [twin.result(project, ZERO, ZERO, failed=n + 1) for n in range(2)]
    for node in world.nodes:
        for entry in (first, *(left if node.number % 2 else right)):
            node.admit(entry, maintainer.me)
    took = world.run(300, until=lambda: are_equal(world, project))
    print(f"equal after {took:.0f} s")
    assert_agreed(world, project)
    for node in world.nodes:
        rows = node.store._db.execute("SELECT forked_at FROM feed WHERE forked_at NOTNULL")
        assert rows.fetchall() == [(1,)]


def test_a_fork_far_back_is_found_at_its_beginning(world):
    maintainer, project = swarm(world, 4)
    author = Author(200)
    first = author.result(project, ZERO, ZERO)
    twin = author.branch()
    left = [author.result(project, ZERO, ZERO, passed=n) for n in range(150)]
    right = [twin.result(project, ZERO, ZERO, failed=n + 1) for n in range(140)]
    for node in world.nodes:
        for entry in (first, *(left if node.number % 2 else right)):
            node.admit(entry, maintainer.me)
    took = world.run(900, until=lambda: are_equal(world, project))
    print(f"equal after {took:.0f} s")
    assert_agreed(world, project)
    for node in world.nodes:
        rows = node.store._db.execute("SELECT forked_at FROM feed WHERE forked_at NOTNULL")
        assert rows.fetchall() == [(1,)]


def test_authors_who_tell_two_histories_are_found_by_all_and_count_for_nothing(world):
    world.weather = Weather(loss=0.05)
    maintainer = world.add(reads_only=True)
    for number in range(11):
        world.add(pythons=PYTHONS, behaviour=Equivocator() if number in (3, 4) else Honest())
    project = world.found(maintainer, Project(name="demo", roots=(maintainer.me,)))
    maintainer.say(job_for(SHORT, 6, 2), project)
    liars = {node.me for node in world.nodes if isinstance(node.behaviour, Equivocator)}
    two_faced = {node.me for node in world.nodes if node.two_faces}
    world.run(600, until=lambda: is_served(maintainer, 2))
    world.run(400, until=lambda: are_equal(world, project))
    two_faced = {node.me for node in world.nodes if node.two_faces}
    assert two_faced
    assert two_faced <= liars
    assert_agreed(world, project)
    told: Counter[bytes] = Counter()
    for node in world.nodes:
        with Reader(node.home / "ledger") as reader:
            assert reader.forked(project) == two_faced
            for cell in reader.matrix(reader.jobs()[0], ReaderPolicy()):
                assert not two_faced & {*cell.finding.supporters, *cell.finding.dissent}
    for entry in maintainer.store.entries(project, (Kind.FORK,)):
        told[unpack_header(decode_payload(entry).first).author] += 1
    print(f"fork entries: {sorted(told.values())}")
    assert set(told) == two_faced
    # All saw it; one or a few spoke.
    assert max(told.values()) <= 4

    # Later a maintainer vouches for one of them again: the same on all nodes.
    forgiven = sorted(two_faced)[0]
    maintainer.say(Vouch(key=forgiven, operator="carol"), project)
    world.run(200, until=lambda: are_equal(world, project))
    for node in world.nodes:
        with Reader(node.home / "ledger") as reader:
            assert reader.forked(project) == two_faced - {forgiven}
    assert_agreed(world, project)
