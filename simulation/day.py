"""A day of a hostile swarm: many projects, churn, partitions, wrong clocks, cheats.

`Day` builds the world that a `Plan` describes, lets the day pass and a while for the ledgers
to become equal, and reports what happened (`Report`). It asserts nothing: the tests and the
benchmark say what must hold.
"""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ponyswarm.codec import outcome_digest
from ponyswarm.ledger.verdicts import CONFIRMED
from ponyswarm.messages import Entry, Project
from simulation.behaviours import (
    Copier,
    Equivocator,
    Flooder,
    Honest,
    Idler,
    Liar,
    Staller,
    Withholder,
    truth,
)
from simulation.node import Node, job_for
from simulation.world import Weather, World

if TYPE_CHECKING:
    from ponyswarm.ledger.verdicts import Finding

PYTHONS = ("3.9.1", "3.10.1", "3.11.1", "3.12.1", "3.13.1")
VARIANTS = 4
HOUR = 3_600_000
MINUTE = 60_000
# A node has so many connections with followers of each of its projects.
DEGREE = 5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``hostile`` is a share of the volunteers, ``churn`` of them that die in each hour."""

    nodes: int = 1000
    projects: int = 20
    outcomes: int = 20_000
    hours: float = 24.0
    redundancy: int = 2
    hostile: float = 0.10
    churn: float = 0.20
    loss: float = 0.05
    skew: int = 60_000
    partitions: int = 3
    partition_hours: float = 1.0
    seconds: tuple[float, float] = (20, 90)
    cross_check: str = "blind"
    seed: int = 1


@dataclass(kw_only=True)
class Report:
    """What the day came to. Times are virtual unless they are called CPU or wall."""

    cells: int = 0
    unserved: int = 0
    wanted_runs: int = 0
    started_runs: int = 0
    lost_runs: int = 0
    extra_runs: int = 0
    results: int = 0
    entries: int = 0
    unequal_projects: int = 0
    unequal_verdicts: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    first_claim: tuple[float, float] = (0, 0)
    served: tuple[float, float] = (0, 0)
    settled_after: float = 0
    sent: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    cpu: float = 0

    @property
    def extra(self) -> float:
        return self.extra_runs / max(1, self.wanted_runs)


class Day:
    """``say`` gets a line now and then."""

    def __init__(self, plan: Plan, say: Callable[[str], None] = lambda line: None) -> None:
        self.plan = plan
        self.say = say
        weather = Weather(loss=plan.loss, skew=plan.skew)
        self.world = World(seed=plan.seed, weather=weather)
        self.chance = self.world.chance
        self.report = Report()
        self.follows: dict[int, list[bytes]] = {}
        self.followers: dict[bytes, list[Node]] = {}
        self.maintainers: dict[bytes, Node] = {}
        self.volunteers: list[Node] = []
        self._ends = False
        self._served: dict[bytes, int] = {}
        self._announced: dict[bytes, int] = {}
        self._populate()

    # --- people -----------------------------------------------------------------------------

    def _populate(self) -> None:
        plan, world = self.plan, self.world
        genesis: list[Entry] = []
        for number in range(plan.projects):
            maintainer = world.add(reads_only=True)
            # A record is no use to those whose clocks are behind until its time has come.
            entry = maintainer.say(Project(name=f"project{number}", roots=(maintainer.me,)))
            genesis.append(entry)
            self.maintainers[entry.id] = maintainer
            self.followers[entry.id] = [maintainer]
            self.follows[maintainer.number] = [entry.id]
        cheats = self._cheats(round(plan.hostile * (plan.nodes - plan.projects)))
        for number in range(plan.nodes - plan.projects):
            speed = self.chance.choice((0.5, 1, 1, 2))
            node = world.add(
                pythons=sorted(self.chance.sample(PYTHONS, self.chance.randint(2, 5))),
                slots=self.chance.choice((1, 1, 2, 4)),
                seconds=(plan.seconds[0] * speed, plan.seconds[1] * speed),
                behaviour=cheats.pop() if cheats else Honest(),
            )
            mine = [genesis[number % plan.projects]]
            if self.chance.random() < 0.1:
                mine.append(self.chance.choice(genesis))
            self.follows[node.number] = list({entry.id for entry in mine})
            for entry in mine:
                self.followers[entry.id].append(node)
            self.volunteers.append(node)
        for entry in genesis:
            for node in self.followers[entry.id]:
                if node is not self.maintainers[entry.id]:
                    node.store.append(entry, entry.header.time)
        for node in world.nodes:
            for project in self.follows[node.number]:
                node.follow(project)
        self._mend()

    def _cheats(self, count: int) -> list[Honest]:
        kinds: list[Callable[[int], Honest]] = [
            Liar,
            lambda _: Copier(),
            lambda _: Equivocator(),
            lambda _: Staller(),
            lambda _: Withholder(),
            lambda _: Idler(),
            lambda _: Flooder(),
        ]
        return [kinds[number % len(kinds)](number) for number in range(count)]

    # --- what happens to them -----------------------------------------------------------------

    def _mend(self) -> None:
        """Every minute: who lost connections makes new ones, as `p2p.dialer` does."""
        for node in self.world.nodes:
            if node.alive:
                for project in self.follows[node.number]:
                    self._connect(node, project)
        self.world.at(MINUTE, self._mend)

    def _connect(self, node: Node, project: bytes) -> None:
        others = self.followers[project]
        have = sum(1 for other in node.peers.values() if project in self.follows[other.number])
        for _ in range(DEGREE - have):
            node.connect(self.chance.choice(others))

    def _plan_hour(self, hour: int) -> None:
        for node in self.chance.sample(
            self.volunteers, round(self.plan.churn * len(self.volunteers))
        ):
            self.world.at(self.chance.randint(0, HOUR), self._die, node)
        for node in self.volunteers:
            if node.alive:
                node.behaviour.hourly(node)
        if hour + 1 < self.plan.hours:
            self.world.at(HOUR, self._plan_hour, hour + 1)

    def _die(self, node: Node) -> None:
        if node.alive and not self._ends:
            self.report.deaths += 1
            self.report.lost_runs += len(node.tasks)
            node.die()
            self.world.at(self.chance.randint(5 * MINUTE, 30 * MINUTE), self._revive, node)

    def _revive(self, node: Node) -> None:
        if not node.alive:
            node.revive(self.follows[node.number])
            for project in self.follows[node.number]:
                self._connect(node, project)

    def _part(self) -> None:
        self.world.part({node.number: self.chance.randint(0, 1) for node in self.world.nodes})

    def _announce(self, project: bytes) -> None:
        maintainer = self.maintainers[project]
        short = tuple(version.rpartition(".")[0] for version in PYTHONS)
        job = job_for(
            short,
            VARIANTS,
            self.plan.redundancy,
            now=maintainer.now,
            cross_check=self.plan.cross_check,
        )
        entry = maintainer.say(job, project)
        self._announced[entry.id] = self.world.now

    # --- the day ------------------------------------------------------------------------------

    def run(self) -> Report:
        plan, world = self.plan, self.world
        began = time.process_time()
        span = int(plan.hours * HOUR)
        cells = len(PYTHONS) * VARIANTS
        jobs = max(1, round(plan.outcomes / plan.redundancy / cells / plan.projects))
        for project in self.maintainers:
            for number in range(jobs):
                width = int(0.9 * span / jobs)
                delay = 2 * MINUTE + number * width + self.chance.randint(0, width)
                world.at(delay, self._announce, project)
        world.at(0, self._plan_hour, 0)
        for number in range(plan.partitions):
            at = int((number + 0.5) * span / plan.partitions)
            world.at(at, self._part)
            world.at(at + int(plan.partition_hours * HOUR), world.part, {})
        step = max(60.0, plan.hours * 3600 / 24)
        for number in range(24):
            self._pass(step)
            self.say(
                f"{(number + 1) * step / 3600:5.1f} h: {len(world.runs):,} runs, "
                f"{world.sent['gossip']:,} messages, {time.process_time() - began:.0f} s CPU"
            )
        self._ends = True
        world.part({})
        for node in self.volunteers:
            self._revive(node)
        ended = world.now
        while world.now - ended < 6 * HOUR and not self._is_settled():
            self._pass(120)
        self.report.settled_after = (world.now - ended) / 1000
        self._judge()
        self.report.cpu = time.process_time() - began
        return self.report

    def _pass(self, seconds: float) -> None:
        # Nothing here makes cycles worth looking for, among so many objects.
        gc.disable()
        self.world.run(seconds)
        gc.enable()

    def _is_settled(self) -> bool:
        return not self._unequal() and not any(
            self._unserved(project) for project in self.maintainers
        )

    def _unequal(self) -> list[bytes]:
        return [
            project
            for project, nodes in self.followers.items()
            if len({node.root(project) for node in nodes if node.behaviour.is_honest}) != 1
        ]

    def _results(self, project: bytes) -> dict[bytes, dict[bytes, bytes]]:
        """By cell: what each author that counts said last, in the maintainer's ledger."""
        return {
            cell: {author: outcomes[-1] for author, outcomes in said.items()}
            for cell, said in self._told(project).items()
        }

    def _told(self, project: bytes) -> dict[bytes, dict[bytes, list[bytes]]]:
        """By cell: all that each author that counts said, in the maintainer's ledger."""
        maintainer = self.maintainers[project]
        found: dict[bytes, dict[bytes, list[bytes]]] = {}
        forked = self._forked(project)
        for cell, author, outcome in maintainer.store._db.execute(
            "SELECT cell.cell, key, digest FROM cell LEFT JOIN result ON result.cell = cell.cell"
            " AND result.state = 'completed' LEFT JOIN author USING (author)"
            " ORDER BY result.arrival"
        ):
            said = found.setdefault(cell, {})
            if author is not None and author not in forked:
                said.setdefault(author, []).append(outcome)
        return found

    def _forked(self, project: bytes) -> set[bytes]:
        rows = self.maintainers[project].store._db.execute(
            "SELECT DISTINCT author FROM fork_evidence WHERE project = ?", (project,)
        )
        return {row[0] for row in rows}

    def _unserved(self, project: bytes) -> int:
        return sum(len(said) < self.plan.redundancy for said in self._results(project).values())

    # --- what it came to ------------------------------------------------------------------------

    def _judge(self) -> None:
        report, world = self.report, self.world
        report.started_runs = len(world.runs)
        report.unequal_projects = len(self._unequal())
        honest = {node.me for node in world.nodes if node.behaviour.is_honest}
        for project, nodes in self.followers.items():
            self._count(project, honest)
            verdicts: list[dict[bytes, Finding]] = []
            for node in nodes:
                if node.behaviour.is_honest:
                    found = node.findings(project=project)
                    if not verdicts:
                        verdicts.append(found)
                        self._look(found, project)
                    elif found != verdicts[0]:
                        report.unequal_verdicts += 1
            report.entries += self.maintainers[project].store.count()
        report.sent = world.sent
        for node in world.nodes:
            report.refused.update(node.refused)
        waits = [
            (at - maintainer.skew - self._announced[job]) / 1000
            for maintainer in self.maintainers.values()
            for job, at in maintainer.protocol.first_claims().items()
        ]
        report.first_claim = _spread(waits)
        ends: defaultdict[bytes, list[int]] = defaultdict(list)
        for run in world.runs:
            if run.published and run.ended is not None:
                ends[run.cell].append(run.ended)
        starts = {run.cell: self._announced[run.job] for run in world.runs}
        times = [
            (sorted(all_)[self.plan.redundancy - 1] - starts[cell]) / 1000
            for cell, all_ in ends.items()
            if len(all_) >= self.plan.redundancy
        ]
        report.served = _spread(times)

    def _count(self, project: bytes, honest: set[bytes]) -> None:
        """Honest runs beyond what a cell asked for: one more where somebody dissented.

        A second look of an honest one (`scheduling.look_again`) is beyond it too.
        """
        report = self.report
        for told in self._told(project).values():
            said = {author: outcomes[-1] for author, outcomes in told.items()}
            again = sum(len(told[author]) - 1 for author in told.keys() & honest)
            report.cells += 1
            report.unserved += len(said) < self.plan.redundancy
            report.wanted_runs += self.plan.redundancy
            report.results += len(said)
            asked = self.plan.redundancy + (len(set(said.values())) > 1)
            report.extra_runs += again + max(0, len(said.keys() & honest) - asked)

    def _look(self, found: dict[bytes, Finding], project: bytes) -> None:
        for cell, finding in found.items():
            self.report.verdicts[str(finding.verdict)] += 1
            statuses = truth(cell)
            tests = [(f"{cell.hex()[:8]}::{i}", status) for i, status in enumerate(statuses)]
            right = outcome_digest("completed", None, tests)
            if finding.verdict in CONFIRMED and finding.digest != right:
                self.report.wrong += 1


def _spread(values: list[float]) -> tuple[float, float]:
    """(median, 95th percentile)"""
    ordered = sorted(values) or [0.0]
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


if __name__ == "__main__":
    small = Plan(nodes=50, projects=1, outcomes=400, hours=2, partitions=1, partition_hours=0.25)
    print(Day(small, lambda line: print(line, file=sys.stderr)).run())
