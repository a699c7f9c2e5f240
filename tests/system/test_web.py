"""The web pages in a real browser, over real servers, while a real node writes the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from playwright.sync_api import Request as PageRequest
from sources import archive
from swarm_lab import announce, cells, found_project, runs, until
from web_home import BROKEN, FLAKY, WebHome, furnish, furnish_hostile

from ponyswarm.demo import Member, Swarm, open_swarm
from ponyswarm.exec.interpreters import discover
from ponyswarm.keys import peer_id
from ponyswarm.ledger.queries import Reader
from ponyswarm.policy import ReaderPolicy
from ponyswarm.volunteer import minor_version

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# As root it has no sandbox of its own; and it must ask nobody but us.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
MODES = [(size, scheme) for size in ("phone", "desktop") for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def view(chromium: Browser, size: str, scheme: str, **more: Any) -> Iterator[BrowserContext]:
    context = chromium.new_context(
        viewport=PHONE if size == "phone" else DESKTOP, color_scheme=scheme, **more
    )
    context.set_default_timeout(20_000)
    yield context
    context.close()


@dataclass
class Watched:
    """A page, and what went wrong in it."""

    page: Page
    site: str
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        page, host = self.page, urlsplit(self.site).netloc

        def asked(url: str) -> None:
            if urlsplit(url).netloc != host:
                self.faults.append(f"asked the outside: {url}")

        page.on("console", lambda said: self.faults.append(f"console {said.type}: {said.text}"))
        page.on("pageerror", lambda fault: self.faults.append(f"error: {fault}"))
        page.on("dialog", lambda shown: self.faults.append(f"dialog: {shown.message}"))
        page.on("request", lambda request: asked(request.url))
        page.on("requestfailed", self._failed)
        page.on(
            "response",
            lambda answer: (
                None if answer.status < 400 else self.faults.append(f"{answer.status} {answer.url}")
            ),
        )

    def _failed(self, request: PageRequest) -> None:
        # Whoever leaves a page ends what it was still asking for.
        own = request.resource_type in ("fetch", "eventsource")
        left = own and request.failure == "net::ERR_ABORTED"
        if not left:
            self.faults.append(f"failed: {request.url} {request.failure}")

    def visit(self, address: str) -> None:
        """Go there; its looks must be whole, and whole for screen readers too."""
        self.page.goto(self.site + address)
        if self.page.locator("body[data-topic]").count():
            self.page.wait_for_selector("#live[data-state=on]")
        found = Axe().run(self.page).response["violations"]
        self.faults += [
            f"{address}: {one['id']} ({one['impact']}) {one['nodes'][0]['html'][:200]}"
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        wide = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        if wide > 0:
            self.faults.append(f"{address}: {wide} pixels wider than the screen")


@contextlib.contextmanager
def watched(context: BrowserContext, site: str) -> Iterator[Watched]:
    page = context.new_page()
    found = Watched(page, site)
    yield found
    faults = list(found.faults)  # What ends with the page is no fault.
    page.close()
    assert faults == []


# --- a server over a furnished home ---------------------------------------------------------------


@contextlib.contextmanager
def served(folder: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``ponyswarm web`` over a home: (where it is, the process)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ponyswarm", "--home", str(folder), "web", "--port", "0",
         *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "PonySwarm's pages are at http://localhost:" in line
        site = line.split(" at ")[1].split()[0].rstrip("/")
        until("it answers", lambda: answers(site), 20)
        yield site, process
    finally:
        process.kill()
        process.communicate()


def answers(site: str) -> bool:
    try:
        return get(site, "/static/icon.svg")[0] == 200
    except OSError:
        return False


def get(site: str, address: str, **headers: str) -> tuple[int, bytes]:
    request = Request(site + address, headers=headers)
    try:
        with urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except OSError as fault:
        if getattr(fault, "code", None) is None:
            raise
        return fault.code, fault.read()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A site with every kind of news; addresses by what they show."""
    home, sights = furnish(tmp_path_factory.mktemp("web") / "home")
    project = sights.project.hex()
    found = {
        "front": "/",
        "project": f"/project/{project}",
        "broken test": f"/project/{project}/test?id={quote(BROKEN)}",
        "flaky test": f"/project/{project}/test?id={quote(FLAKY)}",
        "coverage": f"/project/{project}/coverage",
        "job": f"/job/{sights.job.hex()}",
        "volunteers": "/volunteers",
        "volunteer": f"/volunteer/{peer_id(sights.ada)}",
        "run": f"/run/{sights.failing_run.hex()}",
        "search": "/search?q=login",
        "verify": "/verify",
    } | {f"{name} cell": f"/cell/{cell.hex()}" for name, cell in sights.places.items()}
    with served(home.folder) as (site, _):
        yield site, found
    home.close()


