"""What a job came to, in forms that other tools read; each is read here by such a tool."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
from authors import Author
from click.testing import CliRunner
from filelock import FileLock
from filled import Ledger
from junitparser import JUnitXml
from markdown_it import MarkdownIt
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey
from told import told

from ponyswarm import badge, keys, status
from ponyswarm.cli import main, watch
from ponyswarm.errors import LocalError
from ponyswarm.home import Home
from ponyswarm.ledger.queries import CellRow, Reader
from ponyswarm.ledger.verdicts import Finding, Verdict
from ponyswarm.messages import Entry, Status
from ponyswarm.policy import ReaderPolicy
from ponyswarm.status import LeaseLine, NodeStatus, OfferLine, ProjectLine

P, F, S = Status.PASSED, Status.FAILED, Status.SKIPPED
HOSTILE = "t::<script>alert(1)</script>|`x`[a](http://evil)"


@pytest.fixture
def volunteers() -> list[Author]:
    return [Author(2), Author(3)]


@pytest.fixture
def ledger(tmp_path: Path):
    made = Ledger(tmp_path)
    keys.save(tmp_path / "key", keys.SecretKey(bytes([9]) * 32))
    yield made
    made.store.close()


def ran(ledger: Ledger, volunteers: list[Author], **bad: Status) -> Entry:
    """A job whose two cells both volunteers ran; in 3.13 the tests named in ``bad`` fail."""
    job, (first, second) = ledger.job("demo 1.0", "ab" * 20)
    for one in volunteers:
        ledger.run(one, job, first, {"t::a": P, "t::b": S})
        ledger.run(one, job, second, {"t::a": P, **bad}, version="3.13.0")
    return job


def exported(ledger: Ledger, form: str, *more: str, code: int = 0) -> str:
    done = CliRunner().invoke(
        main, ["--home", str(ledger.home), "export", f"--{form}", "demo", "-o", "-", *more]
    )
    assert done.exit_code == code, done.output
    return done.output


def test_junit_has_a_suite_a_cell_with_every_test_that_was_agreed_on(ledger, volunteers) -> None:
    ran(ledger, volunteers, **{HOSTILE: F})
    xml = JUnitXml.fromstring(exported(ledger, "junit").encode())
    suites = list(xml)
    assert [suite.name for suite in suites] == ["3.12", "3.13"]
    assert (suites[0].tests, suites[0].skipped, suites[0].failures) == (2, 1, 0)
    assert (suites[1].tests, suites[1].failures) == (2, 1)
    assert any("script" in case.name for case in suites[1])


def test_junit_never_lets_an_open_cell_pass_for_a_good_one(ledger, volunteers) -> None:
    job, (first, _) = ledger.job("demo 1.0", "ab" * 20)
    ledger.run(volunteers[0], job, first, {"t::a": P})
    suites = list(JUnitXml.fromstring(exported(ledger, "junit").encode()))
    assert [suite.errors for suite in suites] == [1, 1]


def test_the_attestation_verifies_with_securesystemslib_and_names_the_source(
    ledger, volunteers
) -> None:
    job = ran(ledger, volunteers)
    envelope = Envelope.from_dict(json.loads(exported(ledger, "in-toto")))
    key = keys.load(ledger.home / "key")
    name = keys.peer_id(key.public)
    signer = SSlibKey(name, "ed25519", "ed25519", {"public": key.public.hex()})
    assert set(envelope.verify([signer], 1)) == {name}
    said = json.loads(envelope.payload)
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert said["subject"][0]["digest"]["gitCommit"] == "ab" * 20
    assert len(said["subject"][0]["digest"]["sha256"]) == 64
    predicate = said["predicate"]
    assert predicate["result"] == "PASSED"
    assert predicate["passedTests"] == ["3.12", "3.13"]
    assert predicate["failedTests"] == []
    assert [one["annotations"]["agree"] for one in predicate["configuration"]] == [2, 2]
    assert job.id.hex() in json.dumps(predicate)
    envelope.payload += b" "
    with pytest.raises(VerificationError):
        envelope.verify([signer], 1)


def test_the_attestation_names_what_failed_and_is_refused_while_a_cell_is_open(
    ledger, volunteers
) -> None:
    job, _ = ledger.job("demo 0.9", "cd" * 20)
    said = exported(ledger, "in-toto", code=2)
    assert "2 of 2 cells are not confirmed yet" in said
    assert f"ponyswarm watch {job.id.hex()[:16]}" in said
    ran(ledger, volunteers, **{"t::x": F})
    envelope = Envelope.from_dict(json.loads(exported(ledger, "in-toto")))
    predicate = json.loads(envelope.payload)["predicate"]
    assert predicate["result"] == "FAILED"
    assert predicate["failedTests"] == ["3.13: t::x"]
    assert predicate["passedTests"] == ["3.12"]


def test_markdown_is_a_table_in_which_strangers_words_stay_words(ledger, volunteers) -> None:
    ran(ledger, volunteers, **{HOSTILE: F})
    text = exported(ledger, "markdown")
    html = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert html.count("<tr>") == 3
    assert "✔ confirmed pass 2/2" in html
    assert "✘ confirmed fail 2/2" in html
    assert "<script" not in html
    assert "href" not in html
    assert "&lt;script&gt;" in html


def cells(*findings: Finding) -> list[CellRow]:
    return [
        CellRow(id=bytes(32), python="3.12", services="", factors="", finding=one)
        for one in findings
    ]


PASS = Finding(verdict=Verdict.CONFIRMED_PASS, agree=3, of=3)
LONE = Finding(verdict=Verdict.CONFIRMED_PASS, agree=1, of=1, on_record=True)


@pytest.mark.parametrize(
    ("findings", "said"),
    [
        ([PASS, PASS], "3 of 3 agree"),
        ([PASS, Finding(verdict=Verdict.CONFIRMED_PASS, agree=2, of=3)], "2 of 3 agree"),
        ([PASS, LONE, LONE], "1 of 1 agree, 2 on record"),
        ([PASS, Finding(verdict=Verdict.CONFIRMED_FAIL, agree=2, of=2)], "1 of 2 fail"),
        ([PASS, Finding(verdict=Verdict.DISPUTED, agree=1, of=2)], "1 of 2 disputed"),
        ([PASS, Finding(verdict=Verdict.PENDING)], "1 of 2 confirmed"),
        ([], "0 of 0 confirmed"),
    ],
)
def test_the_badge_says_in_words_what_the_weakest_cell_allows(findings, said) -> None:
    root = ET.fromstring(badge.svg(cells(*findings)))
    assert root.get("aria-label") == f"ponyswarm: {said}"
    assert said in [element.text for element in root.iter() if element.tag.endswith("text")]
    assert not any("href" in name for element in root.iter() for name in element.attrib)


def test_one_form_at_a_time_and_a_job_that_is_not_there_are_said(ledger) -> None:
    both = CliRunner().invoke(
        main, ["--home", str(ledger.home), "export", "--badge", "a", "--junit", "b", "-o", "-"]
    )
    assert both.exit_code == 2
    assert "say one of" in both.output
    assert "neither a job, nor a commit" in exported(ledger, "badge", code=2)


# --- watch ---------------------------------------------------------------------------------


def watched(ledger: Ledger) -> int:
    home = Home.under(ledger.home)
    with Reader(home.ledger) as reader:
        job = reader.jobs()[0].id
    return trio.run(watch.settled, home, job, ReaderPolicy(agreeing=2), 0.2)


def test_a_job_that_the_node_here_is_still_getting_is_waited_for(ledger, capsys) -> None:
    home = Home.under(ledger.home)
    with pytest.raises(LocalError, match="neither a job, nor a commit"):
        watch.arriving(home, "bb" * 20)  # No node runs: nobody would get it.
    with FileLock(home.lock), ThreadPoolExecutor() as beside:
        waits = beside.submit(watch.arriving, home, "aa" * 20)
        while "not in this ledger yet" not in capsys.readouterr().err:
            assert not waits.done()
        job, _ = ledger.job("comes late", "aa" * 20)
        assert waits.result().id == job.id
        with told(
            "… is neither a job, nor a commit, nor a project with jobs in this ledger: 'ponyswarm "
            "log' shows what is there; the node here did not get it in 1 s: 'ponyswarm status' "
            "shows which projects it follows and whom it is connected to"
        ):
            watch.arriving(home, "bb" * 20, seconds=1)


def test_waiting_ends_with_the_code_of_the_verdicts(ledger, volunteers) -> None:
    ledger.job("open", "aa" * 20)
    assert watched(ledger) == 3
    ran(ledger, volunteers)
    assert watched(ledger) == 0
    ran(ledger, volunteers, **{"t::x": F})
    assert watched(ledger) == 1


def test_while_a_long_suite_runs_it_is_said_who_runs_it_and_that_it_still_does(
    ledger, capsys, monkeypatch
) -> None:
    _, cells = ledger.job("long", "aa" * 20)
    runner = keys.peer_id(Author(9).public)
    lease = LeaseLine(cell=cells[0].hex(), volunteer=runner, since=time.time() - 3725)
    home = Home.under(ledger.home)
    status.write(home.status, NodeStatus(pid=1, started=0, updated=0, peer="", leases=(lease,)))
    assert watched(ledger) == 3
    said = capsys.readouterr().err
    assert said.count(f"▶ …{runner[-8:]} runs it") == 1
    assert "still running" not in said
    monkeypatch.setattr(watch, "SILENT", 0)
    watched(ledger)
    assert "for 1:02:0" in capsys.readouterr().err
    home.status.unlink()
    watched(ledger)
    assert "nobody runs any of it now" in capsys.readouterr().err


def test_results_say_of_cells_that_wait_what_nobody_offers(ledger) -> None:
    ledger.job("waits", "aa" * 20)
    home, project = Home.under(ledger.home), ledger.project.hex()
    offer = OfferLine(
        project=project,
        peer=keys.peer_id(Author(9).public),
        interpreters=("cpython 3.12.1", "cpython 3.13.0t"),
        services=(),
        system="linux",
        machine="x86_64",
        slots=1,
    )
    followed = ProjectLine(project=project, name="demo", trusted=False)
    now = NodeStatus(pid=1, started=0, updated=0, peer="", projects=(followed,), offers=(offer,))
    status.write(home.status, now)

    def said() -> str:
        return CliRunner().invoke(main, ["--home", str(ledger.home), "results", "demo"]).output

    assert "nobody offers" not in said()  # No node runs: what it told last is of the past.
    with FileLock(home.lock):
        assert "3.13: not run yet, nobody offers Python 3.13" in said()
        assert "3.12: not run yet" not in said()


def test_waiting_ends_at_once_for_a_job_that_is_withdrawn(ledger, volunteers, capsys) -> None:
    job, _ = ledger.job("open", "aa" * 20)
    ledger.fill(ledger.maintainer.withdraw(ledger.project, job.id))
    assert watched(ledger) == 3
    assert "nobody runs it any more" in capsys.readouterr().err


def test_a_job_of_a_key_that_signed_two_histories_ends_with_4(ledger, volunteers, capsys) -> None:
    twin = ledger.maintainer.branch()
    ran(ledger, volunteers)
    ledger.fill(twin.announce(ledger.project, title="another past"))
    assert watched(ledger) == 4
    assert "signed two histories" in capsys.readouterr().err
