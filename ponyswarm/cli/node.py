"""``ponyswarm node``: open everything on this home and run until told to stop."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from importlib import resources

import click
import trio
from filelock import FileLock, Timeout

from ponyswarm import config, keys, readings, status
from ponyswarm.cli import live, notifying
from ponyswarm.cli.opening import opened, service_options
from ponyswarm.cli.plain import size, start_logging
from ponyswarm.errors import InfraError, LocalError
from ponyswarm.exec import eviction, interpreters, provisioning, sandbox
from ponyswarm.exec.executor import Executor
from ponyswarm.exec.interpreters import Installed
from ponyswarm.exec.services.service import Missing, Offer
from ponyswarm.home import Home
from ponyswarm.keeping import Keeping
from ponyswarm.ledger.queries import Reader
from ponyswarm.ledger.seals import Seals
from ponyswarm.limits import Hold, Wishes, hold, say
from ponyswarm.node import Node, now_ms, open_node
from ponyswarm.notary import Notary, open_notary
from ponyswarm.p2p.connectivity import Connectivity
from ponyswarm.p2p.discovery import parse_bootstrap, read_bootstrap
from ponyswarm.p2p.network import RelayLimits
from ponyswarm.p2p.protocol import Capacity
from ponyswarm.p2p.table import PeerTable
from ponyswarm.runs import Execute, describe_cell
from ponyswarm.session import Session
from ponyswarm.volunteer import Volunteer, capacity

log = logging.getLogger("ponyswarm")

STATUS_EVERY = 1.0
STATUS_IDLE = 15.0
LIMITS_EVERY = 0.5
# With --once: seconds without a cell of ours before the node ends.
ONCE_QUIET = 20.0
SETTINGS_EVERY = 2.0
# Offers that the status file tells of; a swarm may have thousands.
MAX_OFFERS = 500
GIVEN_EVERY = 15.0
CACHE_EVERY = 60.0
# Free space is told in steps, so that others' writing does not count as news of this node.
FREE_STEP = 64 << 20

# Wraps how a node runs a task; the demo's liar is made with it.
Wrap = Callable[[Execute], Execute]
# Serves the web pages until it is cancelled.
Pages = Callable[[], Awaitable[None]]


@click.command()
@click.option("--listen", multiple=True, metavar="ADDR", help="Listen here instead.")
@click.option("--peer", "peers", multiple=True, metavar="ADDR", help="Call this node as well.")
@click.option("--read-only", is_flag=True, help="Run no jobs: only replicate and serve.")
@click.option("--archive", is_flag=True, help="Keep every file for ever.")
@click.option("--once", is_flag=True, help="Stop when there is nothing left to run.")
@click.option("--dry-run", is_flag=True, help="Say what would be offered, and to whom; then end.")
@click.option("--web", is_flag=True, help="Show the pages, too, as 'ponyswarm web' does.")
@click.option("--plain", is_flag=True, help="Only log lines, also on a terminal.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Log lines for people, or one JSON object a line.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
@click.pass_obj
def node(
    home: Home,
    listen: tuple[str, ...],
    peers: tuple[str, ...],
    read_only: bool,
    archive: bool,
    once: bool,
    dry_run: bool,
    web: bool,
    plain: bool,
    log_format: str,
    verbose: bool,
) -> None:
    """Run this machine's node: replicate, serve, and run the jobs you trust.

    Ctrl-C stops it in good order: what runs is given back to the others.
    """
    start_logging(verbose=verbose, as_json=log_format == "json")
    if dry_run:
        trio.run(describe, home)
        return
    main = partial(
        run,
        home,
        listen=listen,
        peers=peers,
        read_only=read_only,
        archive=archive,
        once=once,
        web=web,
    )
    if plain or log_format == "json" or not sys.stderr.isatty():
        trio.run(main)
        return
    with live.showing(logging.DEBUG if verbose else logging.INFO) as show:
        trio.run(partial(main, show=show))


async def describe(home: Home) -> None:
    """Print what a node on this home would offer."""
    settings = _settings(home)
    offered, _, words, _ = await _volunteer(home, settings, None)
    click.echo(f"sandbox    {words}")
    for one in () if offered is None else offered.interpreters:
        click.echo(f"offers     {one.implementation} {one.version}{'t' * one.free_threaded}")
    for service in () if offered is None else offered.services:
        click.echo(f"offers     {service}")
    for project in sorted(settings.trusted):
        click.echo(f"runs for   {project.hex()}")
    for project in sorted(settings.followed - settings.trusted):
        click.echo(f"keeps      {project.hex()}")
    for address in settings.listen:
        click.echo(f"listens    {address}")
    for address in network_addresses(home, settings, ()):
        click.echo(f"calls      {address}")
    if not settings.trusted:
        click.echo("no project is trusted: 'ponyswarm trust add PROJECT_ID' lets jobs in", err=True)


async def run(
    home: Home,
    *,
    listen: tuple[str, ...] = (),
    peers: tuple[str, ...] = (),
    read_only: bool = False,
    archive: bool = False,
    once: bool = False,
    web: bool = False,
    wrap: Wrap | None = None,
    show: live.Show | None = None,
) -> None:
    """A node on this home until SIGINT or SIGTERM, or until there is nothing to run."""
    settings = _settings(home)
    if archive:
        settings = replace(settings, retention=replace(settings.retention, archive=True))
    home.create()
    lock = FileLock(home.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout as fault:
        raise LocalError(
            f"a node runs on this home already ({home.data_dir}): 'ponyswarm status' shows it; "
            "choose another home with --home DIR"
        ) from fault
    try:
        with (
            opened(home, archive=archive) as session,
            open_notary(key=session.key, ledger=home.ledger, witness=home.witness) as notary,
        ):
            where = listen or settings.listen
            pages = pages_beside(home, settings.web_port, wanted=web)
            await _run(
                home, settings, session, notary, where, peers, read_only, once, pages, wrap, show
            )
    finally:
        home.status.unlink(missing_ok=True)
        lock.release()


def _settings(home: Home) -> config.Settings:
    if not home.ini.exists():
        raise LocalError(f"there are no settings in {home.config_dir}: run 'ponyswarm init' first")
    return config.load(home.ini)


async def _run(
    home: Home,
    settings: config.Settings,
    session: Session,
    notary: Notary,
    listen: tuple[str, ...],
    peers: tuple[str, ...],
    read_only: bool,
    once: bool,
    pages: Pages | None,
    wrap: Wrap | None,
    show: live.Show | None,
) -> None:
    offered: Capacity | None = None
    execute: Execute | None = None
    words = "not needed: this node runs no jobs"
    installed: tuple[Installed, ...] = ()
    addresses = network_addresses(home, settings, peers)
    async with AsyncExitStack() as stack:
        seals = stack.enter_context(closing(Seals(home.seals, session.key.public)))
        if not read_only:
            offered, execute, words, installed = await _volunteer(home, settings, stack)
            if wrap is not None and execute is not None:
                execute = wrap(execute)
        opened_node = await stack.enter_async_context(
            open_node(
                key=session.key,
                store=session.store,
                journal=session.journal,
                blobs=session.blobs,
                capacity=offered,
                execute=execute,
                listen=listen,
                connectivity=connectivity(home, settings, addresses),
                notary=notary,
                keeping=Keeping(
                    session.store,
                    session.blobs,
                    budget=settings.limits.blobs,
                    keep_ms=None if settings.retention.archive else 1000 * settings.retention.keep,
                ),
                wishes=home.wishes,
                seals=seals,
            )
        )
        log.info("this node is %s", keys.peer_id(session.key.public))
        for address in opened_node.network.addresses:
            log.info("listening on %s", address)
        if session.journal.reopened:
            log.warning(
                "this home was copied or restored from a backup: new entries go into new feeds, "
                "so that nothing that was published before is contradicted"
            )
        await _follow(opened_node, settings)
        if not settings.trusted and not read_only:
            log.info("no project is trusted yet: 'ponyswarm trust add PROJECT_ID' lets jobs in")
        given = Given(home, settings, session.key.public)
        willing = Willing(settings.volunteer)
        limits = _limits_in_words(settings, offered)
        report = partial(
            _status, opened_node, willing, words, limits, installed, time.time(), given
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tell_status, home, report, show)
            nursery.start_soon(_watch_settings, home, opened_node, willing)
            nursery.start_soon(_respect, home, opened_node, willing, nursery.cancel_scope)
            if offered is not None:
                nursery.start_soon(given.measure_cache)
            if pages is not None:
                nursery.start_soon(pages)
            if settings.notify:
                nursery.start_soon(notifying.run, settings.notify, home.ledger, home.told)
            if once:
                nursery.start_soon(_until_idle, opened_node, nursery.cancel_scope)
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for number in signals:
                    log.info("stopping (%s)", signal.Signals(number).name)
                    break
            nursery.cancel_scope.cancel()


def pages_beside(home: Home, port: int | None, *, wanted: bool) -> Pages | None:
    """The web pages of this home, listening already; None when nobody wants them here."""
    if port is None and not wanted:
        return None
    from ponyswarm.cli.web import site
    from ponyswarm.web import server

    listening = server.listen("127.0.0.1", port or server.DEFAULT_PORT)
    log.info("the pages are at %s", server.address(listening))
    return partial(server.serve, site(home), listening)


async def _until_idle(opened_node: Node, scope: trio.CancelScope) -> None:
    """End the node when it has had no cell to run, and nothing to tell, for a while."""
    quiet = 0.0
    while quiet < ONCE_QUIET:
        await trio.sleep(1)
        busy = opened_node.protocol.mine or opened_node.protocol.sealed
        quiet = 0.0 if busy else quiet + 1
    log.info("nothing left to run")
    scope.cancel()


def network_addresses(
    home: Home, settings: config.Settings, peers: tuple[str, ...]
) -> tuple[str, ...]:
    """Whom to call: those named now, those in the settings, the home's list, the shipped one."""
    named = (*peers, *settings.peers, *read_bootstrap(home.bootstrap_peers))
    if not settings.bootstrap:
        return named
    shipped = resources.files("ponyswarm").joinpath("bootstrap_peers.txt")
    try:
        return (*named, *parse_bootstrap(shipped.read_text("utf-8")))
    except FileNotFoundError:
        return named  # A checkout keeps the list one folder up, where it is empty.


