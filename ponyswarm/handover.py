"""Hand an entry and its blobs to peers from a node that is open only for that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from ponyswarm.errors import PeerError
from ponyswarm.messages import Blob
from ponyswarm.p2p import blobs as blob_protocol

if TYPE_CHECKING:
    from ponyswarm.node import Node


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Who holds what: ``entry`` peers hold all our entries, ``whole`` also every blob."""

    connected: frozenset[bytes]
    entry: frozenset[bytes]
    whole: frozenset[bytes]


NOBODY = HandedOver(frozenset(), frozenset(), frozenset())


async def hand_over(
    node: Node,
    project: bytes,
    blobs: Sequence[Blob],
    *,
    seconds: float,
    grace: float,
    progress: Callable[[HandedOver], None],
) -> HandedOver:
    """Stay until peers hold a project's entries and these blobs.

    It ends ``grace`` seconds after the first peer holds all of it (others may follow in
    that time), or after ``seconds`` whatever came of it.
    """
    connected: set[bytes] = set()
    entry: set[bytes] = set()
    whole: set[bytes] = set()
    deadline = trio.current_time() + seconds
    while trio.current_time() < deadline:
        peers = set(node.network.peers())
        connected |= peers
        for peer in peers - whole:
            try:
                with trio.move_on_after(5):
                    if peer not in entry and (await node.pull(peer, project)).state == "same":
                        entry.add(peer)
                    if peer in entry and await _has_all(node, peer, blobs):
                        whole.add(peer)
            except PeerError:
                continue  # It may be gone, or busy: the next round asks again.
        state = HandedOver(frozenset(connected), frozenset(entry), frozenset(whole))
        progress(state)
        if whole:
            if whole >= peers:
                break
            deadline = min(deadline, trio.current_time() + grace)
            grace = max(0.0, deadline - trio.current_time())
        await trio.sleep(0.2)
    return HandedOver(frozenset(connected), frozenset(entry), frozenset(whole))


async def _has_all(node: Node, peer: bytes, blobs: Sequence[Blob]) -> bool:
    open_ = partial(node.open_stream, blob_protocol.PROTOCOL)
    for blob in blobs:
        if not await blob_protocol.has(open_, peer, blob.hash):
            return False
    return True
