"""Checks a proof file of PonySwarm on its own: copy this one file to any machine.

It needs Python 3.8 or later and PyNaCl, and neither PonySwarm nor a network:

    python verifier.py FILE [--witness KEY ...] [-n N] [--json]

A proof shows that an entry was signed by its author's key, that it is in a Merkle tree
whose size and root a node signed, and which witnesses saw that tree at that size and
found that it had only grown. It exits 0 when that is proved, with the witnesses that were
asked for, 4 when it is not, 2 when it was called wrongly. The format is described in
docs/proofs.md. A line that does not hold makes the whole file invalid: whoever made the
file checked every line, so a bad one says that the file was changed.

Inside PonySwarm `proofs` makes what this reads, and ``ponyswarm verify --proof`` and the
witnesses use these same functions. Nothing here raises anything but `Invalid`.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import struct
import sys
import textwrap
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from nacl.bindings import crypto_core_ed25519_is_valid_point
from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

EXIT_PROVED, EXIT_USAGE, EXIT_INVALID = 0, 2, 4

MAGIC = b"ponyswarm/proof/1\n"
MAX_FILE = 16384
MAX_PATH = 63
MAX_SIGNATURES = 64
MAX_NUMBER = (1 << 63) - 1

HEADER = struct.Struct(">BBHI32s32s8sQ32sQ32s")
PAYLOAD_AT = HEADER.size + 64
KINDS = {
    1: "project",
    2: "announce",
    3: "withdraw",
    4: "commit",
    5: "result",
    6: "vouch",
    7: "revoke",
    8: "fork",
    9: "checkpoint",
}

# Signature types of https://c2sp.org/signed-note
ED25519 = 1
COSIGNATURE = 4
SIGNATURE_MARK = "\u2014 "


class Invalid(Exception):
    """It is no proof; the text says of what, in words for a person."""


# --- keys -----------------------------------------------------------------------------------

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
# A peer id is the identity multihash of a protobuf with an Ed25519 key in it.
_PEER_ID_PREFIX = bytes.fromhex("002408011220")


def peer_id(key: bytes) -> str:
    """A key as people see it: 12D3KooW…"""
    data = _PEER_ID_PREFIX + key
    number, digits = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + digits


def parse_peer_id(text: str) -> bytes:
    """The 32 bytes of a key that is written in the one way there is."""
    number = 0
    if len(text) > 64:
        raise Invalid("a key has at most 64 characters")
    for character in text:
        digit = _BASE58.find(character)
        if digit < 0:
            raise Invalid(f"{text!r} is not a key: a key looks like 12D3KooW\u2026")
        number = number * 58 + digit
    raw = number.to_bytes(64, "big")
    key = raw[-32:]
    if raw[-38:-32] != _PEER_ID_PREFIX or peer_id(key) != text:
        raise Invalid(f"{text!r} is not a key: a key looks like 12D3KooW\u2026")
    return key


def signed_by(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a signature holds, by the one rule of the network: libsodium's and a valid point."""
    if len(key) != 32 or len(signature) != 64 or not crypto_core_ed25519_is_valid_point(key):
        return False
    try:
        VerifyKey(key).verify(message, signature)
    except CryptoError:
        return False
    return True


# --- entries --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signed:
    """A signed entry of the ledger, whose bytes and signature hold together."""

    id: bytes
    kind: int
    author: bytes
    project: bytes
    seq: int
    time: int
    payload: bytes


def open_frame(frame: bytes) -> Signed:
    """An entry from its bytes. Raises `Invalid`."""
    if len(frame) < PAYLOAD_AT:
        raise Invalid("the entry is cut short")
    header = frame[: HEADER.size]
    version, kind, flags, length, author, project, _, seq, prev, time, digest = HEADER.unpack(
        header
    )
    if version != 1 or flags:
        raise Invalid(
            "the entry is of a version that this program does not know: check it with a newer one"
        )
    if seq > MAX_NUMBER or time > MAX_NUMBER or (seq == 0) != (prev == bytes(32)):
        raise Invalid("the entry breaks the rules of its format")
    if project == bytes(32) and (kind != 1 or seq):
        raise Invalid("the entry names no project")
    payload = frame[PAYLOAD_AT:]
    if len(payload) != length or hashlib.sha256(payload).digest() != digest:
        raise Invalid("the entry's content is not what its header says")
    id_ = hashlib.sha256(b"ponyswarm/entry/v1\0" + header).digest()
    if not signed_by(author, b"ponyswarm/sig/v1\0" + id_, frame[HEADER.size : PAYLOAD_AT]):
        raise Invalid("the entry's signature does not hold")
    return Signed(id_, kind, author, id_ if project == bytes(32) else project, seq, time, payload)


