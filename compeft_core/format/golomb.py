"""Golomb codes of the gaps in one block: the kernels that write and read them. docs/format.md, section 4, is normative.

A stream holds the signs of the kept entries, one bit each, then the gaps between the listed places (those kept, or those not kept when
more than half are). The parameter m follows from the number of listed places, so it takes no bytes.

A Golomb code with parameter m splits a gap g into a quotient q = g // m and a remainder r = g - q m. It writes q zeros and a one, then r
as a truncated binary number: with b = floor(log2 m) and c = 2^(b+1) - m, a remainder below c takes b bits, any other takes b + 1.
Example, m = 3 (b = 1, c = 1) and g = 5: q = 1 and r = 2, so the code begins 0 1; as r >= c, it ends with r + c = 3 in two bits, 1 1.

Invariant: `read_gaps` never reads outside the stream's buffer or writes outside `places`, whatever the bytes are, and it accepts only
the stream that `write_gaps` writes. This module does not know about blocks, indexes or scales: see block_streams.py.
"""

import numpy as np

from compeft_core.format.bits import Ints, Places, Words, peek, skip_zeros
from compeft_core.parallel import int64, kernel, trailing_zeros, uint64

BLOCK = 65536
"""Positions per block."""
MAX_TAIL = 18
"""Most bits of a code after its zeros: the one, and a remainder below 2**16, which takes at most 17."""
REFILL = 32
"""The reader loads the next 64 bits when fewer than this are left."""


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
    """The bits that every remainder has: b = floor(log2 m)."""
    low = 0
    while (2 << low) <= parameter:
        low += 1
    return low


@kernel
def least_length(count: int, listed: int, span: int) -> int:
    """Bytes of the shortest stream of `count` entries: the signs, and each code without the zeros before its one."""
    return (count + (listed * (1 + low_bits(parameter_of(listed, span))) if listed > 0 else 0) + 7) >> 3


@kernel
def write_gaps(words: Words, bit: int, listed: Places, count: int, span: int) -> int:
    """Append the Golomb codes of the gaps before listed[:count] from `bit` on; return the bit after the last code.

    The loop has no branch that depends on the data, because a wrongly predicted branch costs more than the code itself:

    - gap // m is a multiplication: with reciprocal = ceil(2**32 / m), (gap * reciprocal) >> 32 is exact for gap and m below 2**16.
    - `word` is the word being filled. Each code is stored twice, in the word where it begins and in the word where it ends; if these
      are the same word, the second store repeats the first. `(code >> 1) >> (63 - shift)` is code >> (64 - shift) without the undefined
      shift by 64. Example: shift = 60 and an 8-bit code put 4 bits into this word and 4 into the next.
    """
    if count == 0:
        return bit
    parameter = parameter_of(count, span)
    low = low_bits(parameter)
    short = (2 << low) - parameter
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
        # A long remainder is written as folded // 2 in `low` bits, then the lowest bit of `folded`.
        code = uint64(1 | (folded | (folded & 1) << (low + 1) if long else remainder << 1))
        bit += quotient
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
def read_gaps(words: Words, signs: int, ends: Ints, listed: int, span: int, places: Places) -> bool:
    """Read the codes after the `signs` sign bits into `places[:listed]`; False unless the stream is canonical and ends at ends[0].

    words: the stream, with zeros after it.   ends: the length of the stream in bytes, as the only element.
    """
    bit = _read_codes(words, signs, 8 * ends[0], listed, span, places)
    return bit >= 0 and (bit + 7) >> 3 == ends[0] and peek(words, bit) == 0


@kernel
def _read_codes(words: Words, bit: int, end: int, listed: int, span: int, places: Places) -> int:
    """Golomb codes from `bit` on -> `places[:listed]`; return the bit after the last, or -1 if a place is beyond `span`.

    `window` holds the next `left` bits of the stream, lowest first, so that most codes are read from a register: `trailing_zeros` counts
    the quotient and a shift drops it. When fewer than REFILL bits are left, the window is loaded again at `bit`. A code that may reach
    beyond the window (a long run of zeros) is read by `skip_zeros`, which loads words until it finds the one.
    """
    if listed == 0:
        return bit
    parameter = parameter_of(listed, span)
    low = low_bits(parameter)
    mask = (1 << low) - 1
    short = (2 << low) - parameter
    place = -1
    window, left = uint64(0), 0
    for i in range(listed):
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
        places[i] = np.uint16(place)
    return bit
