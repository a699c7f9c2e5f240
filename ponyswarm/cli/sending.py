"""From an announcement to somebody who has it: what ``announce`` and ``try`` share.

There is one way out for a job: an `Outlet` signs it and delivers it. Which outlet it is
depends on who is there: the node that runs on this home, peers that this command joins for
as long as it takes, or nobody. Whatever comes of it, the job is signed, kept in this home,
and goes out when a node next runs here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

import click
import trio

from ponyswarm import announcing, config, handover, keys
from ponyswarm.cli import EXIT_INCONCLUSIVE
from ponyswarm.cli.joining import fetch_record, joined, known_addresses
from ponyswarm.cli.opening import node_is_running, now_ms
from ponyswarm.errors import LocalError
from ponyswarm.exec import interpreters
from ponyswarm.home import Home
from ponyswarm.ledger.queries import Reader
from ponyswarm.messages import Announce, Blob, Entry
from ponyswarm.session import Session

if TYPE_CHECKING:
    from ponyswarm.node import Node

GRACE = 3.0
# What the name of a project of uncommitted work ends with ('ponyswarm try').
TRIES = " (tries)"


@dataclass(frozen=True, slots=True)
class Way:
    """How a job gets out where no node runs: whom to call besides, and for how long to try."""

    peers: tuple[str, ...]
    seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """Who has a job: in words, as facts for ``--json``, and whether anybody could run it."""

    words: str
    is_out: bool
    facts: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of an announcement. ``is_watched``: its verdicts were waited for."""

    job: bytes
    facts: dict[str, object]
    code: int
    is_watched: bool


class Outlet(Protocol):
    """A way for a job to get out; ``node`` is the one that is open for it, if any."""

    @property
    def node(self) -> Node | None: ...

    async def publish(self, message: Announce, project: bytes) -> Entry: ...

    async def deliver(self, project: bytes, blobs: Sequence[Blob]) -> Delivery: ...


class OwnJournal:
    """Signs into this home's journal; what becomes of it there is known beforehand."""

    node = None

    def __init__(self, session: Session, delivery: Delivery) -> None:
        self._session = session
        self._delivery = delivery

    async def publish(self, message: Announce, project: bytes) -> Entry:
        return self._session.publish(message, project=project, now=now_ms())

    async def deliver(self, project: bytes, blobs: Sequence[Blob]) -> Delivery:
        return self._delivery


class Peers:
    """Hands a job to the peers of a node that is open only for that."""

    def __init__(
        self,
        session: Session,
        node: Node,
        seconds: int,
        tell: Callable[[handover.HandedOver], Delivery],
    ) -> None:
        self.node = node
        self._session = session
        self._seconds = seconds
        self._tell = tell

    async def publish(self, message: Announce, project: bytes) -> Entry:
        self._session.check(message, project, now_ms())
        # Signed here and not before: peers are first asked what they know of our feed.
        return await self.node.publish(message, project)

    async def deliver(self, project: bytes, blobs: Sequence[Blob]) -> Delivery:
        held = await handover.hand_over(
            self.node,
            project,
            blobs,
            seconds=self._seconds,
            grace=GRACE,
            progress=lambda state: None,
        )
        return self._tell(held)


@asynccontextmanager
async def outlet(
    home: Home, session: Session, project: bytes, message: Announce, way: Way
) -> AsyncIterator[Outlet]:
    """The way out that is there now."""
    if node_is_running(home):
        words = "the node running on this home publishes it"
        facts: dict[str, object] = {"published_by": "the node running on this home"}
        yield OwnJournal(session, Delivery(words=words, is_out=True, facts=facts))
        return
    addresses, table = known_addresses(home, way.peers)
    known = session.store.state(project) is not None
    trusted = home.ini.exists() and project in config.load(home.ini).trusted
    tell = partial(delivery, project=project, addresses=len(addresses), trusted=trusted)
    if known and not addresses and not table.addresses():
        yield OwnJournal(session, tell(handover.NOBODY))
        return
    if known:
        # Whoever may not announce hears it now, and not after a minute of looking for peers.
        session.check(message, project, now_ms())
    click.echo("looking for peers to hand it to", err=True)
    async with joined(session, addresses, table) as node:
        await node.follow(project, trusted=False)
        await fetch_record(node, project, way.seconds)
        yield Peers(session, node, way.seconds, tell)


