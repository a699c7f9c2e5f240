"""Redis and Valkey: a server for each run, because they cannot be divided among strangers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ponyswarm.exec.packages import install_line
from ponyswarm.exec.services import hosting
from ponyswarm.exec.services.hosting import DATA, SOCKETS
from ponyswarm.exec.services.service import INSIDE, Missing, Offer, Options, Place, Provisioned

PORT = 6379
SOCKET = "redis.sock"


class Redis:
    database = False

    def __init__(self, name: str) -> None:
        self.name = name

    async def probe(self, options: Options) -> Offer | Missing:
        if options.host:
            return Missing(
                why=f"a {self.name} server of yours cannot be divided: any job could empty it",
                remedy=f"remove {self.name}.host, and one is started for each job",
            )
        program = self._program(options)
        if program is None:
            return Missing(
                why=f"{self.name}-server is not installed",
                remedy=install_line(
                    f"{self.name}-server", dnf=self.name, pacman=self.name, apk=self.name
                ),
            )
        version = re.search(r"v=(\d+(?:\.\d+)*)", await hosting.version_of(program))
        if version is None:
            return Missing(
                why=f"{program} does not tell its version", remedy=f"{program} --version"
            )
        return Offer(name=self.name, version=version[1], how=f"started from {program}")

    @asynccontextmanager
    async def provision(self, place: Place, options: Options) -> AsyncIterator[Provisioned]:
        program = self._program(options) or f"{self.name}-server"
        version = re.search(r"v=(\d+(?:\.\d+)*)", await hosting.version_of(program))
        server = await place.hosting.start(
            self.name,
            place.slot,
            [
                *(program, "--port", "0", "--unixsocket", f"{SOCKETS}/{SOCKET}"),
                *("--unixsocketperm", "777", "--dir", DATA, "--save", "", "--appendonly", "no"),
                *("--daemonize", "no", "--maxmemory", "512mb", "--loglevel", "warning"),
            ],
            socket_name=SOCKET,
            program=program,
        )
        inside = f"{INSIDE}/{self.name}/{SOCKET}"
        try:
            yield Provisioned(
                placeholders={
                    "url": f"unix://{inside}?db=0",
                    "host": inside,
                    "port": str(PORT),
                    "user": "",
                    "password": "",
                    "name": "0",
                    "socket": inside,
                    "tcp_url": f"redis://127.0.0.1:{PORT}/0",
                },
                versions={self.name: version[1] if version else "unknown"},
                socket=(server.socket, inside),
                port=PORT,
                trouble=server.trouble,
            )
        finally:
            await server.stop()

    async def sweep(self, mark: str, options: Options) -> None:
        """A server of a run ends with its node."""

    def _program(self, options: Options) -> str | None:
        return hosting.find_program([f"{self.name}-server"], [options.values.get("bin", "")])
