"""A home with a ledger of every kind of news, for tests and pictures of the web pages.

Every entry is signed and appended as a node does it, and files lie where a node keeps
them; only the runs are invented.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from authors import Author, announce, cell_ids, environment, fork_of, project_record, result

from ponyswarm.codec import TestRecord, commitment, encode_tests, outcome_digest
from ponyswarm.home import Home
from ponyswarm.ledger.chain import Accept
from ponyswarm.ledger.store import Store
from ponyswarm.matrix import cells as matrix
from ponyswarm.messages import Commit, Entry, Payload, Result, Spec, Status, Vouch, Withdraw
from ponyswarm.p2p.blobs import BlobStore
from ponyswarm.web.site import Site

HOUR = 3_600_000

SPEC = Spec(
    python=("3.10", "3.11", "3.12", "3.13"),
    services=("sqlite", "postgresql"),
    factors={"django": {"4.2": ("django~=4.2.0",), "5.2": ("django~=5.2.0",)}},
    exclude=({"python": "3.13", "django": "4.2"},),
    command=("pytest", "tests"),
    redundancy=2,
    cross_check="blind",
)
VERSIONS = {"3.10": "3.10.14", "3.11": "3.11.9", "3.12": "3.12.3", "3.13": "3.13.0"}
NONCE = bytes(16)
BROKEN = "tests/test_views.py::test_login_redirects"
FLAKY = "tests/test_cache.py::test_expires_in_time"
TESTS = (*(f"tests/test_models.py::test_field[{n}]" for n in range(40)), BROKEN, FLAKY)


@dataclass
class WebHome:
    """A home that is written to as time goes on. ``now`` is the time of the last entry."""

    folder: Path
    now: int = 0

    def __post_init__(self) -> None:
        self.home = Home.under(self.folder)
        self.home.create()
        self.store = Store(self.home.ledger)
        self.blobs = BlobStore(self.home.blobs, budget=1 << 30, floor=0)
        self.now = self.now or int(time.time() * 1000) - 100 * HOUR

    def close(self) -> None:
        self.store.close()

    def site(self) -> Site:
        home = self.home
        return Site(ledger=home.ledger, blobs=home.blobs, status_file=home.status)

    def say(self, author: Author, payload: Payload, project: bytes) -> Entry:
        self.now += 1000
        return self._put(author.sign(payload, project, self.now))

    def found(self, author: Author, name: str, **more: Any) -> bytes:
        """A new project's id."""
        record = project_record(author, name=name, **more)
        return self._put(author.sign(record, time=self.now)).id

    def _put(self, entry: Entry) -> Entry:
        judged = self.store.append(entry, self.now)
        assert isinstance(judged, Accept), judged
        return entry

    def job(self, author: Author, project: bytes, **more: Any) -> tuple[bytes, list[bytes]]:
        """A job's id and those of its cells."""
        more.setdefault("spec", SPEC)
        said = announce(expires=self.now + 2000 * HOUR, **more)
        entry = self.say(author, said, project)
        return entry.id, cell_ids(entry, said)

    def commit(
        self, author: Author, project: bytes, job: bytes, cell: bytes, bad: Sequence[str]
    ) -> Entry:
        """What a volunteer of a blind job says before it tells that these tests fail."""
        tests = [(id_, Status.FAILED if id_ in bad else Status.PASSED) for id_ in TESTS]
        bound = commitment(NONCE, outcome_digest("completed", None, tests), author.public)
        return self.say(author, Commit(job=job, cell=cell, commitment=bound), project)

    def run(
        self,
        author: Author,
        project: bytes,
        job: bytes,
        cell: bytes,
        *,
        bad: Sequence[str] = (),
        tests: Sequence[str] = TESTS,
        message: str = "AssertionError: 302 != 200",
        output: bytes = b"",
        **more: Any,
    ) -> Entry:
        """A completed run in which the tests ``bad`` fail, with its files."""
        rows = [
            TestRecord(id_, Status.FAILED, 0.01, message)
            if id_ in bad
            else TestRecord(id_, Status.PASSED, 0.01, "")
            for id_ in tests
        ]
        output = output or "".join(f"{row.id} {row.status}\n" for row in rows).encode()
        more.setdefault("environment", environment())
        more.setdefault("seconds", 10.0 + len(bad) + author.number)
        said = Result(
            job=job,
            cell=cell,
            state="completed",
            counts={Status.PASSED: len(tests) - len(bad), Status.FAILED: len(bad)},
            digest=outcome_digest("completed", None, [(row.id, row.status) for row in rows]),
            bad=tuple(bad)[:50],
            tests=self.blobs.put(encode_tests(rows)),
            log=self.blobs.put(zlib.compress(output, 1)),
            started=self.now,
            **more,
        )
        entry = self.say(author, said, project)
        if bad:
            self.store.notes.explain(entry.id, [(id_, message) for id_ in bad])
        return entry


@dataclass
class Sights:
    """What there is to see in a furnished home: ids by what they show."""

    project: bytes
    job: bytes
    cells: list[bytes]
    ada: bytes
    small_project: bytes
    failing_run: bytes = b""
    places: dict[str, bytes] = field(default_factory=dict)


