"""Real servers: what a run is given of them, what it cannot do with it, and that all of it goes.

The servers are Debian's packages (`bootstrap.py` gets them for the tests); a test whose
server is not installed is skipped and says so. "The owner's server" is a private one of
another home, reached as an owner's would be.
"""

from __future__ import annotations

import functools
import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from exec_lab import (
    MIB,
    NOW,
    REPOSITORY,
    SMALL,
    archive,
    as_ordinary_user,
    holds,
    in_trio,
    this_python,
)
from told import told

from ponyswarm.errors import InfraError
from ponyswarm.exec import index, provisioning
from ponyswarm.exec.executor import Executor
from ponyswarm.exec.outcome import Broken, Outcome
from ponyswarm.exec.provisioning import Given, Services, open_services
from ponyswarm.exec.services import SERVICES, mariadb, postgresql
from ponyswarm.exec.services.hosting import mark_of
from ponyswarm.exec.services.postgresql import Postgresql
from ponyswarm.exec.services.service import Missing, Options, prefix
from ponyswarm.matrix import cells
from ponyswarm.messages import Cell, FileTemplate, Install, Lock, Reason, Spec


@functools.lru_cache(maxsize=1)
def missing() -> dict[str, str]:
    probed = trio.run(provisioning.probe, {name: Options() for name in SERVICES})
    return {name: one.why for name, one in probed.items() if isinstance(one, Missing)}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Templates are made once: initializing is what takes seconds."""
    missing()  # Asked here, for a test is inside trio already.
    return tmp_path_factory.mktemp("services")


def need(*names: str) -> None:
    for name in names:
        if name in missing():
            pytest.skip(f"{name} is not here: {missing()[name]}")


@asynccontextmanager
async def opened(
    cache: Path, scratch: Path, *names: str, **options: Options
) -> AsyncIterator[Services]:
    chosen = {**{name: Options() for name in names}, **options}
    async with open_services(chosen, cache=cache, scratch=scratch, holds=holds()) as services:
        yield services


def given(services: Services, *requirements: str, slot: int = 0):
    cell = Cell(python="3", services=requirements)
    return services.provisioned(cell, slot=slot, interpreter=None)


def pg(run: Given, name: str = "postgresql", **changes: str) -> postgresql.Admin:
    """A client with what a run was given, but outside, at the socket's true place."""
    values = {**run.values[name], **changes}
    return postgresql.Admin(
        psql="psql",
        host=changes.get("host", str(socket_of(run, name).parent)),
        port=5432,
        user=values["user"],
        database=values["name"],
        password=values["password"],
    )


def my(run: Given, **changes: str) -> mariadb.Admin:
    values = {**run.values["mariadb"], **changes}
    return mariadb.Admin(
        client="mariadb",
        socket=str(socket_of(run, "mariadb")),
        user=values["user"],
        password=values["password"],
        who="mariadb",
    )


def socket_of(run: Given, name: str) -> Path:
    part = next(part for part in run.parts if part.placeholders is run.values[name])
    assert part.socket is not None
    return part.socket[0]


def admin_of(services: Services, name: str) -> postgresql.Admin | mariadb.Admin:
    """The administrator of a private server, which no run ever gets."""
    server = services._hosting._kept[name, 0]
    if name == "mariadb":
        return mariadb.Admin(
            client="mariadb",
            socket=str(server.socket),
            user="root",
            password=server.password,
            who=name,
        )
    service = SERVICES[name]
    assert isinstance(service, Postgresql)
    return service._hosted(server, Options())


@contextmanager
def refused(*words: str) -> Iterator[None]:
    with pytest.raises(InfraError) as caught:
        yield
    assert any(word in str(caught.value) for word in words), str(caught.value)


# --- PostgreSQL ---------------------------------------------------------------------------


