"""The web pages of a large ledger: what the server takes for each, and what goes over the wire.

``ponyswarm web`` runs as people run it, over a home that ``bench.world`` built (ten million
entries; fewer with --quick), and is asked over loopback with gzip, as browsers do. A server's
time is its processor time for a request, which it says itself in Server-Timing, so that what
else the machine does falls out; one row has the time by the clock. The first request of each
page finds nothing kept but what the server readies when it starts. Beside it stands Datasette's
page of one table of the same ledger, and an image of a few hundred bytes from the same server.
"""

from __future__ import annotations

import http.client
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from bench.report import Row, arguments, report
from bench.world import build_home, jobs_of
from ponyswarm.home import Home
from ponyswarm.keys import peer_id
from ponyswarm.ledger.queries import Reader

TIMES = 40
WIRE = 50_000


@dataclass(frozen=True, slots=True)
class Answer:
    """One request in ms, its server's processor time and the asker's clock; and its bytes."""

    server: float
    seen: float
    size: int


@contextmanager
def server(command: Sequence[str], says: str) -> Iterator[str]:
    """A server that is ended at the end; where it is, from the line that says so."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if says in line:
                yield next(word for word in line.split() if word.startswith("http://"))
                break
    finally:
        process.kill()
        process.communicate()


def ask(where: str, path: str) -> Answer:
    """Ask once, on a connection of its own; what failed raises."""
    site = urlsplit(where)
    connection = http.client.HTTPConnection(site.hostname or "", site.port or 80, timeout=60)
    start = time.perf_counter()
    connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    body = answer.read()
    seen = 1000 * (time.perf_counter() - start)
    connection.close()
    assert answer.status == 200, (path, answer.status, body[:300])
    timing = answer.getheader("Server-Timing") or "dur=nan"
    head = sum(len(name) + len(value) + 4 for name, value in answer.getheaders())
    return Answer(float(timing.rpartition("dur=")[2]), seen, len(body) + head)


def measure(home: Path) -> list[Row]:
    path = Home.under(home).ledger
    project, jobs = jobs_of(path)
    chance = random.Random(1)
    some = [job.hex() for job in chance.sample(jobs[1:], min(TIMES, len(jobs) - 1))]
    hot = jobs[0].hex()
    with Reader(path) as reader:
        ((cell,),) = reader.select("SELECT cell FROM cell WHERE job = ? LIMIT 1", (jobs[0],))
        ((key,),) = reader.select("SELECT key FROM author JOIN run USING (author) LIMIT 1")
        named = reader.select("SELECT test FROM failure LIMIT 1")
        ((entries,),) = reader.select("SELECT sum(height) FROM feed")
        ((most, here),) = reader.select(
            "SELECT count(*), sum(cell = ?) FROM result WHERE job = ?", (cell, jobs[0])
        )
    test = quote(named[0][0]) if named else "none"
    rows = []
    command = [sys.executable, "-m", "ponyswarm", "--home", str(home), "web", "--port", "0"]
    with server(command, "pages are at") as site:
        empty = [ask(site, "/static/icon.svg") for _ in range(TIMES)]
        static = sum(ask(site, f"/static/{name}").size for name in ("style.css", "live.js"))
        time.sleep(2)  # It readies the first page meanwhile, as it does for people.
        first = ask(site, "/")
        fronts = [ask(site, "/") for _ in range(TIMES)]
        cold = ask(site, f"/job/{hot}")
        pages = [ask(site, f"/job/{job}") for job in some]
        rows += [
            Row(f"first page, first time, at {entries:,} entries: ms", first.server, goal="<= 100"),
            Row("first page: ms", _median(fronts), "an image of 400 bytes, ms", _median(empty),
                "<= 100"),
            Row("first page with style and script: bytes on the wire", first.size + static,
                goal=f"< {WIRE}"),
            Row("job page, each of another job, slowest: ms", max(p.server for p in pages),
                goal="<= 200"),
            Row(f"job page of {most:,} runs, first time: ms", cold.server, goal="<= 200"),
            Row("job page: bytes on the wire", max(p.size for p in [cold, *pages]),
                goal=f"< {WIRE}"),
        ]  # fmt: skip
        others = {
            "project": f"/project/{project.hex()}",
            f"cell of {here:,} runs": f"/cell/{cell.hex()}",
            "volunteer": f"/volunteer/{peer_id(key)}",
            "volunteers": "/volunteers",
            "test's past": f"/project/{project.hex()}/test?id={test}",
            "coverage": f"/project/{project.hex()}/coverage",
            "search": "/search?q=failed",
            "metrics": "/metrics",
        }
        for name, address in others.items():
            took = [ask(site, address) for _ in range(5)]
            rows.append(Row(f"{name} page, slowest of 5: ms", max(t.server for t in took)))
        seen = statistics.median(page.seen for page in pages)
    command = [sys.executable, "-m", "datasette", str(path), "--port", "0"]
    with server(command, "Uvicorn running on") as site:
        table = [ask(site, "/ledger/job?_size=40") for _ in range(TIMES)]
        peer = statistics.median(one.seen for one in table)
        rows.append(
            Row(
                "job page as the asker sees it: ms", seen, "Datasette, 40 rows of a table: ms", peer
            )
        )
    return rows


def _median(answers: Sequence[Answer]) -> float:
    return statistics.median(answer.server for answer in answers)


def run() -> None:
    chosen = arguments(__doc__ or "", home="a home that bench.world built")
    with tempfile.TemporaryDirectory(prefix="ponyswarm-bench-") as name:
        home = chosen.home
        if home is None:
            home = Path(name) / "home"
            build_home(home, 40_000 if chosen.quick else 10_000_000)
        report("web", measure(home), as_json=chosen.json)


if __name__ == "__main__":
    run()
