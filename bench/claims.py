"""From an announcement to its first claim: five real nodes on loopback.

A maintainer that runs nothing and four volunteers, each a process. Jobs of one cell are
announced one after the other, each when the one before is done; measured is the time from
the announcement's own stamp until the maintainer's node heard the first claim of it.
"""

from __future__ import annotations

import io
import json
import tarfile
import time
from pathlib import Path

from bench.report import Row, main
from ponyswarm import status
from ponyswarm.demo import Member, Swarm, open_swarm
from ponyswarm.exec.interpreters import discover
from ponyswarm.ledger.queries import Reader
from ponyswarm.policy import ReaderPolicy

NODES = 5
GOAL_SECONDS = 2.0

SPEC = """\
[tool.ponyswarm]
python = [{python}]
runner = "unittest"
redundancy = 1

[tool.ponyswarm.install]
project = false
"""

TEST = b"""\
import unittest


class Test(unittest.TestCase):
    def test_it(self):
        self.assertTrue(True)
"""


def tiny_sdist(folder: Path) -> Path:
    """A source archive with one test and no dependency."""
    path = folder / "tiny-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in (("test_it.py", TEST), ("PKG-INFO", b"Name: tiny\nVersion: 1.0\n")):
            member = tarfile.TarInfo(f"tiny-1.0/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def _settled(member: Member, job: bytes) -> bool:
    with Reader(member.home.ledger) as reader:
        row = reader.find_job(None, job.hex(), None)
        return all(cell.results for cell in reader.cells(row, ReaderPolicy(agreeing=1)))


def _one(swarm: Swarm, maintainer: Member, source: Path, spec: Path) -> float:
    said = json.loads(
        swarm.command(
            maintainer,
            "announce",
            str(source),
            "-p",
            "demo",
            "--spec",
            str(spec),
            "--no-locks",
            "--json",
        )
    )
    job = bytes.fromhex(said["job"])
    deadline = time.monotonic() + 60
    while not _settled(maintainer, job):
        if time.monotonic() > deadline:
            raise RuntimeError("a job of the benchmark did not end within a minute")
        time.sleep(0.1)
    time.sleep(1.2)  # The status file is written once a second.
    now = status.read(maintainer.home.status)
    with Reader(maintainer.home.ledger) as reader:
        announced = reader.find_job(None, job.hex(), None).announced
    assert now is not None
    return (now.first_claims[job.hex()] - announced) / 1000


def measure(quick: bool) -> list[Row]:
    count = 6 if quick else 40
    python = next(one for one in discover() if one.implementation == "cpython")
    with open_swarm(print) as swarm:
        maintainer = swarm.member("maintainer", [python])
        volunteers = [swarm.member(f"volunteer{n}", [python]) for n in range(NODES - 1)]
        made = swarm.command(maintainer, "project", "create", "demo", "--json")
        project = json.loads(made)["project"]
        for volunteer in volunteers:
            swarm.command(volunteer, "trust", "add", project)
        swarm.start(maintainer, [], "--read-only")
        hub = swarm.address(maintainer)
        for volunteer in volunteers:
            swarm.start(volunteer, [hub])
        swarm.wait_for(maintainer, lambda now: any(p.volunteers == NODES - 1 for p in now.projects))
        source = tiny_sdist(swarm.root)
        spec = swarm.root / "spec.toml"
        minor = ".".join(python.version.split(".")[:2])
        spec.write_text(SPEC.format(python=json.dumps(minor)), "utf-8")
        times = sorted(_one(swarm, maintainer, source, spec) for _ in range(count))
    p95 = times[min(len(times) - 1, int(0.95 * len(times)))]
    return [
        Row(
            f"announce to first claim, p95 of {count}, {NODES} nodes, s",
            p95,
            "the same, p50",
            times[len(times) // 2],
            f"< {GOAL_SECONDS:g}",
        )
    ]


if __name__ == "__main__":
    main("claims", __doc__.splitlines()[0], measure)
