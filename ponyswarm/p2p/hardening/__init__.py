"""Everything py-libp2p needs around it before strangers may talk to it.

Each class or function here works round one fault, or one family of faults, that
was seen with the version in `LIBP2P_VERSION`; its docstring says what goes wrong
without it. `network.py` puts the pieces together and is their only user. A piece
can go when libp2p has mended the fault and its test in `tests/system` passes
with the bare class.

The rules held here: nothing a peer sends raises out of a handler; every read has
a cap; every count that a peer can raise has a limit; and whatever a peer does is
charged to that peer alone.
"""

from __future__ import annotations

import logging

import libp2p.network.connection.swarm_connection as swarm_connection

from ponyswarm.p2p.hardening.gossip import FencedGossip
from ponyswarm.p2p.hardening.identity import key_pair, peer_identity, peer_key
from ponyswarm.p2p.hardening.limits import Doorkeeper, NetworkLimits, StreamQuota, TokenBucket
from ponyswarm.p2p.hardening.muxer import FencedUpgrader
from ponyswarm.p2p.hardening.pubsub import DropStale, FencedPubsub
from ponyswarm.p2p.hardening.punch import Puncher
from ponyswarm.p2p.hardening.quotas import Quotas
from ponyswarm.p2p.hardening.referee import Referee
from ponyswarm.p2p.hardening.relay import Carried, Relay, RelayLimits
from ponyswarm.p2p.hardening.streams import NetReader, reset_quietly
from ponyswarm.p2p.hardening.swarm import FencedHost, FencedSwarm, Notifee, close_quietly

__all__ = [
    "LIBP2P_VERSION",
    "Carried",
    "Doorkeeper",
    "DropStale",
    "FencedGossip",
    "FencedHost",
    "FencedPubsub",
    "FencedSwarm",
    "FencedUpgrader",
    "NetReader",
    "NetworkLimits",
    "Notifee",
    "Puncher",
    "Quotas",
    "Referee",
    "Relay",
    "RelayLimits",
    "StreamQuota",
    "TokenBucket",
    "close_quietly",
    "key_pair",
    "peer_identity",
    "peer_key",
    "quiet_logging",
    "reset_quietly",
]

LIBP2P_VERSION = "0.8.1"


def quiet_logging() -> None:
    """Keep libp2p out of the process's logging.

    `SwarmConn` calls the root functions ``logging.debug`` and friends. The first
    such call installs a handler on the root logger, and whatever the program
    configures afterwards is ignored. Its many warnings about what strangers send
    are of no use to an owner; refusals are counted by us. Seen with 0.8.1.
    """
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    swarm_connection.logging = logging.getLogger("libp2p.network.connection")
