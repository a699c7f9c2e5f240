"""The way of an entry into this home: checked, judged, appended, and told to the protocol.

What gossip brings is checked before it is relayed (`validate`), what a pull brings before
it is appended (`take`), and what was signed on this home goes the same way (`take_own`).
The ledger's judgement on each becomes effects: a gap asks for a pull, a fork takes the
force of what its author directed and is told of, a refusal is counted. `node` performs
the effects.
"""

from __future__ import annotations

import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from ponyswarm.codec import check_segment, decode_gossip, decode_payload
from ponyswarm.errors import PeerError
from ponyswarm.keeping import Keeping
from ponyswarm.keys import peer_id
from ponyswarm.ledger.chain import (
    Accept,
    Completed,
    Diverges,
    Duplicate,
    Early,
    Forked,
    Gap,
    Judgement,
    Refused,
)
from ponyswarm.ledger.journal import Journal
from ponyswarm.ledger.store import Store
from ponyswarm.messages import (
    Announce,
    Entry,
    Ephemeral,
    Fork,
    Payload,
    Project,
    Withdraw,
)
from ponyswarm.p2p.effects import Effect
from ponyswarm.p2p.protocol import Protocol
from ponyswarm.p2p.topics import topic_project
from ponyswarm.policy import Directing, checked_payload, refusal

log = logging.getLogger("ponyswarm")

MAX_HEARD = 1_000
MAX_DECODED = 4_096
# Seconds before a fork that was seen is told of, and between later looks for untold ones.
FORK_PAUSE = (0.2, 3.0)
FORKS_EVERY = 60.0


