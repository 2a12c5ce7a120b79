"""Kernels that read a float32 vector: sums in the fixed order of docs/format.md, and the steps of an exact selection.

Vectors are passed as the uint32 bits of their floats. Without its sign bit, a float32 is an unsigned integer in the same order as its
magnitude (1.0 is 3F800000, 2.0 is 40000000), so magnitudes are compared and counted as integers. selection.py puts the steps together.

Invariant: sums are added in LANES lanes and then folded, one order for every machine and any number of workers.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compeft_core.kernels import int64, kernel, magnitude_mask, ones, trailing_zeros, uint64
from compeft_core.kernels.interpreted import CHUNK, MAGNITUDE

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


class SpanSums(NamedTuple):
    """Spans of a vector, int64 `starts` and `stops`, and the float64 sums over each, of its values and of their squares."""

    starts: Ints
    stops: Ints
    sums: Doubles
    squares: Doubles


class Room(NamedTuple):
    """Memory for candidates: position and sign of each, and of the doubtful ones the index among the candidates and the magnitude bits."""

    positions: Bits
    negative: Flags
    doubtful: Bits
    words: Bits


@kernel
def survey(bits: Bits, spans: SpanSums, bracket: tuple[int, int], room: Room, first: int, last: int) -> tuple[int, int]:
    """Sum the values and their squares in each of the spans first..last-1, and `collect` their candidates, in one pass.

    Returns the numbers of candidates and of doubtful ones.
    """
    plain, squared = np.zeros(LANES, np.float64), np.zeros(LANES, np.float64)
    values = bits.view(np.float32)
    counts = (0, 0)
    for s in range(first, last):
        plain[:] = 0.0
        squared[:] = 0.0
        start, stop = spans.starts[s], spans.stops[s]
        counts = collect(bits, (start, stop), bracket, room, counts)
        for row in range(start, stop, LANES):
            _add_row(values, row, min(row + LANES, stop), plain, squared)
        spans.sums[s], spans.squares[s] = _fold(plain), _fold(squared)
    return counts


@kernel
def collect(bits: Bits, span: tuple[int, int], bracket: tuple[int, int], room: Room, counts: tuple[int, int]) -> tuple[int, int]:
    """Append the candidates of span[0]..span[1]-1, those with magnitude bits >= bracket[0], to the counts[0] in `room`.

    Doubtful, and appended to the counts[1] of these, are candidates with magnitude bits < bracket[1]. Returns the new counts. What has no
    room is counted and not written.

    64 values are compared at once: `mask` has a bit for each candidate among them, `doubt` for each doubtful one. Clearing the lowest bit
    (x & (x - 1)) and counting the zeros below it visits the set bits only, so a value that is not a candidate costs 1/64 of a comparison.
    Example: mask = 0b10100, doubt = 0b10000, found = 7. The candidates are values i + 2 and i + 4, with index 7 and 8; of the doubtful
    one, `mask & (lowest - 1)` = 0b00100 counts the candidates before it, so its index is 7 + 1 = 8.
    """
    least, most = bracket
    found, doubts = counts
    for i in range(span[0], span[1], CHUNK):
        mask = _mask(bits, i, span[1], least)
        doubt = mask & ~_mask(bits, i, span[1], most)
        if found + ones(mask) > room.positions.size or doubts + ones(doubt) > room.words.size:
            found += ones(mask)
            doubts += ones(doubt)
            continue
        while doubt != 0:
            lowest = doubt & (~doubt + uint64(1))
            room.doubtful[doubts] = found + ones(mask & (lowest - uint64(1)))
            room.words[doubts] = bits[i + trailing_zeros(doubt)] & np.uint32(MAGNITUDE)
            doubts += 1
            doubt ^= lowest
        while mask != 0:
            position = i + trailing_zeros(mask)
            room.positions[found] = position
            room.negative[found] = bits[position] >> np.uint32(31)
            found += 1
            mask &= mask - uint64(1)
    return found, doubts


@kernel
def settle(room: Room, found: int, magnitude: int, quota: int) -> int:
    """Drop the doubtful candidates below `magnitude`, and all but the first `quota` of those that equal it; return how many are left.

    The `found` candidates move to the front of room.positions and room.negative, in order; room.words has exactly the doubtful ones.
    """
    positions, negative, words = room.positions, room.negative, room.words
    at = start = 0
    for d in range(words.size + 1):
        stop = int64(room.doubtful[d]) if d < words.size else found
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
