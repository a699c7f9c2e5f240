"""Hostile peers that speak PonySwarm: lies, floods and stalls in gossip, sync, blobs, witnesses.

Each is a coroutine over a connected `Attacker`, under keys of its own as cheap as they come;
it goes on until it is cancelled or thrown out. What they sign is validly signed.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.pubsub.pb import rpc_pb2

from bench.bare import MESHSUB
from bench.hostile.attacker import THROWN_OUT, Attacker
from ponyswarm.codec import ZERO, encode_gossip, pack, sign_entry
from ponyswarm.frontier import BUCKETS
from ponyswarm.keys import SecretKey
from ponyswarm.messages import Announce, Blob, Claim, Entry, Offer, Payload, Project, Result, Spec
from ponyswarm.p2p import blobs, sync, witness
from ponyswarm.p2p.topics import DIRECTORY

HOUR = 3_600_000
# As fast as a peer may talk before its share of messages is used up, and a bit more.
TALK = 0.002


def _now() -> int:
    return time.time_ns() // 1_000_000


def _framed(message: bytes) -> bytes:
    return struct.pack("!I", len(message)) + message


def _result(attacker: Attacker, **more: Any) -> Result:
    fields: dict[str, Any] = {
        "job": attacker.prey.job,
        "cell": attacker.prey.cell,
        "state": "completed",
        "counts": {"passed": 1},
        "digest": os.urandom(32),
        "started": _now(),
        "seconds": 1.0,
    }
    return Result(**{**fields, **more})


def _entry(attacker: Attacker, payload: Payload, **more: Any) -> Entry:
    """Signed by a key of the moment: a stranger has as many as it likes."""
    fields: dict[str, Any] = {
        "project": attacker.prey.project,
        "nonce": os.urandom(8),
        "seq": 0,
        "prev": ZERO,
        "time": _now(),
    }
    return sign_entry(SecretKey.generate(), payload, **{**fields, **more})


async def _talk(
    attacker: Attacker, say: Callable[[int], bytes], *, topics: tuple[str, ...] = ()
) -> None:
    """One gossip message after the other, each made anew."""
    stream = None
    number = time.time_ns()
    while True:
        number += 1
        message = attacker.message(say(number), number, topics=topics)
        stream = await attacker.rpc(rpc_pb2.RPC(publish=[message]), stream)
        await trio.sleep(TALK)


# --- gossip ---------------------------------------------------------------------------------


async def garbage_gossip(attacker: Attacker) -> None:
    await _talk(attacker, lambda n: os.urandom(200))


async def nested_msgpack(attacker: Attacker) -> None:
    await _talk(attacker, lambda n: b"\x02" + b"\x91" * 15_000)


async def replays(attacker: Attacker) -> None:
    """An honest announcement, said again and again as news."""
    await _talk(attacker, lambda n: b"\x01" + attacker.prey.frame)


async def forged_announcements(attacker: Attacker) -> None:
    def say(number: int) -> bytes:
        now = _now()
        job = Announce(
            title="let me in",
            source=os.urandom(32),
            source_size=1000,
            source_name="x",
            spec=Spec(python=("3",)),
            resolve_before=now,
            expires=now + HOUR,
        )
        return encode_gossip(_entry(attacker, job))

    await _talk(attacker, say)


async def invented_results(attacker: Attacker) -> None:
    """Results of a real job under ever new keys: each is valid, and all must be kept out of
    what a node's disk and verdicts are for."""
    await _talk(attacker, lambda n: encode_gossip(_entry(attacker, _result(attacker))))


async def results_with_endless_blobs(attacker: Attacker) -> None:
    """Each names files of the largest size, which this peer alone has, and gives slowly."""

    async def serve(stream: Any) -> None:
        with suppress(Exception):
            await stream.read(1000)
            await stream.write(_framed(pack(blobs.Have(size=blobs.MAX_BLOB))))
            while True:
                await stream.write(_framed(os.urandom(blobs.MAX_FRAME)))

    attacker.host.set_stream_handler(blobs.PROTOCOL, serve)

    def say(number: int) -> bytes:
        files = {
            "tests": Blob(hash=os.urandom(32), size=blobs.MAX_BLOB),
            "log": Blob(hash=os.urandom(32), size=blobs.MAX_BLOB),
        }
        return encode_gossip(_entry(attacker, _result(attacker, **files)))

    await _talk(attacker, say)


async def entries_from_the_future(attacker: Attacker) -> None:
    await _talk(
        attacker,
        lambda n: encode_gossip(_entry(attacker, _result(attacker), time=_now() + HOUR)),
    )


async def entries_without_a_past(attacker: Attacker) -> None:
    """Each shows a gap, which asks for a pull from us."""
    await _talk(
        attacker,
        lambda n: encode_gossip(_entry(attacker, _result(attacker), seq=1000, prev=os.urandom(32))),
    )


