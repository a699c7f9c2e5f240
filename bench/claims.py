"""From an announcement to its first claim: five real nodes, on loopback and on four subnets.

A maintainer that runs nothing and four volunteers, each a process. Jobs of one cell are
announced one after the other, each when the one before is done; measured is the time from
the announcement's own stamp until the maintainer's node heard the first claim of it. Where
network namespaces are permitted, the same is measured between subnets that are 200 ms
apart, there and back, and lose one packet in twenty (`bench.internet`).
"""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bench import internet
from bench.report import Row, main
from ponyswarm import status
from ponyswarm.demo import Member, Swarm, open_swarm
from ponyswarm.errors import LocalError
from ponyswarm.exec.interpreters import discover
from ponyswarm.ledger.queries import JobRow, Reader
from ponyswarm.policy import ReaderPolicy

NODES = 5
GOAL_SECONDS = 1.0
GOAL_SUBNETS = 5.0
PORT = 7797

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


def _times(swarm: Swarm, count: int, places: Sequence[internet.Place] = ()) -> list[float]:
    """Seconds from announcement to first claim, sorted; on loopback without ``places``."""
    python = next(one for one in discover() if one.implementation == "cpython")
    maintainer = swarm.member("maintainer", [python])
    volunteers = [swarm.member(f"volunteer{n}", [python]) for n in range(NODES - 1)]
    extra: tuple[str, ...] = ()
    for member, place in zip((maintainer, *volunteers), places, strict=False):
        member.prefix = place.enter
        extra = ("--listen", f"/ip4/0.0.0.0/tcp/{PORT}")
    made = swarm.command(maintainer, "project", "create", "demo", "--json")
    project = json.loads(made)["project"]
    for volunteer in volunteers:
        swarm.command(volunteer, "trust", "add", project)
    swarm.start(maintainer, [], "--read-only", *extra)
    hub = swarm.address(maintainer)
    if places:
        hub = f"/ip4/{places[0].address}/tcp/{PORT}/p2p/{hub.rpartition('/')[2]}"
    for volunteer in volunteers:
        swarm.start(volunteer, [hub], *extra)
    swarm.wait_for(maintainer, lambda now: any(p.volunteers == NODES - 1 for p in now.projects))
    source = tiny_sdist(swarm.root)
    spec = swarm.root / "spec.toml"
    minor = ".".join(python.version.split(".")[:2])
    spec.write_text(SPEC.format(python=json.dumps(minor)), "utf-8")
    return sorted(_one(swarm, maintainer, source, spec) for _ in range(count))


def _row(where: str, times: Sequence[float], goal: float) -> Row:
    p95 = times[min(len(times) - 1, int(0.95 * len(times)))]
    what = f"announce to first claim, {where}, p95 of {len(times)}, {NODES} nodes, s"
    return Row(what, p95, "the same, p50", times[len(times) // 2], f"< {goal:g}")


def measure(quick: bool) -> list[Row]:
    count = 4 if quick else 40
    with open_swarm(print) as swarm:
        rows = [_row("loopback", _times(swarm, count), GOAL_SECONDS)]
    why_not = internet.missing()
    if why_not is not None:
        print(f"not measured between subnets: {why_not}")
        return rows
    with internet.open_internet([2, 1, 1, 1]) as net, open_swarm(print) as swarm:
        net.weather(round_trip=0.2, loss=0.05)
        places = [place for subnet in net.subnets for place in subnet]
        times = _times(swarm, count, places)
        swarm.stop(*swarm.members)
        return [*rows, _row("four subnets", times, GOAL_SUBNETS)]


if __name__ == "__main__":
    main("claims", __doc__.splitlines()[0], measure)
