"""Hostile peers below PonySwarm: garbage and floods for sockets, Noise, Yamux, streams, gossip.

Each is a coroutine over a connected `Attacker`. None knows what a message means.
"""

from __future__ import annotations

import os
import struct

import trio
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed

from bench.bare import MESHSUB
from bench.hostile.attacker import Attacker


async def garbage_tcp(attacker: Attacker) -> None:
    for opening in (
        os.urandom(4096),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x13/multistream/1.0.0\n" + b"\x07/noise\n" + b"\xff\xff" + os.urandom(65535),
        b"\xff\xff\xff\xff\xff\xff\xff\x7f" + os.urandom(65535),
        b"\xff\xff\xff\xff\x0f" + os.urandom(65535),
    ):
        stream = await trio.open_tcp_stream("127.0.0.1", attacker.port)
        try:
            await stream.send_all(opening)
            await trio.sleep(0.1)
        except trio.BrokenResourceError:
            pass
        await stream.aclose()


async def garbage_protocols(attacker: Attacker) -> None:
    for protocol in ("/ipfs/id/1.0.0", "/ipfs/ping/1.0.0", MESHSUB, attacker.protocol):
        for payload in (
            os.urandom(300),
            b"\xff" * 150,
            encode_varint_prefixed(b"\x0a\x05hello\x12\x03abc\x1a\x02\x01\x02"),
            b"",
        ):
            try:
                stream = await attacker.stream(protocol)
                await stream.write(payload)
                await trio.sleep(0.02)
                await stream.reset()
            except Exception:
                if attacker.host.get_network().get_connections(attacker.target):
                    continue
                return  # Banned, and rightly.


async def garbage_negotiation(attacker: Attacker) -> None:
    for _ in range(5):
        stream = await attacker.host.get_network().new_stream(attacker.target)
        await stream.write(os.urandom(2000))


async def malformed_protobuf(attacker: Attacker) -> None:
    stream = await attacker.stream(MESHSUB)
    await stream.write(encode_varint_prefixed(b"\xff\xfe\xfd" + os.urandom(100)))


async def invalid_utf8(attacker: Attacker) -> None:
    stream = await attacker.stream(MESHSUB)
    await stream.write(encode_varint_prefixed(b"\x0a\x06\x08\x01\x12\x02\xff\xfe"))


async def garbage_key(attacker: Attacker) -> None:
    message = rpc_pb2.Message(
        data=b"x",
        topicIDs=[attacker.topic],
        from_id=b"\x12\x20" + os.urandom(32),
        seqno=b"1" * 8,
        key=b"\xff\xff\xffgarbage",
        signature=b"s" * 64,
    )
    await attacker.rpc(rpc_pb2.RPC(publish=[message]))


async def garbage_origin(attacker: Attacker) -> None:
    for origin in (b"", b"\x00\x05abcde", bytes.fromhex("002408011220") + b"\xff" * 32, b"j" * 99):
        message = attacker.message(b"x")
        message.from_id = origin
        await attacker.rpc(rpc_pb2.RPC(publish=[message]))
        await trio.sleep(0.05)


async def forged(attacker: Attacker) -> None:
    changed = attacker.message(b"hello")
    changed.data = b"forged"
    unsigned = attacker.message(b"unsigned", number=2)
    unsigned.ClearField("signature")
    await attacker.rpc(rpc_pb2.RPC(publish=[changed, unsigned]))


async def overlong_frames(attacker: Attacker) -> None:
    for opening in (b"\xff\xff\xff\x7f", b"\xff" * 20):
        stream = await attacker.stream(MESHSUB)
        await stream.write(opening + b"x" * 1000)
    stream = await attacker.stream(attacker.protocol)
    await stream.write(struct.pack("!I", 0xFFFFFFFF) + b"x" * 1000)


async def big_message(attacker: Attacker) -> None:
    await attacker.rpc(rpc_pb2.RPC(publish=[attacker.message(os.urandom(100_000))]))


async def bad_control(attacker: Attacker) -> None:
    rpc = rpc_pb2.RPC()
    rpc.control.ihave.add(topicID=attacker.topic, messageIDs=[os.urandom(40) for _ in range(2000)])
    rpc.control.iwant.add(messageIDs=[b"abc", b"\xff"])
    rpc.control.graft.add(topicID="nope")
    rpc.control.graft.add()
    rpc.control.prune.add(topicID="zzz", backoff=2**62)
    prune = rpc.control.prune.add(topicID=attacker.topic, backoff=1)
    prune.peers.add(peerID=b"garbage", signedPeerRecord=b"junk")
    prune.peers.add(peerID=b"")
    await attacker.rpc(rpc)
    await attacker.rpc(rpc_pb2.RPC(senderRecord=b"garbage"))


async def yamux_garbage(attacker: Attacker) -> None:
    await attacker.muxer.secured_conn.write(os.urandom(500))


async def yamux_big_frame(attacker: Attacker) -> None:
    await attacker.muxer.secured_conn.write(struct.pack("!BBHII", 0, 0, 1, 1001, 12 << 20) + b"x")


async def yamux_window_overrun(attacker: Attacker) -> None:
    """8 MB on a stream whose reader takes nothing, window or not."""
    conn = attacker.muxer.secured_conn
    await conn.write(struct.pack("!BBHII", 0, 1, 1, 1001, 0))
    chunk = bytes(60_000)
    try:
        for _ in range(140):
            await conn.write(struct.pack("!BBHII", 0, 0, 0, 1001, len(chunk)) + chunk)
    except Exception:
        return


async def stream_flood(attacker: Attacker) -> None:
    conn = attacker.muxer.secured_conn
    try:
        for number in range(1500):
            await conn.write(struct.pack("!BBHII", 0, 0, 1, 2 * number + 1001, 0))
    except Exception:
        return


async def half_streams(attacker: Attacker) -> None:
    for _ in range(50):
        await attacker.host.get_network().new_stream(attacker.target)


async def message_flood(attacker: Attacker) -> None:
    messages = [attacker.message(b"flood%d" % n, number=n) for n in range(1, 2501)]
    stream = None
    for start in range(0, len(messages), 5):
        try:
            stream = await attacker.rpc(rpc_pb2.RPC(publish=messages[start : start + 5]), stream)
        except Exception:
            return


async def subscription_flood(attacker: Attacker) -> None:
    options = [
        rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"{n}" + "x" * (n % 400)) for n in range(700)
    ]
    stream = await attacker.rpc(rpc_pb2.RPC(subscriptions=options))
    for n in range(20):
        more = [rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"{n}-{i}") for i in range(700)]
        try:
            await attacker.rpc(rpc_pb2.RPC(subscriptions=more), stream)
        except Exception:
            return


ALL = (
    garbage_tcp,
    garbage_protocols,
    garbage_negotiation,
    malformed_protobuf,
    invalid_utf8,
    garbage_key,
    garbage_origin,
    forged,
    overlong_frames,
    big_message,
    bad_control,
    yamux_garbage,
    yamux_big_frame,
    yamux_window_overrun,
    stream_flood,
    half_streams,
    message_flood,
    subscription_flood,
)
