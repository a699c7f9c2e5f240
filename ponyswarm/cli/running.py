"""A node on this home, opened with its settings and run until it is told to stop.

``ponyswarm node`` calls `run`; `moment` is what it tells of itself meanwhile.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources

import click
import trio
from filelock import FileLock, Timeout

from ponyswarm import config, keys, readings, status
from ponyswarm.cli import live, notifying
from ponyswarm.cli.moment import Given, Steady, Willing, limits_in_words, moment
from ponyswarm.cli.opening import opened, service_options
from ponyswarm.errors import InfraError, LocalError
from ponyswarm.exec import interpreters, provisioning, sandbox
from ponyswarm.exec.executor import Executor
from ponyswarm.exec.interpreters import Installed
from ponyswarm.exec.services.service import Missing, Offer
from ponyswarm.home import Home
from ponyswarm.keeping import Keeping
from ponyswarm.ledger.seals import Seals
from ponyswarm.limits import hold, say
from ponyswarm.node import Node, open_node
from ponyswarm.notary import Notary, open_notary
from ponyswarm.p2p.connectivity import Connectivity
from ponyswarm.p2p.discovery import parse_bootstrap, read_bootstrap
from ponyswarm.p2p.network import RelayLimits
from ponyswarm.p2p.offers import Capacity
from ponyswarm.p2p.table import PeerTable
from ponyswarm.runs import Execute
from ponyswarm.session import Session
from ponyswarm.volunteer import Volunteer, capacity

log = logging.getLogger("ponyswarm")

STATUS_EVERY = 1.0
STATUS_IDLE = 15.0
LIMITS_EVERY = 0.5
# With --once: seconds without a cell of ours before the node ends.
ONCE_QUIET = 20.0
SETTINGS_EVERY = 2.0

# Wraps how a node runs a task; the demo's liar is made with it.
Wrap = Callable[[Execute], Execute]
# Serves the web pages until it is cancelled.
Pages = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was typed beside ``ponyswarm node``, on top of the settings."""

    listen: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    read_only: bool = False
    archive: bool = False
    once: bool = False
    web: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Offering:
    """What this machine can run and how; ``capacity`` and ``execute`` None: nothing."""

    sandbox: str
    capacity: Capacity | None = None
    execute: Execute | None = None
    interpreters: tuple[Installed, ...] = ()


async def run(
    home: Home,
    asked: Asked = Asked(),
    *,
    wrap: Wrap | None = None,
    show: live.Show | None = None,
) -> None:
    """A node on this home until SIGINT or SIGTERM, or until there is nothing to run."""
    settings = config.load(home.ini)
    if asked.listen:
        settings = replace(settings, listen=asked.listen)
    if asked.archive:
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
            opened(home, archive=asked.archive) as session,
            open_notary(key=session.key, ledger=home.ledger, witness=home.witness) as notary,
        ):
            await _run(home, settings, session, notary, asked, wrap, show)
    finally:
        home.status.unlink(missing_ok=True)
        lock.release()


