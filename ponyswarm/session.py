"""A home opened for writing: its key, journal, ledger and blobs, in the right order.

Commands and the node use it alike; several may be open at once (the journal's lock and
SQLite keep them apart). Own entries go through `Session.publish`: durable in the journal
first, then in the ledger. What a crash left between the two is made up at opening.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ponyswarm import keys
from ponyswarm.codec import ZERO, sign_entry
from ponyswarm.errors import LocalError, PeerError
from ponyswarm.keys import SecretKey
from ponyswarm.ledger.chain import Accept, Duplicate
from ponyswarm.ledger.journal import Journal, boot_id, machine_id
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Entry, Payload
from ponyswarm.p2p.blobs import BlobStore
from ponyswarm.policy import draft_refusal

# Space that is always left free on the disk the blobs are on.
DISK_FLOOR = 1 << 30

# So many of our own latest entries are looked for in the ledger at each opening.
MAKE_UP = 64


@dataclass(frozen=True, slots=True)
class Session:
    """What an open home holds."""

    key: SecretKey
    journal: Journal
    store: Store
    blobs: BlobStore

    def publish(self, payload: Payload, *, project: bytes = ZERO, now: int) -> Entry:
        """Sign an entry and keep it; a running node on this home sends it on.

        Raises `LocalError` when the project's record does not allow it to this key.
        """
        self.check(payload, project, now)
        entry = self.journal.sign(payload, project=project, now=now)
        judgement = self.store.append(entry, now)
        if not isinstance(judgement, Accept | Duplicate):
            raise LocalError(
                f"the ledger did not take the entry: {judgement}; 'ponyswarm fsck' checks it"
            )
        return entry

    def check(self, payload: Payload, project: bytes, now: int) -> None:
        """Before signing: what others would refuse must never enter the journal."""
        state = None
        if project != ZERO:
            state = self.store.state(project)
            if state is None:
                raise LocalError(
                    f"the project {project.hex()[:16]} is not in this ledger yet: "
                    "'ponyswarm follow add ID' and let a node fetch it"
                )
        try:
            # A draft under a nonce that is never used; it is shown to nobody.
            draft = sign_entry(
                self.key, payload, project=project, nonce=bytes(8), seq=0, prev=ZERO, time=now
            )
        except PeerError as fault:
            raise LocalError(
                f"this cannot be published: {fault.detail}; change that, then try again"
            ) from fault
        reason = draft_refusal(state, draft, payload)
        if reason is None:
            return
        if state is None:
            raise LocalError(
                f"this project record is not valid ({reason}): check its keys and its threshold"
            )
        raise LocalError(
            f"the record of {state.record.name!r} does not allow this to your key "
            f"{keys.peer_id(self.key.public)} ({reason}): ask one of its roots to add it"
        )


@contextmanager
def open_session(
    *,
    key: Path,
    journal: Path,
    fence: Path,
    ledger: Path,
    blobs: Path,
    ledger_budget: int,
    blob_budget: int,
    now: int,
) -> Iterator[Session]:
    """Open a home's files. Raises `LocalError` with a remedy for whatever cannot be opened."""
    secret = keys.load(key)
    store = Store(ledger, budget=ledger_budget)
    try:
        own = Journal(
            journal,
            fence=fence,
            key=secret,
            machine=machine_id(),
            nonce=lambda: os.urandom(8),
            boot=boot_id(),
        )
        try:
            held = BlobStore(blobs, budget=blob_budget, floor=DISK_FLOOR)
            _make_up(own, store, secret.public, now)
            yield Session(secret, own, store, held)
        finally:
            own.close()
    finally:
        store.close()


def _make_up(journal: Journal, store: Store, key: bytes, now: int) -> None:
    """Bring journal and ledger together: after a crash one lacks the other's last entries.

    What the journal signed and the ledger lacks is appended. What the ledger holds of our
    key and the journal never signed (it was lost, or is an old backup) closes that feed.
    """
    end = journal.position
    start = end
    # Ledgers lose their latest rows, if any: look back until a stretch is there whole.
    while start > 0:
        start = max(0, start - MAKE_UP)
        stretch = journal.since(start)[:MAKE_UP]
        if all(store.holds(entry.id) for _, entry in stretch):
            break
    store.append_all([entry for _, entry in journal.since(start)], now)
    for entry in store.heads(key):
        journal.seen(entry)
