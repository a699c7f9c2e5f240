"""Cosigning between nodes: what a log and a witness say to each other, over one stream.

The log's request is the body of https://c2sp.org/tlog-witness, byte for byte:

    old <size>                 of the last checkpoint that this witness cosigned
    <base64 hash>*             the consistency proof from there
    <empty line>
    <checkpoint>               with the log's own signature

and the answer is that interface's number, a newline, and its body: ``200`` with the line
of the cosignature, ``409`` with the size that the witness knows (and, here, the checkpoint
it is of), or a refusal. A log that does not know what the witness has seen asks with old 0
and once more after a 409: at most two rounds. Sans-IO but for the two short drivers; what
is worth cosigning is decided by the caller.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ponyswarm.errors import PeerError
from ponyswarm.p2p.blobs import Open, Stream

PROTOCOL = "/ponyswarm/witness/1"
MAX_PROOF = 63
MAX_REQUEST = 8192
MAX_REPLY = 4096


@dataclass(frozen=True, slots=True)
class Request:
    old: int
    proof: tuple[bytes, ...]
    checkpoint: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes = b""


def encode_request(request: Request) -> bytes:
    lines = [b"old %d" % request.old, *map(base64.b64encode, request.proof)]
    return b"\n".join(lines) + b"\n\n" + request.checkpoint


def decode_request(data: bytes) -> Request:
    """Raises `PeerError` ("bad-witness")."""
    head, blank, checkpoint = data.partition(b"\n\n")
    first, *rest = head.split(b"\n")
    if not blank or not first.startswith(b"old ") or len(rest) > MAX_PROOF:
        raise PeerError("bad-witness", "the request is out of form")
    return Request(_number(first[4:]), tuple(_hash(line) for line in rest), checkpoint)


def encode_reply(reply: Reply) -> bytes:
    return b"%03d\n" % reply.status + reply.body


def decode_reply(data: bytes) -> Reply:
    """Raises `PeerError` ("bad-witness")."""
    if len(data) < 4 or data[3:4] != b"\n" or not data[:3].isdigit():
        raise PeerError("bad-witness", "the answer is out of form")
    return Reply(int(data[:3]), data[4:])


def known_size(reply: Reply) -> tuple[int, bytes]:
    """(size, checkpoint) that a witness says it cosigned last; `PeerError` ("bad-witness")."""
    size, newline, checkpoint = reply.body.partition(b"\n")
    if not newline:
        raise PeerError("bad-witness", "it does not say which size it knows")
    return _number(size), checkpoint


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18 or (text[:1] == b"0" and text != b"0"):
        raise PeerError("bad-witness", "what should be a number is not")
    return int(text)


def _hash(line: bytes) -> bytes:
    try:
        hash_ = base64.b64decode(line, validate=True)
    except binascii.Error as fault:
        raise PeerError("bad-witness", "what should be base64 is not") from fault
    if len(hash_) != 32:
        raise PeerError("bad-witness", "what should be a hash is not")
    return hash_


async def ask(
    open_: Open,
    peer: bytes,
    checkpoint: bytes,
    *,
    known: int,
    prove: Callable[[int], Sequence[bytes]],
    may_retry: Callable[[int, bytes], bool],
) -> Reply:
    """Ask one peer to cosign a checkpoint; its last answer.

    ``known`` is the size we think it knows, ``prove(old)`` the proof from a size, and
    ``may_retry(size, checkpoint)`` says whether to prove from what it says it knows instead.
    Raises `PeerError` when it breaks the protocol.
    """
    reply = Reply(0)
    for last_round in (False, True):
        stream = await open_(peer)
        try:
            request = Request(known, tuple(prove(known)) if known else (), checkpoint)
            await stream.send(encode_request(request))
            reply = decode_reply(await stream.receive(MAX_REPLY))
        finally:
            await stream.close()
        if reply.status != 409 or last_round:
            return reply
        size, seen = known_size(reply)
        if size == known or not may_retry(size, seen):
            return reply
        known = size
    return reply


async def serve(stream: Stream, judge: Callable[[bytes, Request], Reply]) -> None:
    """Answer one log; ``judge`` gets its key and what it asks."""
    request = decode_request(await stream.receive(MAX_REQUEST))
    await stream.send(encode_reply(judge(stream.peer, request)))