# --- notes and checkpoints --------------------------------------------------------------------


@dataclass(frozen=True)
class Note:
    """A signed note of https://c2sp.org/signed-note: its text, and (name, signature) lines."""

    text: bytes
    signatures: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class Checkpoint:
    """The text of a https://c2sp.org/tlog-checkpoint."""

    origin: str
    size: int
    root: bytes


def open_note(data: bytes) -> Note:
    """A note's parts; no signature is checked yet. Raises `Invalid`."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Invalid("the checkpoint is not UTF-8") from None
    if any(c < " " and c != "\n" for c in text):
        raise Invalid("the checkpoint has control characters")
    body, blank, tail = text.rpartition("\n\n")
    if not blank or not tail.endswith("\n"):
        raise Invalid("the checkpoint has no signatures")
    lines = tail[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise Invalid("the checkpoint has too many signatures")
    return Note((body + "\n").encode("utf-8"), tuple(_signature(line) for line in lines))


def _signature(line: str) -> tuple[str, bytes]:
    name, space, encoded = line[len(SIGNATURE_MARK) :].partition(" ")
    if not line.startswith(SIGNATURE_MARK) or not space or not name or "+" in name:
        raise Invalid("a signature line is out of form")
    if any(c.isspace() for c in name):
        raise Invalid("a signature's name has spaces in it")
    signature = unbase64(encoded)
    if len(signature) < 5:
        raise Invalid("a signature is cut short")
    return name, signature


def unbase64(text: str) -> bytes:
    """Base64 in the one way to write it."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise Invalid("what should be base64 is not") from None
    if base64.b64encode(data).decode("ascii") != text:
        raise Invalid("base64 is not written in its one form")
    return data


def unnumber(text: str) -> int:
    """A decimal number in the one way to write it."""
    if (
        not (text.isascii() and text.isdigit())
        or len(text) > 19
        or (text[0] == "0" and text != "0")
    ):
        raise Invalid("what should be a number is not")
    return int(text)


def open_checkpoint(text: bytes) -> Checkpoint:
    """What a checkpoint's text says: origin, size and root, and nothing else."""
    lines = text.decode("utf-8").split("\n")
    if len(lines) != 4 or lines[3] or not lines[0]:
        raise Invalid("the checkpoint is not the three lines that it should be")
    root = unbase64(lines[2])
    if len(root) != 32:
        raise Invalid("the checkpoint's root is not a SHA-256")
    return Checkpoint(lines[0], unnumber(lines[1]), root)


def key_id(name: str, kind: int, key: bytes) -> bytes:
    """The short id that a signature begins with."""
    return hashlib.sha256(name.encode("utf-8") + b"\n" + bytes([kind]) + key).digest()[:4]


def log_key(origin: str) -> bytes:
    """The key that signs the checkpoints of an origin: ``PEER_ID/8 hexadecimal digits``."""
    name, _, tree = origin.partition("/")
    if len(tree) != 8 or any(c not in "0123456789abcdef" for c in tree):
        raise Invalid("the checkpoint's origin is not a key and a tree's number")
    return parse_peer_id(name)


def check_log(note: Note, origin: str) -> None:
    """Whether the first signature of a checkpoint is of its log. Raises `Invalid`."""
    key = log_key(origin)
    name, signature = note.signatures[0]
    if name != origin or signature[:4] != key_id(name, ED25519, key):
        raise Invalid("the checkpoint's first signature is not of its log")
    if not signed_by(key, note.text, signature[4:]):
        raise Invalid("the checkpoint's signature does not hold")


