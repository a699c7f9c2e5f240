"""Bytes to messages and back: every rule of strictness, by name."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import struct
import zlib

import msgpack
import pytest
from authors import FAR, NOW, Author, announce, digest, environment, fork_of
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from ponyswarm import codec
from ponyswarm.codec import ZERO
from ponyswarm.errors import PeerError
from ponyswarm.messages import (
    Announce,
    Blob,
    Cell,
    Checkpoint,
    Claim,
    Commit,
    Cosign,
    CrossCheck,
    Environment,
    FileTemplate,
    Fork,
    Install,
    Interpreter,
    Offer,
    Project,
    Reason,
    Result,
    Revoke,
    Spec,
    Status,
    Vouch,
    Withdraw,
)

AUTHOR = Author(1)

# --- strategies for every payload -------------------------------------------------------

hashes = st.binary(min_size=32, max_size=32)
signatures = st.binary(min_size=64, max_size=64)
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
lines = st.text(st.characters(codec="utf-8"), max_size=30)
millis = st.integers(0, 1 << 53)
continues = st.none() | hashes
blobs = st.builds(Blob, hash=hashes, size=millis)


def several(items: st.SearchStrategy, most: int = 3) -> st.SearchStrategy:
    return st.lists(items, max_size=most).map(tuple)


specs = st.builds(
    Spec,
    python=st.lists(words, min_size=1, max_size=3).map(tuple),
    runner=st.sampled_from(["pytest", "unittest", "django", "command"]),
    command=several(lines),
    install=st.builds(
        Install,
        requirements=several(lines),
        extras=several(words),
        groups=several(words),
        project=st.booleans(),
    ),
    services=several(words),
    factors=st.dictionaries(words, st.dictionaries(words, several(lines), max_size=2), max_size=2),
    exclude=several(st.dictionaries(words, words, max_size=2)),
    env=st.dictionaries(words, lines, max_size=2),
    files=several(st.builds(FileTemplate, path=lines, content=lines), 2),
    timeout=st.integers(1, 86_400),
    redundancy=st.integers(1, 20),
    cross_check=st.sampled_from(["blind", "open"]),
)
environments = st.builds(
    Environment,
    implementation=words,
    version=words,
    build=lines,
    system=words,
    release=lines,
    machine=words,
    libc=lines,
    packages=hashes,
    services=st.dictionaries(words, words, max_size=2),
    sandbox=lines,
)
payloads = st.one_of(
    st.builds(
        Project,
        name=words,
        url=lines,
        roots=st.lists(hashes, min_size=1, max_size=3).map(tuple),
        threshold=st.integers(1, 16),
        announcers=several(hashes),
        cross_check=st.builds(
            CrossCheck, redundancy=st.integers(1, 20), mode=st.sampled_from(["blind", "open"])
        ),
        cosigns=several(st.builds(Cosign, key=hashes, signature=signatures)),
        continues=continues,
    ),
    st.builds(
        Announce,
        title=lines,
        commit=lines,
        source=hashes,
        source_size=millis,
        source_name=lines,
        spec=specs,
        locks=continues,
        locks_size=millis,
        resolve_before=millis,
        expires=millis,
        continues=continues,
    ),
    st.builds(Withdraw, job=hashes, reason=lines, continues=continues),
    st.builds(Commit, job=hashes, cell=hashes, commitment=hashes, continues=continues),
    st.builds(
        Result,
        job=hashes,
        cell=hashes,
        state=st.sampled_from(["completed", "broken"]),
        reason=st.none() | st.sampled_from(Reason),
        detail=lines,
        counts=st.dictionaries(st.sampled_from(Status), millis),
        digest=hashes,
        bad=several(lines),
        tests=st.none() | blobs,
        log=st.none() | blobs,
        environment=st.none() | environments,
        started=millis,
        seconds=st.floats(0, 1e7),
        nonce=st.binary(max_size=32),
        continues=continues,
    ),
    st.builds(Vouch, key=hashes, operator=words, continues=continues),
    st.builds(Revoke, key=hashes, since=millis, reason=lines, continues=continues),
    st.builds(
        Fork,
        first=st.binary(min_size=160, max_size=160),
        first_signature=signatures,
        second=st.binary(min_size=160, max_size=160),
        second_signature=signatures,
        continues=continues,
    ),
    st.builds(Checkpoint, origin=lines, size=millis, root=hashes, continues=continues),
)
offers = st.builds(
    Offer,
    interpreters=several(
        st.builds(Interpreter, implementation=words, version=words, free_threaded=st.booleans())
    ),
    services=several(words),
    system=words,
    machine=words,
    slots=st.integers(0, 1024),
    until=millis,
)
claims = st.builds(Claim, job=hashes, cell=hashes, until=millis)


def frame_of(body: bytes, *, kind: int = 3, version: int = 1, **header: object) -> bytes:
    """A well signed frame around any payload bytes."""
    raw = bytearray(
        codec.pack_header(
            codec.Header(
                kind,
                len(body),
                AUTHOR.public,
                header.get("project", digest("project")),
                bytes(8),
                header.get("seq", 0),
                header.get("prev", ZERO),
                header.get("time", NOW),
                hashlib.sha256(body).digest(),
            )
        )
    )
    raw[0] = version
    raw[2:4] = struct.pack(">H", header.get("flags", 0))
    signature = AUTHOR.key.sign(codec.signed_text(codec.entry_id(bytes(raw))))
    return bytes(raw) + signature + body


def reason_of(frame: bytes) -> str:
    with pytest.raises(PeerError) as caught:
        codec.decode_payload(codec.decode_entry(frame))
    return caught.value.reason


# --- round trips ------------------------------------------------------------------------


@given(payloads)
@settings(max_examples=300)
def test_every_payload_comes_back_as_it_was(payload):
    project = ZERO if isinstance(payload, Project) else digest("project")
    entry = codec.sign_entry(
        AUTHOR.key, payload, project=project, nonce=bytes(8), seq=0, prev=ZERO, time=NOW
    )
    again = codec.decode_entry(entry.frame)
    assert again == entry
    assert codec.decode_payload(again) == payload
    assert codec.decode_gossip(codec.encode_gossip(entry)) == entry


@given(offers | claims)
def test_every_ephemeral_message_comes_back_as_it_was(message):
    assert codec.decode_gossip(codec.encode_gossip(message)) == message


@given(st.data(), payloads)
@settings(max_examples=200)
def test_one_changed_bit_is_refused_or_changes_the_id_and_fails_the_signature(data, payload):
    project = ZERO if isinstance(payload, Project) else digest("project")
    entry = codec.sign_entry(
        AUTHOR.key, payload, project=project, nonce=bytes(8), seq=0, prev=ZERO, time=NOW
    )
    frame = bytearray(entry.frame)
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        changed = codec.decode_frame(bytes(frame))
    except PeerError:
        return
    assert not codec.is_authentic(changed)
    assert changed.id != entry.id or changed.signature != entry.signature
    with pytest.raises(PeerError, match="bad-signature"):
        codec.decode_entry(bytes(frame))


@given(st.binary(max_size=400))
@settings(max_examples=500)
def test_random_bytes_raise_nothing_but_peer_error(data):
    for decode in (
        codec.decode_frame,
        codec.decode_gossip,
        codec.unpack,
        codec.unpack_header,
        codec.decode_tests,
        lambda b: codec.decode_gossip(b"\x02" + b),
        lambda b: codec.decode_gossip(b"\x03" + b),
        lambda b: codec.decode_tests(zlib.compress(b)),
        lambda b: codec.decode_payload(codec.decode_entry(frame_of(b))),
        lambda b: codec.decode_signed_header(b, b),
    ):
        with contextlib.suppress(PeerError):
            decode(data)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.binary(max_size=70)
    | lines,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(lines, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(lines, plain, max_size=5), st.integers(1, 9))
@settings(max_examples=300)
def test_well_formed_maps_of_wrong_fields_raise_nothing_but_peer_error(value, kind):
    body = msgpack.packb(value)
    with contextlib.suppress(PeerError):
        codec.decode_payload(codec.decode_frame(frame_of(body, kind=kind)))


@given(st.data(), payloads)
@settings(max_examples=300)
def test_one_field_of_another_type_raises_nothing_but_peer_error(data, payload):
    value = msgpack.unpackb(codec.pack(payload))
    name = data.draw(st.sampled_from(sorted(value)))
    value[name] = data.draw(plain)
    kind = codec.KIND_OF[type(payload)]
    with contextlib.suppress(PeerError):
        codec.decode_payload(codec.decode_frame(frame_of(msgpack.packb(value), kind=kind)))


# --- each rule by name ------------------------------------------------------------------

JOB = digest("job")


def map_with(extra: bytes, count: int = 2) -> bytes:
    """A withdraw payload whose map has further packed pairs after ``job``."""
    return bytes([0x80 | count]) + msgpack.packb("job") + msgpack.packb(JOB) + extra


def nested(depth: int) -> bytes:
    """A map of the given depth of containers in all."""
    return map_with(msgpack.packb("x") + b"\x91" * (depth - 2) + b"\x90")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            map_with(msgpack.packb("job") + msgpack.packb(JOB)), id="a key that stands twice"
        ),
        pytest.param(map_with(msgpack.packb("x") + b"\xd4\x05\x00"), id="an ext type"),
        pytest.param(map_with(msgpack.packb("x") + b"\xc7\x00\x05"), id="an empty ext"),
        pytest.param(
            map_with(msgpack.packb("x") + b"\xd6\xff\x00\x00\x00\x01"), id="a 32 bit timestamp"
        ),
        pytest.param(
            map_with(msgpack.packb("x") + b"\xd7\xff" + bytes(8)), id="a 64 bit timestamp"
        ),
        pytest.param(
            map_with(msgpack.packb("x") + b"\xc7\x0c\xff" + bytes(12)), id="a 96 bit timestamp"
        ),
        pytest.param(
            map_with(msgpack.packb("x") + b"\xc7\x03\xff" + bytes(3)), id="a broken timestamp"
        ),
        pytest.param(map_with(b"\xd6\xff\x00\x00\x00\x01" + b"\x00"), id="a timestamp as a key"),
        pytest.param(map_with(msgpack.packb("x") + b"\xcb\x7f\xf8" + bytes(6)), id="NaN"),
        pytest.param(map_with(msgpack.packb("x") + b"\xca\x7f\xc0\x00\x00"), id="NaN in 32 bits"),
        pytest.param(map_with(msgpack.packb("x") + b"\x91\xcb\xff\xff" + b"\xff" * 6), id="NaN in"),
        pytest.param(nested(17), id="nesting of 17"),
        pytest.param(map_with(msgpack.packb("x") + b"\x91" * 5000 + b"\x90"), id="nesting of 5000"),
        pytest.param(map_with(msgpack.packb("x") + b"\xa2\xc3\x28"), id="invalid UTF-8"),
        pytest.param(map_with(msgpack.packb("x") + b"\xa3\xed\xa0\x80"), id="a lone surrogate"),
        pytest.param(map_with(b"\xa2\xc0\x80" + b"\x00"), id="invalid UTF-8 in a key"),
        pytest.param(map_with(b"", 1) + b"\x00", id="trailing bytes"),
        pytest.param(map_with(b"", 2), id="cut short"),
        pytest.param(map_with(b"\x01\x01"), id="an int as key"),
        pytest.param(map_with(b"\xc4\x01x\x01"), id="bytes as key"),
        pytest.param(map_with(b"\x90\x01"), id="an array as key"),
        pytest.param(map_with(b"\x80\x01"), id="a map as key"),
        pytest.param(map_with(b"\xc0\x01"), id="nil as key"),
        pytest.param(map_with(msgpack.packb("x") + b"\xc1"), id="the code that is never used"),
        pytest.param(map_with(msgpack.packb("x") + b"\xdf\xff\xff\xff\xff"), id="a huge map"),
        pytest.param(map_with(msgpack.packb("x") + b"\xdd\xff\xff\xff\xff"), id="a huge array"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x90", id="an array and no map"),
        pytest.param(b"\x01", id="a number and no map"),
    ],
)
def test_msgpack_is_refused_for(body):
    assert reason_of(frame_of(body)) == "bad-msgpack"


def test_nesting_of_16_is_taken():
    codec.decode_payload(codec.decode_entry(frame_of(nested(16))))


def test_unknown_fields_are_ignored():
    entry = codec.decode_entry(frame_of(map_with(msgpack.packb("new") + b"\x91\x01")))
    assert codec.decode_payload(entry) == Withdraw(job=JOB)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\xde\x00\x01\xa3job\xc4\x20" + JOB, id="a map with a long count"),
        pytest.param(b"\x81\xd9\x03job\xc4\x20" + JOB, id="a string with a long length"),
        pytest.param(b"\x81\xa3job\xc6\x00\x00\x00\x20" + JOB, id="bytes with a long length"),
    ],
)
def test_longer_than_needed_msgpack_is_taken_for_what_it_says(body):
    """Frames are kept as they came, so the same fact in other bytes is another entry, no split."""
    assert codec.decode_payload(codec.decode_entry(frame_of(body))) == Withdraw(job=JOB)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        pytest.param(frame_of(map_with(b"", 1), version=2), "unknown-version", id="version 2"),
        pytest.param(frame_of(map_with(b"", 1), version=0), "unknown-version", id="version 0"),
        pytest.param(frame_of(map_with(b"", 1), flags=1), "bad-frame", id="flags"),
        pytest.param(frame_of(map_with(b"", 1)) + b"\0", "bad-frame", id="a byte too many"),
        pytest.param(frame_of(map_with(b"", 1))[:-1], "bad-frame", id="a byte too few"),
        pytest.param(frame_of(map_with(b"", 1))[:159], "bad-frame", id="half a header"),
        pytest.param(b"", "bad-frame", id="nothing"),
        pytest.param(frame_of(b"\xc4" + bytes(8192)), "bad-frame", id="a payload too long"),
        pytest.param(frame_of(map_with(b"", 1), seq=1), "bad-frame", id="no prev at seq 1"),
        pytest.param(frame_of(map_with(b"", 1), prev=digest("x")), "bad-frame", id="prev at seq 0"),
        pytest.param(
            frame_of(map_with(b"", 1), seq=1 << 63, prev=digest("x")), "bad-frame", id="seq 2^63"
        ),
        pytest.param(frame_of(map_with(b"", 1), time=1 << 63), "bad-frame", id="time 2^63"),
        pytest.param(
            frame_of(map_with(b"", 1), project=ZERO), "bad-frame", id="no project, no genesis"
        ),
        pytest.param(
            frame_of(map_with(b"", 1), kind=1, project=ZERO, seq=1, prev=digest("x")),
            "bad-frame",
            id="a second genesis entry",
        ),
        pytest.param(frame_of(b"\x80"), "bad-payload", id="a field missing"),
        pytest.param(
            frame_of(b"\x81" + msgpack.packb("job") + msgpack.packb(JOB[:31])),
            "bad-payload",
            id="a hash too short",
        ),
        pytest.param(
            frame_of(b"\x81" + msgpack.packb("job") + msgpack.packb("x" * 32)),
            "bad-payload",
            id="text where bytes belong",
        ),
        pytest.param(
            frame_of(map_with(msgpack.packb("reason") + msgpack.packb("x" * 501))),
            "bad-payload",
            id="a line too long",
        ),
        pytest.param(
            frame_of(map_with(msgpack.packb("reason") + msgpack.packb(b"x"))),
            "bad-payload",
            id="bytes where text belongs",
        ),
    ],
)
def test_a_frame_is_refused_for(frame, reason):
    assert reason_of(frame) == reason


def test_a_payload_of_8192_bytes_is_taken():
    body = map_with(b"", 4)
    body += b"\xa1a\xc5\x10\x00" + bytes(4096) + b"\xa1b\xc5\x0f\x00" + bytes(3840)
    rest = 8192 - len(body) - len(b"\xa1c\xc4\x00")
    body += b"\xa1c\xc4" + bytes([rest]) + bytes(rest)
    assert len(body) == 8192
    codec.decode_entry(frame_of(body))


def test_an_unknown_kind_is_kept_and_not_interpreted():
    entry = codec.decode_entry(frame_of(b"\x81\xa1x\x01", kind=200))
    assert entry.header.kind == 200
    assert codec.decode_payload(entry) is None


def test_a_number_may_stand_where_a_float_belongs_and_not_the_reverse():
    payload = Result(job=JOB, cell=JOB, state="broken", digest=JOB, started=1, seconds=2.0)
    value = msgpack.unpackb(codec.pack(payload))
    value["seconds"] = 2
    whole = codec.decode_entry(frame_of(msgpack.packb(value), kind=5))
    assert codec.decode_payload(whole) == payload
    value["started"] = 1.5
    assert reason_of(frame_of(msgpack.packb(value), kind=5)) == "bad-payload"
    value["started"] = True
    assert reason_of(frame_of(msgpack.packb(value), kind=5)) == "bad-payload"


@pytest.mark.parametrize("number", [-1, (1 << 53) + 1, 1 << 63])
def test_times_out_of_bounds_are_refused(number):
    body = b"\x82" + msgpack.packb("key") + msgpack.packb(JOB) + msgpack.packb("since")
    assert reason_of(frame_of(body + msgpack.packb(number), kind=7)) == "bad-payload"


def test_what_others_would_refuse_is_never_signed():
    with pytest.raises(PeerError, match="bad-payload"):
        AUTHOR.branch().sign(Withdraw(job=JOB, reason="x" * 501), JOB)
    big = tuple(FileTemplate(path=str(i), content="x" * 5000) for i in range(2))
    with pytest.raises(PeerError, match="bad-payload"):
        AUTHOR.branch().sign(announce(spec=Spec(python=("3.12",), files=big)), JOB)


def test_a_lone_surrogate_is_signed_as_its_escape():
    entry = AUTHOR.branch().sign(Withdraw(job=JOB, reason="\ud800"), JOB)
    assert codec.decode_payload(codec.decode_entry(entry.frame)) == Withdraw(
        job=JOB, reason="\\ud800"
    )
    assert codec.outcome_digest("completed", None, [("\udc80", Status.PASSED)])


# --- gossip -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"\x01", b"\x00\x80", b"\x04\x90", b"\x02" + bytes(16_384), b"\x02\x90", b"\x03\x80"],
)
def test_gossip_that_is_none_is_refused(data):
    with pytest.raises(PeerError):
        codec.decode_gossip(data)


def test_an_unsigned_entry_is_never_gossip():
    frame = bytearray(AUTHOR.branch().announce(JOB).frame)
    frame[170] ^= 1
    with pytest.raises(PeerError, match="bad-signature"):
        codec.decode_gossip(b"\x01" + bytes(frame))


# --- ids and digests ----------------------------------------------------------------------


def test_a_cell_id_does_not_depend_on_the_order_of_services_and_factors():
    one = Cell(python="3.12", services=("a", "b"), factors=(("x", "1"), ("y", "2")))
    two = Cell(python="3.12", services=("b", "a"), factors=(("y", "2"), ("x", "1")))
    assert codec.cell_id(JOB, one) == codec.cell_id(JOB, two)
    assert codec.cell_id(JOB, one) != codec.cell_id(digest("other"), one)
    assert codec.cell_id(JOB, one) != codec.cell_id(JOB, dataclasses.replace(one, python="3.13"))


@given(st.permutations([("a", Status.PASSED), ("b", Status.FAILED), ("c", Status.SKIPPED)]))
def test_an_outcome_digest_does_not_depend_on_the_order_of_tests(tests):
    expected = codec.outcome_digest("completed", None, sorted(tests))
    assert codec.outcome_digest("completed", None, tests) == expected


def test_an_outcome_digest_depends_on_state_reason_ids_and_statuses():
    tests = [("a", Status.PASSED)]
    digests = {
        codec.outcome_digest("completed", None, tests),
        codec.outcome_digest("completed", None, [("a", Status.FAILED)]),
        codec.outcome_digest("completed", None, [("b", Status.PASSED)]),
        codec.outcome_digest("completed", None, []),
        codec.outcome_digest("broken", None, tests),
        codec.outcome_digest("broken", "timeout", tests),
    }
    assert len(digests) == 6


def test_comparable_looks_at_interpreter_packages_and_services_only():
    base = environment()
    same = structs.replace(base, build="x", release="6.1", machine="arm64", sandbox="y")
    assert codec.comparable(base) == codec.comparable(same)
    assert codec.comparable(None) == ZERO
    for other in (
        environment("3.12.2"),
        structs.replace(base, implementation="pypy"),
        structs.replace(base, packages=digest("others")),
        structs.replace(base, services={"redis": "7"}),
    ):
        assert codec.comparable(base) != codec.comparable(other)


def test_a_commitment_binds_its_author():
    one = codec.commitment(b"n", JOB, Author(1).public)
    assert one != codec.commitment(b"n", JOB, Author(2).public)


# --- the tests blob -------------------------------------------------------------------------

records = st.builds(
    codec.TestRecord,
    id=lines,
    status=st.sampled_from(Status),
    seconds=st.floats(0, 1e6),
    message=lines,
)


@given(st.lists(records, max_size=8))
def test_a_tests_blob_comes_back_as_it_was(tests):
    assert codec.decode_tests(codec.encode_tests(tests)) == tests


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(codec.encode_tests([])[:-1], id="cut short"),
        pytest.param(codec.encode_tests([]) + b"x", id="trailing bytes"),
        pytest.param(zlib.compress(msgpack.packb([["a", "green", 1.0, ""]])), id="no such status"),
        pytest.param(zlib.compress(msgpack.packb([["a", "passed", 1.0]])), id="a column missing"),
        pytest.param(
            zlib.compress(msgpack.packb([["a", "passed", float("nan"), ""]])), id="NaN seconds"
        ),
        pytest.param(zlib.compress(msgpack.packb({})), id="a map"),
        pytest.param(zlib.compress(b"\x90\x90"), id="two values"),
        pytest.param(
            zlib.compress(b"\xdd\x00\x4c\x4b\x40" + b"\x90" * 5_000_000, 1), id="a bomb of lists"
        ),
    ],
)
def test_a_tests_blob_is_refused_for(data):
    with pytest.raises(PeerError, match="bad-"):
        codec.decode_tests(data)


def test_a_tests_blob_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(codec, "MAX_BLOB_EXPANDED", 1 << 20)
    with pytest.raises(PeerError, match="bad-tests"):
        codec.decode_tests(zlib.compress(bytes(2 << 20)))


# --- fork evidence ----------------------------------------------------------------------------


def test_a_signed_header_must_be_signed_and_exact():
    author = Author(3)
    entry = author.announce(JOB)
    half = codec.decode_signed_header(entry.frame[:160], entry.signature)
    assert (half.id, half.header) == (entry.id, entry.header)
    for raw, signature in (
        (entry.frame[:160], bytes(64)),
        (entry.frame[:161], entry.signature),
        (entry.frame[:159], entry.signature),
        (b"\x02" + entry.frame[1:160], entry.signature),
    ):
        with pytest.raises(PeerError, match="bad-fork"):
            codec.decode_signed_header(raw, signature)


def test_fork_entries_fit_in_a_frame():
    author = Author(3)
    other = author.branch()
    proof = fork_of(author.announce(JOB), other.announce(JOB, title="another", expires=FAR))
    assert len(Author(4).sign(proof, JOB).payload) < codec.MAX_PAYLOAD


def test_every_message_that_is_signed_here_is_read_the_quick_way():
    # Reading and writing again must give the very bytes, or each value is looked at in turn.
    volunteer, root = Author(2), Author(1)
    genesis = root.project()
    job = root.announce(genesis.id)
    run = volunteer.result(genesis.id, job.id, digest("cell"), failed=2)
    for entry in (genesis, job, run, root.withdraw(genesis.id, job.id)):
        assert entry.said is not None
