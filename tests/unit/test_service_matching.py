"""Which offered services satisfy a cell."""

from __future__ import annotations

import pytest

from ponyswarm import spec
from ponyswarm.errors import LocalError
from ponyswarm.matrix import service_matches, service_requirement
from ponyswarm.messages import Interpreter, Offer
from ponyswarm.p2p.offers import fits
from ponyswarm.p2p.scheduling import CellState


@pytest.mark.parametrize(
    ("wanted", "offered", "fits"),
    [
        ("postgresql", "postgresql 15.18", True),
        ("postgresql>=13", "postgresql 15.18", True),
        ("postgresql >= 13, < 15", "postgresql 15.18", False),
        ("postgresql 15", "postgresql 15.18", True),
        ("postgresql 15.1", "postgresql 15.18", False),
        ("postgresql~=15.2", "postgresql 15.18", True),
        ("postgresql", "postgresql", True),
        ("postgresql>=13", "postgresql", False),
        ("postgresql>=13", "postgresql devel", False),
        ("postgresql", "postgresql 18rc1", True),
        ("postgresql", "postgis 3.3.2", False),
        ("postgis", "postgresql 15.18", False),
        ("mariadb>=10.6", "mariadb 10.11.19", True),
        ("mysql", "mariadb 10.11.19", True),
        ("mysql>=8", "mariadb 10.11.19", False),
        ("mariadb", "mysql 8.4.1", False),
        ("redis", "valkey 8.0.1", True),
        ("redis>=7", "valkey 8.0.1", False),
        ("valkey", "redis 7.0.15", False),
        ("frobnicator", "postgresql 15.18", False),
        ("Postgresql", "postgresql 15.18", False),
        (">=3", "postgresql 15.18", False),
        ("postgresql>=x", "postgresql 15.18", False),
        ("", "", False),
    ],
)
def test_a_service_satisfies_its_name_and_versions_and_nothing_else(
    wanted: str, offered: str, fits: bool
) -> None:
    assert service_matches(wanted, offered) is fits


@pytest.mark.parametrize("text", ["", ">=3", "postgresql>=x", "my database", "Redis"])
def test_nonsense_is_named_with_what_would_be_right(text: str) -> None:
    with pytest.raises(LocalError, match="write a name"):
        service_requirement(text)


def test_a_spec_points_to_the_service_it_cannot_read() -> None:
    table = {"python": "3.12", "services": ["sqlite", "postgresql>=13 + redis:7"]}
    with pytest.raises(LocalError, match=r"services: ' redis:7' names no service"):
        spec.from_table(table, "pyproject.toml")


@pytest.mark.parametrize(
    ("services", "good"),
    [
        ((), True),
        (("postgresql>=13", "redis"), True),
        (("postgresql>=13", "redis>=8"), False),
        (("mysql",), True),
        (("frobnicator",), False),
        (("postgresql>=x",), False),
    ],
)
def test_an_offer_fits_a_cell_when_each_of_its_services_is_there(
    services: tuple[str, ...], good: bool
) -> None:
    offer = Offer(
        interpreters=(Interpreter(implementation="cpython", version="3.12.1"),),
        services=("sqlite 3.40.1", "postgresql 15.18", "mariadb 10.11.19", "redis 7.0.15", "x"),
        system="linux",
        machine="x86_64",
        slots=1,
        until=1,
    )
    cell = CellState(id=b"", job=b"", python="3.12", services=services, wanted=1, vacant_since=0)
    assert fits(cell, offer) is good
