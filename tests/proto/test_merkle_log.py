"""The Merkle tree: the published vectors of RFC 6962 trees, and every proof between small logs."""

import hashlib

import pytest

from compeft_proto.merkle_log import (
    EMPTY_ROOT,
    Place,
    completed,
    grows_from,
    leaf_hash,
    left_of,
    node_hash,
    places,
    proof_ranges,
    root,
)

LEAVES = tuple(
    map(bytes.fromhex, ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"))
)
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
"""The test vectors of Certificate Transparency: the root over the first 1 to 8 leaves."""
PROOFS = {
    (1, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (6, 8): (
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 5): (
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ),
}
"""And its consistency proofs."""


def naive(leaves: tuple[bytes, ...]) -> bytes:
    """MTH of RFC 6962, as it is written there."""
    if len(leaves) < 2:
        return leaf_hash(leaves[0]) if leaves else hashlib.sha256().digest()
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    return node_hash(naive(leaves[:half]), naive(leaves[half:]))


def subtrees(leaves: tuple[bytes, ...]) -> dict[Place, bytes]:
    """Every complete subtree, as a log makes them."""
    found: dict[Place, bytes] = {}
    for number, leaf in enumerate(leaves, start=1):
        for level, index in completed(number):
            below = (level - 1, 2 * index + 1)
            found[level, index] = node_hash(found[left_of(below)], found[below]) if level else leaf_hash(leaf)
    return found


def proof(leaves: tuple[bytes, ...], old: int, new: int) -> tuple[bytes, ...]:
    """A consistency proof."""
    return tuple(root(entries, subtrees(leaves)) for entries in proof_ranges(old, new))


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_the_published_ones(size: int) -> None:
    assert root((0, size), subtrees(LEAVES)).hex() == ROOTS[size - 1]


@pytest.mark.parametrize("between", PROOFS)
def test_proofs_are_the_published_ones(between: tuple[int, int]) -> None:
    assert tuple(found.hex() for found in proof(LEAVES, *between)) == PROOFS[between]


def test_the_root_of_nothing_is_the_hash_of_nothing() -> None:
    assert root((0, 0), {}) == EMPTY_ROOT == naive(())


def test_every_root_of_a_log_of_up_to_70_entries_is_that_of_the_definition() -> None:
    leaves = tuple(bytes([i]) for i in range(70))
    found = subtrees(leaves)
    assert all(root((0, size), found) == naive(leaves[:size]) for size in range(71))
    assert all(len(places((0, size))) == size.bit_count() for size in range(71))


def test_every_log_proves_that_it_begins_with_every_shorter_one_and_with_no_other() -> None:
    leaves = tuple(bytes([i]) for i in range(34))
    roots = [naive(leaves[:size]) for size in range(35)]
    for new in range(1, 35):
        for old in range(1, new):
            shown = proof(leaves, old, new)
            assert grows_from(old, roots[old], new, roots[new], shown)
            assert not grows_from(old, bytes(32), new, roots[new], shown)
            assert not grows_from(old, roots[old], new, bytes(32), shown)
            assert not grows_from(old, roots[old], new, roots[new], shown[:-1])
            assert not grows_from(old, roots[old], new, roots[new], (*shown, bytes(32)))
            for at in range(len(shown)):
                assert not grows_from(old, roots[old], new, roots[new], (*shown[:at], bytes(32), *shown[at + 1 :]))


def test_a_log_of_the_same_size_needs_the_same_root_and_no_proof() -> None:
    assert grows_from(3, b"r" * 32, 3, b"r" * 32, ())
    assert not grows_from(3, b"r" * 32, 3, b"s" * 32, ())
    assert not grows_from(3, b"r" * 32, 3, b"r" * 32, (bytes(32),))
    assert not grows_from(4, b"r" * 32, 3, b"r" * 32, ())
