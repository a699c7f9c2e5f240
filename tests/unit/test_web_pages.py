"""The web pages without a browser: what they say, to whom, and what they let through."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest
import trio
from authors import Author
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from web_home import (
    BIDI,
    BROKEN,
    FLAKY,
    SCRIPT,
    TESTS,
    Sights,
    WebHome,
    furnish,
    furnish_hostile,
)

from ponyswarm import status
from ponyswarm.keys import peer_id
from ponyswarm.ledger.queries import Reader
from ponyswarm.ledger.verdicts import Verdict
from ponyswarm.offers import able
from ponyswarm.plain import harmless, uncoloured
from ponyswarm.web import site as site_module
from ponyswarm.web import words
from ponyswarm.web.app import PAGES, application
from ponyswarm.web.guard import host_name
from ponyswarm.web.pages.job import Place, grid
from ponyswarm.web.pages.test import FAILS, MIXED, PASSES, UNKNOWN, Column, conclude
from ponyswarm.web.tail import Look, News, look


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WebHome, Sights]]:
    home, sights = furnish(tmp_path_factory.mktemp("web") / "home")
    yield home, sights
    home.close()


@pytest.fixture(scope="module")
def home(furnished: tuple[WebHome, Sights]) -> WebHome:
    return furnished[0]


@pytest.fixture(scope="module")
def sights(furnished: tuple[WebHome, Sights]) -> Sights:
    return furnished[1]


@pytest.fixture(scope="module")
def client(home: WebHome) -> TestClient:
    return browser(home)


def browser(home: WebHome) -> TestClient:
    return TestClient(application(home.site()), base_url="http://localhost:7640", backend="trio")


def addresses(sights: Sights) -> dict[str, str]:
    """An address for each kind of page."""
    project, run = sights.project.hex(), sights.failing_run.hex()
    return {
        "/": "/",
        "/project/{id}": f"/project/{project}",
        "/project/{id}/test": f"/project/{project}/test?id={quote(BROKEN)}",
        "/project/{id}/coverage": f"/project/{project}/coverage",
        "/job/{id}": f"/job/{sights.job.hex()}",
        "/cell/{id}": f"/cell/{sights.places['outvoted'].hex()}",
        "/run/{id}": f"/run/{run}",
        "/volunteers": "/volunteers",
        "/volunteer/{id}": f"/volunteer/{peer_id(sights.ada)}",
        "/search": "/search?q=login",
        "/verify": "/verify",
    }


def as_json(client: TestClient, address: str) -> dict:
    path, mark, query = address.partition("?")
    answer = client.get(f"{'/index' if path == '/' else path}.json{mark}{query}")
    assert answer.status_code == 200
    return json.loads(answer.text)


# --- every page ---------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_there_for_people_and_for_programs(
    page: str, client: TestClient, sights: Sights
) -> None:
    answer = client.get(addresses(sights)[page])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "set-cookie" not in answer.headers
    assert re.fullmatch(r"page;dur=[\d.]+, processor;dur=[\d.]+", answer.headers["server-timing"])
    assert as_json(client, addresses(sights)[page])


class _Strict(HTMLParser):
    """Notes what a content security policy would refuse, and what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "style" or (tag == "script" and "src" not in found):
            self.faults.append(tag)
        self.faults += [name for name in found if name == "style" or name.startswith("on")]
        if tag in ("script", "img", "link", "iframe"):
            self.loads.append(found.get("src") or found.get("href") or "")
        if tag == "a" and (found.get("href") or "").lower().startswith("javascript"):
            self.faults.append("javascript link")


@pytest.mark.parametrize("page", PAGES)
def test_no_page_has_inline_code_or_loads_what_is_not_ours(
    page: str, client: TestClient, sights: Sights
) -> None:
    answer = client.get(addresses(sights)[page])
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    seen = _Strict()
    seen.feed(answer.text)
    assert seen.faults == []
    assert all(address.startswith("/") and not address.startswith("//") for address in seen.loads)


# --- what they say ------------------------------------------------------------------------------


def test_every_verdict_has_a_colour_a_sign_and_a_word_of_its_own(client: TestClient) -> None:
    base = client.get("/").text
    for verdict in Verdict:
        kind, word = words.LOOKS[verdict]
        assert word
        assert f'id="s-{kind}"' in base
        assert kind in words.MEANINGS
    assert len({words.LOOKS[verdict] for verdict in Verdict}) == len(Verdict)


