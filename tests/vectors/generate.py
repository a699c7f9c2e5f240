"""Writes ``v1.json``: the bytes of format version 1, from fixed keys and times.

Run it by hand, and only when something is *added* to the format: `python -m pytest
tests/vectors` holds that what is there never changes. No test calls this.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from pathlib import Path

import msgpack
from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).parent.parent))

from authors import Author, announce, environment, fork_of

from ponyswarm import codec
from ponyswarm.codec import ZERO, TestRecord
from ponyswarm.frontier import BUCKETS, Frontier, bucket_of
from ponyswarm.keys import peer_id
from ponyswarm.matrix import cells
from ponyswarm.messages import (
    Approve,
    Blob,
    Checkpoint,
    Claim,
    Commit,
    Cosign,
    CrossCheck,
    Entry,
    FeedMark,
    FeedRef,
    FileTemplate,
    Install,
    Interpreter,
    Offer,
    Payload,
    Project,
    Result,
    Revoke,
    Spec,
    Status,
    Vouch,
    Withdraw,
)
from ponyswarm.p2p import blobs, sync
from ponyswarm.policy import cosign_text, rotation, rotation_text

TIME = 1_800_000_000_000
TARGET = Path(__file__).parent / "v1.json"


def described(name: str, author: Author, entry: Entry) -> dict[str, object]:
    header = entry.header
    return {
        "name": name,
        "seed": author.key.seed.hex(),
        "kind": header.kind,
        "author": header.author.hex(),
        "project": header.project.hex(),
        "nonce": header.nonce.hex(),
        "seq": header.seq,
        "prev": header.prev.hex(),
        "time": header.time,
        "payload": entry.payload.hex(),
        "payload_hash": header.payload_hash.hex(),
        "header": entry.frame[:160].hex(),
        "id": entry.id.hex(),
        "signature": entry.signature.hex(),
        "frame": entry.frame.hex(),
    }


def refused() -> list[dict[str, str]]:
    author = Author(9)
    job = hashlib.sha256(b"job").digest()
    project = hashlib.sha256(b"project").digest()
    good = msgpack.packb({"job": job})

    def frame(body: bytes, *, kind: int = 3, **changes: int | bytes) -> bytes:
        facts: dict[str, int | bytes] = {
            "version": 1, "flags": 0, "length": len(body), "project": project, "seq": 0,
            "prev": ZERO, "time": TIME, "hash": hashlib.sha256(body).digest(), **changes,
        }  # fmt: skip
        raw = struct.pack(
            ">BBHI32s32s8sQ32sQ32s",
            facts["version"], kind, facts["flags"], facts["length"], author.public,
            facts["project"], bytes(8), facts["seq"], facts["prev"], facts["time"], facts["hash"],
        )  # fmt: skip
        signature = author.key.sign(codec.signed_text(codec.entry_id(raw)))
        return raw + signature + body

    def pairs(rest: bytes) -> bytes:
        return b"\x82" + good[1:] + rest

    whole = frame(good)
    identity = b"\x01" + bytes(31)
    by_identity = bytearray(whole)
    by_identity[8:40] = identity
    by_identity[160:224] = identity + bytes(32)
    order = 2**252 + 27742317777372353535851937790883648493
    scalar = int.from_bytes(whole[192:224], "little") + order
    cases = [
        ("unknown version", frame(good, version=2), "unknown-version"),
        ("flags not zero", frame(good, flags=1), "bad-frame"),
        ("length does not match", frame(good, length=len(good) + 1), "bad-frame"),
        ("payload hash does not match", frame(good, hash=bytes(32)), "bad-frame"),
        ("seq 0 with a prev", frame(good, prev=job), "bad-frame"),
        ("seq 1 without a prev", frame(good, seq=1), "bad-frame"),
        ("no project, and no genesis", frame(good, project=ZERO), "bad-frame"),
        ("time above 2^63 - 1", frame(good, time=1 << 63), "bad-frame"),
        ("seq above 2^63 - 1", frame(good, seq=1 << 63, prev=job), "bad-frame"),
        ("a byte after the end", whole + b"\0", "bad-frame"),
        ("a byte short", whole[:-1], "bad-frame"),
        ("payload above 8 KiB", frame(b"\xc5\x20\x00" + bytes(8192)), "bad-frame"),
        ("payload is no map", frame(b"\x91\x01"), "bad-msgpack"),
        ("a byte after the map", frame(good + b"\xc0"), "bad-msgpack"),
        ("a key that stands twice", frame(pairs(good[1:])), "bad-msgpack"),
        ("a key that is a number", frame(pairs(b"\x01\x01")), "bad-msgpack"),
        ("a key that is bytes", frame(pairs(b"\xc4\x01x\x01")), "bad-msgpack"),
        ("an ext type", frame(pairs(b"\xa1x\xd4\x05\x00")), "bad-msgpack"),
        ("a timestamp", frame(pairs(b"\xa1x\xd6\xff\x00\x00\x00\x01")), "bad-msgpack"),
        ("NaN", frame(pairs(b"\xa1x\xcb\x7f\xf8" + bytes(6))), "bad-msgpack"),
        ("NaN in 32 bits", frame(pairs(b"\xa1x\xca\x7f\xc0\x00\x00")), "bad-msgpack"),
        ("invalid UTF-8", frame(pairs(b"\xa1x\xa2\xc3\x28")), "bad-msgpack"),
        ("nesting of 17", frame(pairs(b"\xa1x" + b"\x91" * 15 + b"\x90")), "bad-msgpack"),
        (
            "a signature bit changed",
            whole[:170] + bytes([whole[170] ^ 1]) + whole[171:],
            "bad-signature",
        ),
        (
            "a signature scalar above the order",
            whole[:192] + scalar.to_bytes(32, "little") + whole[224:],
            "bad-signature",
        ),
        ("the identity point as author", bytes(by_identity), "bad-signature"),
        ("a field missing", frame(b"\x80"), "bad-payload"),
        ("a hash of 31 bytes", frame(msgpack.packb({"job": job[:31]})), "bad-payload"),
        ("text where bytes belong", frame(msgpack.packb({"job": "x" * 32})), "bad-payload"),
        (
            "a line of 501 characters",
            frame(pairs(b"\xa6reason\xda\x01\xf5" + b"x" * 501)),
            "bad-payload",
        ),
        (
            "a time above 2^53",
            frame(msgpack.packb({"key": job, "since": (1 << 53) + 1}), kind=7),
            "bad-payload",
        ),
    ]
    return [{"name": name, "frame": data.hex(), "reason": reason} for name, data, reason in cases]


def additions(
    project: bytes, job: Entry, cell: bytes, outcome: bytes, commit: bytes
) -> list[tuple[str, Author, Entry]]:
    """What was added to the format later: in feeds of their own, and in no frontier above."""
    root, second, heir, volunteer = (Author(n, nonce=b"additions"[:8]) for n in (1, 4, 6, 7))
    asked = CrossCheck(mode="blind", counts="vouched", floor=5)
    proposed = Project(
        name="demo",
        roots=(root.public, second.public),
        threshold=2,
        cross_check=asked,
        replaces=project,
    )
    nonce = bytes(range(32))
    sealed = Commit(
        job=job.id,
        cell=cell,
        commitment=codec.commitment(nonce, outcome, volunteer.public),
        seen=(commit,),
    )
    opened = Result(
        job=job.id, cell=cell, state="completed", counts={Status.PASSED: 1}, digest=outcome,
        started=TIME, seconds=1.0, nonce=nonce, seen=(commit,),
    )  # fmt: skip
    record = root.sign(proposed, project, TIME + 20)
    return [
        ("project (proposed)", root, record),
        ("approve", second, second.sign(Approve(record=record.id), project, TIME + 21)),
        ("commit (that names another)", volunteer, volunteer.sign(sealed, project, TIME + 22)),
        ("result (that opens it)", volunteer, volunteer.sign(opened, project, TIME + 23)),
        ("rotate", second,
         second.sign(rotation(project, second.public, heir.key), project, TIME + 24)),
    ]  # fmt: skip


def main() -> None:
    root, announcer, volunteer, other, liar = (Author(n) for n in range(1, 6))
    record = Project(
        name="demo",
        url="https://example.org/demo",
        roots=(root.public, other.public),
        announcers=(announcer.public,),
    )
    genesis = root.sign(record, time=TIME)
    project = genesis.id
    later = replace(record, name="demo2", threshold=1)
    cosign = Cosign(key=other.public, signature=other.key.sign(cosign_text(later)))
    spec = Spec(
        python=("3.12", "pypy3.10"),
        install=Install(requirements=("pytest>=8",), extras=("test",)),
        services=("postgresql",),
        factors={"django": {"5.2": ("django~=5.2.0",)}},
        env={"DATABASE_URL": "{postgresql.url}"},
        files=(FileTemplate(path="local.py", content="X = 1\n"),),
    )
    job_payload = announce(
        spec=spec, commit="0123abcd", locks=hashlib.sha256(b"locks").digest(), locks_size=77,
        expires=TIME + 86_400_000,
    )  # fmt: skip
    job = announcer.sign(job_payload, project, TIME + 1)
    matrix = cells(spec)
    cell = codec.cell_id(job.id, matrix[0])
    tests = [("a::t1", Status.PASSED), ("a::t2", Status.FAILED), ("a::t3", Status.SKIPPED)]
    outcome = codec.outcome_digest("completed", None, tests)
    nonce = bytes(range(16))
    committed = codec.commitment(nonce, outcome, volunteer.public)
    records = [TestRecord(id_, status, 0.5, "") for id_, status in tests]
    tests_blob = codec.pack([[t.id, str(t.status), t.seconds, t.message] for t in records])
    where = environment(services={"postgresql": "15.8"}, sandbox="bubblewrap")
    outcome_payload = Result(
        job=job.id,
        cell=cell,
        state="completed",
        counts={Status.PASSED: 1, Status.FAILED: 1, Status.SKIPPED: 1},
        digest=outcome,
        bad=("a::t2",),
        tests=Blob(hash=hashlib.sha256(b"tests").digest(), size=5),
        environment=where,
        started=TIME,
        seconds=1.5,
        nonce=nonce,
    )
    twin = liar.branch()
    one = liar.sign(Withdraw(job=job.id), project, TIME)
    two = twin.sign(Withdraw(job=cell), project, TIME)
    said: list[tuple[str, Author, Entry]] = [
        ("project (genesis)", root, genesis),
        ("announce", announcer, job),
    ]

    def say(name: str, author: Author, payload: Payload, time: int) -> None:
        said.append((name, author, author.sign(payload, project, time)))

    say("commit", volunteer, Commit(job=job.id, cell=cell, commitment=committed), TIME + 2)
    say("result", volunteer, outcome_payload, TIME + 3)
    say("project (later)", root, replace(later, cosigns=(cosign,)), TIME + 4)
    say("vouch", root, Vouch(key=volunteer.public, operator="alice"), TIME + 5)
    say("revoke", root, Revoke(key=liar.public, since=TIME, reason="forked"), TIME + 6)
    say("withdraw", announcer, Withdraw(job=job.id, reason="wrong tag"), TIME + 7)
    say("fork", volunteer, fork_of(one, two), TIME + 8)
    say("checkpoint", volunteer, Checkpoint(origin="demo", size=9, root=outcome), TIME + 9)
    broken = Result(
        job=job.id, cell=cell, state="broken", reason="timeout", digest=outcome, started=TIME,
        seconds=0.0, continues=said[-1][2].id,
    )  # fmt: skip
    said.append(
        ("result (broken, in a new feed)", volunteer,
         volunteer.reopen(b"newnonce").sign(broken, project, TIME + 10))
    )  # fmt: skip
    added = additions(project, job, cell, outcome, said[2][2].id)
    frontier: dict[FeedRef, FeedMark] = {}
    for _, _, entry in said:
        if entry.namespace == project:
            frontier[entry.feed] = FeedMark(entry.header.seq + 1, entry.id[:8])
    kept = Frontier(frontier)
    lower = Frontier({r: FeedMark(max(1, m.height - 1), bytes(8)) for r, m in frontier.items()})
    half = Frontier(dict(sorted(frontier.items())[::2]))
    differs = sync.answer(sync.Asking(project, Frontier()).ask(), lambda _: kept)[0]
    segment = [entry for _, author, entry in said if author is volunteer]
    segment = [e for e in segment if e.header.nonce == volunteer.nonce and e.header.seq]
    offer = Offer(
        interpreters=(Interpreter(implementation="cpython", version="3.12.1"),),
        services=("postgresql",),
        system="linux",
        machine="x86_64",
        slots=2,
        until=TIME + 150_000,
    )
    claim = Claim(job=job.id, cell=cell, until=TIME + 90_000)
    vectors = {
        "keys": [
            {"seed": a.key.seed.hex(), "public": a.public.hex(), "peer_id": peer_id(a.public)}
            for a in (root, announcer, volunteer, other, liar)
        ],
        "entries": [described(*item) for item in (*said, *added)],
        "cells": [
            {
                "job": job.id.hex(),
                "python": c.python,
                "services": list(c.services),
                "factors": [list(pair) for pair in c.factors],
                "id": codec.cell_id(job.id, c).hex(),
            }
            for c in matrix
        ],
        "outcomes": [
            {
                "state": "completed",
                "reason": "",
                "tests": [[i, str(s)] for i, s in tests],
                "digest": outcome.hex(),
            },
            {
                "state": "broken",
                "reason": "timeout",
                "tests": [],
                "digest": codec.outcome_digest("broken", "timeout", []).hex(),
            },
        ],
        "commitment": {
            "nonce": nonce.hex(),
            "digest": outcome.hex(),
            "author": volunteer.public.hex(),
            "commitment": committed.hex(),
        },
        "comparable": {
            "implementation": where.implementation,
            "version": where.version,
            "packages": where.packages.hex(),
            "services": [["postgresql", "15.8"]],
            "digest": codec.comparable(where).hex(),
        },
        "cosign": {
            "text": cosign_text(later).hex(),
            "record": codec.pack(later).hex(),
            "key": other.public.hex(),
            "signature": cosign.signature.hex(),
        },
        "rotation": {
            "key": other.public.hex(),
            "successor": Author(6).public.hex(),
            "text": rotation_text(project, other.public, Author(6).public).hex(),
        },
        "tests_blob": {
            "rows": [[t.id, str(t.status), t.seconds, t.message] for t in records],
            "expanded": tests_blob.hex(),
        },
        "gossip": [
            {"name": "entry", "bytes": codec.encode_gossip(job).hex()},
            {"name": "offer", "bytes": codec.encode_gossip(offer).hex()},
            {"name": "claim", "bytes": codec.encode_gossip(claim).hex()},
        ],
        "sync": {
            "project": project.hex(),
            "frontier": [
                [r.author.hex(), r.nonce.hex(), r.genesis, m.height, m.head.hex(),
                 bucket_of(r)]
                for r, m in sorted(frontier.items())
            ],
            "root": kept.root.hex(),
            "names": [kept.names(bucket).hex() for bucket in range(BUCKETS)],
            "hashes": [kept.hash(bucket).hex() for bucket in range(BUCKETS)],
            "ask": sync.Asking(project, kept).ask().hex(),
            "ask_of_nothing": sync.Asking(project, Frontier()).ask().hex(),
            "answer_differs": differs.hex(),
            "want_by_place": sync.Asking(project, lower).want(differs).hex(),
            "want_by_name": sync.Asking(project, half).want(differs).hex(),
            "segment": codec.pack_segment([e.frame for e in segment]).hex(),
            "segment_ids": [e.id.hex() for e in segment],
            "end": sync.end(more=False, ahead=set()).hex(),
            "end_more_ahead_in_0_and_9": sync.end(more=True, ahead={0, 9}).hex(),
        },
        "blob": {
            "get": codec.pack(blobs.Get(hash=outcome, offset=65536, length=1000)).hex(),
            "have": codec.pack(blobs.Have(size=70000)).hex(),
            "not_here": codec.pack(blobs.Have(size=-1)).hex(),
        },
        "refused": refused(),
    }  # fmt: skip
    TARGET.write_text(json.dumps(vectors, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
