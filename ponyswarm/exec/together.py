"""Steps that need not wait for each other: run at once, with one fault and not a group of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, overload

import trio

from ponyswarm.errors import PonySwarmError

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


@overload
async def together(
    steps: tuple[
        Callable[[], Awaitable[A]], Callable[[], Awaitable[B]], Callable[[], Awaitable[C]]
    ],
) -> tuple[A, B, C]: ...
@overload
async def together(steps: Sequence[Callable[[], Awaitable[T]]]) -> tuple[T, ...]: ...
async def together(steps: Sequence[Callable[[], Awaitable[Any]]]) -> tuple[Any, ...]:
    """The results in order. The first fault ends the others, and is raised bare."""
    results: dict[int, Any] = {}
    faults: list[PonySwarmError | OSError] = []

    async with trio.open_nursery() as nursery:

        async def one(place: int, step: Callable[[], Awaitable[Any]]) -> None:
            try:
                results[place] = await step()
            except (PonySwarmError, OSError) as fault:
                faults.append(fault)
                nursery.cancel_scope.cancel()

        for place, step in enumerate(steps):
            nursery.start_soon(one, place, step)
    if faults:
        raise faults[0]
    return tuple(results[place] for place in range(len(steps)))
