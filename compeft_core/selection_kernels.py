"""Kernels that read a float32 vector: sums in the fixed order of docs/format.md, and the steps of an exact selection.

Vectors are passed as the uint32 bits of their floats, because for magnitudes order of values is order of bits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compeft_core.parallel import CHUNK, MAGNITUDE, int64, kernel, magnitude_mask, ones, trailing_zeros, uint64

SPAN = 65536
"""Values added up in lanes before they are added to the total."""
LANES = 256
LOW_BITS = 15
"""A magnitude's 31 bits are counted by the upper 16 first, then by the lower 15."""
HIGH_BINS = 1 << 16
LOW_BINS = 1 << LOW_BITS

Bits = NDArray[np.uint32]
Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]


@kernel
def survey(
    bits: Bits,
    starts: Ints,
    stops: Ints,
    sums: Doubles,
    squares: Doubles,
    bracket: tuple[int, int],
    positions: Bits,
    negative: Flags,
    doubtful: Bits,
    words: Bits,
    first: int,
    last: int,
) -> tuple[int, int]:
    """Sum the values and their squares in each of the spans first..last, and `collect` their candidates, in one pass."""
    plain, squared = np.zeros(LANES, np.float64), np.zeros(LANES, np.float64)
    values = bits.view(np.float32)
    found = doubts = 0
    for s in range(first, last):
        plain[:] = 0.0
        squared[:] = 0.0
        found, doubts = collect(bits, starts[s], stops[s], bracket, positions, negative, doubtful, words, found, doubts)
        for row in range(starts[s], stops[s], LANES):
            _add_row(values, row, min(row + LANES, stops[s]), plain, squared)
        sums[s], squares[s] = _fold(plain), _fold(squared)
    return found, doubts


@kernel
def collect(
    bits: Bits,
    start: int,
    stop: int,
    bracket: tuple[int, int],
    positions: Bits,
    negative: Flags,
    doubtful: Bits,
    words: Bits,
    found: int,
    doubts: int,
) -> tuple[int, int]:
    """Append the candidates of start..stop, those with magnitude bits >= the bracket's least, to the `found` there are.

    positions, negative: of each.   doubtful, words: index among the candidates, and magnitude bits, of those < the bracket's most.
    Returns how many candidates and doubtful ones there are then. What has no room is counted but not written.
    """
    least, most = bracket
    for i in range(start, stop, CHUNK):
        mask = _mask(bits, i, stop, least)
        doubt = mask & ~_mask(bits, i, stop, most)
        if found + ones(mask) > positions.size or doubts + ones(doubt) > words.size:
            found += ones(mask)
            doubts += ones(doubt)
            continue
        while doubt != 0:
            lowest = doubt & (~doubt + uint64(1))
            doubtful[doubts] = found + ones(mask & (lowest - uint64(1)))
            words[doubts] = bits[i + trailing_zeros(doubt)] & np.uint32(MAGNITUDE)
            doubts += 1
            doubt ^= lowest
        while mask != 0:
            position = i + trailing_zeros(mask)
            positions[found] = position
            negative[found] = bits[position] >> np.uint32(31)
            found += 1
            mask &= mask - uint64(1)
    return found, doubts


@kernel
def settle(positions: Bits, negative: Flags, found: int, doubtful: Bits, words: Bits, magnitude: int, quota: int) -> int:
    """Drop the doubtful candidates below `magnitude`, and all but the first `quota` of those that equal it; how many are left."""
    at = start = 0
    for d in range(words.size + 1):
        stop = int64(doubtful[d]) if d < words.size else found
        for i in range(start, stop):
            positions[at], negative[at] = positions[i], negative[i]
            at += 1
        start = stop
        if d < words.size and (words[d] < magnitude or (words[d] == magnitude and quota == 0)):
            start += 1
        elif d < words.size and words[d] == magnitude:
            quota -= 1
    return at


@kernel
def sum_spans(values: NDArray[np.float32], starts: Ints, stops: Ints, sums: Doubles) -> None:
    """Sum each span of `values` in the fixed order."""
    plain, squared = np.zeros(LANES, np.float64), np.zeros(LANES, np.float64)
    for s in range(starts.size):
        plain[:] = 0.0
        for row in range(starts[s], stops[s], LANES):
            _add_row(values, row, min(row + LANES, stops[s]), plain, squared)
        sums[s] = _fold(plain)


@kernel
def count_high(words: Bits, histogram: Ints) -> None:
    """Count magnitudes by their upper 16 bits."""
    for i in range(words.size):
        histogram[(words[i] & np.uint32(MAGNITUDE)) >> np.uint32(LOW_BITS)] += 1


@kernel
def count_low(words: Bits, high: int, histogram: Ints) -> None:
    """Count, by their lower 15 bits, the magnitudes whose upper 16 bits are `high`."""
    for i in range(words.size):
        magnitude = words[i] & np.uint32(MAGNITUDE)
        if magnitude >> np.uint32(LOW_BITS) == high:
            histogram[magnitude & np.uint32(LOW_BINS - 1)] += 1


@kernel
def _mask(bits: Bits, i: int, stop: int, least: int) -> Any:
    """`magnitude_mask` of the up to CHUNK values from i on, below `stop`."""
    if i + CHUNK <= stop:
        return magnitude_mask(bits, i, np.uint32(least))
    mask = uint64(0)
    for j in range(stop - i):
        mask |= uint64((bits[i + j] & np.uint32(MAGNITUDE)) >= least) << uint64(j)
    return mask


@kernel
def _add_row(values: NDArray[np.float32], start: int, stop: int, plain: Doubles, squared: Doubles) -> None:
    """Add value j of the row start..stop, of at most LANES, to plain[j] and its square, exact in float64, to squared[j].

    Unsigned indexes and a constant length, as the compiler then uses vector instructions.
    """
    base = uint64(start)
    if stop - start == LANES:
        for j in range(uint64(LANES)):
            value = np.float64(values[base + j])
            plain[j] += value
            squared[j] += value * value
        return
    for j in range(uint64(stop - start)):
        value = np.float64(values[base + j])
        plain[j] += value
        squared[j] += value * value


@kernel
def _fold(lanes: Doubles) -> float:
    """Add the upper half of the lanes to the lower until one is left."""
    width = LANES // 2
    while width > 0:
        for j in range(width):
            lanes[j] += lanes[j + width]
        width //= 2
    total: float = lanes[0]
    return total
