"""Interpreters on this machine: what was found, and what satisfies a cell's ``python``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """One interpreter of this machine.

    ``path`` is the real executable (symlinks and shims resolved), ``prefix`` its
    ``sys.base_prefix``; ``implementation`` is ``cpython`` or ``pypy``; ``version``
    the full language version, such as ``3.12.1``; ``build`` is ``sys.version``.
    """

    path: str
    prefix: str
    implementation: str
    version: str
    free_threaded: bool = False
    build: str = ""