@in_trio
async def test_a_run_gets_a_database_and_nothing_of_it_is_left(cache: Path, tmp_path: Path) -> None:
    need("postgresql")
    async with opened(cache, tmp_path, "postgresql") as services:
        async with given(services, "postgresql>=13") as run:
            name = run.values["postgresql"]["name"]
            assert name.startswith(prefix(mark_of(tmp_path)))
            assert run.versions == {"postgresql": services.offers[-1].version}
            client = pg(run)
            # Everything that has kept such a clean-up from working, or might.
            await client.run(
                "CREATE TABLE t (h hstore, c citext);"
                'CREATE SCHEMA "other schema"; CREATE TABLE "other schema".t (i int);'
                "SELECT lo_create(0); SELECT lo_create(0);"
                "BEGIN; INSERT INTO t VALUES ('a=>1', 'x'); PREPARE TRANSACTION E'it''s\\n\\t1';"
            )
            for database in ("plain", "host=/nowhere user=x", "it's; \\q", "two\nlines", 'a"b'):
                quoted = database.replace('"', '""')
                await client.run(f'CREATE DATABASE "{quoted}";')
            await client.run('ALTER DATABASE "plain" IS_TEMPLATE true;')
            await client.run("BEGIN; CREATE TABLE u (i int); PREPARE TRANSACTION 'other';", "plain")
            await client.run("SELECT lo_create(0); CREATE TEMP TABLE x (i int)", "plain")
        admin = admin_of(services, "postgresql")
        assert await admin.run("SELECT datname FROM pg_database ORDER BY 1") == [
            ["postgres"],
            ["template0"],
            ["template1"],
        ]
        assert await admin.run("SELECT rolname FROM pg_roles WHERE rolname ~ '^psw'") == []
        assert await admin.run("SELECT count(*) FROM pg_prepared_xacts") == [["0"]]
        assert await admin.run("SELECT count(*) FROM pg_largeobject_metadata") == [["0"]]


@in_trio
async def test_a_run_cannot_reach_another_run_or_the_server_itself(
    cache: Path, tmp_path: Path
) -> None:
    need("postgresql")
    async with (
        opened(cache, tmp_path, "postgresql") as services,
        # Two on one server, as on an owner's; private servers are one for each slot.
        given(services, "postgresql") as other,
        given(services, "postgresql") as run,
    ):
        await pg(other).run("CREATE TABLE secret (t text)")
        victim, client = other.values["postgresql"]["name"], pg(run)
        with refused("permission denied"):
            await client.run("SELECT 1", victim)
        with refused("permission denied"):
            await client.run("SELECT 1", "template1")
        for statement in (
            "COPY (SELECT 1) TO PROGRAM 'id';",
            "COPY (SELECT 1) TO '/tmp/x';",
            "SELECT pg_read_file('/etc/passwd');",
            "SELECT rolpassword FROM pg_authid;",
            f"SET ROLE {victim};",
            "SET ROLE ponyswarm;",
            "SET SESSION AUTHORIZATION ponyswarm;",
            "CREATE ROLE evil SUPERUSER;",
            "CREATE ROLE evil;",
            "ALTER ROLE CURRENT_USER SUPERUSER;",
            "ALTER ROLE ponyswarm PASSWORD 'x';",
            f"DROP DATABASE {victim};",
            f"ALTER DATABASE {victim} OWNER TO CURRENT_USER;",
            "ALTER SYSTEM SET listen_addresses = '*';",
            "CREATE EXTENSION file_fdw;",
            "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'libc', 'abs';",
            "LOAD '/tmp/x.so';",
            "CREATE TABLESPACE t LOCATION '/tmp';",
            "SELECT pg_create_physical_replication_slot('s');",
            f"GRANT {victim} TO CURRENT_USER;",
        ):
            with refused(
                "permission denied",
                "must be",
                "must have",
                "not permitted",
                "access to",
                "could not",
                "denied",
            ):
                await client.run(statement)
        await client.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE false")
        for user in ("ponyswarm", "postgres", victim):
            with refused("no password supplied", "password authentication failed"):
                await pg(run, user=user, password="").run("SELECT 1")
        assert await pg(other).run("SELECT count(*) FROM secret") == [["0"]]
        # Django asks for it: a connection to the maintenance database, with nothing to do there.
        assert await client.run("SELECT 1", "postgres") == [["1"]]
        with refused("permission denied"):
            await client.run("CREATE TABLE public.mine (i int)", "postgres")


