"""SQLite: a file in the run's own scratch; there is nothing to start."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ponyswarm.exec.services import hosting
from ponyswarm.exec.services.service import Missing, Offer, Options, Place, Provisioned

FILE = "/project/home/database.sqlite3"


class Sqlite:
    name = "sqlite"
    database = True

    async def probe(self, options: Options) -> Offer | Missing:
        return Offer(
            name=self.name, version=sqlite3.sqlite_version, how="comes with each interpreter"
        )

    @asynccontextmanager
    async def provision(self, place: Place, options: Options) -> AsyncIterator[Provisioned]:
        version = sqlite3.sqlite_version
        if place.interpreter is not None:
            # The interpreter's own, which need not be that of ours.
            version = await hosting.version_of(
                place.interpreter.path,
                *("-E", "-S", "-c", "import sqlite3; print(sqlite3.sqlite_version)"),
            )
        yield Provisioned(
            placeholders={
                "url": f"sqlite:///{FILE}",
                "host": "",
                "port": "",
                "user": "",
                "password": "",
                "name": FILE,
                "socket": "",
                "engine": "django.db.backends.sqlite3",
            },
            versions={"sqlite": version or "unknown"},
        )

    async def sweep(self, mark: str, options: Options) -> None:
        """Nothing outlives a run's scratch."""
