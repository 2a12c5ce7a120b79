"""Golomb-coded blocks of a ternary vector: the kernels that write, check and apply them. docs/format.md is normative.

A stream holds the signs of a block's kept entries, one bit each, then the gaps between the entries of its shorter list (kept, or
not kept when more than half are), as Golomb codes whose parameter follows from the count. Bits are filled from the lowest up.

Invariant: `read_block` never reads outside the stream or writes outside its buffers, whatever the bytes, and returns True only
for the one stream that `encode_blocks` makes. Every reader goes through it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compeft_core.parallel import CHUNK, int64, kernel, trailing_zeros, true_mask, uint64

BLOCK = 65536
"""Positions per block."""
SLOT = 14336
"""Bytes no stream exceeds: signs and gaps come to 14,247 at most, over all counts."""
SLOT_WORDS = SLOT // 8
MAX_TAIL = 18
"""Bits of a code after its zeros: the one, and a remainder below 2**16, which takes at most 17."""
REFILL = 32
READ_WORDS = SLOT_WORDS + 4
"""A stream as words, and zeros after it for the last code to run into."""

Words = NDArray[np.uint64]
Octets = NDArray[np.uint8]
Ints = NDArray[np.int64]


@kernel
def least_lengths(counts: Ints, size: int, lengths: Ints) -> None:
    """Fill `lengths` with the bytes each stream has at least: its signs, and its codes without the zeros before the one."""
    for block in range(counts.size):
        span = min(BLOCK, size - block * BLOCK)
        listed = min(counts[block], span - counts[block])
        bits = counts[block]
        if listed > 0:
            bits += listed * (1 + low_bits(parameter_of(listed, span)))
        lengths[block] = (bits + 7) >> 3


@kernel
def encode_blocks(
    positions: NDArray[np.uint32],
    negative: NDArray[np.bool_],
    bounds: Ints,
    size: int,
    slots: Words,
    lengths: Ints,
    first: int,
    last: int,
) -> None:
    """Write the streams of blocks first..last to `slots[block]` (zeroed words), and their byte counts to `lengths[block]`.

    Entries bounds[block]..bounds[block + 1] of `positions` (strictly increasing) and `negative` belong to the block.
    """
    listed = np.empty(BLOCK, np.uint16)
    for block in range(first, last):
        start, stop = bounds[block], bounds[block + 1]
        base = block * BLOCK
        span = min(BLOCK, size - base)
        words = slots[block]
        _write_signs(words, negative[start:stop])
        count = _list_entries(positions[start:stop], base, span, listed)
        bits = _write_gaps(words, stop - start, listed, count, span)
        lengths[block] = (bits + 7) >> 3


@kernel
def check_blocks(blob: Octets, starts: Ints, counts: Ints, size: int, ends: Ints, kept: Ints, first: int, last: int) -> int:
    """The first block of first..last whose stream is not canonical, or -1; adds the entries of each scale group to `kept`."""
    words, places = np.zeros(READ_WORDS, np.uint64), np.empty(BLOCK, np.uint16)
    for block in range(first, last):
        base = block * BLOCK
        span = min(BLOCK, size - base)
        if not read_block(blob, starts[block], starts[block + 1], counts[block], span, words, places):
            return block
        group = np.searchsorted(ends, base, side="right")
        if ends[group] >= base + span:
            kept[group] += counts[block]
            continue
        for i in range(counts[block]):
            while base + places[i] >= ends[group]:
                group += 1
            kept[group] += 1
    return -1


@kernel
def unpack_blocks(
    blob: Octets,
    starts: Ints,
    counts: Ints,
    size: int,
    bounds: Ints,
    positions: NDArray[np.uint32],
    negative: NDArray[np.bool_],
    first: int,
    last: int,
) -> None:
    """Write the entries of blocks first..last (checked ones) to bounds[block].. of `positions` and `negative`."""
    words, places = np.zeros(READ_WORDS, np.uint64), np.empty(BLOCK, np.uint16)
    for block in range(first, last):
        base, at = block * BLOCK, bounds[block]
        span = min(BLOCK, size - base)
        read_block(blob, starts[block], starts[block + 1], counts[block], span, words, places)
        for i in range(counts[block]):
            positions[at + i] = base + places[i]
            negative[at + i] = is_negative(words, i)


@kernel
def add_blocks(
    blob: Octets,
    starts: Ints,
    counts: Ints,
    size: int,
    ends: Ints,
    values: NDArray[np.float32],
    state: NDArray[np.float32],
    first: int,
    last: int,
) -> None:
    """Add +-values[group] to `state` at every entry of blocks first..last (checked ones)."""
    words, places = np.zeros(READ_WORDS, np.uint64), np.empty(BLOCK, np.uint16)
    for block in range(first, last):
        base = block * BLOCK
        span = min(BLOCK, size - base)
        read_block(blob, starts[block], starts[block + 1], counts[block], span, words, places)
        group = np.searchsorted(ends, base, side="right")
        part, end, value = state[base : base + span], ends[group] - base, values[group]
        for i in range(counts[block]):
            place = int64(places[i])
            while place >= end:
                group += 1
                end, value = ends[group] - base, values[group]
            part[place] += -value if is_negative(words, i) else value


@kernel
def parameter_of(listed: int, span: int) -> int:
    """Golomb parameter m >= 1 for `listed` entries in `span` positions.

    Integer form of ceil(ln 2 / p - 0.8466) with p = listed / span, which follows the optimum ceil(-log(2 - p) / log(1 - p))
    (Gallager and van Voorhis 1975) to within a hundredth for p <= 1/2.
    """
    numerator = 45426 * span - 55483 * listed
    denominator = 65536 * listed
    return max(1, (numerator + denominator - 1) // denominator)


@kernel
def low_bits(parameter: int) -> int:
    """floor(log2 m): bits that every remainder has."""
    low = 0
    while (2 << low) <= parameter:
        low += 1
    return low


@kernel
def _write_signs(words: Words, negative: NDArray[np.bool_]) -> None:
    whole = negative.size // CHUNK
    for i in range(whole):
        words[i] = true_mask(negative, i * CHUNK)
    for i in range(whole * CHUNK, negative.size):
        words[whole] |= uint64(negative[i]) << uint64(i & 63)


@kernel
def _list_entries(positions: NDArray[np.uint32], base: int, span: int, listed: NDArray[np.uint16]) -> int:
    """Fill `listed` with the places kept, or those not kept when more than half are; return how many."""
    if 2 * positions.size <= span:
        for i in range(positions.size):
            listed[i] = positions[i] - base
        return positions.size
    count = place = 0
    for i in range(positions.size + 1):
        stop = int64(positions[i]) - base if i < positions.size else span
        while place < stop:
            listed[count] = place
            count += 1
            place += 1
        place += 1
    return count


@kernel
def _write_gaps(words: Words, bit: int, listed: NDArray[np.uint16], count: int, span: int) -> int:
    """Append the Golomb codes of the gaps from `bit` on; return the bit after the last."""
    if count == 0:
        return bit
    parameter = parameter_of(count, span)
    low = low_bits(parameter)
    short = (2 << low) - parameter
    # ceil(2**32 / m): (gap * it) >> 32 is gap // m exactly, as gap and m are below 2**16.
    reciprocal = ((1 << 32) + parameter - 1) // parameter
    previous = -1
    at = bit >> 6
    word = words[at]
    for i in range(count):
        place = int64(listed[i])
        gap = place - previous - 1
        previous = place
        quotient = (gap * reciprocal) >> 32
        remainder = gap - quotient * parameter
        long = int64(remainder >= short)
        folded = remainder + short
        code = uint64(1 | (folded | (folded & 1) << (low + 1) if long else remainder << 1))
        bit += quotient
        # `word` is the word being filled; what it skips and what spills over is stored without a branch.
        word = word if bit >> 6 == at else uint64(0)
        at = bit >> 6
        shift = uint64(bit & 63)
        word |= code << shift
        words[at] = word
        bit += 1 + low + long
        word = word if bit >> 6 == at else (code >> uint64(1)) >> (uint64(63) - shift)
        at = bit >> 6
        words[at] = word
    return bit


@kernel
def peek(words: Words, bit: int) -> Any:
    """64 bits from `bit` on, lowest first."""
    shift = uint64(bit & 63)
    return (words[bit >> 6] >> shift) | ((words[(bit >> 6) + 1] << uint64(1)) << (uint64(63) - shift))


@kernel
def is_negative(words: Words, i: int) -> int:
    """1 if the i-th kept entry of a stream is negative, else 0."""
    return int64((words[i >> 6] >> uint64(i & 63)) & uint64(1))


@kernel
def read_block(blob: Octets, start: int, stop: int, count: int, span: int, words: Words, places: NDArray[np.uint16]) -> bool:
    """Stream -> `words` (its bits, signs first) and `places[:count]` (kept, increasing). False if not canonical."""
    length = stop - start
    if length > SLOT:
        return False
    octets = words.view(np.uint8)
    octets[:length] = blob[start:stop]
    octets[length : length + 32 - (length & 7)] = 0
    invert = 2 * count > span
    listed = span - count if invert else count
    bit = _read_gaps(words, count, 8 * length, listed, span, places[count if invert else 0 :])
    if bit < 0 or (bit + 7) >> 3 != length or peek(words, bit) != 0:
        return False
    if invert:
        _complement(places, count, span)
    return True


@kernel
def _read_gaps(words: Words, bit: int, end: int, listed: int, span: int, places: NDArray[np.uint16]) -> int:
    """Golomb codes from `bit` on -> `places[:listed]`; return the bit after the last, or -1 if a place is beyond `span`."""
    if listed == 0:
        return bit
    parameter = parameter_of(listed, span)
    low = low_bits(parameter)
    mask = (1 << low) - 1
    short = (2 << low) - parameter
    place = -1
    window, left = uint64(0), 0
    for i in range(listed):
        # `window` holds the next `left` bits, enough for most codes; a code that may reach beyond them is read the slow way.
        if left < REFILL:
            window, left = peek(words, bit), 64
        zeros = trailing_zeros(window)
        quotient = zeros
        if zeros + MAX_TAIL > left:
            bit, quotient = skip_zeros(words, bit, end)
            if bit < 0:
                return -1
            window, left = peek(words, bit), 64
        else:
            window = (window >> uint64(zeros)) >> uint64(1)
            bit += zeros + 1
            left -= zeros + 1
        remainder = int64(window) & mask
        folded = 2 * remainder + (int64(window >> uint64(low)) & 1) - short
        long = int64(remainder >= short)
        remainder = folded if long else remainder
        window >>= uint64(low + long)
        bit += low + long
        left -= low + long
        place += 1 + quotient * parameter + remainder
        if place >= span:
            return -1
        places[i] = place
    return bit


@kernel
def skip_zeros(words: Words, bit: int, end: int) -> tuple[int, int]:
    """The bit after the next one bit, and how many zeros came before; bit -1 if only zeros are left before `end`."""
    zeros = 0
    window = peek(words, bit)
    while window == 0:
        zeros += 64
        bit += 64
        if bit >= end:
            return -1, zeros
        window = peek(words, bit)
    more = trailing_zeros(window)
    return bit + more + 1, zeros + more


@kernel
def _complement(places: NDArray[np.uint16], count: int, span: int) -> None:
    """`places[count:span]` lists what is not kept; write what is kept to `places[:count]`, always behind the reading end."""
    seen, at = count, 0
    for place in range(span):
        if seen < span and places[seen] == place:
            seen += 1
        else:
            places[at] = place
            at += 1