@in_trio
async def test_slots_do_not_share_a_server(cache: Path, tmp_path: Path) -> None:
    need("postgresql")
    async with (
        opened(cache, tmp_path, "postgresql") as services,
        given(services, "postgresql", slot=0) as one,
        given(services, "postgresql", slot=1) as two,
    ):
        assert socket_of(one, "postgresql") != socket_of(two, "postgresql")
        for run in (one, two):
            # Suites with a database name of their own would meet on one server.
            await pg(run).run("CREATE DATABASE my_tests")


@in_trio
async def test_postgis_is_there_from_the_start(cache: Path, tmp_path: Path) -> None:
    need("postgis")
    async with opened(cache, tmp_path, "postgis") as services, given(services, "postgis") as run:
        assert set(run.versions) == {"postgis", "postgresql"}
        client = pg(run, "postgis")
        await client.run("CREATE DATABASE test_copy")
        assert await client.run("SELECT ST_AsText(ST_Point(1, 2))", "test_copy") == [["POINT(1 2)"]]


# --- MariaDB ------------------------------------------------------------------------------


@in_trio
async def test_a_run_on_mariadb_gets_its_own_and_reaches_nothing_else(
    cache: Path, tmp_path: Path
) -> None:
    need("mariadb")
    async with opened(cache, tmp_path, "mariadb") as services:
        async with given(services, "mariadb") as other, given(services, "mysql") as run:
            name, victim = run.values["mysql"]["name"], other.values["mariadb"]["name"]
            await my(other).run(f"CREATE TABLE {victim}.secret (i int);")
            client = my(run)
            await client.run(
                f"CREATE TABLE {name}.t (i int); CREATE DATABASE test_{name};"
                f"CREATE DATABASE `{name}_it's; \\`; CREATE DATABASE `test_``quoted`;"
                f"USE {name}; INSERT INTO t VALUES (1); CREATE VIEW v AS SELECT * FROM t;"
            )
            for statement in (
                f"SELECT * FROM {victim}.secret;",
                f"DROP DATABASE {victim};",
                "SELECT * FROM mysql.global_priv;",
                "SELECT LOAD_FILE('/etc/passwd') INTO OUTFILE '/tmp/x';",
                "CREATE USER evil;",
                f"GRANT ALL ON *.* TO {name}@'%';",
                "SET GLOBAL general_log = 1;",
                "CREATE DATABASE elsewhere;",
                "INSTALL SONAME 'ha_example';",
                "SET PASSWORD FOR root@localhost = PASSWORD('x');",
                f"CREATE DEFINER=root@localhost PROCEDURE {name}.p() SELECT 1;",
                "SHUTDOWN;",
            ):
                with refused("denied"):
                    await client.run(statement)
            for user in ("root", "mysql", "mariadb.sys", "ponyswarm", "", victim):
                with refused("denied"):
                    await my(run, user=user, password="").run("SELECT 1;")
        rows = await admin_of(services, "mariadb").run(
            "SHOW DATABASES; SELECT User FROM mysql.user"
        )
        left = {row[0] for row in rows} - {"information_schema", "performance_schema", "sys"}
        assert left == {"mysql", "root", "mariadb.sys"}


# --- Redis and memcached --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ask", "answer"),
    [("redis", b"PING\r\n", b"+PONG\r\n"), ("memcached", b"version\r\n", b"VERSION ")],
)
@in_trio
async def test_each_run_has_a_server_of_its_own(
    cache: Path, tmp_path: Path, name: str, ask: bytes, answer: bytes
) -> None:
    need(name)
    async with opened(cache, tmp_path, name) as services:
        places = []
        for _ in range(2):
            async with given(services, name) as run:
                places.append(socket_of(run, name))
                stream = await trio.open_unix_socket(places[-1])
                await stream.send_all(ask)
                assert (await stream.receive_some(100)).startswith(answer)
                await stream.aclose()
            assert not places[-1].exists()
        assert places[0] != places[1]


