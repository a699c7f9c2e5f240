"""The thin shell that drives `sync` over streams: bytes between a peer and the ledger.

It knows no ledger: the caller gives the frontier, the segments, and a ``take`` that
checks and appends what came, and says what became of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ponyswarm.errors import PeerError
from ponyswarm.frontier import Frontier
from ponyswarm.messages import Entry
from ponyswarm.p2p import sync
from ponyswarm.p2p.blobs import Open, Stream

# (project, segments, peer) -> how many of their entries were new here
Take = Callable[[bytes, Sequence[Sequence[Entry]], bytes], Awaitable[int]]
FrontierOf = Callable[[bytes], Frontier | None]

# A pull ends after so many rounds; the next periodic one goes on. It bounds one peer's share.
MAX_ROUNDS = 64


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull gave: ``state`` is same, unknown or differs; ``new`` entries came."""

    state: str
    new: int = 0


async def pull(
    open_: Open, peer: bytes, project: bytes, frontier_of: FrontierOf, take: Take
) -> Pulled:
    """Get from a peer what is missing of a project. `PeerError` when it breaks the protocol."""
    new = 0
    doubted: frozenset[int] = frozenset()
    for _ in range(MAX_ROUNDS):
        stream = await open_(peer)
        try:
            asking = sync.Asking(project, _frontier(frontier_of, project), doubted)
            await stream.send(asking.ask())
            request = asking.want(await stream.receive(sync.MAX_MESSAGE))
            if isinstance(request, str):
                return Pulled("differs" if new else request, new)
            await stream.send(request)
            fresh = came = 0
            while isinstance(
                part := sync.read(await stream.receive(sync.MAX_MESSAGE), project), sync.Part
            ):
                came += sum(len(entry.frame) for segment in part.segments for entry in segment)
                if came > sync.MAX_REPLY + sync.MAX_EXPANDED:
                    raise PeerError("bad-sync", "a reply longer than any may be")
                fresh += await take(project, part.segments, peer)
        finally:
            await stream.close()
        new += fresh
        alike, doubted = asking.settle(part, _frontier(frontier_of, project))
        # Once more while something came: what was refused may be allowed by a record that
        # came after it.
        if alike or not (fresh or doubted):
            break
    return Pulled("differs", new)


def _frontier(frontier_of: FrontierOf, project: bytes) -> Frontier:
    known = frontier_of(project)
    return Frontier() if known is None else known


async def serve(stream: Stream, frontier_of: FrontierOf, segment: sync.Segment) -> None:
    """Answer one asker."""
    reply, serving = sync.answer(await stream.receive(4096), frontier_of)
    await stream.send(reply)
    if serving is None:
        return
    for message in serving.serve(await stream.receive(sync.MAX_REQUEST), segment):
        await stream.send(message)
