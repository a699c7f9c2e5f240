"""The queue of blobs that are wanted: fetched from whoever has them, tried again, given up.

One blob is fetched once at a time, whoever asks for it. Nothing here decides what is
wanted; the protocol does, and a run that needs its source.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from ponyswarm.errors import InfraError, PeerError
from ponyswarm.messages import Blob
from ponyswarm.p2p.blobs import MAX_BLOB, BlobStore, Open, fetch

log = logging.getLogger("ponyswarm")

TIMEOUT = 600.0
TRIES = 8
LONGEST_PAUSE = 60.0
# Beyond this a further wish is dropped: results may name blobs without end.
MAX_WANTED = 10_000
AT_ONCE = 4


@dataclass(slots=True)
class _Wanted:
    blob: Blob
    peers: set[bytes]
    tries: int = 0
    due: float = 0.0


class Fetcher:
    """``peers`` gives the connected ones, ``refuse`` counts what one of them did wrong."""

    def __init__(
        self,
        store: BlobStore,
        *,
        open_: Open,
        peers: Callable[[], Sequence[bytes]],
        refuse: Callable[[str, bytes | None], None],
        kept: Callable[[Blob], Awaitable[None]] | None = None,
    ) -> None:
        """``kept`` is told of each blob that came."""
        self._kept = kept
        self._store = store
        self._open = open_
        self._peers = peers
        self._refuse = refuse
        # By the whole blob: a liar that names a hash with a wrong size must not stand in the
        # way of the one who names it right.
        self._wanted: dict[Blob, _Wanted] = {}
        self._under_way: set[Blob] = set()
        self._changed = trio.Event()

    def want(self, blob: Blob, peers: Iterable[bytes]) -> None:
        """Fetch a blob when it can be had; ``peers`` are asked first."""
        if blob.hash in self._store or blob.size > MAX_BLOB:
            return
        if blob in self._wanted:
            self._wanted[blob].peers.update(peers)
        elif len(self._wanted) < MAX_WANTED:
            self._wanted[blob] = _Wanted(blob, set(peers))
            self._changed.set()

    async def need(self, blob: Blob, seconds: float) -> bool:
        """Wait until a blob is here; False when nobody gave it in time."""
        deadline = trio.current_time() + seconds
        while blob.hash not in self._store:
            if trio.current_time() > deadline:
                return False
            self.want(blob, ())
            await trio.sleep(0.1)
        return True

    async def run(self) -> None:
        """Fetch what is wanted, a few at once, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                now = trio.current_time()
                waiting = [w for w in self._wanted.values() if w.blob not in self._under_way]
                for wanted in waiting:
                    if wanted.due <= now and len(self._under_way) < AT_ONCE:
                        self._under_way.add(wanted.blob)
                        nursery.start_soon(self._fetch, wanted)
                pause = 60.0
                if len(self._under_way) < AT_ONCE:
                    dues = [w.due - now for w in waiting if w.due > now]
                    pause = min(dues, default=pause)
                with trio.move_on_after(pause):
                    await self._changed.wait()
                self._changed = trio.Event()

    async def _fetch(self, wanted: _Wanted) -> None:
        connected = list(self._peers())
        random.shuffle(connected)
        connected.sort(key=lambda peer: peer not in wanted.peers)
        found = False
        try:
            with trio.move_on_after(TIMEOUT):
                found = await fetch(self._open, wanted.blob, connected, self._store)
            if found and self._kept is not None:
                await self._kept(wanted.blob)
        except PeerError as fault:
            self._refuse(fault.reason, None)
        except InfraError as fault:
            log.warning("%s", fault)
        finally:
            self._under_way.discard(wanted.blob)
        wanted.tries += 1
        wanted.due = trio.current_time() + min(LONGEST_PAUSE, 0.25 * 2**wanted.tries)
        if found or wanted.tries >= TRIES:
            self._wanted.pop(wanted.blob, None)
        self._changed.set()