# --- what goes wrong --------------------------------------------------------------------------


@in_trio
async def test_what_is_not_here_is_named(cache: Path, tmp_path: Path) -> None:
    options = Options(values={"bin": "/nowhere"})
    async with opened(cache, tmp_path, postgresql=options, oracle=Options()) as services:
        assert services.words == (f"sqlite {services.offers[0].version}",)
        for wanted, said in (
            ("postgresql", "/nowhere has no postgres"),
            ("oracle", "oracle.host"),
            ("frobnicator", "knows no service 'frobnicator'"),
            ("redis>=5", "not offered here, only sqlite"),
            ("sqlite>=99", "not offered here, only sqlite"),
        ):
            with pytest.raises(Broken) as caught:
                async with given(services, wanted):
                    pass
            assert caught.value.reason is Reason.SERVICE
            assert said in caught.value.detail
    with told("[services] names 'postgres', which is no service: did you mean 'postgresql'?"):
        await provisioning.probe({"postgres": Options()})


@in_trio
async def test_a_server_that_does_not_start_is_no_test_failure(cache: Path, tmp_path: Path) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "redis-server").write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "Redis server v=7.0.0" && exit\n'
        "echo out of luck; exit 1\n"
    )
    (fake / "redis-server").chmod(0o755)
    options = Options(values={"bin": str(fake)})
    async with opened(cache, tmp_path, redis=options) as services:
        with pytest.raises(Broken, match="redis does not start here") as caught:
            async with given(services, "redis"):
                pass
        assert caught.value.reason is Reason.SERVICE


# --- the owner's server ---------------------------------------------------------------------


@asynccontextmanager
async def owners_server(cache: Path, tmp_path: Path) -> AsyncIterator[Options]:
    need("postgresql")
    async with opened(cache, tmp_path / "owner", "postgresql") as services:
        async with given(services, "postgresql"):
            pass
        admin = admin_of(services, "postgresql")
        assert isinstance(admin, postgresql.Admin)
        yield Options(values={"host": admin.host, "user": admin.user}, password=admin.password)


KILLED = """
import sys, trio
from pathlib import Path
from ponyswarm.exec import sandbox
from ponyswarm.exec.provisioning import open_services
from ponyswarm.exec.services.service import Options
from ponyswarm.messages import Cell

async def main():
    cache, scratch, host, user = sys.argv[1:]
    password = sys.stdin.readline().strip()
    own = Options(values={"host": host, "user": user}, password=password)
    options = {"postgresql": own, "redis": Options(), "mariadb": Options()}
    async with open_services(
        options, cache=Path(cache), scratch=Path(scratch), holds=await sandbox.probe()
    ) as services:
        cell = Cell(python="3", services=("postgresql", "redis", "mariadb"))
        async with services.provisioned(cell, slot=0, interpreter=None) as given:
            for part in given.parts:
                print(part.socket[0])
            print(given.values["postgresql"]["name"], flush=True)
            await trio.sleep(600)

trio.run(main)
"""


