"""What merging does with one block of one checked update: sum it, tally it, list it, or mark it in bitmaps. Kernels only.

Each reads the block through `golomb.read_block`. Additions happen as written, in float64, one a position and update: a sum over
updates depends only on the order in which they come. Callers bring the scratch memory: `words` of (2, READ_WORDS) and `places` of
(2, BLOCK), of which all but `sum_two_blocks` use the first row.
"""

import numpy as np
from numpy.typing import NDArray

from compeft_core.format.golomb import BLOCK, Ints, Octets, Words, is_negative, read_block
from compeft_core.format.golomb_interleaved import read_two_blocks
from compeft_core.parallel import int64, kernel, ones, uint64

Doubles = NDArray[np.float64]
Places = NDArray[np.uint16]
ALL = 0xFFFFFFFFFFFFFFFF


@kernel
def sum_block(
    blob: Octets,
    starts: Ints,
    counts: Ints,
    size: int,
    ends: Ints,
    values: Doubles,
    sums: Doubles,
    words: Words,
    places: Places,
    block: int,
) -> None:
    """`sums[place, sign] += values[group]` for each entry; sums: (positions in the block, 2), sign 0 is positive, 1 negative."""
    base = block * BLOCK
    read_block(blob, starts[block], starts[block + 1], counts[block], min(BLOCK, size - base), words[0], places[0])
    _add(words[0], places[0], counts[block], base, ends, values, sums)


@kernel
def sum_two_blocks(
    blob_a: Octets,
    starts_a: Ints,
    counts_a: Ints,
    ends_a: Ints,
    values_a: Doubles,
    blob_b: Octets,
    starts_b: Ints,
    counts_b: Ints,
    ends_b: Ints,
    values_b: Doubles,
    size: int,
    sums: Doubles,
    words: Words,
    places: Places,
    block: int,
) -> None:
    """`sum_block` of a, then of b: the same additions in the same order, in half the time."""
    base = block * BLOCK
    read_two_blocks(
        blob_a,
        starts_a[block],
        starts_a[block + 1],
        counts_a[block],
        blob_b,
        starts_b[block],
        starts_b[block + 1],
        counts_b[block],
        min(BLOCK, size - base),
        words,
        places,
    )
    _add(words[0], places[0], counts_a[block], base, ends_a, values_a, sums)
    _add(words[1], places[1], counts_b[block], base, ends_b, values_b, sums)


@kernel
def tally_block(
    blob: Octets,
    starts: Ints,
    counts: Ints,
    size: int,
    ends: Ints,
    values: Doubles,
    weight: float,
    sums: Doubles,
    masses: Doubles,
    words: Words,
    places: Places,
    block: int,
) -> None:
    """As `sum_block`, and `masses[place, sign] += weight` beside it."""
    base = block * BLOCK
    read_block(blob, starts[block], starts[block + 1], counts[block], min(BLOCK, size - base), words[0], places[0])
    group = np.searchsorted(ends, base, side="right")
    end, value = ends[group] - base, values[group]
    for i in range(counts[block]):
        place, sign = int64(places[0, i]), is_negative(words[0], i)
        while place >= end:
            group += 1
            end, value = ends[group] - base, values[group]
        sums[place, sign] += value
        masses[place, sign] += weight


@kernel
def list_block(
    blob: Octets, starts: Ints, counts: Ints, size: int, words: Words, places: Places, negative: NDArray[np.bool_], block: int
) -> None:
    """Write the entries of a block to `places` and `negative`, as many as it keeps."""
    base = block * BLOCK
    read_block(blob, starts[block], starts[block + 1], counts[block], min(BLOCK, size - base), words[0], places[0])
    for i in range(counts[block]):
        negative[i] = is_negative(words[0], i)


@kernel
def mark_block(
    blob: Octets, starts: Ints, counts: Ints, size: int, words: Words, places: Places, plus: Words, minus: Words, block: int
) -> None:
    """Set the bits of a block's entries in `plus` or `minus`, one bit a position; all others are cleared."""
    base = block * BLOCK
    read_block(blob, starts[block], starts[block + 1], counts[block], min(BLOCK, size - base), words[0], places[0])
    plus[:] = 0
    minus[:] = 0
    for i in range(counts[block]):
        at, bit = places[0, i] >> 6, uint64(1) << uint64(places[0, i] & 63)
        if is_negative(words[0], i):
            minus[at] |= bit
        else:
            plus[at] |= bit


@kernel
def count_pairs(plus: Words, minus: Words, first: int, last: int, net: Ints) -> None:
    """`net[a, b]` += places first..last-1 where a and b have one sign, less those where they have opposite ones; a <= b.

    plus, minus: the bitmaps of n updates, (n, words). On the diagonal that is the number of entries.
    """
    low, high = first >> 6, (last - 1) >> 6
    head, tail = uint64(ALL) << uint64(first & 63), uint64(ALL) >> uint64(63 - ((last - 1) & 63))
    for a in range(plus.shape[0]):
        for b in range(a, plus.shape[0]):
            found = 0
            for at in range(low, high + 1):
                mask = (head if at == low else uint64(ALL)) & (tail if at == high else uint64(ALL))
                agree = (plus[a, at] & plus[b, at]) | (minus[a, at] & minus[b, at])
                differ = (plus[a, at] & minus[b, at]) | (minus[a, at] & plus[b, at])
                found += ones(agree & mask) - ones(differ & mask)
            net[a, b] += found


@kernel
def squared_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Sum of (a - b) ** 2 in float64, one addition after the other."""
    total = 0.0
    for i in range(a.size):
        apart = np.float64(a[i]) - np.float64(b[i])
        total += apart * apart
    return total


@kernel
def _add(words: Words, places: Places, count: int, base: int, ends: Ints, values: Doubles, sums: Doubles) -> None:
    group = np.searchsorted(ends, base, side="right")
    end, value = ends[group] - base, values[group]
    for i in range(count):
        place = int64(places[i])
        while place >= end:
            group += 1
            end, value = ends[group] - base, values[group]
        sums[place, is_negative(words, i)] += value
