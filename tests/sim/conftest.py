"""A world for each test, on a virtual clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from simulation.world import SEED, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    # What fails is seen again with the same seed.
    print(f"PONYSWARM_SEED={SEED}")
    yield made
    made.close()
