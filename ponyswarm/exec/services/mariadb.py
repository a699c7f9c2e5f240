"""MariaDB, and MySQL where the owner has a server: a user and databases of its own for each run.

Nobody is let in without a password, least of all by ``unix_socket``, for a job may have
the uid of the node. A run's user may do everything in databases whose names begin with
its own, or as Django names them (``test_`` before it); on a private server, which no
other run shares, in every one that begins with ``test``.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from ponyswarm.errors import InfraError
from ponyswarm.exec.packages import install_line
from ponyswarm.exec.services import hosting
from ponyswarm.exec.services.hosting import DATA, GIVEN, SOCKETS, Server
from ponyswarm.exec.services.service import (
    INSIDE,
    Missing,
    Offer,
    Options,
    Place,
    Provisioned,
    prefix,
)

PORT = 3306
SOCKET = "mysqld.sock"
CONNECTIONS = 100
DROP_SECONDS = 30.0
CLIENTS = ("mariadb", "mysql")

INIT = """\
"$INSTALL" --no-defaults --datadir=/data/my --auth-root-authentication-method=normal \
    --skip-test-db --skip-name-resolve --innodb-log-file-size=16M >&2
rm -f /data/my/aria_log.* || true
"""

SETTINGS = (
    "--skip-networking",
    "--skip-log-bin",
    "--skip-name-resolve",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=0",
    "--innodb-use-native-aio=0",
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=16M",
    f"--max-connections={2 * CONNECTIONS}",
    "--character-set-server=utf8mb4",
    "--performance-schema=off",
    "--tmpdir=/tmp",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """How to reach a server as one who may make users and databases."""

    client: str
    socket: str = ""
    host: str = ""
    port: int = PORT
    user: str
    password: str = field(repr=False)
    who: str

    async def run(self, statements: str) -> list[list[str]]:
        """The rows of what these statements select."""
        place = (
            [f"--socket={self.socket}"]
            if self.socket
            else ["--protocol=tcp", f"--host={self.host}", f"--port={self.port}"]
        )
        text = await hosting.client(
            [
                *(self.client, "--no-defaults", "--batch", "--skip-column-names"),
                *("--connect-timeout=10", *place, f"--user={self.user}"),
            ],
            statements=statements,
            environment={"MYSQL_PWD": self.password},
            who=self.who,
        )
        return [line.split("\t") for line in text.splitlines()]


class Mariadb:
    database = True
    engine = "django.db.backends.mysql"

    def __init__(self, name: str) -> None:
        self.name = name

    async def probe(self, options: Options) -> Offer | Missing:
        client = hosting.find_program(CLIENTS, [options.values.get("bin", "")])
        if options.host:
            return await self._probe_own(options, client)
        if self.name == "mysql":
            return Missing(
                why="only a MySQL server of yours can be offered; MariaDB, which is started "
                "for jobs, also serves those that ask for 'mysql' without a version",
                remedy="write 'mariadb = yes', or name your server with mysql.host",
            )
        server = self._program(options)
        install = _program(options, ("mariadb-install-db", "mysql_install_db"))
        if server is None or install is None or client is None:
            return Missing(why="MariaDB's programs are not installed", remedy=self._install)
        version = await hosting.version_of(server)
        if "MariaDB" not in version:
            return Missing(why=f"{server} is not MariaDB: {version[:100]}", remedy=self._install)
        return Offer(name=self.name, version=_number(version), how=f"started from {server}")

    async def _probe_own(self, options: Options, client: str | None) -> Offer | Missing:
        if client is None:
            return Missing(
                why="the client of your server is missing",
                remedy=install_line("mariadb-client", dnf="mariadb", pacman="mariadb-clients"),
            )
        admin = self._own(options, client)
        try:
            rows = await admin.run("SELECT VERSION(); SHOW GRANTS;")
        except InfraError as fault:
            return Missing(
                why=f"your server at {options.host} does not let us in: {fault}",
                remedy=f"{client} -h {options.host} -P {admin.port} -u {admin.user} -p",
            )
        version = rows[0][0]
        grants = " ".join(row[0] for row in rows[1:])
        if "ALL PRIVILEGES ON *.*" not in grants and "CREATE USER" not in grants:
            return Missing(
                why=f"the user {admin.user} may not make users and give them rights",
                remedy=f"GRANT ALL PRIVILEGES ON *.* TO '{admin.user}'@'localhost' "
                "WITH GRANT OPTION;",
            )
        if (self.name == "mariadb") != ("MariaDB" in version):
            kind = "MariaDB" if "MariaDB" in version else "MySQL"
            return Missing(
                why=f"your server is {kind} {version}",
                remedy=f"write it as {kind.lower()} in ponyswarm.ini",
            )
        for user in dict.fromkeys((admin.user, "root", "mysql")):
            if await _without_password(admin, user):
                return Missing(
                    why=f"your server lets {user!r} in without a password, so a job could be "
                    f"{user!r}, too",
                    remedy=f"ALTER USER '{user}'@'localhost' IDENTIFIED BY '…';  (or let "
                    f"PonySwarm start a server of its own: remove {self.name}.host)",
                )
        return Offer(name=self.name, version=_number(version), how=f"your server at {options.host}")

    @asynccontextmanager
    async def provision(self, place: Place, options: Options) -> AsyncIterator[Provisioned]:
        server: Server | None = None
        client = hosting.find_program(CLIENTS, [options.values.get("bin", "")]) or CLIENTS[0]
        if options.host:
            admin = self._own(options, client)
        else:
            server = await place.hosting.kept(
                self.name, place.slot, lambda: self._start(place, options)
            )
            admin = Admin(
                client=client,
                socket=str(server.socket),
                user="root",
                password=server.password,
                who=self.name,
            )
        name, password = place.name(), secrets.token_hex(16)
        async with AsyncExitStack() as stack:
            if server is not None:
                socket = server.socket
            elif admin.socket:
                socket = Path(admin.socket)
            else:
                socket = await stack.enter_async_context(
                    place.hosting.bridge(self.name, admin.host, admin.port)
                )
            try:
                rows = await admin.run(_create(name, password, alone=server is not None))
                version = _number(rows[-1][0])
                yield self._given(socket, name, password, version, server)
            finally:
                await _dropped(admin, name, server)

    async def sweep(self, mark: str, options: Options) -> None:
        if not options.host:
            return
        admin = self._own(options, hosting.find_program(CLIENTS) or CLIENTS[0])
        names = f"{prefix(mark)}[0-9a-f]{{8}}"
        # A job chose the ends of its databases' names: only what we chose is taken.
        for row in await admin.run(
            f"SELECT User FROM mysql.user WHERE User REGEXP '^{names}$' UNION "
            f"SELECT REGEXP_SUBSTR(SCHEMA_NAME, '{names}') FROM information_schema.SCHEMATA "
            f"WHERE SCHEMA_NAME REGEXP '^(test_)?{names}'"
        ):
            await drop(admin, row[0], alone=False)

    # --- servers --------------------------------------------------------------------------

    async def _start(self, place: Place, options: Options) -> Server:
        program = self._program(options)
        install = _program(options, ("mariadb-install-db", "mysql_install_db"))
        if program is None or install is None:
            raise InfraError("MariaDB's programs are not installed any more")
        template, _ = await place.hosting.template(
            self.name,
            place.slot,
            INIT,
            program=program,
            environment={"INSTALL": install, "VERSION": await hosting.version_of(program)},
        )
        password = hosting.new_password()
        server = await place.hosting.start(
            self.name,
            place.slot,
            [
                *(program, "--no-defaults", f"--datadir={DATA}/my"),
                *(f"--socket={SOCKETS}/{SOCKET}", f"--pid-file={DATA}/pid"),
                *(f"--init-file={GIVEN}/init.sql", *SETTINGS),
            ],
            socket_name=SOCKET,
            program=program,
            template=template,
            files={
                # Before it listens, nobody is left whom it would let in without a password.
                "init.sql": f"ALTER USER root@localhost IDENTIFIED BY '{password}';\n"
                "DELETE FROM mysql.global_priv WHERE User = '';\n"
                "FLUSH PRIVILEGES;\n"
            },
        )
        server.password = password
        return server

    def _own(self, options: Options, client: str) -> Admin:
        at_socket = options.host.startswith("/")
        socket = options.host
        if at_socket and os.path.isdir(socket):
            socket = os.path.join(socket, SOCKET)
        return Admin(
            client=client,
            socket=socket if at_socket else "",
            host="" if at_socket else options.host,
            port=options.port(PORT),
            user=options.values.get("user", "ponyswarm"),
            password=options.password,
            who=self.name,
        )

    def _given(
        self, socket: Path, name: str, password: str, version: str, server: Server | None
    ) -> Provisioned:
        inside = f"{INSIDE}/{self.name}/{SOCKET}"
        return Provisioned(
            placeholders={
                "url": f"mysql://{name}:{password}@localhost/{name}?unix_socket={inside}",
                "host": "localhost",
                "port": str(PORT),
                "user": name,
                "password": password,
                "name": name,
                "socket": inside,
                "engine": self.engine,
                "tcp_url": f"mysql://{name}:{password}@127.0.0.1:{PORT}/{name}",
            },
            versions={self.name: version},
            socket=(socket, inside),
            port=PORT,
            trouble=server.trouble if server is not None else lambda: "",
        )

    def _program(self, options: Options) -> str | None:
        return _program(options, ("mariadbd", "mysqld"))

    @property
    def _install(self) -> str:
        return install_line("mariadb-server", pacman="mariadb", apk="mariadb mariadb-client")


def _program(options: Options, names: tuple[str, ...]) -> str | None:
    return hosting.find_program(names, [options.values.get("bin", "")])


def _create(name: str, password: str, *, alone: bool) -> str:
    quoted = name.replace("_", "\\_")
    patterns = [quoted, f"{quoted}\\_%", f"test\\_{quoted}%", *(["test%"] if alone else [])]
    grants = "".join(f"GRANT ALL ON `{pattern}`.* TO {name}@'%';\n" for pattern in patterns)
    return (
        f"CREATE USER {name}@'%' IDENTIFIED BY '{password}' "
        f"WITH MAX_USER_CONNECTIONS {CONNECTIONS};\n"
        f"CREATE DATABASE {name};\n{grants}SELECT VERSION();\n"
    )


async def drop(admin: Admin, name: str, *, alone: bool) -> None:
    """Remove a run's user and databases, whatever it left open."""
    quoted = name.replace("_", "\\_")
    rows = await admin.run(
        f"DROP USER IF EXISTS {name}@'%';\n"
        f"SELECT 'id', ID FROM information_schema.PROCESSLIST WHERE USER = '{name}';\n"
        # A job chose these names: in hexadecimal they can neither end a line nor a statement.
        "SELECT 'name', HEX(SCHEMA_NAME) FROM information_schema.SCHEMATA WHERE "
        f"SCHEMA_NAME LIKE '{quoted}%' OR SCHEMA_NAME LIKE 'test\\_{quoted}%'"
        + (" OR SCHEMA_NAME LIKE 'test%'" if alone else "")
    )
    for connection in (row[1] for row in rows if row[0] == "id"):
        try:
            await admin.run(f"KILL CONNECTION {int(connection)};")
        except InfraError:
            continue  # It ended by itself.
    schemas = [bytes.fromhex(row[1]).decode() for row in rows if row[0] == "name"]
    drops = "".join(f"DROP DATABASE IF EXISTS `{one.replace('`', '``')}`;\n" for one in schemas)
    await admin.run(f"SET lock_wait_timeout = 10;\n{drops}")


