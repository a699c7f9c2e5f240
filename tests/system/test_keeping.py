"""Files that were dropped come back when somebody asks, and messages can be searched for."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sources import PASSES, archive, unittest_spec
from swarm_lab import announce, cells, found_project, ponyswarm, runs, until

from ponyswarm.demo import Swarm, open_swarm
from ponyswarm.exec.interpreters import discover
from ponyswarm.volunteer import minor_version

pytestmark = pytest.mark.slow


@pytest.fixture
def swarm() -> Iterator[Swarm]:
    with open_swarm(print) as opened:
        yield opened


@pytest.mark.timeout(180)
def test_a_dropped_output_is_asked_of_peers_and_failures_are_searchable(
    swarm: Swarm, tmp_path: Path
) -> None:
    python = next(one for one in discover() if one.implementation == "cpython")
    maintainer, volunteer = (swarm.member(name, [python]) for name in ("maintainer", "volunteer"))
    project = found_project(swarm, maintainer)
    swarm.command(volunteer, "trust", "add", project)
    swarm.start(volunteer, [])
    swarm.start(maintainer, [swarm.address(volunteer)], "--read-only")
    swarm.address(maintainer)
    fails = PASSES.replace("1 + 1, 2", "1 + 1, 3, 'arithmetic surprise'")
    source = archive(tmp_path, "fails", {"test_it.py": fails})
    job = announce(swarm, maintainer, source, unittest_spec(tmp_path, minor_version(python)))
    until("it is run", lambda: runs(maintainer, job) == 1, 60)
    cell = cells(maintainer, job)[0]
    log = cell.results[0].result.log
    assert log is not None
    path = maintainer.home.blobs / log.hash.hex()[:2] / log.hash.hex()[2:]
    until("its output came along", path.exists, 30)

    def found() -> list[dict[str, str]]:
        return json.loads(ponyswarm(maintainer, "search", "surprise", "--json").stdout)

    until("its message is searchable", found, 30)
    assert found()[0]["job"] == "fails-1.0" or found()[0]["test"].endswith("test_it")
    db = sqlite3.connect(maintainer.home.ledger)
    noted = {(role, failing) for role, failing in db.execute("SELECT role, failing FROM blob")}
    db.close()
    assert {("log", 1), ("tests", 1)} <= noted

    path.unlink()
    shown = ponyswarm(maintainer, "show", cell.id.hex()[:16], "--log")
    assert "arithmetic surprise" in shown.stdout
    assert path.exists()
    swarm.stop(maintainer)
    path.unlink()
    shown = ponyswarm(maintainer, "show", cell.id.hex()[:16], "--log")
    assert "not on this machine" in shown.stdout
