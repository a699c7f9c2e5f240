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
from contextlib import suppress
from pathlib import Path

from bench.report import Row, main
from ponyswarm import status
from ponyswarm.demo import Member, Swarm, open_swarm
from ponyswarm.errors import LocalError
from ponyswarm.exec.interpreters import discover
from ponyswarm.ledger.queries import JobRow, Reader
from ponyswarm.policy import ReaderPolicy
from ponyswarm.volunteer import minor_version

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


def spec_file(folder: Path, python: str) -> Path:
    """A spec of one cell, which needs nothing but an interpreter."""
    path = folder / "tiny.toml"
    path.write_text(SPEC.format(python=json.dumps(python)), "utf-8")
    return path


def announce(swarm: Swarm, maintainer: Member, source: Path, spec: Path) -> bytes:
    """The id of a new job of the project ``demo``."""
    arguments = ["-p", "demo", "--spec", str(spec), "--no-locks", "--json"]
    said = json.loads(swarm.command(maintainer, "announce", str(source), *arguments))
    return bytes.fromhex(said["job"])


def wait_for_results(member: Member, job: bytes, seconds: float = 60) -> JobRow:
    """Wait until the member's ledger has a result of each cell; `RuntimeError` otherwise."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with Reader(member.home.ledger) as reader, suppress(LocalError):
            row = reader.find_job(None, job.hex(), None)
            if all(cell.results for cell in reader.cells(row, ReaderPolicy(agreeing=1))):
                return row
        time.sleep(0.1)
    raise RuntimeError(f"a job of the benchmark did not end within {seconds:g} s")


def _one(swarm: Swarm, maintainer: Member, source: Path, spec: Path) -> float:
    row = wait_for_results(maintainer, announce(swarm, maintainer, source, spec))
    time.sleep(1.2)  # The status file is written once a second.
    now = status.read(maintainer.home.status)
    assert now is not None
    return (now.first_claims[row.id.hex()] - row.announced) / 1000


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
        spec = spec_file(swarm.root, minor_version(python))
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
