"""The only place where messages become bytes and bytes become messages.

Decoding is strict, because whatever two nodes read differently is a way to split
them: exact lengths, known version, str keys only, no duplicate keys, no ext types,
no NaN, nesting of at most 16, valid UTF-8, nothing after the end. A fault raises
`PeerError` with the word under which the refusal is counted; nothing else escapes.
Frames are kept and relayed as received and never encoded again.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgpack
import msgspec

from ponyswarm.errors import PeerError
from ponyswarm.keys import SecretKey, verify
from ponyswarm.messages import (
    DROPPABLE,
    KIND_OF,
    PAYLOAD_TYPES,
    Cell,
    Claim,
    Entry,
    Environment,
    Ephemeral,
    Fork,
    Header,
    Kind,
    Later,
    Lock,
    Offer,
    Payload,
    Status,
)

VERSION = 1
HEADER_SIZE = 160
SIGNATURE_SIZE = 64
PAYLOAD_OFFSET = HEADER_SIZE + SIGNATURE_SIZE
MAX_PAYLOAD = 8192
MAX_FRAME = PAYLOAD_OFFSET + MAX_PAYLOAD
MAX_NESTING = 16
MAX_GOSSIP = 16_384
MAX_SEQ = (1 << 63) - 1  # What SQLite's integers hold.
MAX_BLOB_EXPANDED = 64 << 20
ZERO = bytes(32)
# In a packed segment, what is added to the length of a payload that is not there.
_BARE = MAX_PAYLOAD + 1

_HEADER = struct.Struct(">BBHI32s32s8sQ32sQ32s")
_ENTRY_DOMAIN = b"ponyswarm/entry/v1\0"
_SIGNATURE_DOMAIN = b"ponyswarm/sig/v1\0"
_CELL_DOMAIN = b"ponyswarm/cell/v1\0"
_OUTCOME_DOMAIN = b"ponyswarm/outcome/v1\0"
_COMMITMENT_DOMAIN = b"ponyswarm/commit/v1\0"

# The head of a map of up to 255 pairs in its long form; below 16 pairs there is a short one.
_WIDE = b"\xde\x00"
_ENCODER = msgspec.msgpack.Encoder()
_DECODERS: dict[int, msgspec.msgpack.Decoder[Payload]] = {
    kind: msgspec.msgpack.Decoder(type_) for kind, type_ in PAYLOAD_TYPES.items()
}

T = TypeVar("T")


# --- msgpack, strictly ------------------------------------------------------------


def _unique(pairs: list[tuple[object, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if type(key) is not str:
            raise PeerError("bad-msgpack", "a map key is not a string")
        if key in found:
            raise PeerError("bad-msgpack", f"the key {key[:40]!r} stands twice")
        found[key] = value
    return found


def _no_ext(code: int, data: bytes) -> object:
    raise PeerError("bad-msgpack", f"ext type {code}")


def _judge(value: object, depth: int) -> None:
    if isinstance(value, dict | list):
        if depth == MAX_NESTING:
            raise PeerError("bad-msgpack", f"nested deeper than {MAX_NESTING}")
        for item in value.values() if isinstance(value, dict) else value:
            _judge(item, depth + 1)
    elif isinstance(value, float):
        if math.isnan(value):
            raise PeerError("bad-msgpack", "NaN")
    elif value is not None and not isinstance(value, str | bytes | int):
        # The timestamp ext type reaches us as an object of its own, past the ext hook.
        raise PeerError("bad-msgpack", f"a value of type {type(value).__name__}")


def unpack(data: bytes) -> object:
    """One msgpack value, strictly; `PeerError` ("bad-msgpack") for anything else."""
    try:
        value: object = msgpack.unpackb(
            data, raw=False, strict_map_key=False, object_pairs_hook=_unique, ext_hook=_no_ext
        )
    except PeerError:
        raise
    except (ValueError, msgpack.UnpackException, RecursionError, TypeError) as fault:
        raise PeerError("bad-msgpack", str(fault)[:200]) from fault
    _judge(value, 0)
    return value


def pack(value: object) -> bytes:
    """The msgpack of plain values, or of a message type.

    A lone surrogate, which a test's id or message may hold, becomes its escape: UTF-8 has none.
    """
    plain = msgspec.to_builtins(value, builtin_types=(bytes,))
    return bytes(msgpack.packb(plain, unicode_errors="backslashreplace"))


def convert(value: object, type_: type[T], reason: str) -> T:
    """A plain value as a message type; bounds and types are checked, unknown fields ignored."""
    try:
        return msgspec.convert(value, type_, strict=True, builtin_types=(bytes,))
    except msgspec.ValidationError as fault:
        raise PeerError(reason, str(fault)[:300]) from fault


# --- entries ------------------------------------------------------------------------


def pack_header(header: Header) -> bytes:
    return _HEADER.pack(
        VERSION,
        header.kind,
        0,
        header.length,
        header.author,
        header.project,
        header.nonce,
        header.seq,
        header.prev,
        header.time,
        header.payload_hash,
    )


def unpack_header(data: bytes) -> Header:
    """The header in the first 160 bytes of ``data``; `PeerError` when a field is out of rule."""
    if len(data) < HEADER_SIZE:
        raise PeerError("bad-frame", "shorter than a header")
    version, kind, flags, length, author, project, nonce, seq, prev, time, digest = (
        _HEADER.unpack_from(data)
    )
    if version != VERSION:
        raise PeerError("unknown-version", str(version))
    if flags:
        raise PeerError("bad-frame", "flags are not zero")
    if length > MAX_PAYLOAD:
        raise PeerError("bad-frame", f"a payload of {length} bytes")
    if seq > MAX_SEQ or time > MAX_SEQ:
        raise PeerError("bad-frame", "a number above 2^63")
    if (seq == 0) != (prev == ZERO):
        raise PeerError("bad-frame", "prev is zero exactly at seq 0")
    if project == ZERO and (kind != Kind.PROJECT or seq != 0):
        raise PeerError("bad-frame", "only a genesis entry may name no project")
    return Header(kind, length, author, project, nonce, seq, prev, time, digest)


def entry_id(header: bytes) -> bytes:
    """The id of an entry, from its 160 header bytes."""
    return hashlib.sha256(_ENTRY_DOMAIN + header).digest()


def signed_text(id_: bytes) -> bytes:
    """What an author signs for the entry of this id."""
    return _SIGNATURE_DOMAIN + id_


def decode_frame(frame: bytes) -> Entry:
    """An entry whose bytes hold together; its signature is *not* checked here.

    Raises `PeerError`: ``bad-frame``, ``unknown-version``, ``bad-msgpack``.
    """
    header = unpack_header(frame)
    if len(frame) != PAYLOAD_OFFSET + header.length:
        raise PeerError("bad-frame", f"{len(frame)} bytes do not match the length in the header")
    payload = frame[PAYLOAD_OFFSET:]
    if hashlib.sha256(payload).digest() != header.payload_hash:
        raise PeerError("bad-frame", "the payload does not match its hash")
    return Entry(
        header,
        entry_id(frame[:HEADER_SIZE]),
        frame[HEADER_SIZE:PAYLOAD_OFFSET],
        bytes(frame),
        _read_payload(header.kind, payload),
    )


def decode_kept(frame: bytes) -> Entry:
    """An entry as a ledger keeps it: a frame (`decode_frame`), or one whose payload is gone."""
    if len(frame) != PAYLOAD_OFFSET:
        return decode_frame(frame)
    header = unpack_header(frame)
    if header.kind not in DROPPABLE:
        raise PeerError("bad-frame", "an entry of this kind is kept whole")
    raw = frame[:HEADER_SIZE]
    return Entry(header, entry_id(raw), frame[HEADER_SIZE:], bytes(frame))


def _read_payload(kind: int, payload: bytes) -> Payload | None:
    """What a payload says when it is a known kind in its shortest form, the usual case.

    Bytes that come out again when what was read is encoded are strict msgpack, whatever
    reader read them; that costs a tenth of looking at each value. All other bytes take the
    slow way; `PeerError` ("bad-msgpack") unless they are one strict map.
    """
    decoder = _DECODERS.get(kind)
    if decoder is not None:
        try:
            said = decoder.decode(payload)
            again = _ENCODER.encode(said)
            if again[:2] == _WIDE and again[2] < 16:
                # The encoder left room for the fields that are unset.
                again = bytes((0x80 | again[2],)) + again[3:]
            if again == payload:
                return said
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
    if type(unpack(payload)) is not dict:
        raise PeerError("bad-msgpack", "the payload is not a map")
    return None


def is_authentic(entry: Entry) -> bool:
    """Whether the entry's own signature is valid by its author's key."""
    return verify(entry.header.author, signed_text(entry.id), entry.signature)


def decode_entry(frame: bytes) -> Entry:
    """An authentic entry: `decode_frame`, and its own signature holds (``bad-signature``)."""
    entry = decode_frame(frame)
    if not is_authentic(entry):
        raise PeerError("bad-signature", f"entry {entry.id.hex()[:16]}")
    return entry


def decode_payload(entry: Entry) -> Payload | None:
    """What the entry says; None for a kind this version does not know, and for a bare entry.

    Raises `PeerError` ("bad-payload") when a known kind is out of its bounds.
    """
    if entry.said is not None or entry.header.kind not in PAYLOAD_TYPES or entry.is_bare:
        return entry.said
    type_ = PAYLOAD_TYPES[Kind(entry.header.kind)]
    return convert(unpack(entry.payload), type_, "bad-payload")


def sign_entry(
    key: SecretKey,
    payload: Payload,
    *,
    project: bytes,
    nonce: bytes,
    seq: int,
    prev: bytes,
    time: int,
) -> Entry:
    """A new signed entry. `PeerError` when the payload would not be accepted by others."""
    body = pack(payload)
    if len(body) > MAX_PAYLOAD:
        raise PeerError("bad-payload", f"{len(body)} bytes, and {MAX_PAYLOAD} is the most")
    header = Header(
        KIND_OF[type(payload)],
        len(body),
        key.public,
        project,
        nonce,
        seq,
        prev,
        time,
        hashlib.sha256(body).digest(),
    )
    raw = pack_header(header)
    signature = key.sign(signed_text(entry_id(raw)))
    entry = decode_frame(raw + signature + body)
    decode_payload(entry)
    return entry


# --- segments ---------------------------------------------------------------------------


def varint(number: int) -> bytes:
    """A number below 2^63, seven bits a byte, the low ones first, as short as it can be."""
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class Cursor:
    """Reads bytes from their beginning; `PeerError` ("bad-sync") where they end too soon."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def ended(self) -> bool:
        return self.at == len(self.data)

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise PeerError("bad-sync", "cut short")
        part = self.data[self.at : end]
        self.at = end
        return part

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise PeerError("bad-sync", "cut short")
        value = self.data[self.at]
        self.at += 1
        return value

    def number(self) -> int:
        data, at = self.data, self.at
        value = shift = 0
        try:
            while (byte := data[at]) >= 0x80:
                value |= (byte & 0x7F) << shift
                at += 1
                shift += 7
                if shift > 56:
                    raise PeerError("bad-sync", "a number above 2^63")
        except IndexError:
            raise PeerError("bad-sync", "cut short") from None
        self.at = at + 1
        if shift and not byte:
            raise PeerError("bad-sync", "a number longer than it need be")
        return value | byte << shift