# --- a swarm that works while the pages are looked at --------------------------------------

SLOWLY = """\
import time
import unittest


class Test(unittest.TestCase):
    def test_good(self):
        time.sleep(4)

    def test_bad(self):
        self.assertEqual("<script>alert(1)</script>", "\\x1b[31m")
"""


@dataclass
class Live:
    """A real swarm: a maintainer whose node shows the pages, and a volunteer."""

    swarm: Swarm
    site: str
    project: str
    job: str
    python: str
    spec: Path
    source: Path

    @property
    def maintainer(self) -> Member:
        return self.swarm.members[0]


def matrix_spec(folder: Path, python: str, cells: int) -> Path:
    path = folder / f"spec-{cells}.toml"
    values = "".join(f'"{number}" = []\n' for number in range(cells))
    path.write_text(
        f'[tool.ponyswarm]\npython = ["{python}"]\nrunner = "unittest"\nredundancy = 1\n'
        f"[tool.ponyswarm.install]\nproject = false\n[tool.ponyswarm.factors.part]\n{values}",
        "utf-8",
    )
    return path


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    python = next(one for one in discover() if one.implementation == "cpython")
    folder = tmp_path_factory.mktemp("live")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with open_swarm(print) as swarm:
        maintainer = swarm.member("maintainer", [python])
        volunteer = swarm.member("volunteer", [python])
        project = found_project(swarm, maintainer)
        swarm.command(volunteer, "trust", "add", project)
        ini = maintainer.home.ini
        ini.write_text(ini.read_text("utf-8").replace("\nport =\n", f"\nport = {port}\n"), "utf-8")
        swarm.start(maintainer, [], "--read-only")
        swarm.start(volunteer, [swarm.address(maintainer)])
        swarm.wait_for(maintainer, lambda now: any(p.volunteers for p in now.projects))
        source = archive(folder, "slowly", {"test_it.py": SLOWLY})
        # Enough cells to last while the pages are looked at.
        version = minor_version(python)
        spec = matrix_spec(folder, version, 40)
        job = announce(swarm, maintainer, source, spec)
        until("the first cell was run", lambda: runs(maintainer, job) > 0, 60)
        yield Live(swarm, f"http://localhost:{port}", project, job, version, spec, source)


def addresses(live: Live) -> list[str]:
    """An address of each kind of page, about what has been run by now."""
    done = next(cell for cell in cells(live.maintainer, live.job) if cell.results)
    (volunteer,) = {row.author for row in done.results}
    test = quote("test_it.Test.test_bad")
    return [
        "/",
        f"/project/{live.project}",
        f"/project/{live.project}/test?id={test}",
        f"/project/{live.project}/coverage",
        f"/job/{live.job}",
        f"/cell/{done.id.hex()}",
        f"/run/{done.results[0].entry.hex()}",
        "/volunteers",
        f"/volunteer/{peer_id(volunteer)}",
        "/search?q=test_bad",
        "/verify",
    ]


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("size", "scheme"), MODES)
def test_every_page_is_whole_while_a_job_fills_in(
    size: str, scheme: str, live: Live, chromium: Browser
) -> None:
    if runs(live.maintainer, live.job) > 30:
        # On a slow day the job is over before all has been looked at: one more of its kind.
        live.job = announce(live.swarm, live.maintainer, live.source, live.spec)
        until("its first cell was run", lambda: runs(live.maintainer, live.job) > 0, 60)
    with view(chromium, size, scheme) as context, watched(context, live.site) as seen:
        for address in addresses(live):
            seen.visit(address)


