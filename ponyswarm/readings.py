"""What the machine says of its moment, and what commands told the node: thin readers.

A reading that this machine cannot give is None. The control file is one small file in the
home, replaced whole, which a restart of the node finds again.
"""

from __future__ import annotations

import os
import shutil
from datetime import datetime
from pathlib import Path

import msgspec
import psutil

from ponyswarm.limits import Control, Readings


def read(folder: Path, *, own_runs: int) -> Readings:
    """The readings of now; ``folder`` is on the disk that counts, ``own_runs`` are ours."""
    return Readings(
        when=datetime.now(),
        load=_load(own_runs),
        on_battery=_on_battery(),
        free=_free(folder),
    )


def _load(own_runs: int) -> float | None:
    try:
        return max(0.0, os.getloadavg()[0] - own_runs) / (os.cpu_count() or 1)
    except (OSError, AttributeError):
        return None


def _on_battery() -> bool | None:
    try:
        battery = psutil.sensors_battery()
    except (OSError, AttributeError, psutil.Error):
        return None
    return None if battery is None or battery.power_plugged is None else not battery.power_plugged


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def control(path: Path) -> Control:
    """What commands told the node; nothing when the file is missing or cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Control)
    except (OSError, msgspec.DecodeError):
        return Control()


def write_control(path: Path, told: Control) -> None:
    """Replace the file at once, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(told))
    os.replace(fresh, path)
