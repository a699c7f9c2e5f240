"""Format version 1 never changes: the code gives the golden bytes, and so does a stranger.

The stranger is a second implementation, small and written from ``docs/protocol.md``: it
uses struct, hashlib and libsodium's verification, and nothing of PonySwarm.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import nacl.bindings
import nacl.exceptions
import nacl.signing
import pytest

from ponyswarm import codec
from ponyswarm.errors import PeerError
from ponyswarm.frontier import BUCKETS, Frontier, bucket_of
from ponyswarm.keys import SecretKey, peer_id
from ponyswarm.messages import Cell, Entry, Environment, FeedMark, FeedRef, Project, Status
from ponyswarm.p2p import blobs, sync
from ponyswarm.policy import cosign_text

HERE = Path(__file__).parent
VECTORS = json.loads((HERE / "v1.json").read_text("utf-8"))
ENTRIES = VECTORS["entries"]
SYNC = VECTORS["sync"]
DOC = HERE.parent.parent / "docs" / "protocol.md"


sha = hashlib.sha256


def raw(text: str) -> bytes:
    return bytes.fromhex(text)


def named(items: list[dict]) -> list:
    return [pytest.param(item, id=item["name"]) for item in items]


# --- the code gives the golden bytes ------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["keys"], ids=lambda vector: vector["seed"][:2])
def test_keys(vector):
    key = SecretKey(raw(vector["seed"]))
    assert key.public.hex() == vector["public"]
    assert peer_id(key.public) == vector["peer_id"]


@pytest.mark.parametrize("vector", named(ENTRIES))
def test_entries_are_decoded_and_signed_to_the_same_bytes(vector):
    entry = codec.decode_entry(raw(vector["frame"]))
    header = entry.header
    assert entry.id.hex() == vector["id"]
    payload = codec.decode_payload(entry)
    again = codec.sign_entry(
        SecretKey(raw(vector["seed"])),
        payload,
        project=header.project,
        nonce=header.nonce,
        seq=header.seq,
        prev=header.prev,
        time=header.time,
    )
    assert again.frame.hex() == vector["frame"]


def test_every_kind_has_a_vector():
    assert {vector["kind"] for vector in ENTRIES} == {int(kind) for kind in codec.PAYLOAD_TYPES}


@pytest.mark.parametrize("vector", VECTORS["cells"], ids=lambda vector: vector["python"])
def test_cell_ids(vector):
    cell = Cell(
        python=vector["python"],
        services=tuple(vector["services"]),
        factors=tuple((name, value) for name, value in vector["factors"]),
    )
    assert codec.cell_id(raw(vector["job"]), cell).hex() == vector["id"]


def test_digests():
    for vector in VECTORS["outcomes"]:
        tests = [(id_, Status(status)) for id_, status in vector["tests"]]
        digest = codec.outcome_digest(vector["state"], vector["reason"], tests)
        assert digest.hex() == vector["digest"]
    vector = VECTORS["commitment"]
    commitment = codec.commitment(
        raw(vector["nonce"]), raw(vector["digest"]), raw(vector["author"])
    )
    assert commitment.hex() == vector["commitment"]
    vector = VECTORS["comparable"]
    environment = Environment(
        implementation=vector["implementation"],
        version=vector["version"],
        system="any",
        machine="any",
        packages=raw(vector["packages"]),
        services=dict(vector["services"]),
    )
    assert codec.comparable(environment).hex() == vector["digest"]
    vector = VECTORS["cosign"]
    record = codec.convert(codec.unpack(raw(vector["record"])), Project, "bad")
    assert cosign_text(record).hex() == vector["text"]


def test_the_tests_blob():
    import zlib

    vector = VECTORS["tests_blob"]
    records = codec.decode_tests(zlib.compress(raw(vector["expanded"])))
    assert [[t.id, str(t.status), t.seconds, t.message] for t in records] == vector["rows"]
    assert zlib.decompress(codec.encode_tests(records)).hex() == vector["expanded"]


@pytest.mark.parametrize("vector", named(VECTORS["gossip"]))
def test_gossip(vector):
    assert codec.encode_gossip(codec.decode_gossip(raw(vector["bytes"]))).hex() == vector["bytes"]


def frontier() -> dict[FeedRef, FeedMark]:
    return {
        FeedRef(raw(author), raw(nonce), genesis): FeedMark(height, raw(head))
        for author, nonce, genesis, height, head, _ in SYNC["frontier"]
    }


def test_sync():
    project, marks = raw(SYNC["project"]), frontier()
    kept = Frontier(marks)
    assert kept.root.hex() == SYNC["root"]
    assert [kept.names(bucket).hex() for bucket in range(BUCKETS)] == SYNC["names"]
    assert [kept.hash(bucket).hex() for bucket in range(BUCKETS)] == SYNC["hashes"]
    assert [bucket_of(ref) for ref in sorted(marks)] == [row[5] for row in SYNC["frontier"]]
    assert sync.Asking(project, kept).ask().hex() == SYNC["ask"]
    assert sync.Asking(project, Frontier()).ask().hex() == SYNC["ask_of_nothing"]
    for request, known, answer in (
        ("ask", kept, "00"),
        ("ask_of_nothing", None, "01"),
        ("ask_of_nothing", kept, SYNC["answer_differs"]),
    ):
        assert sync.answer(raw(SYNC[request]), lambda _, known=known: known)[0].hex() == answer
    lower = {ref: FeedMark(max(1, mark.height - 1), bytes(8)) for ref, mark in marks.items()}
    half = dict(sorted(marks.items())[::2])
    for mine, want in ((lower, "want_by_place"), (half, "want_by_name")):
        wish = sync.Asking(project, Frontier(mine)).want(raw(SYNC["answer_differs"]))
        assert isinstance(wish, bytes)
        assert wish.hex() == SYNC[want]
    assert sync.read(raw(SYNC["end"]), project) == sync.End(more=False, ahead=frozenset())
    told = sync.read(raw(SYNC["end_more_ahead_in_0_and_9"]), project)
    assert told == sync.End(more=True, ahead=frozenset({0, 9}))


def test_segments():
    data = raw(SYNC["segment"])
    entries = codec.unpack_segment(codec.Cursor(data), raw(SYNC["project"]), 99)
    assert [entry.id.hex() for entry in entries] == SYNC["segment_ids"]
    frames = {vector["id"]: vector["frame"] for vector in ENTRIES}
    assert [entry.frame.hex() for entry in entries] == [frames[id_] for id_ in SYNC["segment_ids"]]
    assert codec.pack_segment([entry.frame for entry in entries]) == data


def test_blob_messages():
    vector = VECTORS["blob"]
    for name, type_ in (("get", blobs.Get), ("have", blobs.Have), ("not_here", blobs.Have)):
        data = raw(vector[name])
        assert codec.pack(codec.convert(codec.unpack(data), type_, "bad")) == data


@pytest.mark.parametrize("vector", named(VECTORS["refused"]))
def test_frames_that_must_be_refused(vector):
    with pytest.raises(PeerError) as caught:
        codec.decode_payload(codec.decode_entry(raw(vector["frame"])))
    assert caught.value.reason == vector["reason"]


# --- a stranger agrees ----------------------------------------------------------------------


class Refused(Exception):
    pass


class Stranger:
    """A reader of version 1, written from the document."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        part = self.data[self.at : self.at + count]
        if len(part) != count:
            raise Refused("cut short")
        self.at += count
        return part

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def value(self, depth: int = 0) -> object:
        tag = self.number(1)
        if tag < 0x80:
            return tag
        if tag >= 0xE0:
            return tag - 0x100
        if tag < 0x90:
            return self.map(tag & 15, depth)
        if tag < 0xA0:
            return self.array(tag & 15, depth)
        if tag < 0xC0:
            return self.text(tag & 31)
        if tag in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[tag]
        if 0xC4 <= tag <= 0xC6:
            return self.take(self.number(1 << (tag - 0xC4)))
        if tag in (0xCA, 0xCB):
            number = struct.unpack(*((">f", self.take(4)) if tag == 0xCA else (">d", self.take(8))))
            if number[0] != number[0]:
                raise Refused("NaN")
            return number[0]
        if 0xCC <= tag <= 0xCF:
            return self.number(1 << (tag - 0xCC))
        if 0xD0 <= tag <= 0xD3:
            return int.from_bytes(self.take(1 << (tag - 0xD0)), "big", signed=True)
        if 0xD9 <= tag <= 0xDB:
            return self.text(self.number(1 << (tag - 0xD9)))
        if tag in (0xDC, 0xDD):
            return self.array(self.number(2 << (tag - 0xDC)), depth)
        if tag in (0xDE, 0xDF):
            return self.map(self.number(2 << (tag - 0xDE)), depth)
        raise Refused("ext type")

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError as fault:
            raise Refused("UTF-8") from fault

    def array(self, count: int, depth: int) -> list[object]:
        if depth == 16:
            raise Refused("nesting")
        return [self.value(depth + 1) for _ in range(count)]

    def map(self, count: int, depth: int) -> dict[str, object]:
        if depth == 16:
            raise Refused("nesting")
        found: dict[str, object] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in found:
                raise Refused("key")
            found[key] = self.value(depth + 1)
        return found