async def _dropped(admin: Admin, name: str, server: Server | None) -> None:
    """Drop what a run had; a private server that does not do so goes altogether."""
    if server is not None and not server.alive:
        return
    with trio.CancelScope(shield=True):
        try:
            with trio.fail_after(DROP_SECONDS):
                await drop(admin, name, alone=server is not None)
        except (InfraError, trio.TooSlowError) as fault:
            hosting.log.warning("a run's user %s could not be dropped: %s", name, fault)
            if server is not None:
                await server.stop()


async def _without_password(admin: Admin, user: str) -> bool:
    """Whether a job could log in as this user: tried as an id that jobs have, where we can."""
    drop_to = ["/usr/bin/setpriv", "--reuid=64000", "--regid=64000", "--clear-groups"]
    place = (
        [f"--socket={admin.socket}"]
        if admin.socket
        else ["--protocol=tcp", f"--host={admin.host}", f"--port={admin.port}"]
    )
    try:
        await hosting.client(
            [
                *(drop_to if os.geteuid() == 0 else ()),
                *(admin.client, "--no-defaults", "--connect-timeout=5", f"--user={user}", *place),
            ],
            statements="SELECT 1;",
            environment={},
            who="",
        )
    except InfraError:
        return False
    return True


def _number(text: str) -> str:
    """``10.11.19`` of what a server or ``mariadbd --version`` says of itself."""
    match = re.search(r"(\d+\.\d+\.\d+)", text)
    return match[1] if match else ""
