"""Hostile peers, written on bare py-libp2p and raw sockets, to be run against a real node.

``PEERS`` names them all. Tests hold that a node outlives each; `bench.attacks` measures what
each costs the node. ``python -m bench.hostile ADDRESS PREY`` runs the ones that are named on
its standard input, a line of name and seconds each, and prints a line when each is over. The
name ``idle:0.7`` attacks nobody, and uses seven tenths of a core.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping

import trio

from bench.hostile import swarm, wire
from bench.hostile.attacker import THROWN_OUT, Attacker, Prey, attacker_of

__all__ = ["IDLE", "PEERS", "Attacker", "Prey", "attack", "attacker_of", "idle"]

IDLE = "idle"

HostilePeer = Callable[[Attacker], Awaitable[None]]

PEERS: Mapping[str, HostilePeer] = {
    peer.__name__: peer
    for peer in (
        *wire.ALL,
        swarm.garbage_gossip,
        swarm.nested_msgpack,
        swarm.replays,
        swarm.forged_announcements,
        swarm.invented_results,
        swarm.results_with_endless_blobs,
        swarm.entries_from_the_future,
        swarm.entries_without_a_past,
        swarm.founded_projects,
        swarm.invented_volunteers,
        swarm.claims_without_runs,
        swarm.wanted_everything,
        swarm.silent_askers,
        swarm.askers_that_never_read,
        swarm.askers_of_garbage,
        swarm.askers_of_strange_projects,
        swarm.liars_about_heights,
        swarm.junk_segments,
        swarm.bombs_of_zeros,
        swarm.silent_answerers,
        swarm.askers_of_missing_blobs,
        swarm.askers_of_one_blob,
        swarm.silent_blob_askers,
        swarm.invented_checkpoints,
        swarm.askers_of_unknown_protocols,
        swarm.pings_without_end,
        swarm.pushed_identities,
        swarm.gossip_streams,
        swarm.sockets_that_say_nothing,
        swarm.sockets_that_come_and_go,
        swarm.handshakes_cut_short,
        swarm.peers_that_come_and_go,
    )
}


def idle(cores: float, seconds: float) -> None:
    """Use as much of a core for a time, in slices as short as an attack's steps."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        used = time.process_time() + 0.01 * cores
        while time.process_time() < used:
            pass
        time.sleep(0.01 * (1 - cores))


async def attack(
    address: str, topic: str, protocol: str, prey: Prey, name: str, seconds: float
) -> int:
    """Run a hostile peer for a time, under a new key whenever it is thrown out or done.

    Returns how many keys it used.
    """
    used = 0
    with trio.move_on_after(seconds):
        while True:
            used += 1
            try:
                async with attacker_of(address, topic, protocol, prey) as attacker:
                    await PEERS[name](attacker)
            except* THROWN_OUT:  # It comes again.
                await trio.sleep(0.05)
    return used
