"""The thin shell that drives `sync` over streams: bytes between a peer and the ledger.

It knows no ledger: the caller gives the frontier, the segments, and a ``take`` that
appends frames and says what became of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ponyswarm.errors import PeerError
from ponyswarm.p2p import sync
from ponyswarm.p2p.blobs import Open, Stream

# (project, frames, peer) -> how many of them were new here
Take = Callable[[bytes, tuple[bytes, ...], bytes], Awaitable[int]]

# A pull ends after so many rounds; the next periodic one goes on. It bounds one peer's share.
MAX_ROUNDS = 64
MAX_FRAMES_PER_CHUNK = 4_096


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull gave: ``state`` is same, unknown or differs; ``new`` entries came."""

    state: str
    new: int = 0


async def pull(
    open_: Open,
    peer: bytes,
    project: bytes,
    frontier_of: Callable[[bytes], sync.Frontier | None],
    take: Take,
) -> Pulled:
    """Get from a peer what is missing of a project. `PeerError` when it breaks the protocol."""
    new = 0
    for _ in range(MAX_ROUNDS):
        stream = await open_(peer)
        try:
            frontier = frontier_of(project) or {}
            await stream.send(sync.ask(project, frontier))
            request = sync.want(await stream.receive(sync.MAX_MESSAGE), frontier)
            if isinstance(request, str):
                return Pulled("differs" if new else request, new)
            await stream.send(request)
            fresh = 0
            while True:
                part = sync.chunk(await stream.receive(sync.MAX_MESSAGE))
                if len(part.frames) > MAX_FRAMES_PER_CHUNK:
                    raise PeerError("bad-sync", "too many frames in one message")
                if part.frames:
                    fresh += await take(project, part.frames, peer)
                if part.done:
                    break
            new += fresh
            if not fresh:
                return Pulled("differs", new)
            # Once more even when that was all: what was refused may be allowed by a record
            # that came after it. When nothing is missing, this costs one short answer.
        finally:
            await stream.close()
    return Pulled("differs", new)


async def serve(
    stream: Stream,
    frontier_of: Callable[[bytes], sync.Frontier | None],
    segment: sync.Segment,
) -> None:
    """Answer one asker."""
    project, reply = sync.answer(await stream.receive(4096), frontier_of)
    await stream.send(reply)
    frontier = frontier_of(project)
    if frontier is None:
        return
    try:
        request = await stream.receive(sync.MAX_REQUEST)
    except PeerError as fault:
        if fault.reason == "stream-closed":
            return  # The asker had nothing more to ask.
        raise
    for message in sync.serve(request, project, frontier, segment):
        await stream.send(message)