def strangers_view(frame: bytes) -> dict[str, object]:
    """Fields, id and payload of a frame; `Refused` when it breaks a rule of the frame."""
    if len(frame) < 224:
        raise Refused("short")
    header, signature, payload = frame[:160], frame[160:224], frame[224:]
    version, kind, flags, length = struct.unpack(">BBHI", header[:8])
    author, project, nonce = header[8:40], header[40:72], header[72:80]
    (seq,) = struct.unpack(">Q", header[80:88])
    prev, hash_ = header[88:120], header[128:160]
    (time,) = struct.unpack(">Q", header[120:128])
    zero = bytes(32)
    ok = version == 1 and flags == 0 and length == len(payload) <= 8192
    ok = ok and hashlib.sha256(payload).digest() == hash_
    ok = ok and seq < 1 << 63 and time < 1 << 63 and (seq == 0) == (prev == zero)
    ok = ok and (project != zero or (kind == 1 and seq == 0))
    if not ok:
        raise Refused("frame")
    id_ = hashlib.sha256(b"ponyswarm/entry/v1\0" + header).digest()
    if not nacl.bindings.crypto_core_ed25519_is_valid_point(author):
        raise Refused("author")
    try:
        nacl.signing.VerifyKey(author).verify(b"ponyswarm/sig/v1\0" + id_, signature)
    except nacl.exceptions.BadSignatureError as fault:
        raise Refused("signature") from fault
    reader = Stranger(payload)
    value = reader.value()
    if not isinstance(value, dict) or reader.at != len(payload):
        raise Refused("payload")
    return {
        "kind": kind, "author": author.hex(), "project": project.hex(), "nonce": nonce.hex(),
        "seq": seq, "prev": prev.hex(), "time": time, "payload_hash": hash_.hex(),
        "id": id_.hex(), "value": value,
    }  # fmt: skip