def delivery(
    held: handover.HandedOver, *, project: bytes, addresses: int, trusted: bool
) -> Delivery:
    """What to tell of a handing over. Pure.

    ``addresses`` of peers were known; ``trusted``: this home would run the project's jobs.
    """
    facts: dict[str, object] = {
        "handed_to": sorted(keys.peer_id(key) for key in held.whole),
        "entry_only": sorted(keys.peer_id(key) for key in held.entry - held.whole),
    }
    if held.whole:
        words = f"handed to {amount(len(held.whole), 'peer')}, with its source"
        return Delivery(words=words, is_out=True, facts=facts)
    trust = f"ponyswarm trust add {project.hex()}"
    node = "ponyswarm node"
    if held.entry:
        took = amount(len(held.entry), "peer")
        why = f"{took} took the announcement, and none its source: no volunteer there trusts it"
    elif held.connected:
        reached = amount(len(held.connected), "peer")
        why = f"{reached} reached, and none follows this project"
    else:
        why = f"of {addresses} known addresses none answered" if addresses else "no peer is known"
        node += " --peer ADDRESS"
    lines = [
        f"nobody has it yet: {why}.",
        "It is signed and kept, and goes out when a node runs on this home:",
        f"  {node}",
    ]
    if not trusted:
        lines += ["and to make this machine its first volunteer, as others do, too:"]
        lines += [f"  {trust}"]
    return Delivery(words="\n".join(lines), is_out=False, facts=facts)


def send(
    home: Home,
    session: Session,
    project: bytes,
    message: Announce,
    blobs: Sequence[Blob],
    way: Way,
    told: Callable[[bytes], None],
    then: Callable[[bytes, Node | None], Awaitable[int]] | None,
) -> Sent:
    """Sign an announcement and get it out; ``told`` hears its id, ``then`` gives the code.

    A job that nobody has yet is kept and goes out later, which is no failure: 0, or 3 when
    its verdicts were to be waited for.
    """

    async def main() -> Sent:
        async with outlet(home, session, project, message, way) as out:
            entry = await out.publish(message, project)
            told(entry.id)
            made = await out.deliver(project, blobs)
            click.echo(made.words, err=True)
            if then is None:
                return Sent(entry.id, made.facts, 0, False)
            if not made.is_out:
                return Sent(entry.id, made.facts, EXIT_INCONCLUSIVE, False)
            return Sent(entry.id, made.facts, await then(entry.id, out.node), True)

    return trio.run(main)


def choose_project(home: Home, session: Session, text: str | None) -> bytes:
    """The project that is named, or the only one in which this key may announce.

    The full id of a project that is not here yet will do: its record is fetched.
    """
    if text is None:
        with Reader(home.ledger) as reader:
            known = reader.projects()
        mine = [state for state in known if state.may_announce(session.key.public, now_ms())]
        mine = [state for state in mine if not state.record.name.endswith(TRIES)]
        if len(mine) == 1:
            return mine[0].id
        if not mine:
            raise LocalError(
                "your key may announce in no project here: 'ponyswarm project create NAME' "
                "founds one; or name the id of one whose maintainers added your key by --project"
            )
        names = ", ".join(f"{state.record.name} ({state.id.hex()[:16]})" for state in mine)
        raise LocalError(f"your key may announce in several projects: choose by --project: {names}")
    try:
        with Reader(home.ledger) as reader:
            return reader.find_project(text)
    except LocalError:
        if len(text) == 64 and not node_is_running(home):
            return config.parse_project(text)
        raise


def lock(home: Home, packed: announcing.Packed, now: int) -> announcing.Locked:
    """Pin what each cell installs, with this machine's interpreters."""

    def progress(done: int, total: int, what: str) -> None:
        click.echo(f"pinning what {what} installs ({done + 1} of {total})", err=True)

    settings = config.load(home.ini) if home.ini.exists() else config.Settings()
    found = interpreters.survey(
        settings.interpreters.values(), search=not settings.interpreters
    ).found
    return trio.run(
        partial(announcing.lock, packed, found, before=now, cache=home.cache, progress=progress)
    )


def draft(
    session: Session,
    packed: announcing.Packed,
    locked: announcing.Locked | None,
    *,
    title: str | None,
    lasts: int,
) -> tuple[Announce, list[Blob]]:
    """The announcement to sign, and its blobs, which are kept from here on."""
    now = now_ms()
    source = session.blobs.put(packed.data)
    locks = None if locked is None or not locked.count else session.blobs.put(locked.data)
    message = Announce(
        title=(title or packed.title)[:500],
        commit=packed.commit,
        source=source.hash,
        source_size=source.size,
        source_name=packed.name,
        spec=packed.spec,
        locks=None if locks is None else locks.hash,
        locks_size=0 if locks is None else locks.size,
        resolve_before=now,
        expires=now + 1000 * lasts,
    )
    return message, [source] if locks is None else [source, locks]


def sent_facts(
    sent: Sent, project: bytes, message: Announce, locked: announcing.Locked | None
) -> dict[str, object]:
    return {
        "job": sent.job.hex(),
        "project": project.hex(),
        "title": message.title,
        "commit": message.commit,
        "source": message.source.hex(),
        "locks": 0 if locked is None else locked.count,
        "exit_code": sent.code,
        **sent.facts,
    }


def amount(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