def test_a_jobs_matrix_has_environments_down_and_factors_across(
    client: TestClient, sights: Sights
) -> None:
    page = as_json(client, f"/job/{sights.job.hex()}")
    heads = [
        [(head["text"], head["span"]) for head in axis["heads"]] for axis in page["grid"]["axes"]
    ]
    assert [axis["name"] for axis in page["grid"]["axes"]] == ["services", "django"]
    assert heads[0] == [("sqlite", 2), ("postgresql", 2)]
    assert heads[1] == [("4.2", 1), ("5.2", 1), ("4.2", 1), ("5.2", 1)]
    last = page["grid"]["rows"][-1]
    assert last["python"] == "3.13"
    assert [place is None for place in last["places"]] == [True, False, True, False]
    kinds = {p["shown"]["kind"] for row in page["grid"]["rows"] for p in row["places"] if p}
    assert kinds == {"pass", "fail", "disputed", "unconfirmed", "broken", "pending"}
    assert page["failures"][0]["test"] == BROKEN


def test_headings_join_only_neighbours_that_share_all_above_them() -> None:
    shown = words.Shown(
        kind="pass", word="pass", verdict="", agree=0, of=0, blind=0, sealed=0, tests=0,
        failed=0, runs=0, says="", on_record=False,
    )  # fmt: skip
    places = [
        Place(id="", python="3.12", services=(), factors={"a": a, "b": b}, label="", shown=shown)
        for a in "12"
        for b in "xy"
    ]
    found = grid(places)
    assert [[head.span for head in axis.heads] for axis in found.axes] == [[2, 2], [1, 1, 1, 1]]
    assert found.columns == 4


def test_a_cell_says_who_ran_it_what_they_say_and_what_failed(
    client: TestClient, sights: Sights
) -> None:
    page = as_json(client, f"/cell/{sights.places['outvoted'].hex()}")
    assert page["shown"]["says"] == (
        "confirmed fail · 2 of 3 agree, 2 of them blind · 42 tests, 1 bad"
    )
    assert [(v["letter"], len(v["keys"]), v["stands"]) for v in page["voices"]] == [
        ("A", 2, True),
        ("B", 1, False),
    ]
    said = {one["test"]: (one["voices"], one["message"]) for one in page["failures"]}
    assert said == {
        BROKEN: (["A"], "AssertionError: 302 != 200"),
        TESTS[3]: (["B"], "a lie"),
    }
    assert {run["check"] for run in page["runs"]} == {"blind", "open"}
    assert [one["test"] for one in page["differ"]] == [TESTS[3], BROKEN]


def test_a_forked_authors_run_is_shown_and_does_not_count(
    client: TestClient, sights: Sights
) -> None:
    page = as_json(client, f"/cell/{sights.cells[0].hex()}")
    void = [run for run in page["runs"] if not run["counts"]]
    assert [run["why_not"] for run in void] == ["its author signed two histories here"]
    assert page["shown"]["kind"] == "pass"


def test_the_readers_own_policy_changes_the_verdict(client: TestClient, sights: Sights) -> None:
    address = f"/cell/{sights.places['outvoted'].hex()}"
    strict = as_json(client, f"{address}?policy=vouched&k=2")
    assert strict["shown"]["kind"] == "pending"
    assert {run["why_not"] for run in strict["runs"]} == {"your policy leaves its key out"}
    only = as_json(client, f"{address}?policy={peer_id(sights.ada)}&k=1")
    assert only["agreeing"] == 1
    wrong = client.get(f"{address}?policy=everyone")
    assert wrong.status_code == 404
    assert "looks like 12D3KooW" in wrong.text


def test_a_tests_past_says_since_when_it_is_broken_or_that_it_is_flaky(
    client: TestClient, sights: Sights
) -> None:
    base = f"/project/{sights.project.hex()}/test"
    broken = as_json(client, f"{base}?id={quote(BROKEN)}")
    assert broken["conclusion"].startswith("Broken since aurora 1.7 (")
    assert "it did not fail in aurora 1.6" in broken["conclusion"]
    assert broken["message"] == "AssertionError: 302 != 200"
    flaky = as_json(client, f"{base}?id={quote(FLAKY)}")
    assert flaky["conclusion"].startswith("Flaky: in 2 jobs of the latest 11")
    good = as_json(client, f"{base}?id={quote(TESTS[0])}")
    assert good["conclusion"].startswith("It does not fail in any")


