"""Hostile peers in a process of their own: reads ``NAME SECONDS`` lines, answers each."""

import json
import logging
import sys

import trio

from bench.hostile import IDLE, Prey, attack, idle
from ponyswarm.p2p import sync
from ponyswarm.p2p.topics import project_topic


async def main(address: str, prey: Prey) -> None:
    topic = project_topic(prey.project)
    for line in sys.stdin:
        name, seconds = line.split()
        kind, _, cores = name.partition(":")
        used = 0
        if kind == IDLE:
            idle(float(cores), float(seconds))
        else:
            used = await attack(address, topic, sync.PROTOCOL, prey, name, float(seconds))
        print(json.dumps({"name": name, "keys": used}), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.CRITICAL)
    trio.run(main, sys.argv[1], Prey.from_json(sys.argv[2]))