def connectivity(home: Home, settings: config.Settings, addresses: tuple[str, ...]) -> Connectivity:
    """How this home's node keeps in touch, by its settings."""
    relaying = settings.relaying
    return Connectivity(
        addresses,
        PeerTable(home.peers),
        announced=settings.announce,
        on_lan=settings.lan,
        upnp=settings.upnp,
        carry=relaying.mode,
        limits=RelayLimits(
            reservations=relaying.places,
            circuits=2 * relaying.places,
            bytes=relaying.bytes,
            seconds=relaying.time,
        ),
    )


async def _volunteer(
    home: Home, settings: config.Settings, stack: AsyncExitStack | None
) -> tuple[Capacity | None, Execute | None, str, tuple[Installed, ...]]:
    """What this machine offers and how it runs; without a sandbox it offers nothing.

    With ``stack``, which ends what this starts, it is made ready to run: leftovers of a
    killed node are swept. Without, a node may be running beside us, and we only ask.
    """
    limits = settings.limits
    bounds = sandbox.Limits(
        memory_bytes=limits.memory,
        processes=limits.processes,
        scratch_bytes=limits.disk,
        output_bytes=limits.output,
        seconds=limits.time,
        silent_seconds=limits.silence,
        cpu_weight=limits.cpu_weight,
    )
    probe = await sandbox.probe(bounds)
    if isinstance(probe, sandbox.Missing):
        log.error("no jobs run here: %s; what may help: %s", probe.why, probe.remedy)
        return None, None, f"none: {probe.why}; what may help: {probe.remedy}", ()
    search = not settings.interpreters
    survey = await trio.to_thread.run_sync(
        partial(interpreters.survey, settings.interpreters.values(), search=search)
    )
    for skipped in () if search else survey.skipped:
        log.warning("the interpreter %s is not offered: %s", skipped.path, skipped.reason)
    found = survey.found
    if not found:
        raise InfraError(
            "no interpreter was found for jobs: name one under [interpreters] in "
            f"{home.ini}, or install one"
        )
    options = service_options(settings)
    if stack is None:
        asked = await provisioning.probe(provisioning.with_always(options))
        words = tuple(one.words for one in asked.values() if isinstance(one, Offer))
        _warn_of_missing(asked)
        return capacity(found, settings.slots, words), None, probe.description, tuple(found)
    services = await stack.enter_async_context(
        provisioning.open_services(options, cache=home.cache, scratch=home.scratch, holds=probe)
    )
    _warn_of_missing(services.missing)
    executor = Executor(
        cache=home.cache,
        scratch=home.scratch,
        limits=bounds,
        sandbox=probe,
        services=services,
        cache_bytes=limits.cache,
    )
    executor.sweep()
    offered = capacity(found, settings.slots, services.words)
    return offered, Volunteer(executor, found).execute, probe.description, tuple(found)


