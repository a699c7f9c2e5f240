"""What hostile peers cost a node: its latency, memory and disk under each, and honest work after.

A real node volunteers for a project. An honest peer keeps asking it for the project's
frontier; measured is the median time of an answer while a hostile peer (from `bench.hostile`,
in a process of its own) does its worst for a few seconds. The attacker shares the machine
with the node, and often uses a whole core: so beside it stands the time of an answer while
that process does nothing but use as much CPU as the attack did. The CPU that the node itself
uses depends least on what else the machine does. At the end the node must run one more job.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import trio

from bench.hostile import IDLE, PEERS
from bench.hostile.victim import Attackers, Victim, open_victim
from bench.report import Row, main
from ponyswarm.errors import PeerError
from ponyswarm.frontier import ROOT_SIZE
from ponyswarm.keys import SecretKey
from ponyswarm.p2p import sync
from ponyswarm.p2p.network import Network, open_network

GOAL = "<= 2x"
MEMORY_MB = 60
DISK_MB = 60
# Between questions: often enough for a median of a second, seldom enough to be no load.
PAUSE = 0.02


@dataclass(frozen=True, slots=True)
class Answers:
    """Times of answers in seconds, and how many questions had none."""

    times: list[float]
    missing: int

    @property
    def median(self) -> float:
        return statistics.median(self.times) if self.times else float("inf")


async def _ask(network: Network, peer: bytes, project: bytes) -> None:
    stream = await network.open(peer, sync.PROTOCOL)
    async with stream:
        await stream.send(project + bytes(ROOT_SIZE))
        await stream.receive(sync.MAX_MESSAGE)


async def answers(victim: Victim, seconds: float) -> Answers:
    """Ask the victim, as an honest peer does, for some seconds."""
    times: list[float] = []
    missing = 0
    async with open_network(
        SecretKey.generate(), listen=(), validate=lambda *_: True, refused=lambda *_: None
    ) as network:
        peer = await network.dial(victim.address)
        # The first stream of a connection is not like the others.
        await _ask(network, peer, victim.project)
        until = trio.current_time() + seconds
        while trio.current_time() < until:
            began = time.perf_counter()
            try:
                with trio.fail_after(10):
                    await _ask(network, peer, victim.project)
                times.append(time.perf_counter() - began)
            except (PeerError, trio.TooSlowError):
                missing += 1
                peer = await network.dial(victim.address)
            await trio.sleep(PAUSE)
    return Answers(times, missing)


def _under(
    victim: Victim, attackers: Attackers, name: str, seconds: float
) -> tuple[Answers, float, float]:
    """Answers under an attack; the cores that the attackers and the node used meanwhile."""
    attackers.begin(name, seconds + 1)
    time.sleep(0.5)
    began, theirs, own = time.monotonic(), attackers.cpu(), victim.cpu()
    found = trio.run(answers, victim, seconds)
    passed = time.monotonic() - began
    load, used = (attackers.cpu() - theirs) / passed, (victim.cpu() - own) / passed
    attackers.end()
    return found, load, used


def measure(quick: bool) -> list[Row]:
    seconds = 0.8 if quick else 5.0
    names = list(PEERS)[::3] if quick else list(PEERS)
    rows = []
    missing = 0
    with open_victim() as victim, Attackers(victim, victim.prey(victim.works())) as attackers:
        memory, disk = victim.memory(), victim.disk()
        for name in names:
            during, load, own = _under(victim, attackers, name, seconds)
            missing += during.missing
            # As long as the attack was, and right after it: the machine is the same then.
            calm, _, idle = _under(victim, attackers, f"{IDLE}:{min(load, 1):.2f}", seconds)
            rows += [
                Row(
                    f"{name}: answer, ms",
                    1000 * during.median,
                    "the same CPU, idle",
                    1000 * calm.median,
                    GOAL,
                ),
                Row(f"{name}: the node's CPU, %", 100 * own, "likewise", 100 * idle),
            ]
        grown = (victim.memory() - memory) / 1e6
        filled = (victim.disk() - disk) / 1e6
        began = time.monotonic()
        victim.works()
        rows += [
            Row(f"{len(names)} hostile peers: questions without answer", missing, goal="< 1"),
            Row(f"{len(names)} hostile peers: memory grown, MB", grown, goal=f"< {MEMORY_MB}"),
            Row(f"{len(names)} hostile peers: disk filled, MB", filled, goal=f"< {DISK_MB}"),
            Row("an honest job afterwards, s", time.monotonic() - began, goal="< 60"),
        ]
    return rows


if __name__ == "__main__":
    main("attacks", __doc__.splitlines()[0], measure)
