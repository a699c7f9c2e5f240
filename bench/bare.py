"""A bare py-libp2p host: the peer that benchmarks measure beside, and what attackers run on.

No fence, no work-round but Noise alone; the gossip settings are the ones that the
measurements recommend.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager

from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as x25519
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection import swarm_connection
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

LOCAL = "/ip4/127.0.0.1/tcp/0"
MESHSUB = "/meshsub/1.1.0"

# libp2p's own call would set up the root logger of the whole process.
swarm_connection.logging = logging.getLogger("libp2p.network.connection")


def noise_only(pair):
    return {NOISE: Noise(pair, noise_privkey=x25519().private_key)}


def bare_host(pair=None, **options):
    pair = pair or create_new_key_pair()
    options.setdefault("sec_opt", noise_only(pair))
    options.setdefault("connection_config", ConnectionConfig(min_connections=0, low_watermark=0))
    return new_host(key_pair=pair, **options)


def bare_gossip(host, **options):
    router = GossipSub(
        protocols=[MESHSUB],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=1,
        heartbeat_initial_delay=0.2,
        spam_protection_enabled=False,
        adaptive_gossip_enabled=False,
        eclipse_protection_enabled=False,
    )
    return Pubsub(host, router, **options), router


@asynccontextmanager
async def running(host, pubsub=None, router=None, *, listen=True):
    """The host, run; with its address in ``host.lab_address`` when it listens."""
    async with host.run([Multiaddr(LOCAL)] if listen else []):
        if listen:
            host.lab_address = str(host.get_addrs()[0])
        if pubsub is None:
            yield host
        else:
            async with background_trio_service(pubsub), background_trio_service(router):
                yield host
        await host.close()


async def bare_dial(host, address):
    target = Multiaddr(address)
    peer = ID.from_base58(target.value_for_protocol("p2p"))
    await host.get_network().dial_addr(target, peer)
    return peer