def cosigned_text(text: bytes, time: int) -> bytes:
    """What a witness signs: https://c2sp.org/tlog-cosignature, version 1."""
    return b"cosignature/v1\ntime %d\n" % time + text


def check_cosignature(text: bytes, name: str, signature: bytes) -> tuple[bytes, int]:
    """(key, seconds) of a witness whose cosignature holds. Raises `Invalid`."""
    key = parse_peer_id(name)
    if len(signature) != 76 or signature[:4] != key_id(name, COSIGNATURE, key):
        raise Invalid("a cosignature is out of form")
    time = int.from_bytes(signature[4:12], "big")
    if time > MAX_NUMBER or not signed_by(key, cosigned_text(text, time), signature[12:]):
        raise Invalid(f"the cosignature of {name} does not hold")
    return key, time


# --- the proof ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proof:
    """The parts of a proof file, not checked yet."""

    index: int
    path: tuple[bytes, ...]
    frame: bytes
    note: bytes


@dataclass(frozen=True)
class Proved:
    """What a proof proves. ``witnesses`` are keys, each with the second in which it signed."""

    entry: Signed
    index: int
    checkpoint: Checkpoint
    log: bytes
    witnesses: tuple[tuple[bytes, int], ...] = field(default=())


def open_proof(data: bytes) -> Proof:
    """A file's parts. Raises `Invalid`."""
    if len(data) > MAX_FILE:
        raise Invalid(f"a proof has at most {MAX_FILE} bytes")
    if not data.startswith(MAGIC):
        raise Invalid("this is not a proof of PonySwarm, or of a later version")
    at = len(MAGIC) + 9
    if len(data) < at:
        raise Invalid("the file is cut short: get it again")
    index, count = struct.unpack(">QB", data[len(MAGIC) : at])
    if count > MAX_PATH or len(data) < at + 32 * count + 2:
        raise Invalid("the file is cut short: get it again")
    path = tuple(data[at + 32 * i : at + 32 * (i + 1)] for i in range(count))
    at += 32 * count
    end = at + 2 + int.from_bytes(data[at : at + 2], "big")
    if len(data) < end:
        raise Invalid("the file is cut short: get it again")
    return Proof(index, path, data[at + 2 : end], data[end:])


def check(data: bytes) -> Proved:
    """What a proof file proves. Raises `Invalid` when anything in it does not hold."""
    proof = open_proof(data)
    entry = open_frame(proof.frame)
    note = open_note(proof.note)
    checkpoint = open_checkpoint(note.text)
    check_log(note, checkpoint.origin)
    if not _includes(entry.id, proof.index, checkpoint.size, proof.path, checkpoint.root):
        raise Invalid("the entry is not in the tree of the checkpoint")
    log = log_key(checkpoint.origin)
    witnesses: list[tuple[bytes, int]] = []
    for name, signature in note.signatures[1:]:
        key, time = check_cosignature(note.text, name, signature)
        if key == log or any(key == known for known, _ in witnesses):
            raise Invalid("a witness is the log itself, or stands twice")
        witnesses.append((key, time))
    return Proved(entry, proof.index, checkpoint, log, tuple(witnesses))


def _includes(leaf: bytes, index: int, size: int, path: tuple[bytes, ...], root: bytes) -> bool:
    """RFC 6962: whether the path leads from leaf number ``index`` to the root."""
    if index >= size:
        return False
    hash_, last = hashlib.sha256(b"\0" + leaf).digest(), size - 1
    for sibling in path:
        if last == 0:
            return False
        if index & 1 or index == last:
            hash_ = hashlib.sha256(b"\1" + sibling + hash_).digest()
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            hash_ = hashlib.sha256(b"\1" + hash_ + sibling).digest()
        index, last = index >> 1, last >> 1
    return last == 0 and hash_ == root


# --- in words -------------------------------------------------------------------------------


def suffices(proved: Proved, chosen: list[bytes], needed: int | None) -> tuple[int, int]:
    """(witnesses that count, how many are needed) under what the reader asks for.

    Those that count are the ``chosen`` keys, or all when none is chosen; as many as are
    chosen are needed unless ``needed`` says otherwise.
    """
    counting = [key for key, _ in proved.witnesses if not chosen or key in chosen]
    return len(counting), len(set(chosen)) if needed is None else needed


