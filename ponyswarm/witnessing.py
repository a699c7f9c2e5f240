"""Checkpoints of a running node: made now and then, cosigned by peers, and theirs by us.

The thin part: it moves values between `ledger.proofs`, `ledger.witness` and the streams of
`p2p.witness`, and decides only when. A checkpoint is made when entries came and the last
one is ten minutes old, or when a command on this home wishes for one, and then shown to
connected peers until enough of them cosigned it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import trio

from ponyswarm.errors import InfraError, PeerError
from ponyswarm.keys import peer_id
from ponyswarm.ledger.proofs import TRIES, Held
from ponyswarm.notary import Notary
from ponyswarm.p2p import witness
from ponyswarm.p2p.blobs import Open, Stream

log = logging.getLogger("ponyswarm")

INTERVAL_MS = 600_000
LOOK_EVERY = 1.0
WANTED = 8
ASK_TIMEOUT = 15.0
# How soon a peer is asked again that did not cosign: too soon for it, or it is an older one.
ASK_AGAIN = 30.0
ASK_AGAIN_AT_MOST = 3600.0


class Witnessing:
    """The loop and the handler; `node` starts them."""

    def __init__(
        self,
        notary: Notary,
        *,
        open_: Open,
        peers: Callable[[], tuple[bytes, ...]],
        refuse: Callable[[str, bytes | None], None],
    ) -> None:
        self._notary = notary
        self._open = open_
        self._peers = peers
        self._refuse = refuse
        self._held: Held | None = None
        self._anew = False  # Whether a checkpoint is to be made whatever the time.
        # When a peer may be asked again, and how long it will then be left alone.
        self._waits: dict[bytes, tuple[float, float]] = {}

    async def run(self) -> None:
        """Make checkpoints and have them cosigned, for ever."""
        self._held = self._notary.log.latest()
        while True:
            await self._look()
            await trio.sleep(LOOK_EVERY)

    async def _look(self) -> None:
        notary = self._notary.log
        wished = notary.take_wishes()
        if wished or self._anew or notary.due(_now(), INTERVAL_MS):
            self._anew = False
            held = await self._checkpoint()
            if held is not None and held != self._held:
                self._held = held
                log.debug("checkpoint of %d entries", held.size)
                self._waits.clear()
        if wished:
            self._waits.clear()
        if self._held is not None:
            await self._gather(self._held)

    async def _checkpoint(self) -> Held | None:
        """As `Log.fresh`, with turns for the rest of the node: a long ledger takes seconds."""
        for _ in range(TRIES):
            while not self._notary.log.grow():
                await trio.lowlevel.checkpoint()
            held = self._notary.log.checkpoint(_now())
            if held is not None:
                return held
        return None

    async def _gather(self, held: Held) -> None:
        """Show the checkpoint to peers that have not cosigned it, while they are wanted."""
        asked = [
            peer
            for peer in self._peers()
            if peer not in held.witnesses
            and self._waits.get(peer, (0.0, 0.0))[0] <= trio.current_time()
        ]
        missing = WANTED - len(held.witnesses)
        if missing <= 0 or not asked:
            return
        async with trio.open_nursery() as nursery:
            for peer in asked[:missing]:
                nursery.start_soon(self._ask, peer, held)
        latest = self._notary.log.latest()
        if latest is None or latest.origin != held.origin:
            # Given up under `_ask`: the next look begins another log.
            self._held, self._anew = None, True
        elif self._held is not None and latest.size == held.size:
            self._held = latest

    async def _ask(self, peer: bytes, held: Held) -> None:
        wait = min(ASK_AGAIN_AT_MOST, max(ASK_AGAIN, 2 * self._waits.get(peer, (0.0, 0.0))[1]))
        self._waits[peer] = (trio.current_time() + wait, wait)
        notary = self._notary.log

        def may_retry(size: int, checkpoint: bytes) -> bool:
            if size == 0:
                return True
            if notary.is_ours(size, checkpoint, held):
                return size <= held.size
            log.warning(
                "%s knows another tree of ours, of %d entries: this home was restored or runs "
                "twice; our checkpoints go on under a new name",
                peer_id(peer),
                size,
            )
            notary.abandon(held.origin, _now())
            return False

        try:
            with trio.fail_after(ASK_TIMEOUT):
                reply = await witness.ask(
                    self._open,
                    peer,
                    held.own_note,
                    known=min(held.size, notary.cosigned_size(peer, held.origin)),
                    prove=lambda old: notary.growth(old, held),
                    may_retry=may_retry,
                )
            if reply.status == 200:
                notary.add_cosignature(held, peer, reply.body, _now())
            else:
                log.debug("%s did not cosign: %d", peer_id(peer), reply.status)
        except PeerError as fault:
            # A peer may be of a version that does not witness, or be gone: no fault of its.
            if fault.reason in ("bad-witness", "bad-cosignature"):
                self._refuse(fault.reason, peer)
        except InfraError as fault:
            log.warning("%s", fault)
            notary.clear()
            self._held, self._anew = None, True
        except trio.TooSlowError:
            pass

    async def serve(self, stream: Stream) -> None:
        """Answer one log that asks for a cosignature."""
        await witness.serve(stream, self._judge)

    def _judge(self, peer: bytes, request: witness.Request) -> witness.Reply:
        answer = self._notary.witness.cosign(
            peer, request.old, request.proof, request.checkpoint, _now()
        )
        if answer.reason == "two-trees":
            log.warning("%s showed two different trees of one size: kept as proof", peer_id(peer))
        if answer.reason:
            self._refuse(answer.reason, peer)
        return witness.Reply(answer.status, answer.body)


def _now() -> int:
    return int(time.time() * 1000)
