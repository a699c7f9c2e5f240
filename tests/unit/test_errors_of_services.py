"""Why a service is not offered, and the line to copy or to write that would change it."""

from __future__ import annotations

import socket

import trio
from told import shown

from ponyswarm.exec.services import SERVICES
from ponyswarm.exec.services.service import Missing, Options


def why(name: str, password: str = "", **values: str) -> str:
    found = trio.run(SERVICES[name].probe, Options(values=values, password=password))
    assert isinstance(found, Missing)
    return f"{found.why} → {found.remedy}"


def test_a_server_of_yours_that_cannot_be_divided() -> None:
    shown(
        "a valkey server of yours cannot be divided: any job could empty it → remove valkey.host, "
        "and one is started for each job",
        why("valkey", host="db.example"),
    )
    shown(
        "a memcached server of yours cannot be divided: any job could empty it → remove "
        "memcached.host, and one is started for each job",
        why("memcached", host="db.example"),
    )


def test_mysql_without_a_server_of_yours() -> None:
    shown(
        "only a MySQL server of yours can be offered; MariaDB, which is started for jobs, also "
        "serves those that ask for 'mysql' without a version → write 'mariadb = yes', or name "
        "your server with mysql.host",
        why("mysql"),
    )


def test_a_server_that_the_settings_do_not_describe_or_that_is_not_there() -> None:
    shown(
        "it is offered by a server of yours, and ponyswarm.ini does not say oracle.user, … → "
        "write oracle.user = … under [services]",
        why("oracle", host="127.0.0.1"),
    )
    with socket.socket() as bound:  # It holds the port, and does not listen.
        bound.bind(("127.0.0.1", 0))
        port = str(bound.getsockname()[1])
        shown(
            "nobody answers at 127.0.0.1, port … → nc -vz 127.0.0.1 …",
            why("oracle", "secret", host="127.0.0.1", port=port, user="u", database="d"),
        )
