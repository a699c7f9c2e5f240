"""Keys: their text, the one signature rule, and the key file."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponyswarm import keys
from ponyswarm.errors import LocalError
from ponyswarm.keys import SecretKey

KEY = SecretKey(bytes(range(32)))

# Points of small order, the identity among them, and one that is no canonical encoding.
BAD_POINTS = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
]


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_text_names_its_key(key):
    text = keys.peer_id(key)
    assert text.startswith("12D3KooW")
    assert keys.parse_peer_id(f"  {text}\n") == key


def test_the_peer_id_is_the_one_of_libp2p():
    from libp2p.crypto.ed25519 import Ed25519PublicKey
    from libp2p.peer.id import ID

    assert str(ID.from_pubkey(Ed25519PublicKey.from_bytes(KEY.public))) == keys.peer_id(KEY.public)


@pytest.mark.parametrize(
    "text", ["", "x", "12D3KooW", "0OIl", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", "é"]
)
def test_other_text_is_no_key(text):
    with pytest.raises(LocalError):
        keys.parse_peer_id(text)


@given(st.text(max_size=60))
def test_no_text_raises_anything_but_local_error(text):
    with contextlib.suppress(LocalError):
        keys.parse_peer_id(text)


def test_a_signature_holds_for_its_message_and_key_only():
    signature = KEY.sign(b"hello")
    assert keys.verify(KEY.public, b"hello", signature)
    assert not keys.verify(KEY.public, b"hellO", signature)
    assert not keys.verify(SecretKey(bytes(32)).public, b"hello", signature)
    assert not keys.verify(KEY.public, b"hello", signature[:-1])
    assert not keys.verify(KEY.public, b"hello", signature + b"\0")
    assert not keys.verify(KEY.public[:-1], b"hello", signature)


@pytest.mark.parametrize("point", BAD_POINTS)
def test_a_key_that_is_no_point_of_the_prime_order_group_signs_nothing(point):
    key = bytes.fromhex(point)
    assert not keys.is_valid_key(key)
    # Of a small-order key, this is a signature that other libraries accept for any message.
    assert not keys.verify(key, b"hello", bytes([1]) + bytes(63))


def test_a_signature_with_a_scalar_above_the_order_is_refused():
    order = 2**252 + 27742317777372353535851937790883648493
    signature = KEY.sign(b"hello")
    scalar = int.from_bytes(signature[32:], "little") + order
    assert not keys.verify(KEY.public, b"hello", signature[:32] + scalar.to_bytes(32, "little"))


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=70))
def test_verify_never_raises(key, message, signature):
    assert keys.verify(key, message, signature) is False


def test_a_key_does_not_show_its_secret():
    assert KEY.seed.hex() not in repr(KEY)
    assert str(KEY) == repr(KEY) == f"SecretKey({keys.peer_id(KEY.public)})"


def test_a_saved_key_is_loaded_and_never_replaced(tmp_path):
    path = tmp_path / "deep" / "key"
    keys.save(path, KEY)
    assert keys.load(path).seed == KEY.seed
    with pytest.raises(LocalError, match="never replaced"):
        keys.save(path, SecretKey.generate())
    assert keys.load(path).seed == KEY.seed


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_a_key_that_others_can_read_is_not_used(tmp_path):
    path = tmp_path / "key"
    keys.save(path, KEY)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(LocalError, match="chmod 600"):
        keys.load(path)


@pytest.mark.parametrize("content", [b"", b"zz" * 32, b"00" * 31, b"\xff\xfe", b"00" * 33])
def test_a_damaged_key_file_is_said_to_be_damaged(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(LocalError, match=r"damaged|cannot be read|seed has"):
        keys.load(path)


def test_a_missing_key_says_what_to_do(tmp_path):
    with pytest.raises(LocalError, match="ponyswarm init"):
        keys.load(tmp_path / "key")
