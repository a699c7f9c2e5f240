"""Committing to an outcome and telling it later: what a blind job asks of a volunteer.

The order is what counts: the outcome with its nonce is on the disk before the commit is
signed, and leaves it only when the result that opens the commit is in the journal. `node`
calls `commit` when a run of a blind job ended, `tell` when the protocol says so, and
`resume` when it starts to follow a project.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable

from msgspec import UNSET
from msgspec.structs import replace

from ponyswarm.codec import decode_payload
from ponyswarm.ledger.seals import Seal, Seals
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Commit, Entry, Payload, Result

log = logging.getLogger("ponyswarm")

NONCE_SIZE = 32

Publish = Callable[[Payload, bytes], Awaitable[Entry]]


class Sealing:
    """``publish`` signs a payload in a project, makes it durable, and tells the network."""

    def __init__(self, seals: Seals, store: Store, key: bytes, publish: Publish) -> None:
        self._seals = seals
        self._store = store
        self._key = key
        self._publish = publish

    async def commit(self, result: Result, project: bytes, seen: tuple[bytes, ...]) -> None:
        """Publish a commit to a result, which stays here until it may be told."""
        seal = self._seals.keep(replace(result, nonce=os.urandom(NONCE_SIZE)), project)
        await self._publish(replace(_commit(seal), seen=seen or UNSET), project)

    async def tell(self, job: bytes, cell: bytes, seen: tuple[bytes, ...]) -> bool:
        """Publish what was committed to of a cell; False when nothing of it is here."""
        seals = self._seals.of_cell(job, cell)
        for seal in seals:
            await self._publish(replace(seal.result, seen=seen or UNSET), seal.project)
            self._seals.drop(seal)
        return bool(seals)

    async def resume(self, project: bytes) -> None:
        """Make up what a crash left: commits that were not published, results that were."""
        for seal in self._seals.of_project(project):
            mine = [
                payload
                for entry in self._store.said(seal.result.job, seal.result.cell)
                if entry.header.author == self._key and (payload := decode_payload(entry))
            ]
            if any(isinstance(p, Result) and p.nonce == seal.result.nonce for p in mine):
                self._seals.drop(seal)
            elif not any(isinstance(p, Commit) and p.commitment == seal.commitment for p in mine):
                await self._publish(_commit(seal), project)


def _commit(seal: Seal) -> Commit:
    return Commit(job=seal.result.job, cell=seal.result.cell, commitment=seal.commitment)
