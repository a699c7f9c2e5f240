"""``[notify] command``: the owner's own program, told only news, on standard input as JSON.

What was told is kept in the home, so that a restart repeats nothing. The program is the
owner's: it runs as they do, outside any sandbox, but bounded in time and output, and its
failure is a log line. What it reads are strangers' words: it must not obey them.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import trio

from ponyswarm import keys, news
from ponyswarm.errors import InfraError, PonySwarmError
from ponyswarm.exec import process
from ponyswarm.exec.process import Patience
from ponyswarm.ledger.queries import CellRow, JobRow, Reader
from ponyswarm.ledger.verdicts import Verdict
from ponyswarm.news import News, Place
from ponyswarm.policy import ReaderPolicy

log = logging.getLogger("ponyswarm")

EVERY = 5.0
PATIENCE = Patience(seconds=30, output_bytes=1 << 16)
# So many jobs back a project is looked at: an old job's late result is no news.
MOST_JOBS = 3

Found = dict[Place, tuple[JobRow, CellRow]]


async def run(command: str, ledger: Path, memory: Path) -> None:
    """Look at the ledger every few seconds, and tell ``command`` what is news; for ever."""
    words = shlex.split(command)
    seen = -1
    while True:
        try:
            count, found = await trio.to_thread.run_sync(partial(look, ledger, seen))
            if count != seen:
                seen = count
                await _tell(words, found, memory)
        except (PonySwarmError, OSError) as fault:
            log.warning("news cannot be told: %s", fault)
        await trio.sleep(EVERY)


def look(ledger: Path, seen: int) -> tuple[int, Found]:
    """(how many entries there are, the latest cell of each place); nothing when none is new."""
    with Reader(ledger) as reader:
        count = reader.count()
        found: Found = {}
        if count == seen:
            return count, found
        for state in reader.projects():
            jobs = [job for job in reader.jobs(state.id)[:MOST_JOBS] if not job.withdrawn]
            for job in reversed(jobs):
                policy = ReaderPolicy(agreeing=job.redundancy)
                for cell in reader.matrix(job, policy):
                    if cell.finding.verdict is not Verdict.PENDING:
                        found[state.id.hex(), cell.place] = (job, cell)
        return count, found


async def _tell(words: list[str], found: Found, memory: Path) -> None:
    before = remembered(memory)
    now = [(place, cell.finding.verdict) for place, (_, cell) in found.items()]
    after, said = news.told(before or {}, now)
    if after != before:
        # Before the program hears of it: better once too little than for ever again.
        _remember(memory, after)
    if not said or before is None:
        return  # The first look ever only learns how things stand.
    text = json.dumps({"news": [facts(one, *found[one.place]) for one in said]}).encode()
    ended = await process.run(words, env=dict(os.environ), patience=PATIENCE, stdin=text)
    if not ended.good:
        tail = ended.output.decode("utf-8", "replace").strip()[-200:]
        log.warning("the notify command ended badly (%s %d): %s", ended.how, ended.code, tail)


def facts(one: News, job: JobRow, cell: CellRow) -> dict[str, object]:
    """One piece of news as the command reads it."""
    finding = cell.finding
    return {
        "what": str(one.what),
        "before": one.before,
        "verdict": str(finding.verdict),
        "agree": finding.agree,
        "of": finding.of,
        "on_record": finding.on_record,
        "failed": finding.failed,
        "tests": finding.tests,
        "project": job.project.hex(),
        "name": job.project_name,
        "job": job.id.hex(),
        "title": job.title,
        "commit": job.commit,
        "cell": cell.id.hex(),
        "place": cell.place,
        "volunteers": [keys.peer_id(key) for key in (*finding.supporters, *finding.dissent)],
    }


def remembered(memory: Path) -> dict[Place, str] | None:
    """What was told before; None when nothing ever was, or the file is damaged."""
    try:
        rows = json.loads(memory.read_text("utf-8"))
        return {(str(project), str(place)): str(verdict) for project, place, verdict in rows}
    except (OSError, ValueError, TypeError):
        return None


def _remember(memory: Path, after: Mapping[Place, str]) -> None:
    fresh = memory.with_suffix(".new")
    try:
        fresh.write_text(json.dumps([[*place, verdict] for place, verdict in after.items()]))
        os.replace(fresh, memory)
    except OSError as fault:
        raise InfraError(
            f"what was told cannot be kept in {memory} ({fault.strerror}), so nothing is told: "
            "make room, or mend who owns the folder"
        ) from fault
