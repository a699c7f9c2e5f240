"""The services a cell may name. To add one: a file beside this, and a line below."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ponyswarm.exec.services.mariadb import Mariadb
from ponyswarm.exec.services.memcached import Memcached
from ponyswarm.exec.services.postgis import Postgis
from ponyswarm.exec.services.postgresql import Postgresql
from ponyswarm.exec.services.redis import Redis
from ponyswarm.exec.services.service import Service
from ponyswarm.exec.services.sqlite import Sqlite
from ponyswarm.exec.services.url import Url

_ALL: tuple[Service, ...] = (
    Sqlite(),
    Postgresql(),
    Postgis(),
    Mariadb("mariadb"),
    Mariadb("mysql"),
    Redis("redis"),
    Redis("valkey"),
    Memcached(),
    Url("oracle", scheme="oracle", port=1521, engine="django.db.backends.oracle"),
    Url("mssql", scheme="mssql", port=1433, engine="mssql"),
)
SERVICES: Mapping[str, Service] = MappingProxyType({one.name: one for one in _ALL})
