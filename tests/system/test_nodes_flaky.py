"""A flaky test in a swarm of real nodes: who differs runs the cell again, and the test is named."""

from __future__ import annotations

import json
import time

import pytest
from sources import archive, unittest_spec
from swarm_lab import announce, cells, found_project, runs, until

from ponyswarm.exec.interpreters import discover
from ponyswarm.ledger.verdicts import Verdict
from ponyswarm.volunteer import minor_version

pytestmark = pytest.mark.slow

# The first volunteer must be done by then, and the second one begins later.
SECONDS = 100
SOMETIMES = """\
import time
import unittest


class Test(unittest.TestCase):
    def test_always(self):
        self.assertTrue(True)

    def test_sometimes(self):
        self.assertGreater(time.time(), {at})
"""


@pytest.mark.timeout(420)
def test_two_volunteers_that_differ_run_the_cell_again_and_name_the_flaky_test(swarm, tmp_path):
    python = next(one for one in discover() if one.implementation == "cpython")
    maintainer = swarm.member("maintainer", [python])
    one, other = swarm.member("one", [python]), swarm.member("other", [python])
    project = found_project(swarm, maintainer)
    for member in (one, other):
        swarm.command(member, "trust", "add", project)
    swarm.start(maintainer, [], "--read-only")
    address = swarm.address(maintainer)
    swarm.start(one, [address])
    swarm.address(one)
    spec = unittest_spec(tmp_path, minor_version(python), redundancy=2)
    passes_at = time.time() + SECONDS
    source = archive(tmp_path, "sometimes", {"test_it.py": SOMETIMES.format(at=passes_at)})
    job = announce(swarm, maintainer, source, spec)
    until("the first volunteer has run it", lambda: runs(maintainer, job) == 1, SECONDS)
    assert cells(maintainer, job)[0].finding.failed == 1

    time.sleep(max(0.0, passes_at - time.time()))
    swarm.start(other, [address])
    until("both have run it twice", lambda: runs(maintainer, job) == 4, 150)
    (cell,) = cells(maintainer, job)
    assert cell.finding.verdict is Verdict.FLAKY
    said = json.loads(swarm.command(maintainer, "show", cell.id.hex(), "--json"))
    (named,) = said["by_test"]
    assert named.endswith("test_sometimes")
    assert said["by_test"][named]["verdict"] == "flaky"
    assert len(said["by_test"][named]["wavering"]) == 1
    assert "flaky for" in swarm.command(maintainer, "show", cell.id.hex())