class Intake:
    """``refuse`` is told of (reason, peer), ``perform`` does what follows from a segment, ``clock``
    gives milliseconds since 1970.
    """

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        protocol: Protocol,
        keeping: Keeping,
        refuse: Callable[[str, bytes | None], None],
        perform: Callable[[Iterable[Effect]], Awaitable[None]],
        clock: Callable[[], int],
    ) -> None:
        self.heard: OrderedDict[bytes, Project] = OrderedDict()
        self._store = store
        self._journal = journal
        self._protocol = protocol
        self._keeping = keeping
        self._refuse = refuse
        self._perform = perform
        self._clock = clock
        self._decoded: OrderedDict[bytes, Entry | Ephemeral] = OrderedDict()
        self._forks_due = trio.current_time()

    # --- gossip -------------------------------------------------------------------------

    def validate(self, topic: str, origin: bytes, forwarder: bytes, data: bytes) -> bool:
        """Whether a gossip message may be taken and relayed; runs for each one, first.

        Everything is held against its forwarder here that a message alone shows to be wrong,
        as whoever passes it on should have seen it; and nothing later, where a ledger judges
        which its forwarder need not have.
        """
        try:
            message = decode_gossip(data)
            self._check_gossiped(message, topic_project(topic))
        except PeerError as fault:
            self._refuse(fault.reason, forwarder)
            return False
        # What was dropped on the way from here to `decoded` must not stay for ever.
        self._decoded[data] = message
        while len(self._decoded) > MAX_DECODED:
            self._decoded.popitem(last=False)
        return True

    def is_named(self, topic: str, author: bytes) -> bool:
        """Whether a topic's project names this author, or vouches for it."""
        project = topic_project(topic)
        state = None if project is None else self._store.state(project)
        return state is not None and state.knows(author, self._clock())

    def decoded(self, data: bytes) -> Entry | Ephemeral | None:
        """The message that `validate` made of these bytes, once."""
        return self._decoded.pop(data, None)

    def _check_gossiped(self, message: Entry | Ephemeral, project: bytes | None) -> None:
        if project is None:
            if not isinstance(message, Entry) or not message.is_genesis:
                raise PeerError("bad-directory")
            state = None
        elif isinstance(message, Entry):
            if message.namespace != project:
                raise PeerError("wrong-topic")
            state = self._store.state(project)
            if state is None and not message.is_genesis:
                # Its record is on the way; a pull brings both.
                raise PeerError("unknown-project")
        else:
            return
        reason = refusal(state, message, checked_payload(message))
        if reason is not None:
            raise PeerError(reason)

    def hear_of(self, entry: Entry) -> None:
        """Remember a project record from the directory."""
        payload = decode_payload(entry)
        if isinstance(payload, Project):
            self.heard[entry.id] = payload
            self.heard.move_to_end(entry.id)
            while len(self.heard) > MAX_HEARD:
                self.heard.popitem(last=False)

    # --- into the ledger ----------------------------------------------------------------

    def admit(self, entry: Entry, peer: bytes, now: int) -> list[Effect]:
        """Append an entry that a peer gossiped, and say what follows from it."""
        self._look_for_own([entry])
        judged = [self._store.append(entry, now)]
        return self._judged([entry], judged, peer, now, blamed=None)[1]

    async def take(
        self, project: bytes, segments: Sequence[Sequence[Entry]], peer: bytes, now: int
    ) -> int:
        """Append the segments of a pull; how many entries were new. Raises `PeerError`."""
        for segment in segments:
            if any(entry.namespace != project for entry in segment):
                raise PeerError("wrong-project")
            check_segment(segment)
            self._look_for_own(segment)
            await trio.lowlevel.checkpoint()
        new = 0
        for segment, judged in zip(
            segments, self._store.append_segments(segments, now), strict=True
        ):
            fresh, effects = self._judged(segment, judged, peer, now, blamed=peer)
            new += fresh
            await self._perform(effects)
        return new

    def take_own(self, entry: Entry, now: int) -> list[Effect]:
        """Append what was signed on this home, and say what follows: it is published."""
        payload = decode_payload(entry)
        judgement = self._store.append(entry, now)
        if isinstance(judgement, Refused):
            log.warning("our own entry was refused: %s", judgement.reason)
            return []
        self._keeping.expect(entry, payload, now)
        effects = self._rights_changed(entry, payload, now)
        return effects + self._protocol.admitted(entry, payload, now, peer=None, own=True)

    def _look_for_own(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry.header.author == self._protocol.me and self._journal.seen(entry):
                log.warning(
                    "an entry of our own key came from elsewhere: a copy of this home runs, or it "
                    "was restored from a backup; we go on in a new feed"
                )

    def _judged(
        self,
        entries: Sequence[Entry],
        judgements: Sequence[Judgement],
        peer: bytes,
        now: int,
        *,
        blamed: bytes | None,
    ) -> tuple[int, list[Effect]]:
        effects: list[Effect] = []
        new = 0
        for entry, judgement in zip(entries, judgements, strict=True):
            match judgement:
                case Accept() | Completed():
                    new += 1
                    effects += self._taken(entry, decode_payload(entry), peer, now)
                case Gap() | Diverges():
                    effects += self._protocol.gap(entry, peer, now)
                case Forked(seq):
                    effects += self._forked(entry, seq, now)
                case Refused(reason):
                    self._refuse(reason, blamed)
                case Duplicate() | Early():
                    pass
        return new, effects

    def _taken(self, entry: Entry, payload: Payload | None, peer: bytes, now: int) -> list[Effect]:
        if isinstance(payload, Announce):
            log.info("heard of a job: %s", payload.title)
        self._keeping.expect(entry, payload, now)
        effects = self._rights_changed(entry, payload, now)
        return effects + self._protocol.admitted(entry, payload, now, peer=peer, own=False)

    def _rights_changed(self, entry: Entry, payload: Payload | None, now: int) -> list[Effect]:
        """Tell the protocol what ended, when an entry may have changed that."""
        if isinstance(payload, Fork):
            self._forks_due = min(self._forks_due, trio.current_time() + FORK_PAUSE[1])
        if not isinstance(payload, Announce | Withdraw | Fork | Directing):
            return []
        return self.tell_rights(entry.namespace, now)

    def tell_rights(self, project: bytes, now: int) -> list[Effect]:
        """Tell the protocol whose word counts in a project, and which of its jobs are over."""
        state = self._store.state(project)
        if state is not None:
            self._protocol.rights(project, state, self._store.forked(project), now)
        return self._protocol.ended(project, self._store.ended(project), now)

    # --- forks --------------------------------------------------------------------------

    def _forked(self, entry: Entry, seq: int, now: int) -> list[Effect]:
        """Somebody signed two histories: what it directed from there on has no force."""
        author = peer_id(entry.header.author)
        log.warning("%s forked its feed at %d: its results count no more", author, seq)
        pause = random.uniform(*FORK_PAUSE)  # noqa: S311
        self._forks_due = min(self._forks_due, trio.current_time() + pause)
        return self.tell_rights(entry.namespace, now)

    def forks_due(self) -> list[tuple[Fork, bytes]]:
        """(proof, project) of each fork to tell of now: no `fork` entry here does yet.

        All who saw a fork wait for a moment of their own length, so that mostly one speaks.
        """
        if trio.current_time() < self._forks_due:
            return []
        self._forks_due = trio.current_time() + FORKS_EVERY
        followed = self._protocol.followed
        return [(proof, p) for p in followed for proof in self._store.untold_forks(p)]
