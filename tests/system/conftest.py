"""What all tests of real processes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ponyswarm.demo import Swarm, open_swarm
from ponyswarm.exec.interpreters import Installed, discover

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Both runs are in pytest's summary: a test that needs the second is named, not hidden.
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=2))


@pytest.fixture(scope="module")
def python() -> Installed:
    return next(one for one in discover() if one.implementation == "cpython")


@pytest.fixture
def swarm() -> Iterator[Swarm]:
    with open_swarm(print) as opened:
        yield opened
