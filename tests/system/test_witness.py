"""Real nodes on loopback cosign each other's checkpoints, and no node's two histories."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import trio
from swarm_lab import kill

from ponyswarm import keys
from ponyswarm.demo import Member, Swarm
from ponyswarm.keys import SecretKey, peer_id
from ponyswarm.ledger import proofs, verifier
from ponyswarm.p2p import witness
from ponyswarm.p2p.network import open_network

pytestmark = pytest.mark.slow


def key(member: Member) -> bytes:
    return keys.load(member.home.key).public


def connected(swarm: Swarm, member: Member, count: int) -> None:
    swarm.wait_for(member, lambda now: len(now.peers) == count)


def export(swarm: Swarm, member: Member, entry: str, file: Path) -> tuple[dict, verifier.Proved]:
    said = swarm.command(
        member, "export", "--proof", entry, "-o", str(file), "-n", "2", "--wait", "20", "--json"
    )
    return json.loads(said), verifier.check(file.read_bytes())


def create(swarm: Swarm, member: Member, name: str) -> str:
    return str(json.loads(swarm.command(member, "project", "create", name, "--json"))["project"])


@pytest.mark.timeout(120)
def test_three_nodes_cosign_and_a_killed_witness_goes_on(swarm: Swarm, tmp_path: Path) -> None:
    log, first, second = (swarm.member(name, []) for name in ("log", "first", "second"))
    swarm.start(log, [], "--read-only")
    hub = swarm.address(log)
    swarm.start(first, [hub], "--read-only")
    swarm.start(second, [hub, swarm.address(first)], "--read-only")
    connected(swarm, log, 2)

    entry = create(swarm, log, "one")
    facts, proved = export(swarm, log, entry, tmp_path / "one.proof")
    both = {key(first), key(second)}
    assert {witness for witness, _ in proved.witnesses} == both
    assert set(facts["witnesses"]) == {peer_id(witness) for witness in both}
    assert (proved.entry.id.hex(), proved.log) == (entry, key(log))
    named = [arg for witness in both for arg in ("--witness", peer_id(witness))]
    said = swarm.command(second, "verify", "--proof", str(tmp_path / "one.proof"), *named)
    assert "not one that you named" not in said

    kill(first)
    swarm.start(first, [hub], "--read-only")
    connected(swarm, log, 2)
    for number in range(3):
        entry = create(swarm, log, f"more {number}")
    _, later = export(swarm, log, entry, tmp_path / "more.proof")
    assert {witness for witness, _ in later.witnesses} == both
    assert later.checkpoint.origin == proved.checkpoint.origin
    assert later.checkpoint.size > proved.checkpoint.size


async def ask(log: SecretKey, address: str, note: bytes, old: int = 0) -> witness.Reply:
    """Show a checkpoint to a node as its log would."""
    async with open_network(
        log,
        listen=[],
        validate=lambda *message: False,
        refused=lambda reason, peer: None,
    ) as network:
        peer = await network.dial(address)
        async with await network.open(peer, witness.PROTOCOL) as stream:
            await stream.send(witness.encode_request(witness.Request(old, (), note)))
            return witness.decode_reply(await stream.receive(witness.MAX_REPLY))


@pytest.mark.timeout(120)
def test_a_log_that_shows_two_trees_is_refused_also_after_a_kill(swarm: Swarm) -> None:
    member = swarm.member("witness", [])
    swarm.start(member, [], "--read-only")
    liar = SecretKey(b"liar" * 8)
    origin = f"{peer_id(liar.public)}/00000001"
    one = proofs.sign_checkpoint(liar, origin, 7, b"1" * 32)
    two = proofs.sign_checkpoint(liar, origin, 7, b"2" * 32)

    reply = trio.run(partial(ask, liar, swarm.address(member), one))
    assert reply.status == 200
    note = verifier.open_note(one + reply.body)
    witnessed, _ = verifier.check_cosignature(note.text, *note.signatures[1])
    assert witnessed == key(member)

    kill(member)
    swarm.start(member, [], "--read-only")
    reply = trio.run(partial(ask, liar, swarm.address(member), two, 7))
    assert reply.status == 409
    assert witness.known_size(reply) == (7, one)
    swarm.wait_for(member, lambda now: now.refused.get("two-trees") == 1)
    assert trio.run(partial(ask, liar, swarm.address(member), one, 7)).status == 409

    stranger = SecretKey(b"else" * 8)
    assert trio.run(partial(ask, stranger, swarm.address(member), one)).status == 403
