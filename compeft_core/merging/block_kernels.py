"""What a merge does with one block of one checked update: sum it, tally it, list it, or mark it in bitmaps. Kernels only.

Every kernel reads the block by `read_block`, whichever codec wrote it, and takes `blocks`, `groups` and `scratch` as plain tuples (see
`block_streams.bare`), because it is called once for each block and update.

Invariant: additions happen as written, in float64, one for each position and update, so a sum over updates depends only on their order.
"""

import numpy as np
from numpy.typing import NDArray

from compeft_core.format.bits import Ints, Words, is_negative
from compeft_core.format.block_streams import Blocks, GroupValues, Scratch, read_block
from compeft_core.format.golomb import BLOCK
from compeft_core.parallel import int64, kernel, ones, uint64

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
EXPONENT = np.uint32(0x7F800000)
"""The bits of the exponent of a float32."""
ALL = 0xFFFFFFFFFFFFFFFF


@kernel
def sum_block(blocks: Blocks, groups: GroupValues, sums: Doubles, scratch: Scratch, block: int) -> None:
    """sums[place, sign] += the group's value, for each entry; sums: (positions in the block, 2), sign 0 is positive, 1 negative."""
    blocks, groups, scratch = Blocks(*blocks), GroupValues(*groups), Scratch(*scratch)
    read_block(blocks, block, scratch)
    base = block * BLOCK
    flat = sums.reshape(-1)
    group = np.searchsorted(groups.ends, base, side="right")
    end, value = groups.ends[group] - base, groups.values[group]
    for first in range(0, blocks.counts[block], 64):
        signs = scratch.words[first >> 6]
        for i in range(first, min(first + 64, blocks.counts[block])):
            place = int64(scratch.places[uint64(i)])  # an unsigned index: numba then leaves out its test for a negative one
            while place >= end:
                group += 1
                end, value = groups.ends[group] - base, groups.values[group]
            flat[(uint64(place) << uint64(1)) | (signs & uint64(1))] += value
            signs >>= uint64(1)


@kernel
def take_difference(sums: Doubles, difference: Doubles) -> None:
    """Write sums[:, 0] - sums[:, 1] to `difference`, and zeros to `sums` for the next block, in one pass."""
    for i in range(difference.size):
        difference[i] = sums[i, 0] - sums[i, 1]
        sums[i, 0] = sums[i, 1] = 0.0


@kernel
def round_block(coefficient: float, values: Doubles, result: Floats) -> bool:
    """Write float32(coefficient * value), the product in float64, to `result`; return whether all of them are finite.

    A float32 is NaN or infinite if all bits of its exponent are set. Testing bits lets the compiler use vector instructions.
    """
    bits, beyond = result.view(np.uint32), 0
    for i in range(values.size):
        result[i] = np.float32(coefficient * values[i])
        beyond |= int64(bits[i] & EXPONENT == EXPONENT)
    return beyond == 0


@kernel
def tally_block(blocks: Blocks, groups: GroupValues, weight: float, tallies: Doubles, scratch: Scratch, block: int) -> None:
    """As `sum_block` on tallies[0], and tallies[1, place, sign] += weight; tallies: (2, positions in the block, 2)."""
    blocks, groups, scratch = Blocks(*blocks), GroupValues(*groups), Scratch(*scratch)
    read_block(blocks, block, scratch)
    base = block * BLOCK
    group = np.searchsorted(groups.ends, base, side="right")
    end, value = groups.ends[group] - base, groups.values[group]
    for i in range(blocks.counts[block]):
        place, sign = int64(scratch.places[i]), is_negative(scratch.words, i)
        while place >= end:
            group += 1
            end, value = groups.ends[group] - base, groups.values[group]
        tallies[0, place, sign] += value
        tallies[1, place, sign] += weight


@kernel
def list_block(blocks: Blocks, scratch: Scratch, negative: NDArray[np.bool_], block: int) -> None:
    """Write the entries of a block to scratch.places and `negative`, blocks.counts[block] of them."""
    blocks, scratch = Blocks(*blocks), Scratch(*scratch)
    read_block(blocks, block, scratch)
    for i in range(blocks.counts[block]):
        negative[i] = is_negative(scratch.words, i)


@kernel
def mark_block(blocks: Blocks, scratch: Scratch, plus: Words, minus: Words, block: int) -> None:
    """Set the bits of a block's entries in `plus` or `minus`, one bit a position; all other bits are cleared."""
    blocks, scratch = Blocks(*blocks), Scratch(*scratch)
    read_block(blocks, block, scratch)
    plus[:] = 0
    minus[:] = 0
    for i in range(blocks.counts[block]):
        at, bit = scratch.places[i] >> 6, uint64(1) << uint64(scratch.places[i] & 63)
        if is_negative(scratch.words, i):
            minus[at] |= bit
        else:
            plus[at] |= bit


@kernel
def count_pairs(plus: Words, minus: Words, first: int, last: int, net: Ints) -> None:
    """net[a, b] += the places first..last-1 where a and b have the same sign, less those where the signs are opposite; for a <= b.

    plus, minus: the bitmaps of n updates, (n, words). On the diagonal the result is the number of entries. 64 places are compared at a
    time: `agree` and `differ` are bitmaps and `ones` counts them. `head` and `tail` cut off the places before `first` and from `last` on;
    example, first = 3: head is all ones but for the lowest three bits.
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
