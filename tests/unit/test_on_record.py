"""A cell that one run confirmed, by its operator's long record, is marked wherever it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from authors import Author
from click.testing import CliRunner
from starlette.testclient import TestClient
from web_home import NONCE, TESTS, WebHome

from ponyswarm import keys
from ponyswarm.cli import main
from ponyswarm.codec import commitment, outcome_digest
from ponyswarm.messages import Commit, CrossCheck, Spec, Status, Vouch
from ponyswarm.web.app import application

SPEC = Spec(python=("3.10", "3.11", "3.12", "3.13"), redundancy=2, cross_check="blind")


@pytest.fixture
def home(tmp_path: Path):
    """Three jobs on which two operators agreed, and a fourth in which one ran all alone."""
    made = WebHome(tmp_path, now=1_790_000_000_000)
    maintainer, ada, grace = (Author(number) for number in (1, 2, 3))
    wish = CrossCheck(mode="blind", floor=5)
    project = made.found(maintainer, "aurora", cross_check=wish)
    for one, name in ((ada, "Ada"), (grace, "Grace")):
        made.say(maintainer, Vouch(key=one.public, operator=name), project)
    for _ in range(3):
        job, cells = made.job(maintainer, project, spec=SPEC)
        for cell in cells:
            commits = [made.commit(one, project, job, cell, ()).id for one in (ada, grace)]
            for one in (ada, grace):
                made.run(one, project, job, cell, nonce=NONCE, seen=tuple(commits))
    job, cells = made.job(maintainer, project, spec=SPEC)
    alone = [made.commit(ada, project, job, cell, ()).id for cell in cells[:3]]
    # Her commits are named in that to another cell: by that the lot is drawn.
    digest = outcome_digest("completed", None, [(id_, Status.PASSED) for id_ in TESTS])
    bound = commitment(NONCE, digest, grace.public)
    named = Commit(job=job, cell=cells[3], commitment=bound, seen=tuple(alone))
    made.say(grace, named, project)
    for cell, commit in zip(cells, alone, strict=False):
        made.run(ada, project, job, cell, nonce=NONCE, seen=(commit,))
    keys.save(tmp_path / "key", keys.SecretKey(bytes([9]) * 32))
    yield made
    made.close()


def said(home: WebHome, *words: str) -> str:
    ran = CliRunner().invoke(main, ["--home", str(home.folder), *words])
    assert ran.exit_code in (0, 3), ran.output
    return ran.output


def lone_cells(home: WebHome) -> list[str]:
    cells = json.loads(said(home, "results", "aurora", "--json"))["cells"]
    assert all(cell["agree"] == 1 for cell in cells if cell["on_record"])
    return [cell["cell"] for cell in cells if cell["on_record"]]


def test_the_command_line_marks_what_is_confirmed_on_record(home: WebHome) -> None:
    lone = lone_cells(home)
    assert lone
    matrix = said(home, "results", "aurora")
    assert matrix.count("✔ confirmed pass 1/1 ◇ on record") == len(lone)
    assert f"{len(lone)} cells confirmed by one run ◇ on record" in matrix
    cell = said(home, "show", lone[0])
    assert "1 of 1 agree · ◇ on record: its operator is checked less often" in cell
    assert json.loads(said(home, "show", lone[0], "--json"))["on_record"] is True
    table = said(home, "export", "--markdown", "aurora", "-o", "-")
    assert table.count("1/1 ◇ on record") == len(lone)
    assert "◇ on record: one run" in table


def test_the_pages_mark_what_is_confirmed_on_record(home: WebHome) -> None:
    lone = lone_cells(home)
    client = TestClient(application(home.site()), base_url="http://localhost", backend="trio")
    cell = client.get(f"/cell/{lone[0]}").text
    assert "<b>◇ on record</b>: one run is enough here" in cell
    assert "enough independent volunteers agree" not in cell
    job = client.get("/job/" + said(home, "results", "aurora").split("job ")[1].split()[0]).text
    assert job.count("<small>◇ on record</small>") == len(lone)