async def _run(
    home: Home,
    settings: config.Settings,
    session: Session,
    notary: Notary,
    asked: Asked,
    wrap: Wrap | None,
    show: live.Show | None,
) -> None:
    pages = pages_beside(home, settings.web_port, wanted=asked.web)
    async with AsyncExitStack() as stack:
        seals = stack.enter_context(closing(Seals(home.seals, session.key.public)))
        if asked.read_only:
            offering = Offering(sandbox="not needed: this node runs no jobs")
        else:
            offering = await _offering(home, settings, stack)
        execute = offering.execute
        if wrap is not None and execute is not None:
            execute = wrap(execute)
        node = await stack.enter_async_context(
            open_node(
                key=session.key,
                store=session.store,
                journal=session.journal,
                blobs=session.blobs,
                capacity=offering.capacity,
                execute=execute,
                listen=settings.listen,
                connectivity=connectivity(home, settings, asked.peers),
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
        for address in node.network.addresses:
            log.info("listening on %s", address)
        if session.journal.reopened:
            log.warning(
                "this home was copied or restored from a backup: new entries go into new feeds, "
                "so that nothing that was published before is contradicted"
            )
        await _follow(node, settings)
        if not settings.trusted and not asked.read_only:
            log.info("no project is trusted yet: 'ponyswarm trust add PROJECT_ID' lets jobs in")
        willing = Willing(settings.volunteer)
        given = Given(home, settings, session.key.public)
        steady = Steady(
            started=time.time(),
            sandbox=offering.sandbox,
            limits=limits_in_words(settings, offering.capacity),
            interpreters=tuple(one.name.replace("-", " ", 1) for one in offering.interpreters),
        )
        async with trio.open_nursery() as nursery:
            now = partial(moment, node, steady, willing, given)
            nursery.start_soon(_tell_status, home, now, show)
            nursery.start_soon(_watch_settings, home, node, willing)
            nursery.start_soon(_respect, home, node, willing, nursery.cancel_scope)
            if offering.capacity is not None:
                nursery.start_soon(given.measure_cache)
            if pages is not None:
                nursery.start_soon(pages)
            if settings.notify:
                nursery.start_soon(notifying.run, settings.notify, home.ledger, home.told)
            if asked.once:
                nursery.start_soon(_until_idle, node, nursery.cancel_scope)
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


async def _until_idle(node: Node, scope: trio.CancelScope) -> None:
    """End the node when it has had no cell to run, and nothing to tell, for a while."""
    quiet = 0.0
    while quiet < ONCE_QUIET:
        await trio.sleep(1)
        busy = node.protocol.mine or node.protocol.sealed
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


def connectivity(home: Home, settings: config.Settings, peers: tuple[str, ...]) -> Connectivity:
    """How this home's node keeps in touch, by its settings; it calls ``peers`` besides."""
    relaying = settings.relaying
    return Connectivity(
        network_addresses(home, settings, peers),
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


async def _offering(
    home: Home, settings: config.Settings, stack: AsyncExitStack | None
) -> Offering:
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
        return Offering(sandbox=f"none: {probe.why}; what may help: {probe.remedy}")
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
        return Offering(sandbox=probe.description, capacity=capacity(found, settings.slots, words))
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
    return Offering(
        sandbox=probe.description,
        capacity=capacity(found, settings.slots, services.words),
        execute=Volunteer(executor, found).execute,
        interpreters=tuple(found),
    )


def _warn_of_missing(services: Mapping[str, Offer | Missing]) -> None:
    for name, one in services.items():
        if isinstance(one, Missing):
            log.warning("%s is not offered: %s; what may help: %s", name, one.why, one.remedy)


async def _follow(node: Node, settings: config.Settings) -> None:
    wanted = settings.trusted | settings.followed
    for project in sorted(wanted):
        await node.follow(project, trusted=project in settings.trusted)
    for project in node.protocol.followed - wanted:
        await node.unfollow(project)


async def _respect(home: Home, node: Node, willing: Willing, scope: trio.CancelScope) -> None:
    """Hold the owner's limits, and what `pause` and `drain` said, twice a second."""
    told = readings.control(home.control)
    if told.drain is not None:  # Meant for a node before this one.
        home.control.unlink(missing_ok=True)
    while True:
        told = readings.control(home.control)
        now = readings.read(home.data_dir, own_runs=len(node.runs.running))
        held = hold(willing.wishes, told, now)
        before = willing.held
        if (held and held.why) != (before and before.why):
            if held is None:
                log.info("takes jobs again")
            else:
                log.info("takes no jobs: %s", say(held))
        willing.held = held
        await node.rest(
            "" if held is None else say(held), gives_back=held is not None and held.gives_back
        )
        busy = node.protocol.mine or node.protocol.sealed
        if told.drain == os.getpid() and not busy:
            log.info("drained: nothing runs any more")
            home.control.unlink(missing_ok=True)
            scope.cancel()
        await trio.sleep(LIMITS_EVERY)


async def _watch_settings(home: Home, node: Node, willing: Willing) -> None:
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
        await _follow(node, settings)
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


async def describe(home: Home) -> None:
    """Print what a node on this home would offer."""
    settings = config.load(home.ini)
    offering = await _offering(home, settings, None)
    offered = offering.capacity
    click.echo(f"sandbox    {offering.sandbox}")
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
