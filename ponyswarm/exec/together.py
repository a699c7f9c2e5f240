"""Steps that need not wait for each other: run at once, with one fault and not a group of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from ponyswarm.errors import PonySwarmError

T = TypeVar("T")


async def together(steps: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """The results in order. The first fault ends the others, and is raised bare."""
    results: dict[int, T] = {}
    faults: list[PonySwarmError | OSError] = []

    async with trio.open_nursery() as nursery:

        async def one(place: int, step: Callable[[], Awaitable[T]]) -> None:
            try:
                results[place] = await step()
            except (PonySwarmError, OSError) as fault:
                faults.append(fault)
                nursery.cancel_scope.cancel()

        for place, step in enumerate(steps):
            nursery.start_soon(one, place, step)
    if faults:
        raise faults[0]
    return [results[place] for place in range(len(steps))]
