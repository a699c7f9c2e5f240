"""Finding peers with real networks on loopback: exchange, and the dialer."""

import time
from contextlib import asynccontextmanager

import trio
from p2p_lab import node, until

from ponyswarm.keys import SecretKey, peer_id
from ponyswarm.p2p import exchange as exchange_module
from ponyswarm.p2p import peers, reach
from ponyswarm.p2p.connectivity import Connectivity
from ponyswarm.p2p.table import PeerTable

PROJECT = b"p" * 32
TOPIC = "t"


def run(body):
    async def bounded():
        with trio.fail_after(40):
            await body()

    trio.run(bounded)


@asynccontextmanager
async def joined(*calls, table=None, **options):
    """A node that keeps in touch, and calls ``calls`` first."""
    key = SecretKey.generate()
    refused = []
    async with node(key) as made:

        def followers():
            return {PROJECT: frozenset(made.network.topic_peers(TOPIC))}

        async with trio.open_nursery() as nursery:
            made.table = table or PeerTable()
            made.judged = refused
            connectivity = Connectivity(calls, made.table, **options)
            nursery.start_soon(
                connectivity.run,
                key,
                made.network,
                followers,
                lambda reason, peer: refused.append(reason),
            )
            yield made
            nursery.cancel_scope.cancel()


def test_nodes_that_know_one_hub_find_each_other_and_stay_together_without_it():
    async def body():
        async with joined() as hub, trio.open_nursery() as nursery:
            met = []

            async def member():
                async with joined(hub.address) as one:
                    met.append(one)
                    await trio.sleep_forever()

            for _ in range(3):
                nursery.start_soon(member)
            await until(lambda: len(met) == 3, what="three members")
            await until(
                lambda: all(len(one.network.peers()) == 3 for one in met),
                seconds=20,
                what="everybody knowing everybody",
            )
            for one in met:
                await one.network.disconnect(hub.network.peer)
            assert all(len(one.network.peers()) >= 2 for one in met)
            assert not hub.judged
            nursery.cancel_scope.cancel()

    run(body)


def test_a_node_that_starts_again_needs_no_bootstrap(tmp_path):
    async def body():
        async with joined() as friend:
            table = PeerTable(tmp_path / "peers.json")
            async with joined(friend.address, table=table):
                await until(lambda: (tmp_path / "peers.json").exists(), what="the saved table")
            async with joined(table=PeerTable(tmp_path / "peers.json")) as again:
                await until(
                    lambda: friend.network.peer in again.network.peers(), what="finding the friend"
                )

    run(body)


def test_forged_records_and_floods_of_questions_get_nowhere():
    async def body():
        async with joined() as victim, node(topics=()) as liar:
            await liar.network.dial(victim.address)
            other = SecretKey.generate()
            record = peers.Record(
                peer=other.public,
                time=int(time.time() * 1000),
                addresses=(f"/ip4/127.0.0.1/tcp/9/p2p/{peer_id(other.public)}",),
            )
            forged = peers.sign(record, SecretKey.generate()).raw
            for raw in (peers.encode(peers.Question(own=forged)), b"\xc1garbage", b""):
                stream = await liar.network.open(victim.network.peer, peers.PROTOCOL)
                await stream.send(raw)
                await stream.close()
            await until(lambda: victim.refused["bad-peers"] >= 1, what="the refusal")
            assert victim.table.known() == ()
            answers = []
            for _ in range(3):
                async with await liar.network.open(victim.network.peer, peers.PROTOCOL) as stream:
                    await stream.send(peers.encode(peers.Question()))
                    answers.append(peers.decode_answer(await stream.receive(peers.MAX_ANSWER)))
            assert all(not answer.peers for answer in answers)

    run(body)


def test_a_liar_who_answers_is_counted(monkeypatch):
    monkeypatch.setattr(exchange_module, "LOOK_EVERY", 0.1)

    async def body():
        async with node(topics=()) as liar:

            async def serve(stream):
                await stream.receive(peers.MAX_QUESTION)
                await stream.send(peers.encode(peers.Answer(peers=(b"x" * 300,))))

            liar.network.serve(peers.PROTOCOL, serve, concurrent_per_peer=2, timeout=5)
            async with joined(liar.address) as victim:
                await until(lambda: victim.judged, what="the refusal")

    run(body)


def test_a_call_back_goes_to_the_address_of_the_asker_and_proves_itself_there():
    async def body():
        async with joined() as asked, node() as asker:
            await asker.network.dial(asked.address)
            before = trio.current_time()
            async with await asker.network.open(asked.network.peer, reach.PROTOCOL) as stream:
                await stream.send(reach.encode(reach.Question(ports=(asker.network.port,))))
                answer = reach.decode_answer(await stream.receive(reach.MAX_MESSAGE))
            assert answer.tried == (asker.network.port,)
            assert answer.seen.startswith("/ip4/127.0.0.1/tcp/")
            assert asker.network.knocked(asked.network.peer) >= before
            # Once more at once: it is not called again.
            async with await asker.network.open(asked.network.peer, reach.PROTOCOL) as stream:
                await stream.send(reach.encode(reach.Question(ports=(asker.network.port,))))
                answer = reach.decode_answer(await stream.receive(reach.MAX_MESSAGE))
            assert answer.tried == ()

    run(body)


def test_a_knock_that_another_key_answers_is_no_knock():
    async def body():
        async with node() as asked, node() as asker, node() as other:
            await asker.network.dial(asked.address)
            peer = asker.network.peer
            assert await asked.network.knock(peer, asker.network.port, timeout=3)
            assert not await asked.network.knock(peer, other.network.port, timeout=3)
            assert not await asked.network.knock(peer, 9, timeout=3)
            assert asker.network.peer in asked.network.peers()
            await trio.sleep(0.2)
            assert not asker.refused

    run(body)


def test_an_owner_says_whether_a_node_relays():
    async def body():
        async with joined(carry="yes") as willing, joined(carry="no") as unwilling:
            await until(lambda: willing.network.relay.offered, what="the relay")
            await trio.sleep(0.5)
            assert not unwilling.network.relay.offered

    run(body)
