"""A server of the owner's that we cannot divide: Oracle, SQL Server.

The owner makes an account for jobs alone and names host, port, user, database and where
the password is. A job gets that account as it is, one run at a time; nothing is made for
it and nothing dropped. It is reached by a bridge, so no network is opened for the job.
Not tested here, for we have neither server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import trio

from ponyswarm.exec.services.service import INSIDE, Missing, Offer, Options, Place, Provisioned


class Url:
    database = True

    def __init__(self, name: str, *, scheme: str, port: int, engine: str) -> None:
        self.name = name
        self._scheme = scheme
        self._port = port
        self._engine = engine
        self._alone = trio.Lock()

    async def probe(self, options: Options) -> Offer | Missing:
        lacking = [key for key in ("host", "user", "database") if not options.values.get(key)]
        if not options.password:
            lacking.append("password_file")
        if lacking:
            return Missing(
                why="it is offered by a server of yours, and ponyswarm.ini does not say "
                + ", ".join(f"{self.name}.{key}" for key in lacking),
                remedy=f"write {self.name}.{lacking[0]} = … under [services]",
            )
        host, port = options.host, options.port(self._port)
        try:
            with trio.fail_after(5):
                await (await trio.open_tcp_stream(host, port)).aclose()
        except (OSError, trio.TooSlowError):
            why = f"nobody answers at {host}, port {port}"
            return Missing(why=why, remedy=f"nc -vz {host} {port}")
        # Its version cannot be asked without its client: jobs cannot ask for one, either.
        return Offer(name=self.name, version="", how=f"your server at {host}")

    @asynccontextmanager
    async def provision(self, place: Place, options: Options) -> AsyncIterator[Provisioned]:
        port = options.port(self._port)
        user, name = options.values["user"], options.values["database"]
        inside = f"{INSIDE}/{self.name}/socket"
        where = f"127.0.0.1:{self._port}/{quote(name, safe='')}"
        secret = f"{quote(user, safe='')}:{quote(options.password, safe='')}"
        url = f"{self._scheme}://{secret}@{where}"
        async with (
            self._alone,
            place.hosting.bridge(self.name, options.host, port) as socket,
        ):
            yield Provisioned(
                placeholders={
                    "url": url,
                    "tcp_url": url,
                    "host": "127.0.0.1",
                    "port": str(self._port),
                    "user": user,
                    "password": options.password,
                    "name": name,
                    "socket": inside,
                    "engine": self._engine,
                },
                versions={self.name: "unknown"},
                socket=(socket, inside),
                port=self._port,
                only_tcp=True,
            )

    async def sweep(self, mark: str, options: Options) -> None:
        """Nothing is made on the owner's server."""