def furnish(folder: Path) -> tuple[WebHome, Sights]:
    """Two projects. In the newest job of the first: passes, failures, an outvoted liar, a
    dispute, a broken run, a lone one, cells that wait. One test broke a while ago, one is
    flaky. One author forked its feed."""
    home = WebHome(folder)
    maintainer, other = Author(1), Author(20)
    ada, grace, alan, barbara, liar, second_liar = (Author(number) for number in range(2, 8))
    project = home.found(maintainer, "aurora", url="https://example.org/aurora")
    lighthouse = home.found(other, "lighthouse")
    home.say(maintainer, Vouch(key=ada.public, operator="Ada's cellar"), project)
    home.say(maintainer, Vouch(key=grace.public, operator="Grace, Uni Rostock"), project)
    sights = Sights(project, b"", [], ada.public, lighthouse)
    for number in range(11):
        home.now += 6 * HOUR
        commit = f"{0x3FA1B2C40000 + number * 7919:040x}"[::-1]
        job, cells = home.job(
            maintainer, project, title=f"aurora {1 + number / 10:.1f}", commit=commit
        )
        for place, (cell, point) in enumerate(zip(cells, matrix(SPEC), strict=True)):
            on_postgresql = "postgresql" in point.services
            where = environment(
                VERSIONS[point.python],
                services={"postgresql": "16.3"} if on_postgresql else {"sqlite": "3.45.1"},
            )
            runners = [ada, grace] if place % 3 else [alan, barbara]
            if number == 10:
                if place in (9, 12, 13):
                    continue  # Nobody has run these yet.
                if place == 7:
                    detail = "no wheel of psycopg 3.2 for cpython 3.11"
                    broken = result(
                        job, cell, state="broken", reason="install", detail=detail, passed=0
                    )
                    home.say(ada, broken, project)
                    sights.places["broken"] = cell
                    continue
                if place in (5, 8):
                    runners = runners[:1]
            bads = {}
            for one in runners:
                bad = [BROKEN] if number >= 7 and on_postgresql else []
                if number in (3, 8) and place == 3 and one is barbara:
                    bad = [*bad, FLAKY]
                bads[one.public] = bad
            commits = [home.commit(one, project, job, cell, bads[one.public]).id for one in runners]
            for one in runners:
                bad = bads[one.public]
                run = home.run(
                    one, project, job, cell, bad=bad, environment=where, nonce=NONCE,
                    seen=tuple(commits),
                )  # fmt: skip
                if bad:
                    sights.failing_run = run.id
            if number == 10 and place in (3, 8):
                home.run(
                    second_liar, project, job, cell, bad=[TESTS[3]], environment=where,
                    message="a lie",
                )  # fmt: skip
                sights.places["outvoted" if place == 3 else "disputed"] = cell
        if number == 5:
            home.say(maintainer, Withdraw(job=job, reason="wrong tag"), project)
        sights.job, sights.cells = job, cells
    sights.places["pending"], sights.places["lone"] = cells[9], cells[5]
    twin = liar.branch()
    first = home.say(liar, result(job, cells[0], failed=1), project)
    forged = twin.sign(result(job, cells[0], failed=2), project, home.now + 5000)
    home.say(ada, fork_of(first, forged), project)
    pypy = Spec(python=("3.12", "pypy3.10"))
    small, ids = home.job(other, lighthouse, title="lighthouse 0.3", spec=pypy)
    home.run(ada, lighthouse, small, ids[0])
    return home, sights


SCRIPT = "<script>window.hacked = 1</script><img src=x onerror=alert(1)>"
BIDI = "\u202egnp.exe\u202c"
ESCAPES = "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b[2J\x00"


def furnish_hostile(folder: Path) -> tuple[WebHome, Sights]:
    """A project of somebody who wishes its readers ill."""
    home = WebHome(folder)
    mallory, victim = Author(1), Author(2)
    name = f"{SCRIPT}{BIDI}{ESCAPES}"[:100]
    project = home.found(mallory, name, url="javascript:alert(1)")
    spec = Spec(
        python=(f"3.12{SCRIPT}"[:100],),
        services=(f"{BIDI}",),
        factors={SCRIPT[:40]: {f"{ESCAPES}<b>": ("x",)}},
        command=(f"pytest {SCRIPT}",),
    )
    job, cells = home.job(
        mallory, project, title=name, commit=f'"><script>{BIDI}', spec=spec, redundancy=1
    )
    output = (ESCAPES + SCRIPT + BIDI + "</pre>\n").encode() * 110_000
    assert len(output) > 10_000_000
    bad = f"tests/{SCRIPT}{BIDI}{ESCAPES}::test"
    run = home.run(
        victim, project, job, cells[0], bad=[bad], tests=[bad, "good"], output=output,
        message=f"{ESCAPES}{SCRIPT}{BIDI}",
    )  # fmt: skip
    return home, Sights(project, job, cells, victim.public, project, run.id, {"outvoted": cells[0]})
