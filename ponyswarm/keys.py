"""Ed25519 keys, their text form, and the one signature rule of the network.

A key is shown as its libp2p peer id (``12D3KooW…``): the identity multihash of
the protobuf-wrapped public key, in base58btc. A signature counts when libsodium
accepts it and the key is a valid point of the prime-order group; other libraries
accept more, so nothing else may verify.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import base58
from nacl.bindings import crypto_core_ed25519_is_valid_point
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from ponyswarm.errors import LocalError

KEY_SIZE = 32
SIGNATURE_SIZE = 64

# The identity multihash header (0x00, length 0x24) and the protobuf header of an
# Ed25519 public key: https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md
_PEER_ID_PREFIX = bytes.fromhex("002408011220")
_HOW = "a key looks like 12D3KooW…, as 'ponyswarm key show' prints it"


class SecretKey:
    """A signing key. Its text and repr never show the secret."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_SIZE:
            raise ValueError(f"a key seed has {KEY_SIZE} bytes, not {len(seed)}")
        self._key = SigningKey(seed)
        self.public: bytes = bytes(self._key.verify_key)

    @classmethod
    def generate(cls) -> SecretKey:
        return cls(os.urandom(KEY_SIZE))

    @property
    def seed(self) -> bytes:
        return bytes(self._key)

    def sign(self, message: bytes) -> bytes:
        return bytes(self._key.sign(message).signature)

    def __repr__(self) -> str:
        return f"SecretKey({peer_id(self.public)})"


@lru_cache(maxsize=65536)
def peer_id(key: bytes) -> str:
    """The peer id text of a 32-byte public key."""
    return str(base58.b58encode(_PEER_ID_PREFIX + key), "ascii")


def parse_peer_id(text: str) -> bytes:
    """The 32-byte public key of a peer id text; `LocalError` says what is wrong with it."""
    try:
        raw = bytes(base58.b58decode(text.strip()))
    except ValueError as fault:
        raise LocalError(f"{text!r} is not a key: {_HOW}") from fault
    if len(raw) != len(_PEER_ID_PREFIX) + KEY_SIZE or not raw.startswith(_PEER_ID_PREFIX):
        raise LocalError(f"{text!r} is not a whole Ed25519 key: {_HOW}")
    return raw[len(_PEER_ID_PREFIX) :]


@lru_cache(maxsize=16384)
def _verifier(key: bytes) -> VerifyKey | None:
    # The point check costs twice a verification, so its answer is kept with the key.
    if len(key) != KEY_SIZE or not crypto_core_ed25519_is_valid_point(key):
        return None
    return VerifyKey(key)


def is_valid_key(key: bytes) -> bool:
    """Whether ``key`` is a point that may author entries."""
    return _verifier(key) is not None


def verify(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` of ``message`` by ``key`` is valid; never raises."""
    verifier = _verifier(key)
    if verifier is None or len(signature) != SIGNATURE_SIZE:
        return False
    try:
        verifier.verify(message, signature)
    except CryptoError:
        return False
    return True


def load(path: Path) -> SecretKey:
    """Read the key file (64 hexadecimal digits).

    Raises `LocalError` when it is missing, malformed, or readable by others.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text("ascii").strip()
    except FileNotFoundError as fault:
        raise LocalError(f"there is no key at {path}: make one with 'ponyswarm init'") from fault
    except OSError as fault:
        raise LocalError(
            f"the key at {path} cannot be read: {fault.strerror}; check who owns it, or restore "
            "it from a backup"
        ) from fault
    except UnicodeDecodeError:
        text = ""  # As damaged as any other wrong text.
    if os.name == "posix" and mode & 0o077:
        raise LocalError(
            f"the key at {path} can be read by other users: close it with 'chmod 600 {path}'"
        )
    try:
        return SecretKey(bytes.fromhex(text))
    except ValueError as fault:
        raise LocalError(
            f"the key at {path} is damaged (expected 64 hexadecimal digits): "
            "restore it from a backup, or move it away and run 'ponyswarm init'"
        ) from fault


def save(path: Path, key: SecretKey) -> None:
    """Write a new key file, mode 0600; refuses to replace one (`LocalError`)."""
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as fault:
        if not path.exists():
            raise LocalError(
                f"the key {path} cannot be written: {fault.strerror}; check who owns that folder, "
                "or choose another home with --home DIR"
            ) from fault
        raise LocalError(
            f"there is a key at {path} already, and it is never replaced: for another one choose "
            "another home with --home DIR"
        ) from fault
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key.seed.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