@pytest.mark.parametrize("vector", named(ENTRIES))
def test_a_stranger_reads_the_same(vector):
    view = strangers_view(raw(vector["frame"]))
    assert view.pop("value") == codec.unpack(raw(vector["payload"]))
    assert view == {name: vector[name] for name in view}


@pytest.mark.parametrize(
    "vector", named([v for v in VECTORS["refused"] if v["reason"] != "bad-payload"])
)
def test_a_stranger_refuses_the_same(vector):
    with pytest.raises(Refused):
        strangers_view(raw(vector["frame"]))


def packed(value: object) -> bytes:
    """The few forms of msgpack that ids are made of, in their shortest encoding."""
    if isinstance(value, list):
        head = bytes([0x90 | len(value)]) if len(value) < 16 else b"\xdc" + len(value).to_bytes(2)
        return head + b"".join(map(packed, value))
    if isinstance(value, bytes):
        return b"\xc4" + bytes([len(value)]) + value
    assert isinstance(value, str)
    data = value.encode()
    return (bytes([0xA0 | len(data)]) if len(data) < 32 else b"\xd9" + bytes([len(data)])) + data


def test_a_stranger_computes_the_same_ids_and_digests():
    for vector in VECTORS["cells"]:
        form = [vector["python"], sorted(vector["services"]), sorted(vector["factors"])]
        text = b"ponyswarm/cell/v1\0" + raw(vector["job"]) + packed(form)
        assert sha(text).hexdigest() == vector["id"]
    for vector in VECTORS["outcomes"]:
        form = [vector["state"], vector["reason"], sorted(vector["tests"])]
        assert sha(b"ponyswarm/outcome/v1\0" + packed(form)).hexdigest() == vector["digest"]
    vector = VECTORS["commitment"]
    text = raw(vector["nonce"]) + raw(vector["digest"]) + raw(vector["author"])
    assert sha(b"ponyswarm/commit/v1\0" + text).hexdigest() == vector["commitment"]
    vector = VECTORS["comparable"]
    form = [
        vector["implementation"], vector["version"], raw(vector["packages"]), vector["services"],
    ]  # fmt: skip
    assert sha(packed(form)).hexdigest() == vector["digest"]
    vector = VECTORS["cosign"]
    text = b"ponyswarm/cosign/v1\0" + sha(raw(vector["record"])).digest()
    assert text.hex() == vector["text"]
    nacl.signing.VerifyKey(raw(vector["key"])).verify(text, raw(vector["signature"]))


