"""A real node that volunteers for one project, as hostile peers find it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.claims import announce, spec_file, tiny_sdist, wait_for_results
from bench.hostile.attacker import Prey
from ponyswarm import status
from ponyswarm.codec import decode_payload
from ponyswarm.demo import Member, Swarm, open_swarm
from ponyswarm.exec.interpreters import discover
from ponyswarm.ledger.queries import Reader
from ponyswarm.messages import Announce
from ponyswarm.policy import ReaderPolicy
from ponyswarm.volunteer import minor_version


@dataclass(frozen=True, slots=True)
class Victim:
    """``node`` runs jobs of the project that ``maintainer``, a node too, announces."""

    swarm: Swarm
    node: Member
    maintainer: Member
    address: str
    project: bytes
    source: Path
    spec: Path

    def works(self) -> bytes:
        """Have the node run one more job; its id. `RuntimeError` when it does not."""
        self.swarm.check(self.node)
        job = announce(self.swarm, self.maintainer, self.source, self.spec)
        wait_for_results(self.node, job)
        return job

    def prey(self, job: bytes) -> Prey:
        """What an attacker may know, as everybody does, of a job that ran."""
        with Reader(self.node.home.ledger) as reader:
            row = reader.find_job(None, job.hex(), None)
            entry = reader.entry(job)
            (cell,) = reader.cells(row, ReaderPolicy(agreeing=1))
        assert entry is not None
        announced = decode_payload(entry)
        assert isinstance(announced, Announce)
        return Prey(
            project=self.project,
            job=job,
            cell=cell.id,
            source=announced.source,
            frame=entry.frame,
        )

    def memory(self) -> int:
        """Resident bytes of the node's process."""
        assert self.node.process is not None
        return int(psutil.Process(self.node.process.pid).memory_info().rss)

    def cpu(self) -> float:
        """Seconds of CPU that the node's process has used."""
        assert self.node.process is not None
        return _cpu(self.node.process.pid)

    def disk(self) -> int:
        """Bytes of all files of the node's home."""
        total = 0
        for path in self.node.folder.rglob("*"):
            try:
                total += path.stat().st_size if path.is_file() else 0
            except OSError:
                continue  # Gone since it was listed.
        return total

    def refused(self) -> dict[str, int]:
        """How often the node refused what, by its own count."""
        now = status.read(self.node.home.status)
        return {} if now is None else now.refused


@contextmanager
def open_victim() -> Iterator[Victim]:
    """A victim that has shown, with one job, that it works."""
    python = next(one for one in discover() if one.implementation == "cpython")
    with open_swarm(print) as swarm:
        maintainer = swarm.member("maintainer", [python])
        node = swarm.member("victim", [python])
        made = swarm.command(maintainer, "project", "create", "demo", "--json")
        project = str(json.loads(made)["project"])
        swarm.command(node, "trust", "add", project)
        swarm.start(node, [])
        address = swarm.address(node)
        swarm.start(maintainer, [address], "--read-only")
        swarm.wait_for(maintainer, lambda now: bool(now.peers))
        yield Victim(
            swarm,
            node,
            maintainer,
            address,
            bytes.fromhex(project),
            tiny_sdist(swarm.root),
            spec_file(swarm.root, minor_version(python)),
        )


def _cpu(process: int) -> float:
    times = psutil.Process(process).cpu_times()
    return float(times.user + times.system)


class Attackers:
    """Hostile peers in a process of their own, one at a time."""

    def __init__(self, victim: Victim, prey: Prey) -> None:
        command = [sys.executable, "-m", "bench.hostile", victim.address, prey.to_json()]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # libp2p tells there of every stream that was refused, which is the point here.
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def begin(self, name: str, seconds: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name} {seconds}\n")
        self._process.stdin.flush()

    def end(self) -> int:
        """Wait for the one that was begun; how many keys it used."""
        assert self._process.stdout is not None
        return int(json.loads(self._process.stdout.readline())["keys"])

    def cpu(self) -> float:
        """Seconds of CPU that their process has used."""
        return _cpu(self._process.pid)

    def __enter__(self) -> Attackers:
        return self

    def __exit__(self, *fault: object) -> None:
        self._process.kill()
        self._process.communicate()
