"""Signatures checked in other processes, while the node is idle.

A segment is taken by the signature of its last entry; those of the others are checked
here afterwards, a batch at a time, and the ledger keeps what was found. A thread beside
Trio's would check some 300 a second, as the two wait for one interpreter lock; a process
checks thousands. anyio runs the processes: it starts one when there is work, uses it again,
and ends it after five idle minutes or with the run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import anyio
from anyio import to_process

from ponyswarm.codec import HEADER_SIZE, PAYLOAD_OFFSET, entry_id, signed_text
from ponyswarm.errors import InfraError
from ponyswarm.keys import verify
from ponyswarm.ledger.store import Store

# A batch is less than a tenth of a second of one core, and 115 kB to hand over.
BATCH = 512


def holding(heads: Sequence[bytes], quietly: bool = False) -> list[bool]:
    """Whether each signature holds; a head is an entry's header and signature, 224 bytes."""
    if quietly and hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, 0, 10)
    return [
        verify(
            head[8:40],
            signed_text(entry_id(head[:HEADER_SIZE])),
            head[HEADER_SIZE:PAYLOAD_OFFSET],
        )
        for head in heads
    ]


async def check_some(store: Store, limiter: anyio.CapacityLimiter, most: int = BATCH) -> int:
    """Check the next signatures that nobody checked yet; how many there were.

    ``limiter`` bounds the processes. A cancellation waits for the batch, so that no process
    is left behind while it starts. Raises `InfraError` when a process was ended; then nothing
    is recorded, and the next call begins with the same ones.
    """
    rows = store.unchecked(most)
    if not rows:
        return 0
    try:
        with anyio.CancelScope(shield=True):
            found = await to_process.run_sync(
                holding, [head for _, head in rows], True, limiter=limiter
            )
    except anyio.BrokenWorkerProcess as fault:
        raise InfraError(f"a process that checks signatures ended ({fault})") from fault
    store.checked([(arrival, holds) for (arrival, _), holds in zip(rows, found, strict=True)])
    return len(rows)
