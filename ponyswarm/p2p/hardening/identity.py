"""Keys as libp2p spells them, and back."""

from __future__ import annotations

from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.peer.id import ID

from ponyswarm import keys

# The bytes before the key in an Ed25519 peer id; see `ponyswarm.keys`.
_ED25519_ID = bytes.fromhex("002408011220")


def peer_key(identity: ID | bytes) -> bytes | None:
    """The 32-byte Ed25519 key inside a libp2p peer id; None for other kinds."""
    raw = identity.to_bytes() if isinstance(identity, ID) else bytes(identity)
    if len(raw) != len(_ED25519_ID) + keys.KEY_SIZE or not raw.startswith(_ED25519_ID):
        return None
    return bytes(raw[len(_ED25519_ID) :])


def peer_identity(key: bytes) -> ID:
    """The libp2p peer id of a 32-byte Ed25519 key."""
    return ID(_ED25519_ID + key)


def key_pair(key: keys.SecretKey) -> KeyPair:
    """The libp2p form of our key."""
    return ed25519_key_pair(key.seed)