def pack_segment(frames: Sequence[bytes]) -> bytes:
    """Consecutive frames of one feed without what follows from their context.

    Left out are author, project, nonce, seq and prev of all but the first, and every
    payload hash; what is alike stands together, so that it is compressed well. A frame may
    be bare (`decode_kept`): its payload's hash goes in place of the payload.
    """
    first = unpack_header(frames[0])
    genesis = first.project == ZERO
    parts = [
        first.author,
        first.nonce,
        bytes((genesis,)),
        varint(first.seq),
        first.prev if first.seq else b"",
        varint(len(frames)),
    ]
    before = 0
    for frame in frames:
        time = int.from_bytes(frame[120:128], "big")
        length = len(frame) - PAYLOAD_OFFSET
        if not length:
            length = int.from_bytes(frame[4:8], "big") + _BARE
        parts.append(frame[1:2] + varint(length) + varint(time - before))
        before = time
    parts += [frame[HEADER_SIZE:PAYLOAD_OFFSET] for frame in frames]
    parts += [frame[PAYLOAD_OFFSET:] or frame[128:160] for frame in frames]
    return b"".join(parts)


def unpack_segment(cursor: Cursor, project: bytes, most: int) -> list[Entry]:
    """The entries of a packed segment, at most ``most``, with the very bytes they had.

    Each commits to the one before by its prev, as that is how they are rebuilt; so one valid
    signature of the last makes all authentic. Signatures are *not* checked here. Raises
    `PeerError`: ``bad-sync``, ``bad-frame``, ``bad-msgpack``.
    """
    author, nonce, genesis = cursor.take(32), cursor.take(8), cursor.byte()
    seq = cursor.number()
    prev = cursor.take(32) if seq else ZERO
    count = cursor.number()
    if genesis > 1 or not 0 < count <= most or seq + count > MAX_SEQ or (seq and prev == ZERO):
        raise PeerError("bad-sync", "a segment out of form")
    if genesis and (seq or count > 1):
        raise PeerError("bad-sync", "a genesis feed has one entry")
    rows = []
    time = 0
    number = cursor.number
    for _ in range(count):
        kind, length = cursor.byte(), number()
        time += number()
        bare = length - _BARE
        if bare >= 0 and kind not in DROPPABLE:
            raise PeerError("bad-frame", "an entry of this kind is kept whole")
        if (
            (length > MAX_PAYLOAD and not 0 <= bare <= MAX_PAYLOAD)
            or time > MAX_SEQ
            or (genesis and kind != Kind.PROJECT)
        ):
            raise PeerError("bad-frame", "a header out of rule")
        rows.append((kind, length, time))
    signatures = cursor.take(SIGNATURE_SIZE * count)
    named = ZERO if genesis else project
    entries = []
    for at, (kind, length, time) in enumerate(rows):
        if length <= MAX_PAYLOAD:
            payload = cursor.take(length)
            digest = hashlib.sha256(payload).digest()
            said = _read_payload(kind, payload)
        else:
            payload, digest, said, length = b"", cursor.take(32), None, length - _BARE
        raw = _HEADER.pack(
            VERSION, kind, 0, length, author, named, nonce, seq + at, prev, time, digest
        )
        id_ = entry_id(raw)
        signature = signatures[SIGNATURE_SIZE * at : SIGNATURE_SIZE * (at + 1)]
        header = Header(kind, length, author, named, nonce, seq + at, prev, time, digest)
        entries.append(Entry(header, id_, signature, raw + signature + payload, said))
        prev = id_
    return entries


