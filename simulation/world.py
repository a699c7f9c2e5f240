"""The bus, the clock and the weather.

A message to a topic reaches each subscriber that the sender's side of a partition holds,
after one hop's latency if they are connected and two hops' if not; it may be lost or come
twice. Who lost something gets it by sync, as in the real network.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ponyswarm.codec import decode_gossip
from ponyswarm.errors import PeerError
from ponyswarm.messages import Entry, Ephemeral, Project

if TYPE_CHECKING:
    from simulation.node import Node

NOW = 1_800_000_000_000
SEED = int(os.environ.get("PONYSWARM_SEED", "1"))
# Messages that are kept decoded, at most; they are all heard long before they are dropped.
MAX_DECODED = 50_000


@dataclass(kw_only=True)
class Weather:
    """How the network treats messages: latency of one hop and skew of clocks in ms."""

    latency: tuple[int, int] = (20, 300)
    loss: float = 0.0
    repeat: float = 0.02
    skew: int = 500


@dataclass
class RunLog:
    """One run that was started somewhere."""

    node: int
    job: bytes
    cell: bytes
    began: int
    ended: int | None = None
    published: bool = False


@dataclass
class World:
    """``folder`` is where ledgers and journals lie; None keeps them in memory."""

    folder: Path | None = None
    seed: int = SEED
    weather: Weather = field(default_factory=Weather)

    def __post_init__(self) -> None:
        self.now = NOW
        self.chance = random.Random(self.seed)
        self.nodes: list[Node] = []
        self.runs: list[RunLog] = []
        self.sent: Counter[str] = Counter()
        self.parts: dict[int, int] = {}
        self.subscribers: defaultdict[str, dict[int, Node]] = defaultdict(dict)
        self._heap: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
        self._number = itertools.count()
        self._decoded: dict[bytes, Entry | Ephemeral] = {}

    def at(self, delay: int, act: Callable[..., None], *arguments: object) -> None:
        moment = self.now + max(0, delay)
        heapq.heappush(self._heap, (moment, next(self._number), act, arguments))

    def latency(self) -> int:
        least, most = self.weather.latency
        return least + int(self.chance.random() * (most - least))

    def reach(self, one: Node, other: Node) -> bool:
        together = self.parts.get(one.number, 0) == self.parts.get(other.number, 0)
        return together and one.alive and other.alive and not one.shuns(other)

    def part(self, parts: dict[int, int]) -> None:
        """Divide the network, node number by part, and cut what connects the parts."""
        self.parts = parts
        for node in self.nodes:
            for other in [o for o in node.peers.values() if not self.reach(node, o)]:
                node.disconnect(other)

    def add(self, **facts: object) -> Node:
        from simulation.node import Node

        node = Node(self, len(self.nodes), **facts)  # type: ignore[arg-type]
        self.nodes.append(node)
        return node

    def found(self, maintainer: Node, record: Project) -> bytes:
        """Let a maintainer found a project that all nodes follow, and all meet; its id."""
        genesis = maintainer.say(record)
        for node in self.nodes:
            if node is not maintainer:
                # The margin is for clocks that are behind the maintainer's.
                node.store.append(genesis, node.now + 10_000)
            node.follow(genesis.id)
        self.connect_all()
        self.run(5)
        return genesis.id

    def connect_all(self, degree: int = 6) -> None:
        """A ring with random chords: everyone is reached by someone."""
        count = len(self.nodes)
        for index, node in enumerate(self.nodes):
            node.connect(self.nodes[(index + 1) % count])
            for other in self.chance.sample(self.nodes, min(count, degree // 2)):
                if other is not node:
                    node.connect(other)

    def decode(self, data: bytes) -> Entry | Ephemeral | None:
        """The message in these bytes, checked once for all who hear it; None for rubbish."""
        message = self._decoded.get(data)
        if message is None:
            try:
                message = decode_gossip(data)
            except PeerError:
                return None
            if len(self._decoded) >= MAX_DECODED:
                self._decoded.clear()
            self._decoded[data] = message
        return message

    def gossip(self, sender: Node, topic: str, data: bytes) -> None:
        weather, chance = self.weather, self.chance
        for node in self.subscribers[topic].values():
            if node is sender or not self.reach(sender, node):
                continue
            if chance.random() < weather.loss:
                self.sent["lost"] += 1
                continue
            told = sender.two_faces.get(data, data) if node.number % 2 else data
            hops = 1 if sender.me in node.peers else 2
            copies = 2 if chance.random() < weather.repeat else 1
            for _ in range(copies):
                self.sent["gossip"] += 1
                delay = self.latency() + (self.latency() if hops == 2 else 0)
                self.at(delay, node.hear, sender, topic, told)

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> float:
        """Let time pass; returns the seconds that did, fewer when ``until`` came true."""
        began, end = self.now, self.now + int(seconds * 1000)
        checked = self.now
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, act, arguments = heapq.heappop(heap)
            act(*arguments)
            if until is not None and self.now - checked >= 1000:
                checked = self.now
                if until():
                    return (self.now - began) / 1000
        if heap:
            self.now = end
        return (self.now - began) / 1000

    def close(self) -> None:
        for node in self.nodes:
            node.close()
