"""Fixtures that several test modules share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from authors import Author
from hypothesis import HealthCheck, settings

from ponyswarm.ledger.store import Store

settings.register_profile(
    "ponyswarm",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("ponyswarm")


@pytest.fixture
def maintainer() -> Author:
    return Author(1)


@pytest.fixture
def volunteers() -> list[Author]:
    return [Author(number) for number in range(2, 8)]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "ledger.sqlite")
    yield store
    store.close()