def check_segment(entries: Sequence[Entry]) -> None:
    """`PeerError` ("bad-signature") unless the last entry's own signature holds.

    With links between them, as `unpack_segment` gives them, that makes all authentic.
    """
    if not is_authentic(entries[-1]):
        raise PeerError("bad-signature", f"entry {entries[-1].id.hex()[:16]}")


@dataclass(frozen=True, slots=True)
class SignedHeader:
    """One half of a fork's evidence: a header with its signature, verified."""

    header: Header
    id: bytes
    raw: bytes
    signature: bytes


def decode_signed_header(raw: bytes, signature: bytes) -> SignedHeader:
    """A header whose signature holds; `PeerError` ("bad-fork") otherwise."""
    try:
        header = unpack_header(raw)
    except PeerError as fault:
        raise PeerError("bad-fork", str(fault)) from fault
    id_ = entry_id(raw)
    if len(raw) != HEADER_SIZE or not verify(header.author, signed_text(id_), signature):
        raise PeerError("bad-fork", "a header's signature does not hold")
    return SignedHeader(header, id_, raw, signature)


def fork_evidence(fork: Fork, entry: Entry) -> tuple[SignedHeader, SignedHeader]:
    """The two halves of a `fork` entry; `PeerError` ("bad-fork") unless they prove one."""
    first = decode_signed_header(fork.first, fork.first_signature)
    second = decode_signed_header(fork.second, fork.second_signature)
    places = {(h.author, h.project, h.nonce, h.seq) for h in (first.header, second.header)}
    if len(places) != 1 or first.id == second.id:
        raise PeerError("bad-fork", "the two headers are not two histories of one place")
    if first.header.project != entry.header.project:
        raise PeerError("bad-fork", "it is about another project")
    return first, second


