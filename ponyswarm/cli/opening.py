"""From a home to what a command works with: settings, an open session, the node's state."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ponyswarm import config, status
from ponyswarm.errors import LocalError
from ponyswarm.home import Home
from ponyswarm.session import Session, open_session


def now_ms() -> int:
    return int(time.time() * 1000)


@contextmanager
def opened(home: Home) -> Iterator[Session]:
    """The home's session, with the budgets of its settings."""
    if not home.key.exists():
        raise LocalError(f"there is no key in {home.config_dir}: run 'ponyswarm init' first")
    limits = config.load(home.ini).limits if home.ini.exists() else config.Limits()
    with open_session(
        key=home.key,
        journal=home.journal,
        fence=home.fence,
        ledger=home.ledger,
        blobs=home.blobs,
        ledger_budget=limits.ledger,
        blob_budget=limits.blobs,
        now=now_ms(),
    ) as session:
        yield session


def node_is_running(home: Home) -> bool:
    """Whether a node holds this home's lock."""
    from filelock import FileLock, Timeout

    if not home.lock.exists():
        return False
    try:
        with FileLock(home.lock, timeout=0):
            return False
    except Timeout:
        return True


def running_status(home: Home) -> status.NodeStatus | None:
    """What the running node says of itself; None when none runs."""
    return status.read(home.status) if node_is_running(home) else None
