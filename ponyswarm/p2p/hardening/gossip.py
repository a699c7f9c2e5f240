"""The GossipSub router: which peer gets which message."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterable

import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2

from ponyswarm.p2p.hardening.identity import peer_key
from ponyswarm.p2p.hardening.referee import Referee

MESHSUB = TProtocol("/meshsub/1.1.0")


class FencedGossip(GossipSub):  # type: ignore[misc]
    """GossipSub 1.1 with the settings and repairs that make it usable.

    - The default heartbeat is 120 s, adaptive mode slows a fast one down, the "spam
      protection" drops more than ten messages a second, the node's own included,
      and 1.2 and later double the CPU. All are off.
    - **The heartbeat sends one peer's GRAFTs to the next**, because it never empties
      its lists: a node joins meshes, and gets messages, of topics that it does not
      follow. See `_emit_control_msgs`, `handle_graft` and `_get_peers_to_send`.
    - An exception in a heartbeat ends the host.
    - One IWANT may name one message ten thousand times and get as many copies; a
      PRUNE may name addresses, which libp2p then dials, and a back-off of an age.
    - `publish` keeps up to a hundred messages for every peer that does *not* follow
      the topic, and a list of every delivery that only adaptive mode empties.
    - Replays to a new subscriber are written past its queue, into the middle of
      what the queue is writing.
    - Every frame carries a signed record of the sender's addresses.

    Seen with 0.8.1.
    """

    _IDS = 256
    _TOPICS = 512

    def __init__(self, referee: Referee) -> None:
        super().__init__(
            protocols=[MESHSUB],
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=1,
            heartbeat_initial_delay=0.5,
            do_px=False,
            spam_protection_enabled=False,
            adaptive_gossip_enabled=False,
            eclipse_protection_enabled=False,
        )
        self._referee = referee
        nothing: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=0))
        self.recent_message_deliveries = nothing

    async def heartbeat(self) -> None:
        await trio.sleep(self.heartbeat_initial_delay)
        while True:
            try:
                grafts, prunes = self.mesh_heartbeat()
                self.fanout_heartbeat()
                await self._emit_control_msgs(grafts, prunes, self.gossip_heartbeat())
                self.mcache.shift()
                self.scorer.on_heartbeat()
                self._periodic_security_cleanup()
                self._end_back_offs()
            except Exception:
                # A fault in one heartbeat must not end the host; the next one tries again.
                self._referee.refuse("heartbeat-error", None)
            await trio.sleep(self.heartbeat_interval)

    def _end_back_offs(self) -> None:
        # The base class keeps the back-off of every peer that ever left.
        now = time.time()
        for topic, until in list(self.back_off.items()):
            for peer in [peer for peer, end in until.items() if end < now]:
                del until[peer]
            if not until:
                del self.back_off[topic]

    async def _emit_control_msgs(
        self,
        peers_to_graft: dict[ID, list[str]],
        peers_to_prune: dict[ID, list[str]],
        peers_to_gossip: dict[ID, dict[str, list[bytes]]],
    ) -> None:
        for peer in {*peers_to_graft, *peers_to_prune, *peers_to_gossip}:
            grafts = [rpc_pb2.ControlGraft(topicID=topic) for topic in peers_to_graft.get(peer, ())]
            prunes = [
                rpc_pb2.ControlPrune(topicID=topic, backoff=self.prune_back_off)
                for topic in peers_to_prune.get(peer, ())
            ]
            ihaves = [
                rpc_pb2.ControlIHave(topicID=topic, messageIDs=ids)
                for topic, ids in peers_to_gossip.get(peer, {}).items()
            ]
            await self.emit_control_message(self.pack_control_msgs(ihaves, grafts, prunes), peer)

    async def emit_control_message(self, control_msg: rpc_pb2.ControlMessage, to_peer: ID) -> None:
        self.send_rpc(to_peer, rpc_pb2.RPC(control=control_msg), priority=True)

    async def handle_rpc(self, rpc: rpc_pb2.RPC, sender_peer_id: ID) -> None:
        self._trim(rpc.control)
        await super().handle_rpc(rpc, sender_peer_id)

    def _trim(self, control: rpc_pb2.ControlMessage) -> None:
        """Cut a control message down to what we could have a use for."""
        ihaves = [ihave for ihave in control.ihave if ihave.topicID in self.mesh][: self._TOPICS]
        for ihave in ihaves:
            del ihave.messageIDs[self._IDS :]
        wanted = list(dict.fromkeys(id for iwant in control.iwant for id in iwant.messageIDs))
        prunes = [prune for prune in control.prune if prune.topicID in self.mesh][: self._TOPICS]
        for prune in prunes:
            prune.ClearField("peers")
            prune.backoff = min(prune.backoff, 3600)
        grafts = list(control.graft)[: self._TOPICS]
        kept = rpc_pb2.ControlMessage(ihave=ihaves, graft=grafts, prune=prunes)
        if wanted:
            kept.iwant.add(messageIDs=wanted[: self._IDS])
        control.CopyFrom(kept)

    async def handle_graft(self, graft_msg: rpc_pb2.ControlGraft, sender_peer_id: ID) -> None:
        topic = graft_msg.topicID
        if sender_peer_id not in self.pubsub.peer_topics.get(topic, ()):
            await self.emit_prune(topic, sender_peer_id, False, False)
            return
        await super().handle_graft(graft_msg, sender_peer_id)

    def _get_peers_to_send(
        self, topic_ids: Iterable[str], msg_forwarder: ID, origin: ID, msg_id: bytes | None = None
    ) -> Iterable[ID]:
        topics = list(topic_ids)
        followers: set[ID] = set()
        for topic in topics:
            followers |= self.pubsub.peer_topics.get(topic, set())
        return [
            peer
            for peer in super()._get_peers_to_send(topics, msg_forwarder, origin, msg_id)
            if peer in followers
        ]

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        self.mcache.put(pubsub_msg)
        rpc = rpc_pb2.RPC(publish=[pubsub_msg])
        origin = ID(pubsub_msg.from_id)
        for peer in self._get_peers_to_send(pubsub_msg.topicIDs, msg_forwarder, origin):
            self.send_rpc(peer, rpc)
        for topic in pubsub_msg.topicIDs:
            self.time_since_last_publish[topic] = int(time.time())

    async def flush_pending_messages(self, peer_id: ID) -> None: ...

    async def send_recent_messages(self, peer_id: ID, topic: str) -> None:
        for number in self.mcache.window(topic):
            message = self.mcache.get(number)
            if message is not None:
                self.send_rpc(peer_id, rpc_pb2.RPC(publish=[message]))

    async def on_peer_subscribed(self, peer_id: ID, topic: str) -> None:
        try:
            await super().on_peer_subscribed(peer_id, topic)
        except Exception:
            # It runs in a task of libp2p's that would take the host with it.
            self._referee.refuse("graft-error", peer_key(peer_id))