@pytest.mark.timeout(200)
def test_a_new_job_shows_by_itself_and_its_cells_fill_in(live: Live, chromium: Browser) -> None:
    with view(chromium, "desktop", "light") as context, watched(context, live.site) as seen:
        page = seen.page
        seen.visit("/")
        page.evaluate("window.never_reloaded = true")
        # The long job has been looked at enough.
        live.swarm.command(live.maintainer, "withdraw", live.job)
        short = matrix_spec(live.spec.parent, live.python, 3)
        job = announce(live.swarm, live.maintainer, live.source, short)
        line = page.locator(f"#j-{job[:16]}")
        expect(line).to_be_visible()
        assert page.evaluate("window.never_reloaded")
        line.locator(".name a").click()
        expect(page.locator(".matrix .tile.pending")).not_to_have_count(0)
        page.evaluate("window.never_reloaded = true")
        last = page.locator(".matrix td[id]").last
        last.locator("a").focus()
        expect(page.locator(".matrix .tile.fail")).to_have_count(3, timeout=60_000)
        assert page.evaluate("window.never_reloaded")
        assert page.locator("td .fresh, td.fresh").count() > 0
        # Whoever is on a cell by keyboard stays there while it fills in.
        assert page.evaluate("document.activeElement.closest('td').id") == last.get_attribute("id")
        expect(page).to_have_title(re.compile("3 fail"))
        expect(page.locator("#failures")).to_contain_text("test_bad")


# --- every kind of news ------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "scheme"), [("phone", "dark"), ("desktop", "light")])
def test_every_kind_of_news_is_whole(
    size: str, scheme: str, furnished: tuple[str, dict[str, str]], chromium: Browser
) -> None:
    site, found = furnished
    with view(chromium, size, scheme) as context, watched(context, site) as seen:
        for name in ("job", "broken test", "flaky test", "coverage", "project", "volunteer"):
            seen.visit(found[name])
        for name in ("outvoted cell", "disputed cell", "broken cell", "pending cell"):
            seen.visit(found[name])


def test_the_matrix_can_be_walked_by_keyboard(
    furnished: tuple[str, dict[str, str]], chromium: Browser
) -> None:
    site, found = furnished
    with view(chromium, "desktop", "dark") as context, watched(context, site) as seen:
        page = seen.page
        seen.visit(found["job"])
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        for _ in range(12):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.matches('.tile')"):
                break
        label = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert label.startswith("3.10 sqlite django=4.2: confirmed pass")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_have_text("3.10 sqlite django=4.2")


def test_signs_and_words_tell_verdicts_apart_without_colour(
    furnished: tuple[str, dict[str, str]], chromium: Browser
) -> None:
    site, found = furnished
    with (
        view(chromium, "desktop", "light", forced_colors="active") as context,
        watched(context, site) as seen,
    ):
        seen.page.goto(site + found["job"])
        told = {
            (one.locator("use").get_attribute("href"), one.locator("span").inner_text())
            for one in seen.page.locator(".matrix .tile").all()
        }
    assert {word for _, word in told} == {
        "pass", "fail", "disputed", "unconfirmed", "broken", "pending",
    }  # fmt: skip
    assert len({sign for sign, _ in told}) == len(told)


def test_nothing_moves_for_those_who_asked_for_rest(
    furnished: tuple[str, dict[str, str]], chromium: Browser
) -> None:
    site, found = furnished
    for motion, name in (("reduce", "none"), ("no-preference", "fresh")):
        with (
            view(chromium, "phone", "light", reduced_motion=motion) as context,
            watched(context, site) as seen,
        ):
            seen.page.goto(site + found["job"])
            moving = seen.page.evaluate(
                "(() => { const one = document.querySelector('td[id]');"
                " one.classList.add('fresh'); return getComputedStyle(one).animationName; })()"
            )
            assert moving == name