@in_trio
async def test_after_a_kill_in_mid_run_the_next_start_leaves_nothing(
    cache: Path, tmp_path: Path
) -> None:
    need("postgresql", "redis", "mariadb")
    scratch = tmp_path / "scratch"
    async with owners_server(cache, tmp_path) as options:
        admin = SERVICES["postgresql"]._own(options, "psql")  # type: ignore[attr-defined]
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, cache, scratch, admin.host, admin.user],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(f"{options.password}\n")
            child.stdin.flush()
            told = await trio.to_thread.run_sync(
                lambda: [child.stdout.readline().strip() for _ in range(4)]  # type: ignore[union-attr]
            )
            sockets, role = [Path(line) for line in told[:3]], told[3]
            assert all(answers(path) for path in sockets)
            os.killpg(child.pid, signal.SIGKILL)
        # Private servers die with the node, at once and for good.
        with trio.fail_after(5):
            while any(answers(path) for path in sockets[1:]):
                await trio.sleep(0.05)
        assert await admin.run(f"SELECT 1 FROM pg_roles WHERE rolname = '{role}'") == [["1"]]
        assert sockets[1].parent.exists()
        async with opened(cache, scratch, postgresql=options):
            assert await admin.run("SELECT 1 FROM pg_roles WHERE rolname ~ '^psw'") == []
            assert await admin.run("SELECT 1 FROM pg_database WHERE datname ~ '^psw'") == []
            assert not sockets[1].parent.exists()
        mark = mark_of(scratch)
        assert list(Path("/tmp").glob(f"ponyswarm-{mark}-*")) == []
        groups = holds().groups
        if groups is not None:
            assert [one for parent in groups.parents for one in parent.glob(f"*{mark}*")] == []


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@in_trio
async def test_an_owners_server_is_divided_and_its_admin_never_shown(
    cache: Path, tmp_path: Path
) -> None:
    async with owners_server(cache, tmp_path) as options:
        async with (
            opened(cache, tmp_path / "scratch", postgresql=options) as services,
            given(services, "postgresql") as run,
        ):
            shown = [value for values in run.values.values() for value in values.values()]
            assert not any(options.password in value for value in shown)
            assert services.offers[-1].how == f"your server at {options.host}"
            # The socket alone is bound, not the folder with all that may be in it.
            assert socket_of(run, "postgresql").name == ".s.PGSQL.5432"
            assert await pg(run).run("SELECT 1") == [["1"]]
        wrong = Options(values=options.values, password="wrong")
        probed = await SERVICES["postgresql"].probe(wrong)
        assert isinstance(probed, Missing)
        assert "password authentication failed" in probed.why
        assert "wrong" not in probed.why.replace("password authentication failed", "")


@in_trio
async def test_leftovers_on_an_owners_mariadb_go_and_what_is_the_owners_stays(
    cache: Path, tmp_path: Path
) -> None:
    need("mariadb")
    async with opened(cache, tmp_path / "owner", "mariadb") as owner:
        async with given(owner, "mariadb"):
            pass
        admin = admin_of(owner, "mariadb")
        assert isinstance(admin, mariadb.Admin)
        options = Options(values={"host": admin.socket, "user": "root"}, password=admin.password)
        name = f"{prefix(mark_of(tmp_path / 'scratch'))}0123abcd"
        await admin.run(
            f"CREATE DATABASE {name}; CREATE USER {name}@'%'; CREATE DATABASE test_{name};"
            f"CREATE DATABASE `{name}'; DROP DATABASE innocent; -- x`; CREATE DATABASE innocent;"
            "CREATE DATABASE psw_ffffffff_0123abcd; CREATE DATABASE test_of_the_owner;"
        )
        async with (
            opened(cache, tmp_path / "scratch", mariadb=options) as services,
            given(services, "mariadb>=10") as run,
        ):
            mine = run.values["mariadb"]["name"]
            assert options.password not in str(run.values)
            rows = await admin.run("SHOW DATABASES")
            own = {"information_schema", "performance_schema", "mysql", "sys"}
            assert {row[0] for row in rows} - own == {
                *("innocent", "psw_ffffffff_0123abcd", "test_of_the_owner", mine)
            }
            with refused("denied"):
                await my(run).run("CREATE DATABASE test_mine;")
            await my(run).run(f"CREATE DATABASE test_{mine}_1;")
        assert await admin.run("SELECT User FROM mysql.user WHERE User LIKE 'psw%'") == []
        assert ["test_of_the_owner"] in await admin.run("SHOW DATABASES")


# --- through the sandbox ------------------------------------------------------------------------


