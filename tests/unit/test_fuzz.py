"""A minute of `bench.fuzz` in every run of the tests; the bench itself takes ten."""

from __future__ import annotations

import os
import random

import pytest

from bench.fuzz import SLOWEST, Target, fuzz, targets

SECONDS = 3.5


@pytest.mark.slow
@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_a_decoder_raises_nothing_but_what_it_declares(target: Target) -> None:
    seed = int(os.environ.get("PONYSWARM_SEED", random.SystemRandom().randrange(1 << 32)))
    found = fuzz(target, SECONDS, random.Random(seed))
    assert not found.faults, f"PONYSWARM_SEED={seed}: {found.faults[:3]}"
    assert found.inputs > 50
    assert found.slowest < 5 * SLOWEST
