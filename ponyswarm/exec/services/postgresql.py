"""PostgreSQL: a role and a database of its own for each run.

Everybody needs a password (scram), for a job may have the uid of the node, and a
superuser would mean COPY … PROGRAM. A run's role may make databases, as Django and
SQLAlchemy want, and is dropped with every database it owns. Extensions that only a
superuser can make are in the template that databases are copied from.
"""

from __future__ import annotations

import glob
import os
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from ponyswarm.errors import InfraError
from ponyswarm.exec.packages import install_line
from ponyswarm.exec.services import hosting
from ponyswarm.exec.services.hosting import DATA, SOCKETS, Server
from ponyswarm.exec.services.service import (
    INSIDE,
    Missing,
    Offer,
    Options,
    Place,
    Provisioned,
    prefix,
)

PORT = 5432
ADMIN = "ponyswarm"
OLDEST = 13  # DROP DATABASE … WITH (FORCE) came with it.
DROP_SECONDS = 30.0
CONNECTIONS = 100
EXTENSIONS = ("hstore", "citext", "bloom", "unaccent", "pg_trgm", "btree_gin", "btree_gist")
FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/libexec/postgresql*")

# The collations are those of PostgreSQL's usual images, which suites count on: they must not
# depend on which locales a volunteer's system happens to have.
INIT = """\
printf %s "$PASSWORD" > /tmp/password
"$BIN/initdb" -D /data/pg -U ponyswarm --pwfile=/tmp/password -A scram-sha-256 -E UTF8 \
    --locale=C.UTF-8 --no-sync >&2
single() { "$BIN/postgres" --single -D /data/pg -c fsync=off "$1" >&2; }
{
    for name in $EXTENSIONS; do printf 'CREATE EXTENSION "%s"\\n' "$name"; done
    for name in en_US en_US.utf8; do
        echo "CREATE COLLATION IF NOT EXISTS public.\\"$name\\" (provider = icu, locale = 'en-US')"
    done
    echo 'REVOKE ALL ON DATABASE template1 FROM PUBLIC'
} | single template1
{
    echo 'REVOKE TEMPORARY ON DATABASE postgres FROM PUBLIC'
    echo 'REVOKE CREATE ON SCHEMA public FROM PUBLIC'
} | single postgres
"""

# Nothing of a throwaway server needs to survive a crash, so nothing waits for a disk.
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_directories": SOCKETS,
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "max_connections": str(2 * CONNECTIONS),
    "max_prepared_transactions": "20",
    "shared_buffers": "64MB",
    "logging_collector": "off",
    "log_statement": "none",
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """How to reach a server as one who may make roles and databases."""

    psql: str
    host: str
    port: int
    user: str
    database: str = "postgres"
    password: str = field(repr=False)
    who: str = "postgresql"

    async def run(self, statements: str, database: str = "") -> list[list[str]]:
        """The rows of what these statements select."""
        # A bare name could be read as a connection string that leads elsewhere.
        quoted = re.sub(r"([\\'])", r"\\\1", database or self.database)
        text = await hosting.client(
            [
                *(self.psql, "-X", "-q", "-A", "-t", "-w", "-F", "\t"),
                *("-v", "ON_ERROR_STOP=1", "-f", "-"),
                *("-h", self.host, "-p", str(self.port)),
                *("-U", self.user, "-d", f"dbname='{quoted}'"),
            ],
            statements=statements,
            environment={"PGPASSWORD": self.password, "PGCONNECT_TIMEOUT": "10"},
            who=self.who,
        )
        return [line.split("\t") for line in text.splitlines()]