async def run_cell(
    services: Services | None,
    folder: Path,
    body: str,
    *requirements: str,
    env: dict[str, str],
    files: tuple[FileTemplate, ...] = (),
) -> Outcome:
    source = archive(folder, {"test_it.py": body})
    interpreter = this_python()
    return await Executor(
        cache=folder / "cache",
        scratch=folder / "scratch",
        limits=SMALL,
        sandbox=holds(),
        services=services,
    ).run(
        source=source,
        source_hash=hashlib.sha256(source.read_bytes()).digest(),
        spec=Spec(
            python=("3",),
            runner="unittest",
            command=("python", "-m", "unittest", "-v"),
            install=Install(project=False),
            services=(*requirements, "redis", "postgresql"),
            env=env,
            files=files,
        ),
        cell=Cell(python="3", services=requirements),
        interpreter=interpreter,
        lock=Lock(
            implementation=interpreter.implementation,
            python=".".join(interpreter.version.split(".")[:2]),
            system="linux",
            machine="any",
            requirements="",
            build="",
        ),
        resolve_before=NOW,
    )


PROBE = """\
import os, socket, subprocess, unittest
E = os.environ
class T(unittest.TestCase):
    def sql(self, *arguments, **more):
        done = subprocess.run(["psql", "-w", "-At", *arguments], capture_output=True, text=True,
                              env={**E, **more})
        return done.stdout.strip() + done.stderr.strip()
    def test_database(self):
        self.assertEqual(self.sql(E["URL"], "-c", "SELECT 6 * 7"), "42")
        self.assertEqual(open("settings.txt").read(), E["URL"] + " {left.alone}")
    def test_tcp(self):
        self.assertEqual(self.sql(E["TCP"], "-c", "SELECT 6 * 7"), "42")
        with socket.create_connection(("127.0.0.1", 6379)) as redis:
            redis.sendall(b"PING\\r\\n")
            self.assertEqual(redis.recv(100), b"+PONG\\r\\n")
    def test_nobody_else(self):
        for user in ("ponyswarm", "postgres", "root", "pony"):
            said = self.sql("-h", E["HOST"], "-U", user, "postgres", "-c", "SELECT 1")
            self.assertIn("password", said)
    def test_only_the_socket(self):
        self.assertEqual(os.listdir(E["HOST"]), [".s.PGSQL.5432"])
        with self.assertRaises(OSError):
            os.unlink(E["HOST"] + "/.s.PGSQL.5432")
        with self.assertRaises(OSError):
            open(E["HOST"] + "/planted", "w")
    def test_nothing_for_others(self):
        self.assertEqual(E["ABSENT"], "")
        self.assertNotIn("PONYSWARM_FORWARD", E)
"""


@in_trio
async def test_a_job_in_the_sandbox_uses_its_services_and_nothing_else(
    cache: Path, tmp_path: Path
) -> None:
    need("postgresql", "redis")
    env = {
        "URL": "{postgresql.url}",
        "TCP": "{database.tcp_url}",
        "HOST": "{postgresql.host}",
        "REDIS": "{redis.tcp_port}",
        "ABSENT": "",
    }
    file = FileTemplate(path="settings.txt", content="{postgresql.url} {left.alone}")
    async with opened(cache, tmp_path, "postgresql", "redis") as services:
        outcome = await run_cell(
            services, tmp_path, PROBE, "postgresql>=13", "redis", env=env, files=(file,)
        )
        log = outcome.log.decode()
        assert [test.status.value for test in outcome.tests] == ["passed"] * 5, log
        assert outcome.environment is not None
        assert set(outcome.environment.services) == {"postgresql", "redis"}
        admin = admin_of(services, "postgresql")
        assert await admin.run("SELECT rolname FROM pg_roles WHERE rolname ~ '^psw'") == []


