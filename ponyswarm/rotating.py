"""Giving a home's place to a new key, so that a crash at any point can be gone on from.

The new key is on the disk before the old one names it; it takes the old one's place when
every project was told; until then the command may be given again, with the same new key.
Called by ``cli.key``.
"""

from __future__ import annotations

import os
from pathlib import Path

from ponyswarm import keys
from ponyswarm.keys import SecretKey
from ponyswarm.policy import rotation
from ponyswarm.session import Session


def successor(path: Path) -> SecretKey:
    """The key that will follow the one at ``path``; made now, or by a try that was cut short."""
    fresh = _fresh(path)
    if not fresh.exists():
        keys.save(fresh, SecretKey.generate())
    return keys.load(fresh)


def say(session: Session, heir: SecretKey, *, now: int) -> list[bytes]:
    """Name the successor in every project that knows this key; those projects.

    The feeds of the old key end here: the new one opens its own.
    """
    told = []
    for project in session.store.projects_of(session.key.public):
        state = session.store.state(project)
        if state is None:
            continue
        if state.before.get(heir.public) != session.key.public:
            said = rotation(project, session.key.public, heir)
            session.publish(said, project=project, now=now)
        session.journal.close_feed(project)
        told.append(project)
    return told


def put(path: Path) -> Path:
    """Let the successor's file take the old one's place; where the old key is kept."""
    old = keys.load(path)
    kept = path.with_name(f"{path.name}.{keys.peer_id(old.public)[-8:]}")
    if not kept.exists():
        keys.save(kept, old)
    # At no moment is there no key at ``path``.
    os.replace(_fresh(path), path)
    return kept


def _fresh(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")