class Postgresql:
    """PostgreSQL, and with further extensions in its template also what is built on it."""

    name = "postgresql"
    database = True
    scheme = "postgresql"
    engine = "django.db.backends.postgresql"
    extensions: tuple[str, ...] = EXTENSIONS

    async def probe(self, options: Options) -> Offer | Missing:
        if options.host:
            return await self._probe_own(options)
        found = self._binaries(options)
        if isinstance(found, Missing):
            return found
        version = _number(await hosting.version_of(f"{found}/postgres"))
        if _major(version) < OLDEST:
            return Missing(
                why=f"{found} has PostgreSQL {version or 'of an unknown version'}, and "
                f"{OLDEST} is the oldest that works",
                remedy=self._install,
            )
        return Offer(name=self.name, version=version, how=f"started from {found}")

    async def _probe_own(self, options: Options) -> Offer | Missing:
        psql = hosting.find_program(["psql"], [options.values.get("bin", "")])
        if psql is None:
            return Missing(
                why="psql is missing, the client of your server",
                remedy=install_line("postgresql-client", dnf="postgresql", pacman="postgresql"),
            )
        admin = self._own(options, psql)
        try:
            rows = await admin.run(
                "SELECT current_setting('server_version'), rolcreatedb AND rolcreaterole "
                "OR rolsuper FROM pg_roles WHERE rolname = current_user"
            )
        except InfraError as fault:
            return Missing(
                why=f"your server at {options.host} does not let us in: {fault}",
                remedy=f"psql -h {options.host} -p {admin.port} -U {admin.user} {admin.database}",
            )
        version = _number(rows[0][0])
        if rows[0][1] != "t":
            return Missing(
                why=f"the role {admin.user} may not make roles and databases",
                remedy=f'ALTER ROLE "{admin.user}" CREATEROLE CREATEDB;',
            )
        if _major(version) < OLDEST:
            why = f"your server is PostgreSQL {version}, and {OLDEST} is the oldest that works"
            return Missing(why=why, remedy=self._install)
        for user in dict.fromkeys((admin.user, "postgres", _own_name())):
            if await _without_password(psql, admin, user):
                return Missing(
                    why=f"your server lets {user!r} in without a password, so a job could be "
                    f"{user!r}, too",
                    remedy="write scram-sha-256 for 'peer' and 'trust' in its pg_hba.conf, or "
                    "let PonySwarm start a server of its own (remove "
                    f"{self.name}.host)",
                )
        return Offer(name=self.name, version=version, how=f"your server at {options.host}")

    @asynccontextmanager
    async def provision(self, place: Place, options: Options) -> AsyncIterator[Provisioned]:
        server: Server | None = None
        if options.host:
            psql = hosting.find_program(["psql"], [options.values.get("bin", "")])
            admin = self._own(options, psql or "psql")
        else:
            server = await place.hosting.kept(
                self.name, place.slot, lambda: self._start(place, options)
            )
            admin = self._hosted(server, options)
        name, password = place.name(), secrets.token_hex(16)
        try:
            versions = await self._create(admin, name, password)
            if server is not None:
                async with self._given(server.socket, name, password, versions, server) as given:
                    yield given
            elif options.host.startswith("/"):
                socket = Path(options.host, f".s.PGSQL.{admin.port}")
                async with self._given(socket, name, password, versions, None) as given:
                    yield given
            else:
                async with (
                    place.hosting.bridge(self.name, options.host, admin.port) as socket,
                    self._given(socket, name, password, versions, None) as given,
                ):
                    yield given
        finally:
            await _dropped(admin, name, server)

    async def sweep(self, mark: str, options: Options) -> None:
        if not options.host:
            return
        admin = self._own(options, hosting.find_program(["psql"]) or "psql")
        for row in await admin.run(
            f"SELECT rolname FROM pg_roles WHERE rolname ~ '^{prefix(mark)}[0-9a-f]{{8}}$'"
        ):
            await drop(admin, row[0])

    # --- servers --------------------------------------------------------------------------

    async def _start(self, place: Place, options: Options) -> Server:
        binaries = self._binaries(options)
        if isinstance(binaries, Missing):
            raise InfraError(f"{self.name}: {binaries.why}")
        program = f"{binaries}/postgres"
        version = await hosting.version_of(program)
        template, password = await place.hosting.template(
            self.name,
            place.slot,
            INIT,
            program=program,
            environment={
                "BIN": binaries,
                "EXTENSIONS": " ".join(_installed(binaries, self.extensions)),
                "VERSION": version,
            },
        )
        argv = [program, "-D", f"{DATA}/pg"]
        for key, value in SETTINGS.items():
            argv += ["-c", f"{key}={value}"]
        server = await place.hosting.start(
            self.name,
            place.slot,
            argv,
            socket_name=f".s.PGSQL.{PORT}",
            program=program,
            template=template,
        )
        server.password = password
        return server

    def _hosted(self, server: Server, options: Options) -> Admin:
        binaries = self._binaries(options)
        folder = binaries if isinstance(binaries, str) else ""
        return Admin(
            psql=hosting.find_program(["psql"], [folder]) or "psql",
            host=str(server.socket.parent),
            port=PORT,
            user=ADMIN,
            password=server.password,
            who=self.name,
        )

    def _own(self, options: Options, psql: str) -> Admin:
        return Admin(
            psql=psql,
            host=options.host,
            port=options.port(PORT),
            user=options.values.get("user", ADMIN),
            database=options.values.get("database", "postgres"),
            password=options.password,
            who=self.name,
        )

    async def _create(self, admin: Admin, name: str, password: str) -> dict[str, str]:
        """Make role and database; the versions of what answered."""
        await _patiently(
            admin,
            f"CREATE ROLE {name} LOGIN NOSUPERUSER NOCREATEROLE CREATEDB "
            f"CONNECTION LIMIT {CONNECTIONS} PASSWORD '{password}';\n"
            f"GRANT {name} TO CURRENT_USER;\n"
            f"CREATE DATABASE {name} OWNER {name};\n"
            f"REVOKE ALL ON DATABASE {name} FROM PUBLIC;\n",
        )
        return await self.versions(admin, name)

    async def versions(self, admin: Admin, database: str) -> dict[str, str]:
        rows = await admin.run("SHOW server_version")
        return {"postgresql": _number(rows[0][0])}

    @asynccontextmanager
    async def _given(
        self,
        socket: Path,
        name: str,
        password: str,
        versions: Mapping[str, str],
        server: Server | None,
    ) -> AsyncIterator[Provisioned]:
        folder = f"{INSIDE}/{self.name}"
        yield Provisioned(
            placeholders={
                "url": f"{self.scheme}://{name}:{password}@/{name}?host={folder}",
                "host": folder,
                "port": str(PORT),
                "user": name,
                "password": password,
                "name": name,
                "socket": f"{folder}/.s.PGSQL.{PORT}",
                "engine": self.engine,
                "tcp_url": f"{self.scheme}://{name}:{password}@127.0.0.1:{PORT}/{name}",
            },
            versions=versions,
            socket=(socket, f"{folder}/.s.PGSQL.{PORT}"),
            port=PORT,
            trouble=server.trouble if server is not None else lambda: "",
        )

    def _binaries(self, options: Options) -> str | Missing:
        """The folder of the server's programs, of the newest version that is here."""
        named = options.values.get("bin")
        folders = (
            [named]
            if named
            else sorted(
                (path for pattern in FOLDERS for path in glob.glob(pattern)),
                key=lambda path: _major(re.sub(r"\D*(\d+).*", r"\1", path)),
                reverse=True,
            )
        )
        program = hosting.find_program(["postgres"])
        if program and not named:
            folders.append(str(Path(program).resolve().parent))
        for folder in folders:
            if all(os.access(f"{folder}/{name}", os.X_OK) for name in ("postgres", "initdb")):
                if hosting.find_program(["psql"], [folder]) is None:
                    break
                return folder
        if named:
            return Missing(why=f"{named} has no postgres and initdb", remedy=self._install)
        return Missing(why="PostgreSQL's programs are not installed", remedy=self._install)

    @property
    def _install(self) -> str:
        return install_line(
            "postgresql", dnf="postgresql-server postgresql-contrib", apk="postgresql"
        )