async def founded_projects(attacker: Attacker) -> None:
    def say(number: int) -> bytes:
        key = SecretKey.generate()
        record = Project(name="spam" * 20, url="x" * 500, roots=(key.public,))
        genesis = sign_entry(
            key, record, project=ZERO, nonce=os.urandom(8), seq=0, prev=ZERO, time=_now()
        )
        return encode_gossip(genesis)

    await _talk(attacker, say, topics=(DIRECTORY,))


async def _strangers(attacker: Attacker, say: Callable[[], bytes]) -> None:
    """What ephemeral messages say, each under the signature of a new key, passed on by us."""
    stream = None
    while True:
        pair = create_new_key_pair(os.urandom(32))
        message = attacker.message(say(), time.time_ns(), pair=pair)
        stream = await attacker.rpc(rpc_pb2.RPC(publish=[message]), stream)
        await trio.sleep(TALK)


async def invented_volunteers(attacker: Attacker) -> None:
    offer = Offer(interpreters=(), system="linux", machine="x86_64", slots=1000, until=0)
    await _strangers(attacker, lambda: encode_gossip(replace(offer, until=_now() + HOUR)))


async def claims_without_runs(attacker: Attacker) -> None:
    """Claims the cells of a job for ever, under ever new keys, and runs nothing."""
    job, cell = attacker.prey.job, attacker.prey.cell
    await _strangers(
        attacker, lambda: encode_gossip(Claim(job=job, cell=cell, until=_now() + 90_000))
    )


async def wanted_everything(attacker: Attacker) -> None:
    """IWANT and IHAVE of messages that never were, and grafts and prunes in turn."""
    stream = None
    while True:
        rpc = rpc_pb2.RPC()
        rpc.control.iwant.add(messageIDs=[os.urandom(40) for _ in range(500)])
        rpc.control.ihave.add(
            topicID=attacker.topic, messageIDs=[os.urandom(40) for _ in range(500)]
        )
        rpc.control.graft.add(topicID=attacker.topic)
        rpc.control.prune.add(topicID=attacker.topic, backoff=1)
        stream = await attacker.rpc(rpc, stream)
        await trio.sleep(0.01)


# --- sync, as the one who asks --------------------------------------------------------------


async def _many(attacker: Attacker, one: Callable[[], Awaitable[None]]) -> None:
    """Thirty at once, each begun again when it ends."""

    async def again() -> None:
        while True:
            with suppress(*THROWN_OUT):
                await one()
            if not attacker.host.get_network().get_connections(attacker.target):
                raise ConnectionError("thrown out")
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(again)


async def silent_askers(attacker: Attacker) -> None:
    async def one() -> None:
        stream = await attacker.stream(sync.PROTOCOL)
        await stream.write(b"\0")
        await stream.read(1)

    await _many(attacker, one)


async def askers_that_never_read(attacker: Attacker) -> None:
    async def one() -> None:
        stream = await attacker.stream(sync.PROTOCOL)
        await stream.write(_framed(attacker.prey.project + os.urandom(16)))
        everything = b"\xff" * 8
        await stream.write(_framed(bytes(8) + everything + bytes(BUCKETS)))
        await trio.sleep(3)

    await _many(attacker, one)


async def askers_of_garbage(attacker: Attacker) -> None:
    async def one() -> None:
        stream = await attacker.stream(sync.PROTOCOL)
        await stream.write(_framed(attacker.prey.project + os.urandom(16)))
        await stream.write(_framed(b"\xff" * 16 + os.urandom(60_000)))
        await stream.read(100_000)

    await _many(attacker, one)


async def askers_of_strange_projects(attacker: Attacker) -> None:
    async def one() -> None:
        stream = await attacker.stream(sync.PROTOCOL)
        await stream.write(_framed(os.urandom(48)))
        await stream.read(100)
        await stream.close()

    await _many(attacker, one)


# --- sync, as the one who answers -----------------------------------------------------------


async def _answers(attacker: Attacker, segments: Callable[[], bytes | None]) -> None:
    """Claims to have what the node lacks; the node asks when it hears of a gap."""

    async def serve(stream: Any) -> None:
        with suppress(Exception):
            await stream.read(100)
            await stream.write(_framed(b"\2" + os.urandom(12 * BUCKETS)))
            await stream.read(100_000)
            while (message := segments()) is not None:
                await stream.write(_framed(message))
            await stream.write(_framed(b"\0\1" + bytes(8)))
            await stream.close()

    attacker.host.set_stream_handler(sync.PROTOCOL, serve)
    await entries_without_a_past(attacker)


async def liars_about_heights(attacker: Attacker) -> None:
    """There is always more, and nothing ever comes."""
    await _answers(attacker, lambda: None)