def _warn_of_missing(services: Mapping[str, Offer | Missing]) -> None:
    for name, one in services.items():
        if isinstance(one, Missing):
            log.warning("%s is not offered: %s; what may help: %s", name, one.why, one.remedy)


async def _follow(opened_node: Node, settings: config.Settings) -> None:
    wanted = settings.trusted | settings.followed
    for project in sorted(wanted):
        await opened_node.follow(project, trusted=project in settings.trusted)
    for project in opened_node.protocol.followed - wanted:
        await opened_node.unfollow(project)


@dataclass(slots=True)
class Willing:
    """What the owner wishes as it was read last, and why nothing is taken now."""

    wishes: Wishes
    held: Hold | None = None


async def _respect(
    home: Home, opened_node: Node, willing: Willing, scope: trio.CancelScope
) -> None:
    """Hold the owner's limits, and what `pause` and `drain` said, twice a second."""
    told = readings.control(home.control)
    if told.drain is not None:  # Meant for a node before this one.
        home.control.unlink(missing_ok=True)
    while True:
        told = readings.control(home.control)
        now = readings.read(home.data_dir, own_runs=len(opened_node.runs.running))
        held = hold(willing.wishes, told, now)
        before = willing.held
        if (held and held.why) != (before and before.why):
            if held is None:
                log.info("takes jobs again")
            else:
                log.info("takes no jobs: %s", say(held))
        willing.held = held
        await opened_node.rest(
            "" if held is None else say(held), gives_back=held is not None and held.gives_back
        )
        busy = opened_node.protocol.mine or opened_node.protocol.sealed
        if told.drain == os.getpid() and not busy:
            log.info("drained: nothing runs any more")
            home.control.unlink(missing_ok=True)
            scope.cancel()
        await trio.sleep(LIMITS_EVERY)


