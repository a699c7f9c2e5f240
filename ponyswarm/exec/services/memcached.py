"""memcached: a server for each run, because it cannot be divided among strangers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ponyswarm.exec.packages import install_line
from ponyswarm.exec.services import hosting
from ponyswarm.exec.services.hosting import SOCKETS
from ponyswarm.exec.services.service import INSIDE, Missing, Offer, Options, Place, Provisioned

PORT = 11211
SOCKET = "memcached.sock"


class Memcached:
    name = "memcached"
    database = False

    async def probe(self, options: Options) -> Offer | Missing:
        if options.host:
            return Missing(
                why="a memcached server of yours cannot be divided: any job could empty it",
                remedy="remove memcached.host, and one is started for each job",
            )
        program = self._program(options)
        if program is None:
            return Missing(why="memcached is not installed", remedy=install_line("memcached"))
        version = await _version(program)
        return Offer(name=self.name, version=version, how=f"started from {program}")

    @asynccontextmanager
    async def provision(self, place: Place, options: Options) -> AsyncIterator[Provisioned]:
        program = self._program(options) or "memcached"
        server = await place.hosting.start(
            self.name,
            place.slot,
            [program, "-s", f"{SOCKETS}/{SOCKET}", "-a", "0777", "-m", "256"],
            socket_name=SOCKET,
            program=program,
        )
        inside = f"{INSIDE}/{self.name}/{SOCKET}"
        try:
            yield Provisioned(
                placeholders={
                    "url": f"unix:{inside}",
                    "host": inside,
                    "port": str(PORT),
                    "user": "",
                    "password": "",
                    "name": "",
                    "socket": inside,
                    "tcp_url": f"127.0.0.1:{PORT}",
                },
                versions={self.name: await _version(program)},
                socket=(server.socket, inside),
                port=PORT,
                trouble=server.trouble,
            )
        finally:
            await server.stop()

    async def sweep(self, mark: str, options: Options) -> None:
        """A server of a run ends with its node."""

    def _program(self, options: Options) -> str | None:
        return hosting.find_program(["memcached"], [options.values.get("bin", "")])


async def _version(program: str) -> str:
    match = re.search(r"(\d+\.\d+(?:\.\d+)*)", await hosting.version_of(program))
    return match[1] if match else "unknown"
