"""Kernels that read a float32 vector: sums in the fixed order of docs/format.md, and the steps of an exact selection.

Vectors are passed as the uint32 bits of their floats, because for magnitudes order of values is order of bits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compeft_core.machine import CHUNK, MAGNITUDE, kernel, magnitude_mask, ones, trailing_zeros, uint64

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


@kernel
def survey(
    bits: Bits,
    starts: Ints,
    stops: Ints,
    sums: Doubles,
    squares: Doubles,
    bracket: tuple[int, int],
    words: Bits,
    first: int,
    last: int,
) -> tuple[int, int]:
    """Sum the values and their squares in each of the spans first..last, and sort their magnitudes by a bracket (least, most).

    Returns how many are above (>= most), and within (>= least, < most). The bits of those within are written to `words` as far
    as there is room, so they are all there only if the second number is at most `words.size`.
    """
    plain, squared = np.zeros(LANES, np.float64), np.zeros(LANES, np.float64)
    values = bits.view(np.float32)
    above = within = 0
    for s in range(first, last):
        plain[:] = 0.0
        squared[:] = 0.0
        for row in range(starts[s], stops[s], LANES):
            stop = min(row + LANES, stops[s])
            over, within = _collect(bits, row, stop, bracket, words, within)
            above += over
            _add_row(values, row, stop, plain, squared)
        sums[s], squares[s] = _fold(plain), _fold(squared)
    return above, within


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
def find_tie(bits: Bits, start: int, stop: int, magnitude: int, quota: int) -> int:
    """The position after the `quota`-th entry of start..stop whose magnitude has exactly these bits."""
    i = start
    while quota > 0 and i < stop:
        if bits[i] & np.uint32(MAGNITUDE) == magnitude:
            quota -= 1
        i += 1
    return i


@kernel
def emit(
    bits: Bits, start: int, stop: int, least: int, positions: NDArray[np.uint32], negative: NDArray[np.bool_], at: int
) -> int:
    """Write from entry `at` on the positions and signs of those of start..stop with magnitude bits >= `least`.

    Returns the entry after the last; the caller knows how many there are.
    """
    for i in range(start, stop, CHUNK):
        mask = _mask(bits, i, stop, least)
        while mask != 0:
            position = i + trailing_zeros(mask)
            positions[at] = position
            negative[at] = bits[position] >> np.uint32(31)
            at += 1
            mask &= mask - uint64(1)
    return at


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
def _collect(bits: Bits, start: int, stop: int, bracket: tuple[int, int], words: Bits, within: int) -> tuple[int, int]:
    """Of start..stop, count what is above the bracket, and append what is within to the `within` words already there."""
    least, most = bracket
    above = 0
    for i in range(start, stop, CHUNK):
        over = _mask(bits, i, stop, most)
        mask = _mask(bits, i, stop, least) & ~over
        above += ones(over)
        if within + ones(mask) > words.size:
            within += ones(mask)
            continue
        while mask != 0:
            words[within] = bits[i + trailing_zeros(mask)]
            within += 1
            mask &= mask - uint64(1)
    return above, within


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
