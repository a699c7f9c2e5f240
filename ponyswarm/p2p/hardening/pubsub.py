"""Pubsub: reading, judging and sending the messages that the router spreads."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio
from google.protobuf.message import DecodeError
from libp2p.abc import INetConn, INetStream, INetwork
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue

from ponyswarm import keys
from ponyswarm.errors import PeerError
from ponyswarm.p2p.hardening.gossip import FencedGossip
from ponyswarm.p2p.hardening.identity import peer_key
from ponyswarm.p2p.hardening.limits import NetworkLimits
from ponyswarm.p2p.hardening.quotas import Quotas
from ponyswarm.p2p.hardening.referee import Referee
from ponyswarm.p2p.hardening.streams import NetReader, reset_quietly
from ponyswarm.p2p.hardening.swarm import FencedHost, FencedSwarm, Notifee, close_quietly

_SIGNING_PREFIX = b"libp2p-pubsub:"
_FLOOD = 0.25  # Points for each message beyond an author's quota that it brings itself.


class FencedPubsub(Pubsub):  # type: ignore[misc]
    """Pubsub that survives whatever its peers send, and charges them for it.

    - A malformed protobuf, a garbage key in a message, or a validator that raises
      ends the host.
    - Each message becomes a task before anything is checked, and there is no limit:
      one peer at 1,000 messages a second fills a core. Messages are handled in the
      reading task, which waits for the forwarder's token bucket; before a signature is
      checked, `Quotas` says whether there was too much of its author already.
    - Signatures by any kind of key are accepted by whatever library handles it. Only
      Ed25519 by the one rule of `ponyswarm.keys` counts here.
    - A message for a topic that we follow *and* one that we don't is relayed to both.
    - Sequence numbers restart with the clock's second, so after a quick restart what
      a node sends counts as seen (4 of 60 arrived).
    - Queues hold 32 frames and then drop.
    - **A GRAFT overtakes the subscription before it**, because control messages alone have
      priority: who follows a topic while it is connected is turned down as a stranger to it,
      with a back-off of a minute in which it hears nothing.
    - Every frame carries a signed peer record: half the CPU of a small message.
    - Each subscription starts three tasks, and each start looks at all tasks there are: at a
      frame of 1,400 subscriptions the loop stands still for 18 seconds. Here those to topics
      that we don't follow are only noted, and others start one task of trio's own.
    - A thread that sweeps the cache of seen messages is never stopped.

    Seen with 0.8.1.
    """

    def __init__(
        self,
        host: FencedHost,
        router: FencedGossip,
        *,
        validate: Callable[[str, bytes, bytes, bytes], bool],
        deliver: Callable[[str, bytes, bytes, bytes], None],
        followed: Callable[[str, bytes], None],
        limits: NetworkLimits,
        referee: Referee,
        quotas: Quotas,
        nursery: trio.Nursery,
    ) -> None:
        super().__init__(
            host,
            router,
            strict_signing=True,
            max_inbound_rpc_size=limits.rpc,
            max_subscriptions_per_peer=limits.topics_per_peer,
        )
        self.counter = time.time_ns()
        self._validate = validate
        self._deliver = deliver
        self._followed = followed
        self._limits = limits
        self._referee = referee
        self._quotas = quotas
        self._nursery = nursery
        self._inbound: dict[ID, INetStream] = {}

    # Sending

    def get_hello_packet(self) -> rpc_pb2.RPC:
        options = [rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic) for topic in self.topic_ids]
        return rpc_pb2.RPC(subscriptions=options)

    def _build_announce_rpc(
        self, topic_id: str, subscribe: bool
    ) -> tuple[rpc_pb2.RPC, rpc_pb2.RPC.SubOpts]:
        option = rpc_pb2.RPC.SubOpts(subscribe=subscribe, topicid=topic_id)
        return rpc_pb2.RPC(subscriptions=[option]), option

    def _enqueue_or_retry_announce(
        self,
        peer_id: ID,
        queue: RpcQueue,
        rpc_msg: rpc_pb2.RPC,
        announce: rpc_pb2.RPC.SubOpts | None,
    ) -> None:
        if not queue.push(rpc_msg, priority=True) and announce is not None:
            self._schedule_announce_retry(peer_id, announce)

    async def write_msg(self, stream: INetStream, rpc_msg: rpc_pb2.RPC) -> bool:
        rpc_msg.ClearField("senderRecord")
        sent: bool = await super().write_msg(stream, rpc_msg)
        return sent

    async def _handle_new_peer(self, peer_id: ID) -> None:
        with trio.move_on_after(4 * self._limits.handshake_timeout) as scope:
            await super()._handle_new_peer(peer_id)
        if scope.cancelled_caught:
            raise SwarmException("the peer does not take a pubsub stream")  # Tried again later.
        queue = self.peer_queues.get(peer_id)
        if queue is not None:
            queue._queue.max_size = self._limits.gossip_queue

    # Receiving

    async def stream_handler(self, stream: INetStream) -> None:
        peer_id = stream.muxed_conn.peer_id
        older = self._inbound.get(peer_id)
        self._inbound[peer_id] = stream
        if older is not None:
            await reset_quietly(older)
        try:
            await self._read(stream, peer_id)
        except PeerError as fault:
            if fault.reason != "stream-closed":
                self._referee.refuse(fault.reason, peer_key(peer_id), 25.0)
        except Exception:
            # What a frame breaks in libp2p's own code, its sender pays for; the host lives.
            self._referee.refuse("gossip-error", peer_key(peer_id), 25.0)
        finally:
            if self._inbound.get(peer_id) is stream:
                del self._inbound[peer_id]
                self._forget_all_subscriptions(peer_id)
            await reset_quietly(stream)

    async def _read(self, stream: INetStream, peer_id: ID) -> None:
        peer = peer_key(peer_id) or b""
        reader = NetReader(stream)
        # What a peer sent before it was shut out may fill a buffer, and is not even counted.
        while self.manager.is_running and not self._referee.banned(peer):
            data = await reader.varint_frame(self._limits.rpc)
            rpc = rpc_pb2.RPC()
            try:
                rpc.ParseFromString(data)
            except (DecodeError, ValueError) as fault:
                raise PeerError("malformed", "not a pubsub frame") from fault
            await self._referee.pace(peer, self._bookkeeping(rpc))
            for message in rpc.publish:
                await self._referee.pace(peer, 1)
                if self._referee.banned(peer):
                    return
                await self.push_msg(peer_id, message)
            for option in rpc.subscriptions:
                self.handle_subscription(peer_id, option)
            if rpc.HasField("control"):
                await self.router.handle_rpc(rpc, peer_id)

    @staticmethod
    def _bookkeeping(rpc: rpc_pb2.RPC) -> float:
        """What all but the messages of a frame costs, in messages."""
        control = rpc.control
        small = len(rpc.subscriptions) + len(control.graft) + len(control.prune)
        small += sum(1 + len(ihave.messageIDs) for ihave in control.ihave)
        wanted = sum(1 + len(iwant.messageIDs) for iwant in control.iwant)
        # A frame that holds nothing but bookkeeping is cheap, and heartbeats are steady.
        return 0.1 + small / 50 + wanted / 4

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        if msg_forwarder == self.my_id:
            await self._push_own(msg)
            return
        forwarder = peer_key(msg_forwarder) or b""
        if self._is_msg_seen(msg):
            return
        if len(msg.data) > self._limits.message or len(msg.seqno) != 8:
            self._referee.refuse("too-long", forwarder, 10.0)
            return
        topics = list(msg.topicIDs)
        if len(topics) != 1:
            self._referee.refuse("bad-topic", forwarder, 10.0)
            return
        if topics[0] not in self.topic_ids:
            return  # It may have been sent before our leaving was known.
        origin = peer_key(msg.from_id)
        if origin is None:
            self._referee.refuse("bad-signature", forwarder, 25.0)
            return
        now = trio.current_time()
        too_much = self._quotas.refusal(topics[0], origin, forwarder, now)
        if too_much is not None:
            # A forwarder cannot know what else its author sent us; the author itself can.
            is_own = too_much == "author-quota" and origin == forwarder
            self._referee.refuse(too_much, forwarder, _FLOOD if is_own else 0.0)
            return
        if not self._signed(msg, origin):
            self._referee.refuse("bad-signature", forwarder, 25.0)
            return
        self._quotas.spend(topics[0], origin, forwarder, now)
        self._mark_msg_seen(msg)
        if msg.from_id == self.my_id.to_bytes():
            return
        try:
            valid = self._validate(topics[0], origin, forwarder, msg.data)
        except Exception:
            # The validator is our own code: a fault in it is nobody's who sent a message.
            self._referee.refuse("validator-error", forwarder)
            return
        if not valid:
            self._referee.refuse("invalid", forwarder)
            return
        self._deliver(topics[0], origin, forwarder, msg.data)
        await self.router.publish(msg_forwarder, msg)

    async def _push_own(self, msg: rpc_pb2.Message) -> None:
        # Beyond its quota a node keeps silent, as others would hold more against it. What is
        # not said by gossip, peers pull.
        topic, me, now = msg.topicIDs[0], peer_key(self.my_id) or b"", trio.current_time()
        if self._quotas.refusal(topic, me, me, now) is not None:
            self._referee.refuse("own-quota", None)
            return
        self._quotas.spend(topic, me, me, now)
        self._mark_msg_seen(msg)
        await self.router.publish(self.my_id, msg)

    @staticmethod
    def _signed(msg: rpc_pb2.Message, origin: bytes) -> bool:
        content = rpc_pb2.Message(
            data=msg.data, topicIDs=msg.topicIDs, from_id=msg.from_id, seqno=msg.seqno
        )
        return keys.verify(origin, _SIGNING_PREFIX + content.SerializeToString(), msg.signature)

    def handle_subscription(self, origin_id: ID, sub_message: rpc_pb2.RPC.SubOpts) -> None:
        topic = sub_message.topicid
        if not isinstance(topic, str):
            raise PeerError("malformed", "a topic is not text")  # protobuf gives bytes then.
        if len(topic) > self._limits.topic_length:
            self._referee.refuse("bad-topic", peer_key(origin_id), 1.0)
            return
        if not sub_message.subscribe:
            super().handle_subscription(origin_id, sub_message)
            self.router.mesh.get(topic, set()).discard(origin_id)
            self.router.fanout.get(topic, set()).discard(origin_id)
        elif self._is_new_follower(origin_id, topic) and topic in self.topic_ids:
            self._followed(topic, peer_key(origin_id) or b"")
            self._nursery.start_soon(self._greet, origin_id, topic)

    def _is_new_follower(self, peer_id: ID, topic: str) -> bool:
        """Remember that a peer follows a topic, ours or not, as we may come to follow it."""
        followers = self.peer_topics.setdefault(topic, set())
        count = self._peer_subscription_count.get(peer_id, 0)
        if peer_id in followers or count >= self._limits.topics_per_peer:
            if not followers:
                del self.peer_topics[topic]
            return False
        followers.add(peer_id)
        self._peer_subscription_count[peer_id] = count + 1
        return True

    async def _greet(self, peer_id: ID, topic: str) -> None:
        await self._replay_recent_messages(peer_id, topic)
        await self.router.on_peer_subscribed(peer_id, topic)

    def _forget_all_subscriptions(self, peer_id: ID) -> None:
        # The base class forgets them when *our* stream to the peer fails too, though the
        # peer, whose stream to us lives, will not tell them again.
        if peer_id in self._inbound:
            return
        super()._forget_all_subscriptions(peer_id)
        for meshes in (self.router.mesh, self.router.fanout):
            for peers in meshes.values():
                peers.discard(peer_id)

    def stop_sweeping(self) -> None:
        self.seen_messages.stop()


class DropStale(Notifee):
    """When a peer connects anew, its older connections are closed.

    A peer that restarts within the time TCP needs to notice is known by two
    connections, and pubsub stays on the dead one: of 60 messages none arrived, with
    this all. A direct connection likewise takes the place of a relayed one, however
    young. It also forgets what is stored of a peer that left; libp2p keeps the
    records of every stranger. Seen with 0.8.1.
    """

    MIN_AGE = 2.0  # Two peers that dial each other at once keep both connections.

    def __init__(self, swarm: FencedSwarm, pubsub: FencedPubsub, nursery: trio.Nursery) -> None:
        self._swarm, self._pubsub, self._nursery = swarm, pubsub, nursery

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        peer = conn.muxed_conn.peer_id
        now = time.time()
        old = [
            other
            for other in self._swarm.get_connections(peer)
            if other is not conn
            and (
                now - other._created_at > self.MIN_AGE
                or (other.muxed_conn.relayed and not conn.muxed_conn.relayed)
            )
        ]
        if old:
            self._nursery.start_soon(self._drop, peer, old)

    async def _drop(self, peer: ID, old: list[INetConn]) -> None:
        for conn in old:
            await close_quietly(conn, 3.0)
        stream = self._pubsub.peers.get(peer)
        if stream is not None and any(stream.muxed_conn is conn.muxed_conn for conn in old):
            self._pubsub._handle_dead_peer(peer)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        peer = conn.muxed_conn.peer_id
        stream = self._pubsub.peers.get(peer)
        if stream is not None and stream.muxed_conn is conn.muxed_conn:
            self._pubsub._handle_dead_peer(peer)  # Opens another, if there is a connection.
        store = self._swarm.peerstore
        if not self._swarm.get_connections(peer) and store.has_peer(peer):
            store.clear_peerdata(peer)