async def junk_segments(attacker: Attacker) -> None:
    await _answers(attacker, lambda: b"\1" + zlib.compress(os.urandom(100_000)))


async def bombs_of_zeros(attacker: Attacker) -> None:
    bomb = zlib.compress(bytes(200 << 20), 9)
    await _answers(attacker, lambda: b"\1" + bomb)


async def silent_answerers(attacker: Attacker) -> None:
    async def serve(stream: Any) -> None:
        await trio.sleep_forever()

    attacker.host.set_stream_handler(sync.PROTOCOL, serve)
    await entries_without_a_past(attacker)


# --- blobs and witnesses --------------------------------------------------------------------


async def askers_of_missing_blobs(attacker: Attacker) -> None:
    async def one() -> None:
        stream = await attacker.stream(blobs.PROTOCOL)
        await stream.write(_framed(pack(blobs.Get(hash=os.urandom(32), offset=0, length=1 << 20))))
        await stream.read(100)
        await stream.close()

    await _many(attacker, one)


async def askers_of_one_blob(attacker: Attacker) -> None:
    """The source of a real job, whole, again and again, and read to the end."""

    async def one() -> None:
        stream = await attacker.stream(blobs.PROTOCOL)
        wanted = blobs.Get(hash=attacker.prey.source, offset=0, length=1 << 20)
        await stream.write(_framed(pack(wanted)))
        while await stream.read(65_536):
            pass

    await _many(attacker, one)


async def silent_blob_askers(attacker: Attacker) -> None:
    async def one() -> None:
        stream = await attacker.stream(blobs.PROTOCOL)
        await stream.write(struct.pack("!I", 100))
        await stream.read(1)

    await _many(attacker, one)


async def invented_checkpoints(attacker: Attacker) -> None:
    async def one() -> None:
        stream = await attacker.stream(witness.PROTOCOL)
        root = hashlib.sha256(os.urandom(8)).digest()
        body = b"ponyswarm/log/1\n1000000\n" + root.hex().encode() + b"\n\n\xe2\x80\x94 x AAAA\n"
        await stream.write(_framed(witness.encode_request(witness.Request(0, (), body))))
        await stream.read(4096)
        await stream.close()

    await _many(attacker, one)


# --- what every libp2p host answers ---------------------------------------------------------


async def askers_of_unknown_protocols(attacker: Attacker) -> None:
    async def one() -> None:
        await attacker.stream("/nobody/speaks/" + os.urandom(8).hex())

    await _many(attacker, one)


async def pings_without_end(attacker: Attacker) -> None:
    async def one() -> None:
        stream = await attacker.stream("/ipfs/ping/1.0.0")
        while True:
            await stream.write(os.urandom(32))
            await stream.read(32)

    await _many(attacker, one)


async def pushed_identities(attacker: Attacker) -> None:
    async def one() -> None:
        stream = await attacker.stream("/ipfs/id/push/1.0.0")
        await stream.write(b"\xff\xff\x03" + os.urandom(60_000))
        await stream.close()

    await _many(attacker, one)


async def gossip_streams(attacker: Attacker) -> None:
    """One gossip stream after the other, where a peer has one."""

    async def one() -> None:
        stream = await attacker.stream(MESHSUB)
        await stream.write(b"\x02\x0a\x00")
        await trio.sleep(0.2)

    await _many(attacker, one)


# --- connections ----------------------------------------------------------------------------


async def sockets_that_say_nothing(attacker: Attacker) -> None:
    """Two hundred at once, held open for as long as the node lets them."""
    held: list[trio.SocketStream] = []
    try:
        while True:
            if len(held) >= 200:
                await held.pop(0).aclose()
            held.append(await trio.open_tcp_stream("127.0.0.1", attacker.port))
            await trio.sleep(0.005)
    finally:
        for one in held:
            with trio.move_on_after(1) as scope:
                scope.shield = True
                await one.aclose()


async def sockets_that_come_and_go(attacker: Attacker) -> None:
    while True:
        with suppress(OSError):
            await (await trio.open_tcp_stream("127.0.0.1", attacker.port)).aclose()
        await trio.sleep(0.002)


async def handshakes_cut_short(attacker: Attacker) -> None:
    opening = b"\x13/multistream/1.0.0\n\x07/noise\n"
    while True:
        with suppress(OSError, trio.BrokenResourceError):
            stream = await trio.open_tcp_stream("127.0.0.1", attacker.port)
            await stream.send_all(opening + struct.pack("!H", 200) + os.urandom(200))
            await trio.sleep(0.01)
            await stream.aclose()


async def peers_that_come_and_go(attacker: Attacker) -> None:
    """Ends at once: whoever runs it connects anew, under a new key."""
    await trio.sleep(0.02)
