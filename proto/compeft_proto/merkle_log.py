"""The Merkle tree of RFC 6962 (section 2.1) over a log that only grows: hashes, roots and consistency proofs. No I/O, no signatures.

    leaf = SHA-256(0x00 || entry)        node = SHA-256(0x01 || left || right)

The tree over n entries splits at the largest power of two below n. A *complete* subtree has 2**level leaves and the place (level, index):
its leaves are index * 2**level up to (index + 1) * 2**level. Complete subtrees never change, so a log stores them as they become
complete; every root and every proof is put together from them. The root of 7 entries needs (2, 0), (1, 2) and (0, 6):

    root = node((2, 0), node((1, 2), (0, 6)))
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256().digest()
"""The root of a log without entries."""
MAX_PROOF = 64
"""Most hashes of a consistency proof between logs of up to 2**63 entries."""

Place = tuple[int, int]
"""(level, index) of a complete subtree."""
Range = tuple[int, int]
"""Entries first <= i < end."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry (32 bytes)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node (32 bytes) from those of its two halves."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def completed(number: int) -> Iterator[Place]:
    """The complete subtrees that end with entry `number`, counted from 1, smallest first: at level 0, and one for each trailing zero bit.

    Entry 4 completes (0, 3), (1, 1) and (2, 0); entry 5 completes (0, 4).
    """
    level = 0
    while number and number % (1 << level) == 0:
        yield level, (number >> level) - 1
        level += 1


def left_of(place: Place) -> Place:
    """The place on the same level to the left: with it, a subtree of odd index makes the one above."""
    return place[0], place[1] - 1


def places(entries: Range) -> list[Place]:
    """The complete subtrees, left to right, that the root of a range is made of. The range is one that the tree itself has."""
    first, end = entries
    found = []
    while first < end:
        level = (end - first).bit_length() - 1
        found.append((level, first >> level))
        first += 1 << level
    return found


def root(entries: Range, subtrees: Mapping[Place, bytes]) -> bytes:
    """The root of a range from its `places`. Of the whole log: `root((0, size), subtrees)`."""
    hashes = [subtrees[place] for place in places(entries)]
    if not hashes:
        return EMPTY_ROOT
    whole = hashes[-1]
    for left in reversed(hashes[:-1]):
        whole = node_hash(left, whole)
    return whole


def proof_ranges(old: int, new: int) -> list[Range]:
    """The ranges whose roots, in order, prove that a log of `new` entries begins with the `old` ones: PROOF(old, D[new]) of RFC 6962."""
    if not 0 < old < new:
        return []
    found: list[Range] = []
    first, end, known = 0, new, True
    while old != end:
        half = first + (1 << ((end - first - 1).bit_length() - 1))
        if old <= half:
            found.append((half, end))
            end = half
        else:
            found.append((first, half))
            first, known = half, False
    if not known:
        found.append((first, end))
    return found[::-1]


def grows_from(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that the log of `new` entries begins with the `old` ones (RFC 9162, section 2.1.4.2)."""
    if old == 0 or old == new:
        return not proof and new >= old and (old == 0 or old_root == new_root)
    if old > new or not proof or len(proof) > MAX_PROOF:
        return False
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    left, right = old - 1, new - 1
    while left & 1:
        left, right = left >> 1, right >> 1
    before = after = path[0]
    for sibling in path[1:]:
        if right == 0:
            return False
        if left & 1 or left == right:
            before, after = node_hash(sibling, before), node_hash(sibling, after)
            while left and not left & 1:
                left, right = left >> 1, right >> 1
        else:
            after = node_hash(after, sibling)
        left, right = left >> 1, right >> 1
    return before == old_root and after == new_root and right == 0
