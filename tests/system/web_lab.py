"""A home with a ledger of every kind of news, for tests and pictures of the web pages.

Every entry is signed and appended as a node does it; only the runs are invented.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from authors import Author, announce, cell_ids, environment, fork_of, result

from ponyswarm.codec import TestRecord, encode_tests, outcome_digest
from ponyswarm.home import Home
from ponyswarm.ledger.chain import Accept
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Announce, Entry, Payload, Result, Spec, Status
from ponyswarm.p2p.blobs import BlobStore

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
TESTS = tuple(f"tests/test_models.py::test_field[{n}]" for n in range(40)) + (
    "tests/test_views.py::test_login_redirects",
    "tests/test_cache.py::test_expires_in_time",
)


@dataclass
class WebHome:
    """A home that is written to as time goes on. ``now`` is the time of the next entry."""

    folder: Path
    now: int = 0
    home: Home = field(init=False)

    def __post_init__(self) -> None:
        self.home = Home.under(self.folder)
        self.home.create()
        self.store = Store(self.home.ledger)
        self.blobs = BlobStore(self.home.blobs, budget=1 << 30, floor=0)
        self.now = self.now or int(time.time() * 1000) - 80 * HOUR

    def close(self) -> None:
        self.store.close()

    def put(self, entry: Entry) -> Entry:
        judged = self.store.append(entry, self.now + 10**12)
        assert isinstance(judged, Accept), judged
        return entry

    def say(self, author: Author, payload: Payload, project: bytes) -> Entry:
        self.now += 1000
        return self.put(author.sign(payload, project, self.now))

    def job(self, author: Author, project: bytes, **more: object) -> tuple[Entry, list[bytes]]:
        more.setdefault("spec", SPEC)
        said: Announce = announce(expires=self.now + 2000 * HOUR, **more)  # type: ignore[arg-type]
        entry = self.say(author, said, project)
        return entry, cell_ids(entry, said)

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
        log: bytes = b"",
        **more: object,
    ) -> Entry:
        """A completed run in which the tests ``bad`` fail, with its files."""
        rows = [
            TestRecord(
                id_,
                Status.FAILED if id_ in bad else Status.PASSED,
                0.01,
                "" if id_ not in bad else message,
            )
            for id_ in tests
        ]
        output = log or b"".join(f"{row.id} {str(row.status).upper()}\n".encode() for row in rows)
        seconds = more.pop("seconds", 10 + len(bad) + author.number)
        said = Result(
            job=job,
            cell=cell,
            state="completed",
            counts={Status.PASSED: len(tests) - len(bad), Status.FAILED: len(bad)},
            digest=outcome_digest("completed", None, [(row.id, row.status) for row in rows]),
            bad=tuple(bad)[:50],
            tests=self.blobs.put(encode_tests(rows)),
            log=self.blobs.put(zlib.compress(output, 1)),
            environment=more.pop("environment", None) or environment(),  # type: ignore[arg-type]
            started=self.now,
            seconds=seconds,  # type: ignore[arg-type]
            **more,  # type: ignore[arg-type]
        )
        entry = self.say(author, said, project)
        if bad:
            self.store.explain(entry.id, [(id_, message) for id_ in bad])
        return entry


def furnish(folder: Path) -> tuple[WebHome, dict[str, str]]:
    """A home with two projects; what to look at, by name."""
    home = WebHome(folder)
    maintainer, other = Author(1), Author(20)
    ada, grace, alan, barbara, liar = (Author(number) for number in range(2, 7))
    for author in (maintainer, other, ada, grace, alan, barbara, liar):
        author.sign_from = home.now  # type: ignore[attr-defined]
    project = home.put(maintainer.sign(_record(maintainer, "aurora"), time=home.now)).id
    second = home.put(other.sign(_record(other, "lighthouse"), time=home.now)).id
    from ponyswarm.messages import Vouch, Withdraw

    home.say(maintainer, Vouch(key=ada.public, operator="Ada's cellar"), project)
    home.say(maintainer, Vouch(key=grace.public, operator="Grace, Uni Rostock"), project)
    broken, flaky = TESTS[40], TESTS[41]
    versions = {"3.10": "3.10.14", "3.11": "3.11.9", "3.12": "3.12.3", "3.13": "3.13.0"}
    found: dict[str, str] = {"project": project.hex(), "second": second.hex()}
    for number in range(12):
        home.now += 6 * HOUR
        job, cells = home.job(
            maintainer,
            project,
            title=f"aurora {1 + number / 10:.1f}",
            commit=f"{0x3FA1B2C40000 + number * 7919:040x}"[::-1],
        )
        last = number == 11
        from ponyswarm.matrix import cells as matrix

        points = dict(zip(cells, matrix(SPEC), strict=True))
        for place, cell in enumerate(cells):
            where = environment(
                versions[points[cell].python],
                services={
                    name: "16.3" if name == "postgresql" else "3.45"
                    for name in points[cell].services
                },
            )
            bad = [broken] if number >= 8 and "postgresql" in points[cell].services else []
            runners = [ada, grace] if place % 3 else [alan, barbara]
            if last and place in (9, 12, 13):
                continue  # Nobody has run these yet.
            if last and place == 7:
                home.say(
                    ada,
                    _broken(job.id, cell, "install", "no wheel of psycopg 3.2 for cpython 3.12"),
                    project,
                )
                continue
            if last and place == 5:
                runners = runners[:1]
            for one in runners:
                mine = list(bad)
                if number in (4, 9) and place == 2 and one in (ada, alan):
                    mine.append(flaky)
                home.run(one, project, job.id, cell, bad=mine, environment=where, nonce=bytes(16))
            if last and place in (3, 10):
                home.run(
                    liar, project, job.id, cell, bad=[TESTS[3]], environment=where, message="a lie"
                )
            if last and place == 10:
                home.run(
                    Author(9),
                    project,
                    job.id,
                    cell,
                    bad=[TESTS[3]],
                    environment=where,
                    message="another lie",
                )
        if number == 6:
            home.say(maintainer, Withdraw(job=job.id, reason="wrong tag"), project)
        found["job"], found["cells"] = job.id.hex(), ",".join(c.hex() for c in cells)
    twin = liar.branch()
    first = home.say(liar, result(job.id, cells[0], failed=1), project)
    forged = twin.sign(result(job.id, cells[0], failed=2), project, home.now + 5000)
    home.say(ada, fork_of(first, forged), project)
    small, ids = home.job(
        other, second, title="lighthouse 0.3", spec=Spec(python=("3.12", "pypy3.10"))
    )
    home.run(ada, second, small.id, ids[0])
    found |= {"ada": ada.public.hex(), "broken": broken, "flaky": flaky, "small": small.id.hex()}
    return home, found


def _record(author: Author, name: str) -> Payload:
    from authors import project_record

    return project_record(author, name=name, url=f"https://example.org/{name}")


def _broken(job: bytes, cell: bytes, reason: str, detail: str) -> Result:
    return result(job, cell, state="broken", reason=reason, detail=detail, passed=0)
