"""Names of what a machine lacks, as one line that installs it here, to copy."""

from __future__ import annotations

import os
import shutil

# A package manager's program and how it installs.
MANAGERS = {
    "apt": ("apt-get", "apt-get install"),
    "dnf": ("dnf", "dnf install"),
    "pacman": ("pacman", "pacman -S"),
    "zypper": ("zypper", "zypper install"),
    "apk": ("apk", "apk add"),
}


def install_line(apt: str, **others: str) -> str:
    """The line for this machine; ``others`` are names that differ, by package manager."""
    for manager, (program, line) in MANAGERS.items():
        if shutil.which(program):
            sudo = "" if getattr(os, "geteuid", lambda: 1)() == 0 else "sudo "
            return f"{sudo}{line} {others.get(manager, apt)}"
    return f"install {apt} with your system's package manager"
