"""The Merkle tree of RFC 6962: roots, inclusion and consistency proofs, made and checked.

Pure. A tree is given by its size and by ``node(level, position)``, the hash over the
``2**level`` leaves from ``position << level`` on; only such full subtrees are ever asked
for, so a caller may keep them and answer in O(log n). `proofs` makes proofs with it,
`verifier`, which must stand alone, checks them again in its own words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

EMPTY = hashlib.sha256(b"").digest()

# (level, position) -> the hash over leaves [position << level, (position + 1) << level)
Node = Callable[[int, int], bytes]


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def full(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """All full subtrees over some leaf hashes, level by level; the first level is they."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        below = levels[-1]
        levels.append([node_hash(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)])
    return levels


def root(size: int, node: Node) -> bytes:
    """The hash of a tree."""
    return EMPTY if size == 0 else _over(0, size, node)


def _split(count: int) -> int:
    """The largest power of two below ``count``, which is at least 2."""
    return 1 << ((count - 1).bit_length() - 1)


def _over(start: int, end: int, node: Node) -> bytes:
    """The hash over leaves ``start`` to ``end``; ``start`` is where such a subtree may begin."""
    count = end - start
    if count & (count - 1) == 0:
        level = count.bit_length() - 1
        return node(level, start >> level)
    middle = start + _split(count)
    return node_hash(_over(start, middle, node), _over(middle, end, node))


# --- inclusion ------------------------------------------------------------------------------


def inclusion(index: int, size: int, node: Node) -> list[bytes]:
    """The proof that leaf ``index`` is in the tree of a size: siblings, from the leaf up."""
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} in a tree of {size}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_over(middle, end, node))
            end = middle
        else:
            path.append(_over(start, middle, node))
            start = middle
    return path[::-1]


def includes(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether ``path`` proves that the leaf hash is number ``index`` of the tree with that root."""
    if not 0 <= index < size:
        return False
    hash_, last = leaf, size - 1
    for sibling in path:
        if last == 0:
            return False
        if index & 1 or index == last:
            hash_ = node_hash(sibling, hash_)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            hash_ = node_hash(hash_, sibling)
        index, last = index >> 1, last >> 1
    return last == 0 and hash_ == root


# --- consistency ----------------------------------------------------------------------------


def consistency(old: int, new: int, node: Node) -> list[bytes]:
    """The proof that the tree of size ``new`` begins with that of size ``old``."""
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} does not grow from one of {old}")
    if old in (0, new):
        return []
    path: list[bytes] = []
    start, end = 0, new
    is_known = True  # Whether the subtree in hand is all of the old tree, whose root is known.
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            path.append(_over(middle, end, node))
            end = middle
        else:
            path.append(_over(start, middle, node))
            start, is_known = middle, False
    if not is_known:
        path.append(_over(start, end, node))
    return path[::-1]


def extends(old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether ``path`` proves that the new tree only appended to the old one."""
    if not 0 <= old <= new:
        return False
    if old == new:
        return not path and old_root == new_root
    if old == 0:
        # Every tree grows from the empty one.
        return not path and old_root == EMPTY
    hashes = list(path) if old & (old - 1) else [old_root, *path]
    if not hashes:
        return False
    index, last = old - 1, new - 1
    while index & 1:
        index, last = index >> 1, last >> 1
    first = second = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return False
        if index & 1 or index == last:
            first = node_hash(sibling, first)
            second = node_hash(sibling, second)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        index, last = index >> 1, last >> 1
    return last == 0 and first == old_root and second == new_root