def test_a_stranger_computes_the_same_root_and_buckets():
    buckets: list[list[tuple[bytes, bytes]]] = [[] for _ in range(64)]
    for author, nonce, genesis, height, head, place in SYNC["frontier"]:
        name = raw(author) + raw(nonce) + bytes([genesis])
        assert sha(name).digest()[0] % 64 == place
        buckets[place].append((name, height.to_bytes(8, "big") + raw(head)))
    names = [sha(b"".join(name for name, _ in sorted(feeds))).digest() for feeds in buckets]
    rows = [sha(b"".join(name + row for name, row in sorted(feeds))).digest() for feeds in buckets]
    assert [digest.hex()[:8] for digest in names] == SYNC["names"]
    assert [digest.hex()[:16] for digest in rows] == SYNC["hashes"]
    assert sha(b"".join(rows)).hexdigest()[:32] == SYNC["root"]
    told = b"".join(name[:4] + row[:8] for name, row in zip(names, rows, strict=True))
    assert (b"\2" + told).hex() == SYNC["answer_differs"]


def test_a_stranger_rebuilds_the_frames_of_a_segment():
    data = Stranger(raw(SYNC["segment"]))

    def number() -> int:
        value = shift = 0
        while True:
            byte = data.number(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    author, nonce, genesis, seq = data.take(32), data.take(8), data.number(1), number()
    prev = data.take(32) if seq else bytes(32)
    project = bytes(32) if genesis else raw(SYNC["project"])
    rows, time = [], 0
    for _ in range(number()):
        kind, length = data.number(1), number()
        time += number()
        rows.append((kind, length, time))
    signatures = [data.take(64) for _ in rows]
    known = {vector["id"]: vector["frame"] for vector in ENTRIES}
    for at, (kind, length, time) in enumerate(rows):
        payload = data.take(length)
        header = (
            bytes([1, kind, 0, 0]) + length.to_bytes(4, "big") + author + project + nonce
            + (seq + at).to_bytes(8, "big") + prev + time.to_bytes(8, "big")
            + sha(payload).digest()
        )  # fmt: skip
        prev = sha(b"ponyswarm/entry/v1\0" + header).digest()
        assert (header + signatures[at] + payload).hex() == known[prev.hex()]
    assert data.at == len(data.data)


# --- the document shows these bytes -------------------------------------------------------------


def looked_up(path: str) -> str:
    found = VECTORS
    for part in re.findall(r"\w+", path):
        found = found[int(part)] if part.isdigit() else found[part]
    assert isinstance(found, str)
    return found


def test_the_documents_hex_is_that_of_the_vectors():
    blocks = re.findall(r"```hex ([\w.\[\]]+)\n(.*?)```", DOC.read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 8
    for path, text in blocks:
        assert "".join(text.split()) == looked_up(path), path


def test_every_vector_entry_is_a_frame():
    for vector in ENTRIES:
        assert isinstance(codec.decode_frame(raw(vector["frame"])), Entry)