def test_conclusions_from_a_past() -> None:
    def past(*said: str) -> tuple[str, str]:
        return conclude(
            [
                Column(job="", title=f"job {n}", commit="", announced=n, word=word, kind="")
                for n, word in enumerate(said)
            ]
        )

    assert past(PASSES, FAILS, UNKNOWN, FAILS)[1] == (
        "Broken since job 1; it did not fail in job 0."
    )
    assert past(FAILS, PASSES)[1] == "It last failed in job 0, and does not fail since."
    assert past(FAILS, FAILS)[1] == "Broken: it fails in all of the latest 2 jobs."
    assert past(PASSES, MIXED, PASSES)[0] == MIXED
    assert past(UNKNOWN)[1].startswith("Nothing")
    assert past()[1].startswith("Nothing")


def test_a_volunteers_record_compares_each_run_with_the_others(
    client: TestClient, sights: Sights
) -> None:
    page = as_json(client, f"/volunteer/{peer_id(sights.ada)}")
    assert page["key"]["operator"] == "Ada's cellar"
    assert page["tally"]["agreed"] > 50
    assert page["tally"]["broken"] == 1
    assert page["tally"]["alone"] == 2
    second_liar = peer_id(Author(7).public)
    assert as_json(client, f"/volunteer/{second_liar}")["tally"] == {"dissented": 1, "open": 1}


def test_coverage_names_the_cells_that_no_offer_fits(home: WebHome, sights: Sights) -> None:
    project = sights.project.hex()
    client = browser(home)
    without = as_json(client, f"/project/{project}/coverage")
    assert not without["node"]
    assert {one["why"] for one in without["nobody"]} == {"not run yet"}
    offer = status.OfferLine(
        project=project,
        peer=peer_id(sights.ada),
        interpreters=("cpython 3.12.3",),
        services=("postgresql 16.3",),
        system="linux",
        machine="x86_64",
        slots=2,
    )
    tell(home, projects=(status.ProjectLine(project=project, name="aurora", trusted=True),),
         offers=(offer,))  # fmt: skip
    try:
        known = as_json(client, f"/project/{project}/coverage")
        why = {one["label"]: one["why"] for one in known["nobody"]}
        assert why["3.13 postgresql django=5.2"] == "nobody offers Python 3.13"
        assert why["3.12 sqlite django=5.2"] == "nobody offers sqlite"
        assert len(known["offers"]) == 1
        assert as_json(client, "/")["node"]["peers"] == 0
    finally:
        home.home.status.unlink()
    assert able("3.12", ["postgresql>=16"], offer)
    assert not able("3.13t", [], offer)
    assert not able("what is this", [], offer)


def tell(home: WebHome, **facts: object) -> None:
    import time

    now = time.time()
    said = status.NodeStatus(pid=1, started=now, updated=now, peer="p", **facts)  # type: ignore[arg-type]
    status.write(home.home.status, said)


def test_search_finds_failing_tests_jobs_projects_cells_and_keys(
    client: TestClient, sights: Sights
) -> None:
    found = as_json(client, "/search?q=login+302")
    assert {one["test"] for one in found["failures"]} == {BROKEN}
    # One line a job, however many runs of it failed so.
    jobs = [one["title"] for one in found["failures"]]
    assert len(set(jobs)) == len(jobs) > 2
    assert max(one["runs"] for one in found["failures"]) > 5
    assert as_json(client, f"/search?q={sights.job.hex()[:12]}")["jobs"][0]["title"] == "aurora 2.0"
    assert [h["what"] for h in as_json(client, "/search?q=lighthouse")["hits"]] == ["project"]
    cell = sights.cells[2].hex()
    assert as_json(client, f"/search?q={cell[:16]}")["hits"][0]["address"] == f"/cell/{cell}"
    key = peer_id(sights.ada)
    assert as_json(client, f"/search?q={key}")["hits"][0]["address"] == f"/volunteer/{key}"
    assert "Nothing here has all these words" in client.get('/search?q="*)(:^').text


def test_metrics_are_what_prometheus_reads(client: TestClient, sights: Sights) -> None:
    answer = client.get("/metrics")
    found = {one.name: one for one in text_string_to_metric_families(answer.text)}
    assert found["ponyswarm_node_up"].samples[0].value == 0
    cells = {
        (s.labels["name"], s.labels["verdict"]): s.value for s in found["ponyswarm_cells"].samples
    }
    assert cells["aurora", "disputed"] == 1
    assert cells["lighthouse", "pending"] == 1
    assert found["ponyswarm_ledger_entries"].samples[0].value > 200


