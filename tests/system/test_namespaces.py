"""Twelve real nodes on four subnets, in network namespaces: routers, loss, death and partition.

The internet between them (`bench.internet`) takes 200 ms there and back and loses one
packet in twenty. Two nodes are in homes whose routers let nobody in.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sources import PASSES, archive
from swarm_lab import announce, cells, entry_ids, found_project, kill, until

from bench import internet
from ponyswarm import config, keys, status
from ponyswarm.demo import Member, Swarm, open_swarm
from ponyswarm.exec.interpreters import Installed, discover
from ponyswarm.home import Home
from ponyswarm.ledger.verdicts import Verdict
from ponyswarm.volunteer import minor_version

WHY_NOT = internet.missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.timeout(420),
]

PORT = 7797
CELLS = 3
SPEC = """\
[tool.ponyswarm]
python = ["{python}"]
runner = "unittest"
redundancy = 2

[tool.ponyswarm.install]
project = false

[tool.ponyswarm.factors.round]
1 = []
2 = []
3 = []
"""


@dataclass
class World:
    swarm: Swarm
    net: internet.Internet
    python: Installed
    members: dict[str, Member] = field(default_factory=dict)
    places: dict[str, internet.Place] = field(default_factory=dict)

    def member(self, name: str, place: internet.Place) -> Member:
        """A home for a place; quicker than ``ponyswarm init``, which searches the machine."""
        folder = self.swarm.root / name
        home = Home.under(folder)
        home.create()
        keys.save(home.key, keys.SecretKey.generate())
        python = {f"cpython-{self.python.version}": str(self.python.path)}
        listen = f"/ip4/0.0.0.0/tcp/{PORT}"
        text = config.template(listen=listen, memory=1 << 30, interpreters=python)
        config.write(home.ini, text.replace("upnp = yes", "upnp = no"))
        member = Member(name, home, folder, prefix=place.enter)
        self.swarm.members.append(member)
        self.members[name], self.places[name] = member, place
        return member

    def address(self, name: str) -> str:
        peer = keys.peer_id(keys.load(self.members[name].home.key).public)
        return f"/ip4/{self.places[name].address}/tcp/{PORT}/p2p/{peer}"

    def now(self, name: str) -> status.NodeStatus | None:
        return status.read(self.members[name].home.status)

    def link(self, name: str, other: str) -> str:
        """Where one node has the other connected; empty when it has not."""
        peer = self.address(other).rpartition("/")[2]
        now = self.now(name)
        lines = () if now is None else now.peers
        return next((line.address for line in lines if line.peer == peer), "")

    def alive(self) -> list[Member]:
        return [one for one in self.members.values() if one.process is not None]

    def log(self, name: str) -> str:
        return self.members[name].log.read_text("utf-8", "replace")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    python = next(one for one in discover() if one.implementation == "cpython")
    with open_swarm(print) as swarm, internet.open_internet([5, 5, 1, 1], homes=[2, 3]) as net:
        try:
            yield World(swarm, net, python)
        finally:
            swarm.stop(*swarm.members)


def test_a_swarm_forms_from_one_bootstrap_node_and_reaches_homes(world: World) -> None:
    """Relay first, then directly through both routers, in all this weather."""
    net = world.net
    net.weather(round_trip=0.2, loss=0.05)
    first, second, (left,), (right,) = net.subnets
    boot = world.member("boot", first[0])
    maintainer = world.member("maintainer", first[1])
    project = found_project(world.swarm, maintainer)
    places = [*first[2:], *second]
    volunteers = [world.member(f"volunteer{n}", place) for n, place in enumerate(places)]
    homes = [world.member("left", left), world.member("right", right)]
    config.add_project(boot.home.ini, "follow", bytes.fromhex(project))
    for member in (*volunteers, *homes):
        config.add_project(member.home.ini, "trust", bytes.fromhex(project))

    bootstrap = world.address("boot")
    world.swarm.start(boot, [], "--read-only")
    world.swarm.start(maintainer, [bootstrap], "--read-only")
    for member in (*volunteers, homes[1]):
        world.swarm.start(member, [bootstrap])

    def relayed() -> str:
        now = world.now("right")
        return next((one for one in now.reached_at if "p2p-circuit" in one), "") if now else ""

    until("the node behind a router has itself relayed", relayed, 90)
    now = world.now("right")
    assert now is not None
    assert "cannot call this node directly" in now.reach
    world.swarm.start(homes[0], [bootstrap, relayed()])
    until("the two at home are connected", lambda: world.link("left", "right"), 60)
    outside = "/ip4/20.4.0.1/tcp/"
    until(
        "they have a direct connection",
        lambda: world.link("left", "right").startswith(outside),
        60,
    )
    assert "comes through a relay" in world.log("right")
    until("a public node knows that it is one", lambda: "directly" in world.now("boot").reach, 60)


def _verdicts(world: World, name: str, job: str) -> list[Verdict]:
    return [cell.finding.verdict for cell in cells(world.members[name], job)]


def _confirmed(world: World, name: str, job: str) -> bool:
    return _verdicts(world, name, job) == [Verdict.CONFIRMED_PASS] * CELLS


def test_without_its_bootstrap_node_and_cut_in_two_the_swarm_works_and_grows_together_again(
    world: World, tmp_path: Path
) -> None:
    net, maintainer = world.net, world.members["maintainer"]
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC.format(python=minor_version(world.python)), "utf-8")
    source, newer = (archive(tmp_path, name, {"test_it.py": PASSES}) for name in ("tiny", "newer"))

    kill(world.members["boot"])
    net.cut(1)
    job = announce(world.swarm, maintainer, source, spec)
    until("all cells are confirmed", lambda: _confirmed(world, "maintainer", job), 120)

    net.join(1)
    later = announce(world.swarm, maintainer, newer, spec)
    until("the next job is confirmed", lambda: _confirmed(world, "maintainer", later), 120)

    def equal() -> bool:
        ledgers = [entry_ids(member) for member in world.alive()]
        return len(ledgers) == 11 and all(one == ledgers[0] for one in ledgers)

    until("all ledgers are equal", equal, 120)
    for name in ("left", "right", "volunteer7"):
        assert _confirmed(world, name, job)
        assert _confirmed(world, name, later)


MAP = """\
import sys, trio
from ponyswarm.p2p import router