# --- ids and digests that are not of entries ---------------------------------------------


def cell_id(job: bytes, cell: Cell) -> bytes:
    """The id of a cell: a hash of its job and its canonical form."""
    form = [cell.python, sorted(cell.services), sorted([list(pair) for pair in cell.factors])]
    return hashlib.sha256(_CELL_DOMAIN + job + pack(form)).digest()


def comparable(environment: Environment | None) -> bytes:
    """The part of an environment that must be equal for two runs to be compared.

    Interpreter and its patch version, the installed set, and the services' versions:
    suites were measured to differ between patch releases on the same machine.
    """
    if environment is None:
        return ZERO
    form = [
        environment.implementation,
        environment.version,
        environment.packages,
        sorted([list(pair) for pair in environment.services.items()]),
    ]
    return hashlib.sha256(pack(form)).digest()


def outcome_digest(state: str, reason: str | None, tests: Iterable[tuple[str, Status]]) -> bytes:
    """The digest that two runs share exactly when they gave the same outcome.

    ``tests`` are (id, status) pairs in any order; ids are unique.
    """
    form = [state, reason or "", sorted([id_, str(status)] for id_, status in tests)]
    return hashlib.sha256(_OUTCOME_DOMAIN + pack(form)).digest()


def commitment(nonce: bytes, digest: bytes, author: bytes) -> bytes:
    """What a blind volunteer publishes before it reveals."""
    return hashlib.sha256(_COMMITMENT_DOMAIN + nonce + digest + author).digest()


