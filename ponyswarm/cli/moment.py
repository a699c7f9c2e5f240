"""One moment of a running node, gathered for the status file and the live view."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import trio

from ponyswarm import config, keys, status
from ponyswarm.cli.plain import size
from ponyswarm.exec import eviction
from ponyswarm.home import Home
from ponyswarm.ledger.queries import Reader
from ponyswarm.limits import Hold, Wishes
from ponyswarm.node import Node, now_ms
from ponyswarm.p2p.offers import Capacity
from ponyswarm.runs import describe_cell

# Offers that the status file tells of; a swarm may have thousands.
MAX_OFFERS = 500
MAX_LEASES = 500
GIVEN_EVERY = 15.0
CACHE_EVERY = 60.0
# Free space is told in steps, so that others' writing does not count as news of this node.
FREE_STEP = 64 << 20


@dataclass(slots=True)
class Willing:
    """What the owner wishes as it was read last, and why nothing is taken now."""

    wishes: Wishes
    held: Hold | None = None


class Given:
    """What this machine gave today, and what it takes on disk: looked up now and then."""

    def __init__(self, home: Home, settings: config.Settings, key: bytes) -> None:
        self._home = home
        self._limits = settings.limits
        self._archive = settings.retention.archive
        self._key = key
        self._due = 0.0
        self._ended = 0
        self._last: tuple[int, int, int, int] = (0, 0, 0, 0)
        self._cache: int | None = None

    async def measure_cache(self) -> None:
        """Look now and then what the runs' cache takes, beside the loop: it has many files."""
        while True:
            with suppress(OSError):  # Runs move and remove what is looked at.
                self._cache = await trio.to_thread.run_sync(eviction.taken, self._home.cache)
            await trio.sleep(CACHE_EVERY)

    def look(self, ended: int) -> tuple[int, int, int, int]:
        """(runs today, tests today, bytes of the ledger, bytes free on its disk).

        Looked up anew when a run ended since: ``ended`` counts them.
        """
        if time.monotonic() >= self._due or ended != self._ended:
            self._ended = ended
            self._due = time.monotonic() + GIVEN_EVERY
            midnight = datetime.now().replace(hour=0, minute=0, second=0, microsecond=0)
            with Reader(self._home.ledger) as reader:
                runs, tests = reader.given_since(self._key, int(midnight.timestamp() * 1000))
            ledger = self._home.ledger.stat().st_size
            self._last = runs, tests, ledger, shutil.disk_usage(self._home.data_dir).free
        return self._last

    def rooms(self, ledger: int, blobs: int) -> tuple[status.Room, ...]:
        budget = None if self._archive else self._limits.blobs
        rooms = (
            status.Room(name="ledger", used=ledger, budget=self._limits.ledger),
            status.Room(name="blobs", used=blobs, budget=budget),
        )
        if self._cache is None:
            return rooms
        return (*rooms, status.Room(name="cache", used=self._cache, budget=self._limits.cache))


def limits_in_words(settings: config.Settings, offered: Capacity | None) -> str:
    if offered is None:
        return "runs no jobs"
    limits = settings.limits
    return (
        f"{offered.slots} run{'s' * (offered.slots != 1)} at once, each with at most "
        f"{size(limits.memory)} memory, {size(limits.disk)} disk, {limits.time // 60} min"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """What a node tells of itself that does not change while it runs."""

    started: float
    sandbox: str
    limits: str
    interpreters: tuple[str, ...]


def moment(node: Node, steady: Steady, willing: Willing, given: Given) -> status.NodeStatus:
    """All that the status file and the live view say now."""
    now = now_ms()
    runs, tests, ledger, free = given.look(node.runs.ended)
    network, protocol = node.network, node.protocol
    projects = []
    for project in sorted(protocol.followed):
        state = node.store.state(project)
        heads = node.pulls.heads.get(project)
        projects.append(
            status.ProjectLine(
                project=project.hex(),
                name="" if state is None else state.record.name,
                trusted=protocol.is_trusted(project),
                volunteers=len(protocol.offers(project, now)),
                heads="" if heads is None else heads.value,
            )
        )
    idle = []
    for job, why in protocol.why_idle(now).items():
        found = protocol.job(job)
        title = "" if found is None else found[1].title
        idle.append(status.IdleLine(job=job.hex(), title=title, why=why))
    return status.NodeStatus(
        pid=os.getpid(),
        started=steady.started,
        updated=time.time(),
        peer=keys.peer_id(network.peer),
        addresses=network.addresses,
        reached_at=node.connectivity.addresses(),
        reach=node.connectivity.words(),
        sandbox=steady.sandbox,
        limits=steady.limits,
        interpreters=steady.interpreters,
        peers=tuple(
            status.PeerLine(peer=keys.peer_id(peer), address=network.remote_address(peer) or "")
            for peer in network.peers()
        ),
        projects=tuple(projects),
        running=tuple(
            status.RunLine(
                job=run.job.hex(),
                title=run.title,
                cell=describe_cell(run.cell),
                step=run.progress.step,
                done=run.progress.done,
                total=run.progress.total,
                seconds=round(time.time() - run.started),
            )
            for run in node.runs.running.values()
        ),
        idle=tuple(idle),
        hold="" if willing.held is None else willing.held.why,
        hold_until=None
        if willing.held is None or willing.held.until is None
        else willing.held.until.timestamp(),
        heard=tuple(
            status.ProjectLine(project=id_.hex(), name=record.name, trusted=False)
            for id_, record in node.intake.heard.items()
            if id_ not in protocol.followed
        ),
        offers=_offers(node, now),
        leases=tuple(
            status.LeaseLine(cell=cell.hex(), volunteer=keys.peer_id(key), since=since / 1000)
            for cell, held in protocol.at_work(now).items()
            for key, since in held.items()
        )[:MAX_LEASES],
        first_claims={job.hex(): at for job, at in protocol.first_claims().items()},
        refused=dict(node.refusals.counted),
        entries=node.store.count(),
        runs=node.runs.ended,
        tests=node.runs.tests,
        blob_bytes=node.blobs.used,
        waiting=protocol.waiting(now),
        today_runs=runs,
        today_tests=tests,
        disk=given.rooms(ledger, node.blobs.used),
        disk_free=free // FREE_STEP * FREE_STEP,
    )


def _offers(node: Node, now: int) -> tuple[status.OfferLine, ...]:
    """What volunteers say that they can run, project by project."""
    protocol = node.protocol
    lines = [
        status.OfferLine(
            project=project.hex(),
            peer=keys.peer_id(peer),
            interpreters=tuple(
                f"{one.implementation} {one.version}{'t' * one.free_threaded}"
                for one in offer.interpreters
            ),
            services=offer.services,
            system=offer.system,
            machine=offer.machine,
            slots=offer.slots,
        )
        for project in sorted(protocol.followed)
        for peer, offer in sorted(protocol.offers(project, now).items())
    ]
    return tuple(lines[:MAX_OFFERS])
