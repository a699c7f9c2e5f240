"""Blind cross-checks with real nodes: who dies between commit and reveal tells when it is back."""

from __future__ import annotations

import pytest
from sources import PASSES, archive, unittest_spec
from swarm_lab import announce, cells, found_project, kill, until

from ponyswarm import keys
from ponyswarm.demo import Member
from ponyswarm.exec.interpreters import discover
from ponyswarm.ledger.verdicts import Verdict
from ponyswarm.volunteer import minor_version

pytestmark = pytest.mark.slow


def committed(member: Member, job: str) -> tuple[bytes, ...]:
    return tuple(key for cell in cells(member, job) for key in cell.finding.sealed)


@pytest.mark.timeout(240)
def test_a_killed_volunteer_tells_what_it_committed_to_when_it_is_back(swarm, tmp_path):
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
    job = announce(swarm, maintainer, archive(tmp_path, "quick", {"test_it.py": PASSES}), spec)

    key = keys.load(one.home.key).public
    until("the first volunteer commits", lambda: committed(one, job) == (key,), 60)
    kill(one)
    assert not cells(one, job)[0].results, "nothing was told before another committed"
    swarm.start(other, [address])
    swarm.start(one, [address])

    def is_confirmed() -> bool:
        found = cells(maintainer, job)
        return bool(found) and found[0].finding.verdict is Verdict.CONFIRMED_PASS

    until("both tell, and neither could have copied", is_confirmed, 120)
    (cell,) = cells(maintainer, job)
    assert (cell.mode, cell.finding.agree, cell.finding.blind) == ("blind", 2, 2)
    said = swarm.command(maintainer, "results", "demo")
    assert "confirmed pass" in said
