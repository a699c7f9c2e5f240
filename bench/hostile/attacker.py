"""A bare py-libp2p host that is connected to its target and keeps none of the rules."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from bench.bare import MESHSUB, bare_dial, bare_host, running

# How it ends for an attacker that is thrown out, or whose own libp2p falls over what it does.
THROWN_OUT = (BaseLibp2pError, OSError, trio.BrokenResourceError, IndexError)


@dataclass(frozen=True, slots=True)
class Prey:
    """What the target works for: ids, and the frame of a real job and the hash of its source."""

    project: bytes = bytes(32)
    job: bytes = bytes(32)
    cell: bytes = bytes(32)
    source: bytes = bytes(32)
    frame: bytes = b""

    def to_json(self) -> str:
        return json.dumps({name: value.hex() for name, value in asdict(self).items()})

    @classmethod
    def from_json(cls, text: str) -> Prey:
        return cls(**{name: bytes.fromhex(value) for name, value in json.loads(text).items()})


@dataclass
class Attacker:
    """``topic`` and ``protocol`` are ones that the target serves; ``port`` is where."""

    host: Any
    pair: KeyPair
    target: ID
    port: int
    topic: str
    protocol: str
    prey: Prey

    @property
    def muxer(self) -> Any:
        return self.host.get_network().get_connections(self.target)[0].muxed_conn

    async def stream(self, protocol: str) -> Any:
        return await self.host.new_stream(self.target, [protocol])

    async def rpc(self, rpc: rpc_pb2.RPC, stream: Any = None) -> Any:
        stream = stream or await self.stream(MESHSUB)
        await stream.write(encode_varint_prefixed(rpc.SerializeToString()))
        return stream

    def message(
        self,
        data: bytes,
        number: int = 1,
        *,
        topics: Sequence[str] = (),
        pair: KeyPair | None = None,
    ) -> rpc_pb2.Message:
        """Rightly signed by ``pair``, our own by default, and for our topic by default."""
        pair = pair or self.pair
        message = rpc_pb2.Message(
            data=data,
            topicIDs=topics or [self.topic],
            from_id=ID.from_pubkey(pair.public_key).to_bytes(),
            seqno=number.to_bytes(8, "big"),
        )
        message.signature = pair.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
        message.key = pair.public_key.serialize()
        return message


@asynccontextmanager
async def attacker_of(
    address: str, topic: str, protocol: str, prey: Prey | None = None
) -> AsyncIterator[Attacker]:
    """An attacker under a fresh key, connected to ``address``."""
    pair = create_new_key_pair(os.urandom(32))
    host = bare_host(pair)
    async with running(host, listen=False):
        target = await bare_dial(host, address)
        port = int(Multiaddr(address).value_for_protocol("tcp"))
        yield Attacker(host, pair, target, port, topic, protocol, prey or Prey())