def test_a_badge_may_be_shown_by_other_pages(client: TestClient) -> None:
    answer = client.get("/badge/lighthouse.svg")
    assert answer.headers["content-type"] == "image/svg+xml"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert "0 of 2 confirmed" in answer.text
    assert "14 of 14" not in client.get("/badge/aurora.svg").text
    first = client.get("/project/" + client.get("/index.json").json()["projects"][0]["id"])
    commit = re.findall(r'class="id">([0-9a-f]{10})<', first.text)[-1]
    assert "2 of 2 agree" in client.get(f"/badge/aurora/{commit}.svg").text
    assert client.get("/badge/nothing.svg").status_code == 404


# --- what cannot be shown -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("/job/abcd", "there is no job abcd"),
        (f"/project/{'0' * 64}", "ponyswarm follow add"),
        ("/project/zzz", "64 hexadecimal digits"),
        (f"/run/{'1' * 64}", "not in this ledger"),
        ("/volunteer/nobody", "looks like 12D3KooW"),
        ("/cell/12", "shows ids"),
        ("/what", "There is no page"),
    ],
)
def test_what_is_not_here_gets_a_page_that_says_what_to_do(
    address: str, remedy: str, client: TestClient
) -> None:
    answer = client.get(address)
    assert answer.status_code == 404
    assert remedy in answer.text.replace("&#39;", "'")
    as_data = client.get(f"{address}.json")
    assert as_data.status_code == 404


def test_a_home_without_a_ledger_says_how_to_get_one(tmp_path: Path) -> None:
    site = site_module.Site(
        ledger=tmp_path / "none.db", blobs=tmp_path, status_file=tmp_path / "status.json"
    )
    client = TestClient(application(site), base_url="http://localhost", backend="trio")
    front = client.get("/")
    assert front.status_code == 200
    assert "ponyswarm follow add PROJECT_ID" in front.text
    assert client.get("/index.json").status_code == 200
    assert client.get("/volunteers").status_code == 404
    assert "ponyswarm_node_up 0.0" in client.get("/metrics").text


def test_a_question_that_takes_too_long_is_ended(
    home: WebHome, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Reader(home.home.ledger) as reader:
        reader.limit(0.05)
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            reader.select(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
                " SELECT count(*) FROM n"
            )

    def slow(*_: object) -> None:
        raise sqlite3.OperationalError("interrupted")

    monkeypatch.setattr("ponyswarm.web.pages.volunteer.volunteers", slow)
    answer = client.get("/volunteers")
    assert answer.status_code == 503
    assert "ponyswarm sql" in answer.text


def test_every_question_goes_through_an_index(home: WebHome, sights: Sights) -> None:
    """Tables that grow with the entries are searched, never read from end to end."""
    asked: list[str] = []
    site = home.site()
    with Reader(home.home.ledger) as reader:
        reader._db.set_trace_callback(asked.append)
        path = {"id": sights.project.hex()}
        for page, (_, ask) in PAGES.items():
            address, _, query = addresses(sights)[page].partition("?")
            path["id"] = address.split("/")[2] if address.count("/") > 1 else ""
            scope = {"type": "http", "query_string": query.encode(), "path_params": dict(path),
                     "headers": []}  # fmt: skip
            from starlette.requests import Request

            ask(site, reader, Request(scope))
        reader._db.set_trace_callback(None)
        look(reader, Look())
        bad = {}
        for question in {one for one in asked if one.startswith(("SELECT", "WITH"))}:
            plan = [row[3] for row in reader.select(f"EXPLAIN QUERY PLAN {question}")]
            scans = [
                line
                for line in plan
                if re.match(r"SCAN (entry|run|target|outcome|failure|cell)\b", line)
            ]
            if scans:
                bad[question] = scans
    assert len(asked) > 30
    assert bad == {}


# --- strangers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WebHome, Sights]]:
    home, sights = furnish_hostile(tmp_path_factory.mktemp("hostile") / "home")
    yield home, sights
    home.close()


@pytest.mark.parametrize("page", PAGES)
def test_what_strangers_wrote_is_only_text(page: str, hostile: tuple[WebHome, Sights]) -> None:
    home, sights = hostile
    address = addresses(sights)[page].replace(quote(BROKEN), quote(f"tests/{SCRIPT}{BIDI}"))
    answer = browser(home).get(address.replace("q=login", f"q={quote(SCRIPT)}"))
    assert answer.status_code == 200
    seen = _Strict()
    seen.feed(answer.text)
    assert seen.faults == []
    assert "<script>window" not in answer.text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f]", answer.text)
    assert len(answer.content) < 300_000


