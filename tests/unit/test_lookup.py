"""A search finds a project's peers among strangers, with few questions."""

import hashlib
from random import Random

from ponyswarm.keys import SecretKey, peer_id
from ponyswarm.p2p import peers
from ponyswarm.p2p.lookup import MOST_ASKED, Search, distance, nearest
from ponyswarm.p2p.peers import Question, Record, Signed

PROJECT = hashlib.sha256(b"a project").digest()
NODES = 400


def test_distance_is_that_of_kademlia():
    near = nearest([bytes([n]) * 32 for n in range(50)], PROJECT, 3)
    assert [distance(one, PROJECT) for one in near] == sorted(
        distance(one, PROJECT) for one in near
    )
    assert len(near) == 3


def test_a_search_asks_nobody_twice_and_ends():
    search = Search(PROJECT, [bytes([n]) * 32 for n in range(100)], own=bytes([3]) * 32)
    asked = []
    while (peer := search.next()) is not None:
        asked.append(peer)
        search.failed(peer)
    assert len(asked) == len(set(asked)) == MOST_ASKED
    assert bytes([3]) * 32 not in asked


class Swarm:
    """Nodes that know a few others by chance, and answer as real ones do."""

    def __init__(self, seed):
        self.random = Random(seed)
        self.keys = [SecretKey(n.to_bytes(32, "big")) for n in range(1, NODES + 1)]
        self.records = {}
        for key in self.keys:
            self.put(key, ())
        self.met = {
            key.public: {other.public for other in self.random.sample(self.keys, 20)}
            for key in self.keys
        }
        self.questions = 0

    def put(self, key, projects):
        address = f"/ip4/20.1.2.3/tcp/1/p2p/{peer_id(key.public)}"
        record = Record(peer=key.public, time=1, addresses=(address,), projects=projects)
        self.records[key.public] = Signed(record, b"")

    def search(self, own):
        """Everything that one node learns of the project's peers."""
        found = set()
        search = Search(PROJECT, self.met[own], own)
        while (peer := search.next()) is not None:
            self.questions += 1
            known = ((self.records[one], one.hex()) for one in sorted(self.met[peer]))
            told = peers.select(known, Question(projects=(PROJECT,)), own, self.random)
            self.met[peer].add(own)
            search.named(one.record.peer for one in told)
            found |= {one.record.peer for one in told if PROJECT in one.record.projects}
        return found


def test_the_few_peers_of_a_project_find_each_other_among_hundreds():
    found = wanted = 0
    for seed in range(6):
        swarm = Swarm(seed)
        members = swarm.random.sample(swarm.keys, 4)
        for key in members:
            swarm.put(key, (PROJECT,))
        for key in members:
            swarm.search(key.public)
        for key in members:
            others = {other.public for other in members} - {key.public}
            found += len(swarm.search(key.public) & others)
            wanted += len(others)
        assert swarm.questions <= 8 * MOST_ASKED, f"seed {seed}"
    assert found / wanted >= 0.95