def words(proved: Proved, chosen: list[bytes], needed: int | None) -> list[str]:
    """What is proved, and what is not, as lines for a person."""
    entry, tree = proved.entry, proved.checkpoint
    have, need = suffices(proved, chosen, needed)
    lines = []
    if have < need:
        whom = "of those you named" if chosen else "in the file"
        lines.append(f"NOT ENOUGH: {need} witnesses are needed, and {have} {whom} cosigned.")
    lines += [
        "Proved:",
        f"  * The key {peer_id(entry.author)}",
        f"    signed entry {entry.id.hex()},",
        *textwrap.wrap(describe(entry) + ".", 88, initial_indent="    ", subsequent_indent="    "),
        f"    It dates it {_moment(entry.time // 1000)}.",
        f"  * The entry is number {proved.index}, counted from 0, of the {tree.size} in the tree",
        f"    {tree.origin},",
        "    as its node, whose key stands before the stroke, signed it.",
    ]
    if proved.witnesses:
        lines += [
            "  * These witnesses were shown that tree at that size, and found that it had only",
            "    grown since they last saw it. So the entry was there then, by each one's clock:",
        ]
        for key, time in proved.witnesses:
            mark = "" if not chosen or key in chosen else "  (not one that you named)"
            lines.append(f"      {peer_id(key)}  {_moment(time)}{mark}")
    lines += [
        "Not proved:",
        "  * That what the entry says is true: it is what its author says.",
        "  * That the author was allowed to say it, and has not forked its feed or been",
        "    revoked: the ledger knows ('ponyswarm verify', 'ponyswarm results').",
        "  * That no other entry says otherwise: what was left out leaves no trace here.",
        "  * That there is no other tree: the node may keep one under another name,",
    ]
    if proved.witnesses:
        lines.append("    or show another one to others who do not ask these witnesses.")
    else:
        lines.append("    or show others another one: no witness cosigned this.")
    return lines


def facts(proved: Proved, chosen: list[bytes], needed: int | None) -> dict[str, object]:
    """The same for a program."""
    entry = proved.entry
    have, need = suffices(proved, chosen, needed)
    return {
        "proved": have >= need,
        "entry": entry.id.hex(),
        "kind": KINDS.get(entry.kind, str(entry.kind)),
        "author": peer_id(entry.author),
        "project": entry.project.hex(),
        "seq": entry.seq,
        "time": entry.time,
        "says": describe(entry),
        "index": proved.index,
        "origin": proved.checkpoint.origin,
        "size": proved.checkpoint.size,
        "root": proved.checkpoint.root.hex(),
        "log": peer_id(proved.log),
        "witnesses": [{"key": peer_id(key), "time": time} for key, time in proved.witnesses],
        "counted": have,
        "needed": need,
    }


def _moment(seconds: int) -> str:
    try:
        moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds)  # noqa: UP017
    except OverflowError:
        return f"second {seconds}"
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def describe(entry: Signed) -> str:
    """An entry's content in a few words, harmless to print."""
    kind = KINDS.get(entry.kind, f"kind {entry.kind}")
    article = "an" if kind[0] in "a" else "a"
    told = f"{article} {kind}" if entry.kind in KINDS else f"an entry of {kind}"
    if entry.id != entry.project:
        told += f" in project {entry.project.hex()[:16]}"
    try:
        content, rest = _unpack(entry.payload, 0, 0)
    except (Invalid, struct.error, IndexError, UnicodeDecodeError, RecursionError):
        return told
    if not isinstance(content, dict) or rest != len(entry.payload):
        return told
    if entry.kind == 5:
        counts = content.get("counts")
        if isinstance(counts, dict):
            parts = ", ".join(f"{_text(n)} {_text(status)}" for status, n in counts.items() if n)
            told += f": {_text(content.get('state'))}, {parts or 'no tests'}"
        place = content.get("environment")
        if isinstance(place, dict):
            told += " on " + " ".join(
                _text(place.get(name)) for name in ("implementation", "version", "system")
            )
    name = content.get({1: "name", 2: "title", 6: "operator"}.get(entry.kind, ""))
    if name:
        told += f": {_text(name)}"
    for field_ in ("job", "cell"):
        if isinstance(content.get(field_), bytes):
            told += f", {field_} {content[field_].hex()[:16]}"
    return told