def test_an_output_of_ten_megabytes_is_shown_by_its_end_and_given_whole_as_text(
    hostile: tuple[WebHome, Sights],
) -> None:
    home, sights = hostile
    client = browser(home)
    page = as_json(client, f"/run/{sights.failing_run.hex()}")
    assert page["log_cut"]
    assert page["log_bytes"] > 10_000_000
    assert len(page["log"]) <= 60_000
    whole = client.get(f"/run/{sights.failing_run.hex()}/log.txt")
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert len(whole.text) > 5_000_000
    assert "\x1b" not in whole.text
    assert whole.text.splitlines()[0] == "red  \ufffd" + SCRIPT + harmless(BIDI) + "</pre>"


def test_terminal_sequences_are_taken_out_whole() -> None:
    assert uncoloured("\x1b[1;31mFAILED\x1b[0m a\r\nb\x1b(B") == "FAILED a\nb"
    assert uncoloured("\x1b]8;;http://x\x1b\\link\x1b]8;;\x07") == "link"
    assert uncoloured("\x1b") == "\ufffd"
    assert harmless("a\tb\nc\u2028d\x85") == "a\tb\nc\ufffdd\ufffd"


# --- who may ask --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost:7640", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]:80", "::1"),
        ("LOCALHOST.", "localhost"),
        ("evil.example:7640", "evil.example"),
        ("localhost@evil.example", "evil.example"),
        ("[", ""),
        ("", ""),
    ],
)
def test_the_name_in_a_host_header(header: str, name: str) -> None:
    assert host_name(header) == name


def test_only_names_that_are_ours_are_answered(home: WebHome) -> None:
    client = browser(home)
    for host in ("evil.example", "localhost.evil.example", "169.254.1.1:7640", ""):
        answer = client.get("/", headers={"Host": host})
        assert answer.status_code == 421
        assert "--name HOST" in answer.text
    assert client.get("/", headers={"Host": "127.0.0.1:7640"}).status_code == 200
    named = TestClient(
        application(home.site(), names=["Box.local"]), base_url="http://box.local", backend="trio"
    )
    assert named.get("/").status_code == 200


def test_the_site_is_for_reading_only(client: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = client.request(method, "/")
        assert answer.status_code == 405
        assert answer.headers["content-security-policy"]
    assert client.head("/").status_code == 200


# --- news ---------------------------------------------------------------------------------------


def test_a_look_tells_which_jobs_changed_and_the_matrix_is_worked_out_again(
    tmp_path: Path,
) -> None:
    home, sights = furnish(tmp_path / "home")
    site = home.site()
    volunteer = Author(11)
    with Reader(home.home.ledger) as reader:
        before = look(reader, Look())
        assert not before.news.concerns(sights.job)
        job = reader.find_job(None, sights.job.hex(), None)
        first = site.matrix(reader, job, site_policy(job))
        assert site.matrix(reader, job, site_policy(job)) is first
        assert not look(reader, before).news.jobs
        home.run(volunteer, sights.project, sights.job, sights.places["pending"])
        after = look(reader, before)
        assert after.news.jobs == {sights.job}
        assert after.news.concerns(sights.job)
        assert after.news.concerns(sights.project)
        assert after.news.concerns(None)
        assert not after.news.concerns(sights.small_project)
        site.tail._take(after)
        again = site.matrix(reader, job, site_policy(job))
        assert again is not first
        assert sum(cell.runs for cell in again) == sum(cell.runs for cell in first) + 1
        assert look(reader, after).news == look(reader, after).news
    home.close()


def test_an_open_front_page_hears_of_the_node_and_of_the_first_entries(tmp_path: Path) -> None:
    home = WebHome(tmp_path / "home")
    site = home.site()

    async def listen() -> list[News]:
        heard = []
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await nursery.start(site.tail.run)
                async with site.tail.changes() as changes:
                    tell(home)
                    heard.append(await changes.receive())
                    home.found(Author(1), "first")
                    heard.append(await changes.receive())
                nursery.cancel_scope.cancel()
        return heard

    node, entry = trio.run(listen)
    home.close()
    assert node.node
    assert node.concerns(None)
    assert not node.concerns(bytes(32))
    assert len(entry.projects) == 1


def site_policy(job: object) -> object:
    from ponyswarm.policy import ReaderPolicy

    return ReaderPolicy(agreeing=job.redundancy)  # type: ignore[attr-defined]
