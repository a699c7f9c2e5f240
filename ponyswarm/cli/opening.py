"""From a home to what a command works with: settings, an open session, the node's state."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ponyswarm import config
from ponyswarm.errors import LocalError
from ponyswarm.home import Home

if TYPE_CHECKING:
    from ponyswarm.exec.services.service import Options
    from ponyswarm.session import Session
    from ponyswarm.status import NodeStatus


def now_ms() -> int:
    return int(time.time() * 1000)


def home_option(home: Home) -> list[str]:
    """The words that name this home to another process; none for the platform's own."""
    return [] if home == Home.locate(None, {}) else ["--home", str(home.config_dir)]


def seconds_of(option: str, text: str) -> int:
    """The duration that an option was given. `LocalError` names the option."""
    try:
        return config.parse_duration(text)
    except ValueError as fault:
        raise LocalError(f"{option}: {text!r} {fault}") from fault


@contextmanager
def opened(home: Home, *, archive: bool = False) -> Iterator[Session]:
    """The home's session, with the budgets of its settings; an archive's blobs have none."""
    from ponyswarm.session import open_session

    settings = config.load(home.ini) if home.ini.exists() else config.Settings()
    limits = settings.limits
    archive = archive or settings.retention.archive
    with open_session(
        key=home.key,
        journal=home.journal,
        fence=home.fence,
        ledger=home.ledger,
        blobs=home.blobs,
        ledger_budget=limits.ledger,
        blob_budget=sys.maxsize if archive else limits.blobs,
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


def running_status(home: Home) -> NodeStatus | None:
    """What the running node says of itself; None when none runs."""
    from ponyswarm import status

    return status.read(home.status) if node_is_running(home) else None


def service_options(settings: config.Settings) -> dict[str, Options]:
    """What the owner says of each service, with the passwords that the settings only name."""
    from ponyswarm.exec.services.service import Options

    return {
        name: Options(values=service.options, password=_password(service))
        for name, service in settings.services.items()
    }


def _password(service: config.Service) -> str:
    if service.password_env is not None:
        found = os.environ.get(service.password_env)
        if found is None:
            raise LocalError(
                f"the password of {service.name} should be in the environment variable "
                f"{service.password_env}, which is not set: set it, or take the line out of "
                "ponyswarm.ini"
            )
        return found
    if service.password_file is None:
        return ""
    try:
        return service.password_file.read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as fault:
        raise LocalError(
            f"the password of {service.name} cannot be read from {service.password_file} "
            f"({getattr(fault, 'strerror', 'it is not UTF-8')}): mend that file, or name another "
            f"by {service.name}.password_file in ponyswarm.ini"
        ) from fault