def test_on_paper_and_without_javascript_all_is_there(
    furnished: tuple[str, dict[str, str]], chromium: Browser
) -> None:
    site, found = furnished
    with view(chromium, "desktop", "light", java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(site + found["job"])
        expect(page.locator(".matrix .tile")).to_have_count(14)
        page.emulate_media(media="print")
        expect(page.locator("nav")).to_be_hidden()
        expect(page.locator(".matrix .tile").last).to_be_visible()


def test_hostile_text_does_nothing_in_a_browser(tmp_path: Path, chromium: Browser) -> None:
    home, sights = furnish_hostile(tmp_path / "home")
    home.close()
    pages = [
        "/",
        f"/project/{sights.project.hex()}",
        f"/job/{sights.job.hex()}",
        f"/cell/{sights.cells[0].hex()}",
        f"/run/{sights.failing_run.hex()}",
        "/search?q=" + quote("<script>alert(1)</script>"),
    ]
    with (
        served(home.folder) as (site, _),
        view(chromium, "phone", "dark") as context,
        watched(context, site) as seen,
    ):
        for address in pages:
            seen.visit(address)
            assert seen.page.evaluate("window.hacked") is None
            assert seen.page.locator("main script, main img").count() == 0


# --- the command ---------------------------------------------------------------------------------


def test_ctrl_c_ends_it_at_once_even_with_an_open_page(tmp_path: Path) -> None:
    WebHome(tmp_path).close()
    with served(tmp_path) as (site, process):
        with urlopen(f"{site}/events", timeout=10) as stream:
            assert stream.readline() == b"retry: 3000\n"
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
            assert time.monotonic() - began < 3
        assert process.stdout is not None
        assert "Traceback" not in process.stdout.read()


def test_a_port_that_is_taken_and_an_address_that_is_not_ours_say_what_to_do(
    tmp_path: Path,
) -> None:
    def refused(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ponyswarm", "--home", str(tmp_path), "web", *arguments],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "choose another one with --port" in refused("--port", port)
    assert "an address of this machine" in refused("--host", "203.0.113.1", "--port", "0")
    assert "from 1 to 65535" in refused("--port", "70000")


def test_only_a_name_that_is_ours_is_answered_by_the_real_server(
    furnished: tuple[str, dict[str, str]],
) -> None:
    site, _ = furnished
    assert get(site, "/", Host="rebound.example")[0] == 421
    assert get(site, "/", Host="127.0.0.1")[0] == 200
    status, body = get(site, "/", **{"Accept-Encoding": "gzip"})
    assert status == 200
    assert body[:2] == b"\x1f\x8b"


def test_datasette_opens_the_same_ledger(tmp_path: Path) -> None:
    home, _ = furnish(tmp_path / "home")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "datasette", str(home.home.ledger),
             "--get", "/ledger/results.json?_shape=array&_size=5"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        home.close()
    rows = json.loads(done.stdout)
    assert len(rows) == 5
    assert {"project", "job", "python", "volunteer", "state"} <= rows[0].keys()


async def datasette_says(ledger: Path, paths: list[str]) -> dict[str, object]:
    """What Datasette, as installed, says to each path."""
    from datasette.app import Datasette

    datasette = Datasette([str(ledger)])
    found = {}
    for path in paths:
        reply = await datasette.client.get(path)
        assert reply.status_code == 200, (path, reply.text[:500])
        found[path] = reply.json()
    return found


def test_datasette_shows_every_view_and_searches_failures_by_their_words(tmp_path: Path) -> None:
    home, _ = furnish(tmp_path / "home")
    try:
        with Reader(home.home.ledger) as reader:
            run = next(
                cell.results[0]
                for job in reader.jobs()
                for cell in reader.cells(job, ReaderPolicy())
                if cell.results and cell.results[0].result.bad
            )
        home.store.notes.explain(
            run.entry, [(run.result.bad[0], "RuntimeError: the zebra did not answer")]
        )
        with contextlib.closing(sqlite3.connect(home.home.ledger)) as db:
            views = [row[0] for row in db.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'view'"
            )]  # fmt: skip
        assert len(views) >= 9
        pages = {view: f"/ledger/{view}.json?_shape=array&_size=3" for view in views}
        search = "/ledger/failure.json?_shape=array&_search=zebra"
        nothing = "/ledger/failure.json?_shape=array&_search=crocodile"
        sql = "/ledger.json?_shape=array&sql=" + quote(
            "SELECT test, message, volunteer FROM failures WHERE failure IN "
            "(SELECT rowid FROM failure_text WHERE failure_text MATCH 'zebra AND answer')"
        )
        # In a thread: the browser of the tests before keeps an event loop in this one.
        with ThreadPoolExecutor(1) as thread:
            asked = datasette_says(home.home.ledger, [*pages.values(), search, nothing, sql])
            found = thread.submit(asyncio.run, asked).result()
    finally:
        home.close()
    # Nobody forked there without being told of; every other view has rows.
    assert {view for view in views if not found[pages[view]]} <= {"forks"}
    assert [row["test"] for row in found[search]] == [run.result.bad[0]]
    assert found[nothing] == []
    assert "zebra" in found[sql][0]["message"]
    assert found[sql][0]["volunteer"].startswith("12D3")
