"""Every decoder under mutated and random bytes: only declared errors, bounded time and memory.

Seeds are the golden vectors and well-formed messages; a mutation flips, cuts, repeats,
inserts or splices bytes. A decoder may return, or raise the errors it declares; anything
else is a fault, printed with the input that caused it. ``--quick`` takes 40 seconds in
all, the full run ten minutes. The seed of chance is printed, and set by PONYSWARM_SEED.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import Row, main
from ponyswarm import codec, config, spec
from ponyswarm.errors import LocalError, PeerError
from ponyswarm.exec.report import Report
from ponyswarm.ledger import verifier
from ponyswarm.p2p import blobs, sync, witness
from ponyswarm.p2p.discovery import parse_address, parse_bootstrap

VECTORS = Path(__file__).parents[1] / "tests" / "vectors"
SLOWEST = 1.0  # Seconds one input may take.
MOST_MEMORY = 400.0  # Megabytes the peak may grow by.


@dataclass(frozen=True, slots=True)
class Target:
    """A decoder, well-formed inputs of it, and the errors it declares."""

    name: str
    decode: Callable[[bytes], object]
    seeds: Sequence[bytes]
    declared: tuple[type[Exception], ...]


def _vectors() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((VECTORS / "v1.json").read_text("utf-8"))
    return found


def _hex_strings(value: object) -> list[bytes]:
    """Every hexadecimal text in the vectors, as bytes."""
    if isinstance(value, dict):
        return [data for item in value.values() for data in _hex_strings(item)]
    if isinstance(value, list):
        return [data for item in value for data in _hex_strings(item)]
    if isinstance(value, str) and len(value) > 8:
        try:
            return [bytes.fromhex(value)]
        except ValueError:
            return []
    return []


def targets() -> list[Target]:
    vectors = _vectors()
    frames = [bytes.fromhex(entry["frame"]) for entry in vectors["entries"]]
    wire = _hex_strings(vectors["sync"])
    project = bytes(32)

    def payload(data: bytes) -> object:
        return codec.decode_payload(codec.decode_frame(data))

    def rehashed(data: bytes) -> object:
        """A frame whose payload was mutated before it was hashed, so that decoding goes on."""
        head, body = data[: codec.PAYLOAD_OFFSET], data[codec.PAYLOAD_OFFSET :]
        if len(head) < codec.PAYLOAD_OFFSET:
            raise PeerError("bad-frame")

        digest = hashlib.sha256(body).digest()
        fixed = head[:4] + len(body).to_bytes(4, "big") + head[8:128] + digest + head[160:]
        return codec.decode_payload(codec.decode_frame(fixed + body))

    def blob_request(data: bytes) -> object:
        return codec.convert(codec.unpack(data), blobs.Get, "bad-blob-request")

    def report(data: bytes) -> object:
        reader = Report(lambda: 0.0)
        reader.feed(data)
        return reader.tests

    def text(decode: Callable[[str], object]) -> Callable[[bytes], object]:
        return lambda data: decode(data.decode("utf-8", "replace"))

    peer = (PeerError,)
    local = (LocalError,)
    table = (
        b'[tool.ponyswarm]\npython = ["3.12"]\ncommand = "pytest tests"\ninstall = ["x"]\n'
        b'[tool.ponyswarm.factors.django]\n"4.2" = "django~=4.2"\n'
    )
    events = (
        b'{"e":"entered"}\n{"e":"begin","s":"1"}\n{"e":"collected","s":"1","n":2}\n'
        b'{"e":"start","s":"1","id":"a"}\n{"e":"end","s":"1","id":"a","st":"passed","d":0.1}\n'
        b'{"e":"finish","s":"1","code":0}\n{"e":"space","free":5,"size":9}\n'
    )
    address = b"/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"
    proof = VECTORS / "proof.hex"
    proofs = [bytes.fromhex(proof.read_text("ascii").strip())] if proof.exists() else [b""]
    get = codec.pack(blobs.Get(hash=bytes(32), offset=0, length=10))
    return [
        Target("frame", codec.decode_entry, frames, peer),
        Target("payload", payload, frames, peer),
        Target("payload, hash mended", rehashed, frames, peer),
        Target("gossip", codec.decode_gossip, [b"\1" + frame for frame in frames], peer),
        Target("tests blob", codec.decode_tests, _hex_strings(vectors["tests_blob"]), peer),
        Target("locks blob", codec.decode_locks, [codec.encode_locks([])], peer),
        Target("sync reply", lambda data: sync.read(data, project), wire, peer),
        Target("sync question", lambda data: sync.answer(data, lambda _: None), wire, peer),
        Target(
            "blob request", lambda d: codec.convert(codec.unpack(d), blobs.Get, "b"), [get], peer
        ),
        Target("witness request", witness.decode_request, proofs, peer),
        Target("witness reply", witness.decode_reply, proofs, peer),
        Target("proof file", verifier.check, proofs, (verifier.Invalid,)),
        Target("ponyswarm.ini", text(config.parse), [config.template().encode()], local),
        Target("pyproject.toml", text(spec.from_pyproject), [table], local),
        Target("bootstrap list", text(parse_bootstrap), [address + b"\n# x\n"], local),
        Target("address", text(parse_address), [address], local),
        Target("reporter's events", report, [events], ()),
    ]


def mutated(chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A seed with a few mutations; now and then bytes without any sense."""
    if chance.random() < 0.05:
        return chance.randbytes(chance.randrange(400))
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0 if data:
                data[place % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                data[place:place] = chance.randbytes(chance.randrange(1, 9))
            case 2:
                del data[place : place + chance.randrange(1, 30)]
            case 3:
                data[place:place] = data[place : place + chance.randrange(1, 60)] * 3
            case 4 if data:
                data[place % len(data)] = chance.choice(b"\x00\xff\x7f\x80\xc1\xdd\xdf\xc6\xdb")
            case _:
                other = chance.choice(seeds)
                data[place:] = other[chance.randrange(len(other) + 1) :]
    return bytes(data)


@dataclass(frozen=True, slots=True)
class Found:
    """What a target did under ``inputs`` inputs."""

    inputs: int
    faults: list[str]
    slowest: float


def fuzz(target: Target, seconds: float, chance: random.Random) -> Found:
    """Feed a decoder for some time."""
    faults: list[str] = []
    inputs, slowest = 0, 0.0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        data = mutated(chance, target.seeds)
        inputs += 1
        began = time.process_time()
        try:
            target.decode(data)
        except target.declared:
            pass
        except Exception as fault:
            faults.append(f"{target.name}: {fault!r} of {data.hex()[:400]}")
        slowest = max(slowest, time.process_time() - began)
    return Found(inputs, faults, slowest)


def measure(quick: bool) -> list[Row]:
    seed = int(os.environ.get("PONYSWARM_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"PONYSWARM_SEED={seed}")
    chance = random.Random(seed)
    chosen = targets()
    seconds = (40.0 if quick else 600.0) / len(chosen)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {target.name: fuzz(target, seconds, chance) for target in chosen}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    for result in found.values():
        for fault in result.faults[:5]:
            print(fault)
    slowest = max(found.items(), key=lambda item: item[1].slowest)
    return [
        Row("inputs, all decoders", sum(one.inputs for one in found.values())),
        Row("undeclared exceptions", sum(len(one.faults) for one in found.values()), goal="< 1"),
        Row(f"slowest input, s of CPU ({slowest[0]})", slowest[1].slowest, goal=f"< {SLOWEST:g}"),
        Row("growth of peak memory, MB", grown, goal=f"< {MOST_MEMORY:g}"),
    ]


if __name__ == "__main__":
    main("fuzz", __doc__.splitlines()[0], measure)