async def _watch_settings(home: Home, opened_node: Node, willing: Willing) -> None:
    """Take up changes of trust and of [volunteer] while running; a faulty file changes nothing."""
    seen = home.ini.stat().st_mtime_ns
    while True:
        await trio.sleep(SETTINGS_EVERY)
        try:
            changed = home.ini.stat().st_mtime_ns
            if changed == seen:
                continue
            seen = changed
            settings = config.load(home.ini)
        except (LocalError, OSError) as fault:
            log.warning("the changed settings are not taken up: %s", fault)
            continue
        willing.wishes = settings.volunteer
        await _follow(opened_node, settings)
        log.info("settings read again: %d projects trusted", len(settings.trusted))


async def _tell_status(
    home: Home, report: Callable[[], status.NodeStatus], show: live.Show | None
) -> None:
    """Write the status file when something changed, and now and then when nothing did."""
    last: object = None
    written = 0.0
    while True:
        now = report()
        facts = replace(now, updated=0.0)
        if facts != last or time.time() - written > STATUS_IDLE:
            last, written = facts, time.time()
            try:
                status.write(home.status, now)
            except OSError as fault:
                log.warning("the status file cannot be written: %s", fault)
            if show is not None:
                show(now)
        await trio.sleep(STATUS_EVERY)


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


def _limits_in_words(settings: config.Settings, offered: Capacity | None) -> str:
    if offered is None:
        return "runs no jobs"
    limits = settings.limits
    return (
        f"{offered.slots} run{'s' * (offered.slots != 1)} at once, each with at most "
        f"{size(limits.memory)} memory, {size(limits.disk)} disk, {limits.time // 60} min"
    )


def _status(
    opened_node: Node,
    willing: Willing,
    words: str,
    limits: str,
    installed: tuple[Installed, ...],
    started: float,
    given: Given,
) -> status.NodeStatus:
    now = now_ms()
    runs, tests, ledger, free = given.look(opened_node.runs.ended)
    network, protocol = opened_node.network, opened_node.protocol
    projects = []
    for project in sorted(protocol.followed):
        state = opened_node.store.state(project)
        heads = opened_node.pulls.heads.get(project)
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
        started=started,
        updated=time.time(),
        peer=keys.peer_id(network.peer),
        addresses=network.addresses,
        reached_at=opened_node.connectivity.addresses(),
        reach=opened_node.connectivity.words(),
        sandbox=words,
        limits=limits,
        interpreters=tuple(i.name.replace("-", " ", 1) for i in installed),
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
            for run in opened_node.runs.running.values()
        ),
        idle=tuple(idle),
        hold="" if willing.held is None else willing.held.why,
        hold_until=None
        if willing.held is None or willing.held.until is None
        else willing.held.until.timestamp(),
        heard=tuple(
            status.ProjectLine(project=id_.hex(), name=record.name, trusted=False)
            for id_, record in opened_node.intake.heard.items()
            if id_ not in protocol.followed
        ),
        offers=_offers(opened_node, now),
        first_claims={job.hex(): at for job, at in protocol.first_claims().items()},
        refused=dict(opened_node.refusals.counted),
        entries=opened_node.store.count(),
        runs=opened_node.runs.ended,
        tests=opened_node.runs.tests,
        blob_bytes=opened_node.blobs.used,
        waiting=protocol.waiting(now),
        today_runs=runs,
        today_tests=tests,
        disk=given.rooms(ledger, opened_node.blobs.used),
        disk_free=free // FREE_STEP * FREE_STEP,
    )


def _offers(opened_node: Node, now: int) -> tuple[status.OfferLine, ...]:
    """What volunteers say that they can run, project by project."""
    protocol = opened_node.protocol
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