def _text(value: object) -> str:
    """A stranger's value as one short line without terminal or writing-direction tricks."""
    text = str(value)[:200]
    return "".join(c if c.isprintable() and not "\u200e" <= c <= "\u2069" else "?" for c in text)


def _unpack(data: bytes, at: int, depth: int) -> tuple[object, int]:
    """One msgpack value, for reading only: (value, where it ends)."""
    if depth > 16:
        raise Invalid("nested too deep")
    first = data[at]
    at += 1
    if first < 0x80:
        return first, at
    if first >= 0xE0:
        return first - 256, at
    if first < 0xC0:
        kind, count = ("map", first & 15) if first < 0x90 else ("array", first & 15)
        if first >= 0xA0:
            kind, count = "str", first & 31
    elif first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    elif first in _NUMBERS:
        form = _NUMBERS[first]
        value = struct.unpack_from(form, data, at)[0]
        return value, at + struct.calcsize(form)
    elif first in _SIZED:
        kind, form = _SIZED[first]
        count = struct.unpack_from(form, data, at)[0]
        at += struct.calcsize(form)
    else:
        raise Invalid("a value of an unknown type")
    if kind in ("str", "bin"):
        raw = data[at : at + count]
        if len(raw) != count:
            raise Invalid("cut short")
        return raw if kind == "bin" else raw.decode("utf-8"), at + count
    items = []
    for _ in range(count * 2 if kind == "map" else count):
        item, at = _unpack(data, at, depth + 1)
        items.append(item)
    if kind == "array":
        return items, at
    if not all(isinstance(name, str) for name in items[::2]):
        raise Invalid("a name that is not text")
    return {items[i]: items[i + 1] for i in range(0, len(items), 2)}, at


_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_SIZED = {
    0xC4: ("bin", ">B"),
    0xC5: ("bin", ">H"),
    0xC6: ("bin", ">I"),
    0xD9: ("str", ">B"),
    0xDA: ("str", ">H"),
    0xDB: ("str", ">I"),
    0xDC: ("array", ">H"),
    0xDD: ("array", ">I"),
    0xDE: ("map", ">H"),
    0xDF: ("map", ">I"),
}


def judge(
    data: bytes, chosen: list[bytes], needed: int | None, *, as_json: bool
) -> tuple[int, str]:
    """(exit code, what to print) about a proof file."""
    try:
        proved = check(data)
    except Invalid as fault:
        if as_json:
            return EXIT_INVALID, json.dumps({"proved": False, "why": str(fault)}, indent=2)
        return EXIT_INVALID, f"NOT A VALID PROOF: {fault}."
    have, need = suffices(proved, chosen, needed)
    if as_json:
        text = json.dumps(facts(proved, chosen, needed), indent=2, ensure_ascii=False)
    else:
        text = "\n".join(words(proved, chosen, needed))
    return EXIT_PROVED if have >= need else EXIT_INVALID, text


def main(arguments: list[str] | None = None) -> int:
    """The program: its exit code."""
    parser = argparse.ArgumentParser(description="Check a proof file of PonySwarm, offline.")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument(
        "--witness", metavar="KEY", action="append", default=[], help="Count only this witness."
    )
    parser.add_argument(
        "-n", metavar="N", type=int, dest="needed", help="How many witnesses must have cosigned."
    )
    parser.add_argument("--json", action="store_true", dest="as_json", help="Print JSON.")
    options = parser.parse_args(arguments)
    try:
        chosen = [parse_peer_id(text) for text in options.witness]
        with open(options.file, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except (Invalid, OSError) as fault:
        sys.stderr.write(f"error: {fault}\n")
        return EXIT_USAGE
    code, text = judge(data, chosen, options.needed, as_json=options.as_json)
    sys.stdout.buffer.write((text + "\n").encode("utf-8"))
    return code


if __name__ == "__main__":
    sys.exit(main())