@dataclass(frozen=True, slots=True)
class TestRecord:
    """One row of a run's list of tests. ``seconds`` and ``message`` are not compared."""

    id: str
    status: Status
    seconds: float
    message: str


def encode_tests(tests: Sequence[TestRecord]) -> bytes:
    """The bytes of a tests blob: zlib over msgpack rows [id, status, seconds, message]."""
    rows = [[t.id, str(t.status), t.seconds, t.message] for t in tests]
    return zlib.compress(pack(rows), 6)


def decode_tests(data: bytes) -> list[TestRecord]:
    """The rows of a tests blob; `PeerError` ("bad-tests") when it is not one."""
    plain = inflate(data, "bad-tests")
    try:
        # Typed while it is read: as plain values first, a few megabytes could fill the memory.
        rows = msgspec.msgpack.decode(plain, type=list[tuple[str, Status, float, str]])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise PeerError("bad-tests", str(fault)[:300]) from fault
    if any(math.isnan(row[2]) for row in rows):
        raise PeerError("bad-tests", "NaN")
    return [TestRecord(*row) for row in rows]


def encode_locks(locks: Sequence[Lock]) -> bytes:
    """The bytes of a locks blob: zlib over a msgpack list of maps."""
    return zlib.compress(pack(list(locks)), 9)


def decode_locks(data: bytes) -> list[Lock]:
    """The locks of a locks blob; `PeerError` ("bad-locks") when it is not one."""
    return convert(unpack(inflate(data, "bad-locks")), list[Lock], "bad-locks")


def inflate(data: bytes, reason: str, most: int = MAX_BLOB_EXPANDED) -> bytes:
    """zlib-decompress with a cap, so that a few bytes cannot fill the memory."""
    machine = zlib.decompressobj()
    try:
        plain = machine.decompress(data, most)
    except zlib.error as fault:
        raise PeerError(reason, str(fault)) from fault
    if not machine.eof or machine.unused_data:
        raise PeerError(reason, "cut short, too large when expanded, or trailing bytes")
    return plain


# --- gossip -----------------------------------------------------------------------------

_ENTRY_TAG, _OFFER_TAG, _CLAIM_TAG = 1, 2, 3
# What later versions may say beside these: one map, like an offer. We relay it unread.
_LATER_TAGS = range(4, 128)


def encode_gossip(message: Entry | Ephemeral) -> bytes:
    """One tag byte, then the entry's frame or the message's msgpack."""
    match message:
        case Entry():
            return bytes([_ENTRY_TAG]) + message.frame
        case Offer():
            return bytes([_OFFER_TAG]) + pack(message)
        case Claim():
            return bytes([_CLAIM_TAG]) + pack(message)
        case Later(tag, body):
            return bytes([tag]) + body


def decode_gossip(data: bytes) -> Entry | Ephemeral:
    """The message in a gossip payload; `PeerError` when it is none.

    An entry's signature is checked here too: nothing unsigned is ever relayed.
    """
    if not 1 < len(data) <= MAX_GOSSIP:
        raise PeerError("bad-gossip", f"{len(data)} bytes")
    tag, body = data[0], data[1:]
    if tag == _ENTRY_TAG:
        return decode_entry(body)
    if tag == _OFFER_TAG:
        return convert(unpack(body), Offer, "bad-gossip")
    if tag == _CLAIM_TAG:
        return convert(unpack(body), Claim, "bad-gossip")
    if tag in _LATER_TAGS and type(unpack(body)) is dict:
        return Later(tag, body)
    raise PeerError("bad-gossip", f"unknown tag {tag}")
