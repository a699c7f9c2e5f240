"""The tree of RFC 6962 against its published vectors and against the RFC's own definitions."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponyswarm.ledger import merkle

# The inputs, roots and proofs that Certificate Transparency's implementations publish and share.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    bytes.fromhex(text)
    for text in (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
N96 = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
N6E = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
NFA = "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
N5F = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
NBC = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
N6B = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
NCA = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
ND3 = "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"
N0E = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
INCLUSION = [
    (0, 1, []),
    (0, 2, [N96]),
    (1, 2, [N6E]),
    (2, 3, [NFA]),
    (1, 5, [N6E, N5F, NBC]),
    (0, 8, [N96, N5F, N6B]),
    (5, 8, [NBC, NCA, ND3]),
]
CONSISTENCY = [
    (1, 1, []),
    (1, 8, [N96, N5F, N6B]),
    (2, 5, [N5F, NBC]),
    (6, 8, [N0E, NCA, ND3]),
]

sizes = st.integers(1, 70)


def node_of(leaves: list[bytes]) -> merkle.Node:
    levels = merkle.full([merkle.leaf_hash(leaf) for leaf in leaves])
    return lambda level, position: levels[level][position]


def some(size: int) -> list[bytes]:
    return [hashlib.sha256(b"%d" % i).digest() for i in range(size)]


# RFC 6962, section 2.1, word for word.


def mth(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = largest(len(leaves))
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def largest(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = largest(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def proof(m: int, leaves: list[bytes]) -> list[bytes]:
    return subproof(m, leaves, True)


def subproof(m: int, leaves: list[bytes], complete: bool) -> list[bytes]:
    if m == len(leaves):
        return [] if complete else [mth(leaves)]
    k = largest(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], complete), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


@pytest.mark.parametrize("size", range(9))
def test_published_roots(size: int) -> None:
    assert merkle.root(size, node_of(LEAVES[:size])) == ROOTS[size]


@pytest.mark.parametrize(("index", "size", "hashes"), INCLUSION)
def test_published_inclusion_proofs(index: int, size: int, hashes: list[str]) -> None:
    made = merkle.inclusion(index, size, node_of(LEAVES))
    assert [hash_.hex() for hash_ in made] == hashes
    assert merkle.includes(merkle.leaf_hash(LEAVES[index]), index, size, made, ROOTS[size])


@pytest.mark.parametrize(("old", "new", "hashes"), CONSISTENCY)
def test_published_consistency_proofs(old: int, new: int, hashes: list[str]) -> None:
    made = merkle.consistency(old, new, node_of(LEAVES))
    assert [hash_.hex() for hash_ in made] == hashes
    assert merkle.extends(old, ROOTS[old], new, ROOTS[new], made)


@given(sizes, st.data())
def test_roots_and_proofs_are_those_of_the_rfc(size: int, data: st.DataObject) -> None:
    leaves = some(size)
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size))
    node = node_of(leaves)
    root = merkle.root(size, node)
    assert root == mth(leaves)
    assert merkle.root(old, node) == mth(leaves[:old]), "an earlier root, from a later tree"
    up = merkle.inclusion(index, size, node)
    assert up == path(index, leaves)
    assert merkle.includes(merkle.leaf_hash(leaves[index]), index, size, up, root)
    along = merkle.consistency(old, size, node)
    assert along == proof(old, leaves)
    assert merkle.extends(old, mth(leaves[:old]), size, root, along)


@given(sizes, st.data())
def test_nothing_but_the_true_statement_is_proved(size: int, data: st.DataObject) -> None:
    leaves = some(size)
    node = node_of(leaves)
    root = merkle.root(size, node)
    index = data.draw(st.integers(0, size - 1))
    leaf = merkle.leaf_hash(leaves[index])
    up = merkle.inclusion(index, size, node)
    for other in range(-1, size + 2):
        assert merkle.includes(leaf, other, size, up, root) == (other == index)
    assert not merkle.includes(merkle.leaf_hash(b"x"), index, size, up, root)
    assert not merkle.includes(leaf, index, size, [*up, up[-1] if up else leaf], root)
    if up:
        at = data.draw(st.integers(0, len(up) - 1))
        assert not merkle.includes(leaf, index, size, up[:at] + up[at + 1 :], root)
        assert not merkle.includes(leaf, index, size, [*up[:at], bytes(32), *up[at + 1 :]], root)

    old = data.draw(st.integers(1, size))
    before = merkle.root(old, node)
    along = merkle.consistency(old, size, node)
    assert not merkle.extends(old, bytes(32), size, root, along)
    assert not merkle.extends(old, before, size, bytes(32), along)
    assert not merkle.extends(old, before, size, root, [*along, root])
    for other in range(size + 2):
        if other != old and (other != 0 or along):
            assert not merkle.extends(other, before, size, root, along)
    changed = [*leaves[: old - 1], b"changed", *leaves[old:]]
    fake = node_of(changed)
    path_of_fake = merkle.consistency(old, size, fake)
    assert not merkle.extends(old, before, size, merkle.root(size, fake), path_of_fake)


def test_the_empty_tree() -> None:
    node = node_of(LEAVES)
    assert merkle.consistency(0, 8, node) == []
    assert merkle.extends(0, merkle.EMPTY, 8, ROOTS[8], [])
    assert merkle.extends(0, merkle.EMPTY, 0, merkle.EMPTY, [])
    assert not merkle.extends(0, ROOTS[1], 8, ROOTS[8], [])
    assert not merkle.extends(8, ROOTS[8], 4, ROOTS[4], [])
    for wrong in (-1, 8):
        with pytest.raises(ValueError, match="no leaf"):
            merkle.inclusion(wrong, 8, node)
    with pytest.raises(ValueError, match="does not grow"):
        merkle.consistency(9, 8, node)


def test_proofs_are_short_in_a_large_tree() -> None:
    """A proof asks for full subtrees only, so few hashes make it whatever the size."""
    asked: list[tuple[int, int]] = []

    def node(level: int, position: int) -> bytes:
        asked.append((level, position))
        return hashlib.sha256(b"%d %d" % (level, position)).digest()

    assert len(merkle.inclusion(123_456, 10**6, node)) <= 20
    assert len(merkle.consistency(123_456, 10**6, node)) <= 40
    assert len(asked) < 120