async def drop(admin: Admin, name: str) -> None:
    """Remove a run's role and all that it owns, whatever it did to prevent that."""
    await admin.run(
        f"ALTER ROLE {name} NOLOGIN;\n"
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE usename = '{name}' AND pid <> pg_backend_pid();\n"
    )
    owned = f"FROM pg_database WHERE datdba = '{name}'::regrole"
    prepared = f"FROM pg_prepared_xacts WHERE owner = '{name}'"
    # A job chose these names: in hexadecimal they can neither end a line nor a statement.
    for row in await admin.run(
        f"SELECT DISTINCT encode(convert_to(database, 'UTF8'), 'hex') {prepared}"
    ):
        await admin.run(
            f"SELECT format('ROLLBACK PREPARED %L', gid) {prepared} "
            "AND database = current_database() \\gexec",
            bytes.fromhex(row[0]).decode(),
        )
    await admin.run(
        f"SELECT format('ALTER DATABASE %I IS_TEMPLATE false', datname) {owned} "
        "AND datistemplate \\gexec\n"
        f"SELECT format('DROP DATABASE IF EXISTS %I WITH (FORCE)', datname) {owned} \\gexec\n"
        f"DROP OWNED BY {name} CASCADE;\n"
        f"DROP ROLE {name};\n"
    )


