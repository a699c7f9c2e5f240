"""What a node costs when nothing happens: CPU and memory, beside a bare libp2p host.

Each contender runs in a process of its own with four peers connected to it, which
share another; after a settling time the contender's CPU time and resident memory
are read from outside. To add a contender, give `CONTENDERS` the arguments of a
process that prints its listening address as its first line, and the kind of peer.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psutil

from bench.report import Row, main

PEERS = 4
TOPICS = ("/ponyswarm/1/directory", "/ponyswarm/1/p/bench")
CPU_GOAL = 1.0  # percent of one core
RSS_GOAL = 120.0  # megabytes


@dataclass(frozen=True, slots=True)
class Cost:
    cpu: float  # percent of one core
    rss: float  # megabytes


def cost_of(pid: int, seconds: float) -> Cost:
    """The CPU share and peak resident memory of a process and its children, over a time."""
    root = psutil.Process(pid)

    def family() -> list[psutil.Process]:
        return [root, *root.children(recursive=True)]

    def cpu() -> float:
        spent = 0.0
        for process in family():
            times = process.cpu_times()
            spent += times.user + times.system
        return spent

    before, start = cpu(), time.monotonic()
    memory = []
    while time.monotonic() - start < seconds:
        time.sleep(min(1.0, seconds))
        memory.append(sum(process.memory_info().rss for process in family()) / 1e6)
    return Cost(100 * (cpu() - before) / (time.monotonic() - start), statistics.median(memory))


@contextmanager
def process(arguments: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A running process; killed on leaving."""
    running = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        if running.stdout is not None:
            running.stdout.close()


def next_line(running: subprocess.Popen[str]) -> str:
    """What the process prints next; it does so when something is ready."""
    assert running.stdout is not None
    line = running.stdout.readline().strip()
    if not line:
        raise RuntimeError(f"{running.args!r} printed nothing")
    return line


def _role(role: str, *rest: str) -> list[str]:
    return [sys.executable, "-m", "bench.idle", "--role", role, *rest]


CONTENDERS = {
    "bare py-libp2p host": (_role("bare"), "bare-peer"),
    "open_network": (_role("network"), "peer"),
    "ponyswarm node": (_role("node"), "peer"),
}


def measure_contenders(seconds: float) -> dict[str, Cost]:
    """All at once, so that whatever else this machine does falls on each alike."""
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        contenders = {
            name: stack.enter_context(process(arguments))
            for name, (arguments, _) in CONTENDERS.items()
        }
        addresses = {name: next_line(running) for name, running in contenders.items()}
        peers = [
            stack.enter_context(process(_role(CONTENDERS[name][1], address)))
            for name, address in addresses.items()
        ]
        for running in peers:
            for _ in range(PEERS):
                next_line(running)
        time.sleep(4)
        costs = {
            name: pool.submit(cost_of, running.pid, seconds) for name, running in contenders.items()
        }
        return {name: cost.result() for name, cost in costs.items()}


def measure(quick: bool) -> list[Row]:
    costs = measure_contenders(15.0 if quick else 90.0)
    bare = costs.pop("bare py-libp2p host")
    rows = []
    for name, cost in costs.items():
        rows += [
            Row(
                f"{name}, idle with {PEERS} peers: CPU, % of a core",
                cost.cpu,
                "bare py-libp2p host",
                bare.cpu,
                f"< {CPU_GOAL:g}",
            ),
            Row(
                f"{name}, idle with {PEERS} peers: memory, MB",
                cost.rss,
                "bare py-libp2p host",
                bare.rss,
                f"< {RSS_GOAL:g}",
            ),
        ]
    return rows


# The roles, each in a process of its own


async def _network(dial: str | None) -> None:
    import trio

    from ponyswarm.keys import SecretKey
    from ponyswarm.p2p.network import open_network

    async with open_network(
        SecretKey.generate(),
        listen=["/ip4/127.0.0.1/tcp/0"],
        validate=lambda *_: True,
        refused=lambda *_: None,
    ) as network:
        for topic in TOPICS:
            await network.subscribe(topic)
        if dial is not None:
            await network.dial(dial)
        print(network.addresses[0], flush=True)
        await trio.sleep_forever()


async def _node(dial: str | None) -> None:
    """A whole node that trusts one project, on a home of its own."""
    import tempfile
    from pathlib import Path

    import trio

    from ponyswarm import config, keys, status
    from ponyswarm.cli.running import run
    from ponyswarm.home import Home

    with tempfile.TemporaryDirectory(prefix="ponyswarm-bench-") as folder:
        home = Home.under(Path(folder))
        home.create()
        keys.save(home.key, keys.SecretKey.generate())
        text = config.template(listen="/ip4/127.0.0.1/tcp/0", slots=1, memory=1 << 30)
        config.write(home.ini, text)
        config.add_project(home.ini, "trust", bytes(31) + b"\1", "bench")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, home)
            while (now := status.read(home.status)) is None or not now.addresses:
                await trio.sleep(0.1)
            print(now.addresses[0], flush=True)


async def _bare(dial: str | None) -> None:
    """A host with the settings that the measurements recommend, and no more."""
    import logging

    import trio
    from libp2p.network.config import ConnectionConfig

    from bench.bare import bare_dial, bare_gossip, bare_host, running

    logging.basicConfig(level=logging.CRITICAL)
    host = bare_host(
        connection_config=ConnectionConfig(
            min_connections=0,
            low_watermark=0,
            enable_health_monitoring=True,
            health_initial_delay=3,
            health_check_interval=5,
            ping_timeout=3,
            abort_connection_on_ping_failure=True,
        ),
    )
    pubsub, router = bare_gossip(host)
    async with running(host, pubsub, router):
        for topic in TOPICS:
            await pubsub.subscribe(topic)
        if dial is not None:
            await bare_dial(host, dial)
        print(host.lab_address, flush=True)
        await trio.sleep_forever()


async def _run_role(role: str, dial: str | None) -> None:
    import trio

    body = {"bare": _bare, "bare-peer": _bare, "node": _node}.get(role, _network)
    async with trio.open_nursery() as nursery:
        for _ in range(1 if dial is None else PEERS):
            nursery.start_soon(body, dial)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--role"]:
        import trio

        trio.run(_run_role, sys.argv[2], sys.argv[3] if sys.argv[3:] else None)
    else:
        main("idle", __doc__ or "", measure)