async def main():
    async with trio.open_nursery() as nursery:
        def mapped(address):
            print(address, flush=True)
            nursery.cancel_scope.cancel()
        await router.run(7797, mapped)

trio.run(main)
"""


def test_a_router_opens_the_port_for_an_hour_and_closes_it_when_the_node_stops() -> None:
    with internet.open_internet([2]) as net:
        gateway, inside = net.subnets[0]
        script = Path(__file__).with_name("upnp_router.py")
        with subprocess.Popen(
            [*gateway.enter, sys.executable, str(script), gateway.address],
            stdout=subprocess.PIPE,
            text=True,
        ) as router:
            try:
                assert router.stdout is not None
                assert router.stdout.readline() == "ready\n"
                mapped = subprocess.run(
                    [*inside.enter, sys.executable, "-c", MAP],
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                assert mapped.stdout == "/ip4/20.9.9.9/tcp/7797\n", mapped.stderr
                asked = [router.stdout.readline() for _ in range(2)]
            finally:
                router.kill()
    assert asked == [
        f"AddPortMapping 7797 TCP {inside.address} 3600\n",
        "DeletePortMapping 7797 TCP  \n",
    ]


NEIGHBOUR = """\
import sys, trio
from ponyswarm.keys import SecretKey, peer_id
from ponyswarm.p2p import lan

async def main(address, number, other):
    own, wanted = (SecretKey(bytes([int(n)]) * 32).public for n in (number, other))
    async with trio.open_nursery() as nursery:
        def heard(found):
            if found.endswith(peer_id(wanted)):
                print(found.partition("/p2p/")[0], flush=True)
        nursery.start_soon(lan.run, own, (f"/ip4/{address}/tcp/7797/p2p/{peer_id(own)}",), heard)
        await trio.to_thread.run_sync(sys.stdin.readline)
        nursery.cancel_scope.cancel()

trio.run(main, *sys.argv[1:])
"""


def test_neighbours_on_one_network_hear_of_each_other_by_multicast() -> None:
    with internet.open_internet([2]) as net, ExitStack() as stack:
        places = net.subnets[0]
        pair = [
            stack.enter_context(
                subprocess.Popen(
                    [*place.enter, sys.executable, "-c", NEIGHBOUR, place.address, *numbers],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for place, numbers in zip(places, (("1", "2"), ("2", "1")), strict=True)
        ]
        for one, other in zip(pair, reversed(places), strict=True):
            assert one.stdout is not None
            assert one.stdout.readline() == f"/ip4/{other.address}/tcp/7797\n"
        for one in pair:
            assert one.communicate("\n", timeout=20)
            assert one.returncode == 0