async def _dropped(admin: Admin, name: str, server: Server | None) -> None:
    """Drop what a run had; a private server that does not do so goes altogether."""
    if server is not None and not server.alive:
        return
    with trio.CancelScope(shield=True):
        try:
            with trio.fail_after(DROP_SECONDS):
                if await admin.run(f"SELECT 1 FROM pg_roles WHERE rolname = '{name}'"):
                    await drop(admin, name)
        except (InfraError, trio.TooSlowError) as fault:
            hosting.log.warning("a run's role %s could not be dropped: %s", name, fault)
            if server is not None:
                await server.stop()


async def _patiently(admin: Admin, statements: str) -> None:
    """Run these, waiting for a server that listens already but is still starting up."""
    for _ in range(100):
        try:
            await admin.run(statements)
        except InfraError as fault:
            if "starting up" not in str(fault):
                raise
            await trio.sleep(0.05)
        else:
            return
    raise InfraError(f"{admin.who} is starting up and does not come to an end of it")


async def _without_password(psql: str, admin: Admin, user: str) -> bool:
    """Whether a job could log in as this user: tried as an id that jobs have, where we can."""
    drop_to = ["/usr/bin/setpriv", "--reuid=64000", "--regid=64000", "--clear-groups"]
    try:
        await hosting.client(
            [
                *(drop_to if os.geteuid() == 0 else ()),
                *(psql, "-X", "-w", "-h", admin.host, "-p", str(admin.port)),
                *("-U", user, "-d", admin.database),
            ],
            statements="SELECT 1;",
            environment={"PGPASSFILE": "/dev/null", "PGCONNECT_TIMEOUT": "5"},
            who="",
        )
    except InfraError:
        return False
    return True


def _own_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return "root"


def _installed(binaries: str, extensions: tuple[str, ...]) -> list[str]:
    """Those of the extensions whose files are here (a distribution may split them off)."""
    places = [Path(binaries).parent / "share", Path(binaries).parent / "share" / "postgresql"]
    places += [Path(path) for path in glob.glob("/usr/share/postgresql*")]
    places.append(Path("/usr/share/postgresql", Path(binaries).parent.name))
    return [
        name
        for name in extensions
        if any((place / "extension" / f"{name}.control").exists() for place in places)
    ]


def _number(text: str) -> str:
    """``15.18`` of ``postgres (PostgreSQL) 15.18 (Debian …)``."""
    match = re.search(r"\d+(?:\.\d+)*(?:(?:beta|rc)\d+)?", text)
    return match[0] if match else ""


def _major(version: str) -> int:
    match = re.match(r"\d+", version)
    return int(match[0]) if match else 0
