"""Follows the ledger while a node writes it, and tells which jobs changed.

Two things rest on it: a matrix that was worked out is shown again until its job changed
(`mark`), and pages that are open hear of news (`changes`). It looks at the file's change
counter twice a second, and reads what arrived since, never more than `MOST` entries: past
that everything counts as changed. It never writes.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from ponyswarm.codec import decode_kept, decode_payload
from ponyswarm.errors import LocalError
from ponyswarm.ledger.queries import Reader
from ponyswarm.messages import Announce, Commit, Fork, Project, Result, Revoke, Vouch, Withdraw

EVERY = 0.5
MOST = 5_000
MAX_JOBS = 10_000
MAX_WAITING = 100


@dataclass(frozen=True, slots=True)
class News:
    """What arrived since the last look: the jobs and projects it is about; or everything."""

    jobs: frozenset[bytes] = frozenset()
    projects: frozenset[bytes] = frozenset()
    everything: bool = False
    node: bool = False
    """Whether the node here said something new of itself."""

    def concerns(self, topic: bytes | None) -> bool:
        """Whether it is news for a page about one job or project; None is about all."""
        return topic is None or self.everything or topic in self.jobs or topic in self.projects


@dataclass(slots=True)
class Look:
    """One look at the ledger: how far it goes, and what is new."""

    version: int = -1
    arrival: int = -1
    explained: int = 0
    forks: int = 0
    news: News = field(default_factory=News)
    rights: frozenset[bytes] = frozenset()


class Tail:
    """``ledger`` may not be there yet: it is looked for until it is. ``status`` is the file
    that a node writes while it runs."""

    def __init__(self, ledger: Path, status: Path) -> None:
        self._path = ledger
        self._status = status
        self._said = 0
        self._reader: Reader | None = None
        self._last = Look()
        self.turn = 1
        """Counts the looks that found something new."""
        self._base = 0
        self._jobs: OrderedDict[bytes, int] = OrderedDict()
        self._rights: dict[bytes, int] = {}
        self._listeners: set[trio.MemorySendChannel[News]] = set()

    def mark(self, job: bytes, project: bytes) -> tuple[int, int, int]:
        """Changes whenever something about a job, or its project's rights, arrived."""
        return self._base, self._jobs.get(job, 0), self._rights.get(project, 0)

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:  # noqa: ANN401
        """Look for ever; started once it has looked. What cannot be read is looked at again."""
        await self._once()
        task_status.started()
        while True:
            await trio.sleep(EVERY)
            await self._once()

    async def _once(self) -> None:
        # One thread at a time has the connection, though not always the same one.
        found = await trio.to_thread.run_sync(self._look, self._last)
        if found is not None:
            self._take(found)
        elif self._last.arrival < 0:
            # There is no ledger yet: all that comes will be new.
            self._last = replace(self._last, arrival=0)
        before, self._said = self._said, _written(self._status)
        if self._said != before:
            self._tell(News(node=True))

    def _look(self, last: Look) -> Look | None:
        try:
            if self._reader is None:
                self._reader = Reader(self._path, any_thread=True)
            return look(self._reader, last)
        except (LocalError, sqlite3.Error):
            if self._reader is not None:
                self._reader.close()
                self._reader = None
            return None

    def _take(self, now: Look) -> None:
        self._last = now
        news = now.news
        if not (news.everything or news.jobs or news.projects):
            return
        self.turn += 1
        if news.everything:
            self._base = self.turn
        for job in news.jobs:
            self._jobs[job] = self.turn
            self._jobs.move_to_end(job)
        for project in now.rights:
            self._rights[project] = self.turn
        if len(self._jobs) > MAX_JOBS:
            # What is forgotten would look unchanged: so everything counts as changed.
            self._jobs.clear()
            self._base = self.turn
        self._tell(news)

    def _tell(self, news: News) -> None:
        for listener in self._listeners:
            try:
                listener.send_nowait(news)
            except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
                listener.close()  # It does not keep up: a browser comes back and asks anew.

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[trio.MemoryReceiveChannel[News]]:
        """News as it comes, for one listener."""
        send, receive = trio.open_memory_channel[News](MAX_WAITING)
        self._listeners.add(send)
        try:
            yield receive
        finally:
            self._listeners.discard(send)
            send.close()
            receive.close()


def _written(path: Path) -> int:
    """When a file was last written; 0 when it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def look(reader: Reader, last: Look) -> Look:
    """What was written since the last look."""
    ((version,),) = reader.select("PRAGMA data_version")
    if version == last.version:
        return replace(last, news=News(), rights=frozenset())
    ((arrival, explained, forks),) = reader.select(
        "SELECT (SELECT ifnull(max(arrival), 0) FROM entry),"
        " (SELECT ifnull(max(arrival), 0) FROM failure WHERE message != ''),"
        " (SELECT count(*) FROM fork_evidence)"
    )
    now = Look(version, arrival, explained, forks)
    if last.arrival < 0:
        return now
    if arrival < last.arrival or arrival - last.arrival > MOST or forks != last.forks:
        return replace(now, news=News(everything=True))
    jobs: set[bytes] = set()
    projects: set[bytes] = set()
    rights: set[bytes] = set()
    for frame, project in reader.select(
        "SELECT frame, project FROM entry JOIN feed USING (feed) WHERE arrival > ?",
        (last.arrival,),
    ):
        entry = decode_kept(frame)
        projects.add(project)
        match decode_payload(entry):
            case Result(job=job) | Commit(job=job) | Withdraw(job=job):
                jobs.add(job)
            case Announce():
                jobs.add(entry.id)
            case Project() | Vouch() | Revoke() | Fork():
                rights.add(project)
    # The messages of failed tests come later than the entries that name the tests.
    jobs |= {
        job
        for (job,) in reader.select(
            "SELECT DISTINCT job FROM failure WHERE message != '' AND arrival > ? LIMIT ?",
            (last.explained, MOST),
        )
    }
    return replace(now, news=News(frozenset(jobs), frozenset(projects)), rights=frozenset(rights))