@in_trio
async def test_a_tcp_server_of_the_owner_is_reached_by_a_bridge_and_no_network_opens(
    cache: Path, tmp_path: Path
) -> None:
    body = (
        "import os, socket, unittest\n"
        "class T(unittest.TestCase):\n"
        "    def test_it(self):\n"
        "        for _ in range(3):\n"
        "            with socket.create_connection((os.environ['HOST'], 1521)) as server:\n"
        "                server.sendall(b'x' * 300000 + b'!')\n"
        "                got = b''\n"
        "                while not got.endswith(b'!'): got += server.recv(65536)\n"
        "                self.assertEqual(len(got), 300001)\n"
        "        self.assertEqual(os.environ['URL'], 'oracle://jobs:s%2Fcret@127.0.0.1:1521/XE')\n"
    )

    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            functools.partial(trio.serve_tcp, echo, 0, host="127.0.0.1")
        )
        port = listeners[0].socket.getsockname()[1]
        values = {"host": "127.0.0.1", "port": str(port), "user": "jobs", "database": "XE"}
        options = Options(values=values, password="s/cret")
        env = {"HOST": "{oracle.host}", "URL": "{oracle.url}"}
        async with opened(cache, tmp_path, oracle=options) as services:
            outcome = await run_cell(services, tmp_path, body, "oracle", env=env)
        nursery.cancel_scope.cancel()
    assert [test.status.value for test in outcome.tests] == ["passed"], outcome.log.decode()


@in_trio
async def test_a_service_that_dies_breaks_the_run_instead_of_the_tests(
    cache: Path, tmp_path: Path
) -> None:
    need("redis")
    body = (
        "import time, unittest\nclass T(unittest.TestCase):\n"
        "    def test_first(self): pass\n    def test_second(self): time.sleep(2); self.fail()\n"
    )
    async with opened(cache, tmp_path, "redis") as services, trio.open_nursery() as nursery:

        async def strike() -> None:
            while not (found := list(services._hosting._folder.glob("redis-*/sockets/*"))):
                await trio.sleep(0.05)
            await trio.sleep(1)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(found[0]))
                client.sendall(b"SHUTDOWN NOSAVE\r\n")

        nursery.start_soon(strike)
        outcome = await run_cell(services, tmp_path, body, "redis", env={})
        nursery.cancel_scope.cancel()
    assert (outcome.state, outcome.reason) == ("broken", Reason.SERVICE)
    assert "redis ended during the run" in outcome.detail


@in_trio
async def test_without_the_service_nothing_is_installed_or_run(cache: Path, tmp_path: Path) -> None:
    outcome = await run_cell(None, tmp_path, "", "postgresql", env={})
    assert (outcome.reason, outcome.environment) == (Reason.SERVICE, None)
    async with opened(cache, tmp_path) as services:
        outcome = await run_cell(services, tmp_path, "", "postgresql>=99", env={})
        assert outcome.detail.startswith("postgresql>=99 is not offered here")
        wrong = {"URL": "{postgresql.ulr}"}
        outcome = await run_cell(services, tmp_path, "", "sqlite", env=wrong)
        assert "did you mean {postgresql.url}?" in outcome.detail
        wrong = {"URL": "{postgres.url}"}
        outcome = await run_cell(services, tmp_path, "", "sqlite", env=wrong)
        assert "did you mean {postgresql.url}?" in outcome.detail


DRIVERS = """\
import os, pytest
E = os.environ

@pytest.mark.skipif(not E["PG"], reason="another cell")
def test_psycopg():
    import psycopg
    with psycopg.connect(E["PG"]) as connection:
        connection.execute("CREATE TABLE t (h hstore)")
        connection.execute("INSERT INTO t VALUES ('a=>1')")
        assert connection.execute("SELECT h->'a' FROM t").fetchall() == [("1",)]
        connection.commit()
        connection.tpc_begin(connection.xid(1, "g", "b"))
        connection.execute("INSERT INTO t VALUES ('b=>1')")
        connection.tpc_prepare()
        connection.tpc_commit()
    with psycopg.connect(E["PG_TCP"]) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchall() == [(2,)]

@pytest.mark.skipif(not E["MY_SOCKET"], reason="another cell")
@pytest.mark.parametrize("where", [{"unix_socket": E["MY_SOCKET"]}, {"host": "127.0.0.1"}])
def test_pymysql(where):
    import pymysql
    with pymysql.connect(**where, user=E["MY_USER"], password=E["MY_PASSWORD"]) as connection:
        cursor = connection.cursor()
        for name in (E["MY_NAME"] + "_2", "test_" + E["MY_NAME"]):
            cursor.execute(f"CREATE DATABASE {name}")
            cursor.execute(f"CREATE TABLE {name}.t (t VARCHAR(10)) CHARACTER SET utf8mb4")
            cursor.execute(f"INSERT INTO {name}.t VALUES ('\U0001f434')")
            cursor.execute(f"SELECT t FROM {name}.t")
            assert cursor.fetchall() == (("\U0001f434",),)
            cursor.execute(f"DROP DATABASE {name}")

@pytest.mark.skipif(not E["REDIS"], reason="another cell")
@pytest.mark.parametrize("url", [E["REDIS"], E["REDIS_TCP"]])
def test_redis(url):
    import redis
    client = redis.Redis.from_url(url)
    client.flushall()
    client.set("a", "b")
    assert client.get("a") == b"b"
"""
DRIVERS_ENV = {
    "PG": "{postgresql.url}",
    "PG_TCP": "{postgresql.tcp_url}",
    "MY_SOCKET": "{mysql.socket}",
    "MY_TCP": "{mysql.tcp_host}",
    "MY_USER": "{mysql.user}",
    "MY_PASSWORD": "{mysql.password}",
    "MY_NAME": "{mysql.name}",
    "REDIS": "{redis.url}",
    "REDIS_TCP": "{redis.tcp_url}",
}
# The end of the time in which the drivers are taken from the index.
BEFORE = 1_795_200_000_000


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="what differs for an ordinary user is above")
@in_trio
async def test_the_usual_drivers_work_in_cells_that_run_at_once(
    cache: Path, tmp_path: Path
) -> None:
    need("postgresql", "mariadb", "redis")
    try:
        index.fetch_sdist("six", "1.17.0", None, tmp_path / "sdists")
    except InfraError as fault:
        pytest.skip(f"no package index here: {fault}")
    source = archive(tmp_path, {"test_it.py": DRIVERS})
    spec = Spec(
        python=("3",),
        command=("pytest", "-rs"),
        install=Install(
            requirements=("pytest", "psycopg[binary]", "pymysql", "redis"), project=False
        ),
        services=("postgresql>=13 + redis", "mysql"),
        env=DRIVERS_ENV,
    )
    outcomes: dict[int, Outcome] = {}
    async with opened(cache, tmp_path, "postgresql", "mariadb", "redis") as services:
        executor = Executor(
            cache=tmp_path / "cache",
            scratch=tmp_path / "scratch",
            limits=replace(SMALL, memory_bytes=512 * MIB, scratch_bytes=256 * MIB),
            sandbox=holds(),
            services=services,
        )

        async def one(slot: int, cell: Cell) -> None:
            outcomes[slot] = await executor.run(
                source=source,
                source_hash=hashlib.sha256(source.read_bytes()).digest(),
                spec=spec,
                cell=cell,
                interpreter=this_python(),
                lock=None,
                resolve_before=BEFORE,
                slot=slot,
            )

        async with trio.open_nursery() as nursery:
            for slot, cell in enumerate((*cells(spec), *cells(spec))):
                nursery.start_soon(one, slot, cell)
    for slot, passed in enumerate((3, 2, 3, 2)):
        statuses = [test.status.value for test in outcomes[slot].tests]
        assert statuses.count("passed") == passed, outcomes[slot].log.decode()[-3000:]
        assert statuses.count("skipped") == 5 - passed
    seen = {slot: outcome.environment for slot, outcome in outcomes.items()}
    assert [sorted(seen[slot].services) for slot in range(4)] == [  # type: ignore[union-attr]
        ["postgresql", "redis"],
        ["mariadb"],
    ] * 2


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(os.geteuid() != 0, reason="is this one")
def test_all_of_it_holds_for_an_ordinary_user() -> None:
    need("postgresql")
    as_ordinary_user(Path(__file__))
