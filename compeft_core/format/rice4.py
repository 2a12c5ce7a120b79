"""Rice codes of the gaps in one block, in four interleaved lanes: the codec `rice4`. docs/format.md, section 4, is normative.

A Rice code is a Golomb code whose parameter is a power of two, m = 2^k: q = g >> k zeros, a one, then the k low bits of g. Example, k = 2
and g = 9: q = 2, low bits 01, so the bits are 0 0 1 1 0 (the low bits are written lowest first).

Where a code begins is known only when the code before it was read, so reading one stream waits for each step of that chain. Here gap i
goes to lane i % 4, and every lane is a stream of its own with a whole number of bytes. A reader advances all four lanes in one loop; the
processor works on four independent chains at once, and only the running sum of the gaps is serial:

    gaps      7 0 3 1 | 2 5 0 4 | 6        lane 0: 7 2 6   lane 1: 0 5   lane 2: 3 0   lane 3: 1 4

That reads an entry in 0.42 to 0.45 times the time of golomb.py, for 0.5 to 1.3 % more bytes (docs/merging.md, "Speed and memory").

Invariant: `read_gaps` never reads outside the stream's buffer or writes outside `places`, whatever the bytes are, and it accepts only
the stream that `write_gaps` writes.
"""

import numpy as np

from compeft_core.format.bits import Ints, Octets, Places, Words, peek, skip_zeros
from compeft_core.parallel import int64, kernel, load_word, trailing_zeros, uint64

LANES = 4
LONGEST_RUN = 40
"""A code with fewer zeros lies in the 57 bits that one unaligned load is sure to bring: 40 zeros, a one and 15 low bits."""


@kernel
def rice_parameter(listed: int, span: int) -> int:
    """Rice parameter k, 0 to 15, for `listed` entries in `span` positions; 0 if none is listed.

    Kiely (2004): the best k for geometric gaps is the number of binary digits of floor(ln(golden ratio) / -ln(1 - p)), p = listed / span.
    Here -1 / ln(1 - p) is replaced by 1 / p - 1/2, which is within p / 12, and ln(golden ratio) = 0.4812 by 31537 / 2**16.
    Example: 3,277 of 65,536 give floor(9.38) = 9, which has 4 binary digits, so k = 4.
    """
    if listed == 0:
        return 0
    mean = 31537 * (2 * span - listed) // (131072 * listed)
    k = 0
    while mean >> k > 0:
        k += 1
    return k


@kernel
def lane_count(listed: int, lane: int) -> int:
    """Number of codes in a lane: gaps lane, lane + 4, lane + 8 ... of `listed`."""
    return (listed - lane + LANES - 1) // LANES


@kernel
def least_lane_length(listed: int, span: int, lane: int) -> int:
    """Bytes of the shortest lane: its codes without the zeros before each one."""
    return (lane_count(listed, lane) * (1 + rice_parameter(listed, span)) + 7) >> 3


@kernel
def write_gaps(words: Words, signs: int, listed: Places, count: int, span: int, ends: Ints) -> None:
    """Write the gaps before listed[:count] after the `signs` sign bits; set ends[j] to the byte of the stream where lane j ends."""
    k = rice_parameter(count, span)
    mask = (1 << k) - 1
    end = (signs + 7) >> 3
    for lane in range(LANES):
        bit = 8 * end
        for i in range(lane, count, LANES):
            gap = int64(listed[i]) - (int64(listed[i - 1]) if i > 0 else -1) - 1
            bit += gap >> k
            code, shift = uint64(1 | (gap & mask) << 1), uint64(bit & 63)
            words[bit >> 6] |= code << shift
            words[(bit >> 6) + 1] |= (code >> uint64(1)) >> (uint64(63) - shift)
            bit += 1 + k
        end = (bit + 7) >> 3
        ends[lane] = end


@kernel
def read_gaps(words: Words, signs: int, ends: Ints, listed: int, span: int, places: Places) -> bool:
    """Read the four lanes after the `signs` sign bits into `places[:listed]`; False unless the stream is canonical.

    words: the stream, with zeros after it.   ends: int64 of shape (4,), the bytes of the stream where the lanes end, not decreasing.

    No code is checked by itself. A lane that runs beyond the stream stops at `limit`, one bit after it, so it reads only the zeros of
    the buffer. Gaps are not negative, so all places are below `span` if the last is; and a lane that has lost its way does not end in
    its last byte, or leaves bits behind, which `_ends_at` sees.
    """
    octets = words.view(np.uint8)
    k = rice_parameter(listed, span)
    start, limit = (signs + 7) >> 3, 8 * ends[3] + 1
    a, b, c, d = 8 * start, 8 * ends[0], 8 * ends[1], 8 * ends[2]
    place = -1
    for row in range(listed >> 2):
        at = uint64(4 * row)
        a, gap_a = _next(words, octets, a, k, limit)
        b, gap_b = _next(words, octets, b, k, limit)
        c, gap_c = _next(words, octets, c, k, limit)
        d, gap_d = _next(words, octets, d, k, limit)
        second = place + gap_a + gap_b + 2
        places[at] = place + gap_a + 1
        places[at + uint64(1)] = second
        place = second + gap_c + gap_d + 2
        places[at + uint64(2)] = second + gap_c + 1
        places[at + uint64(3)] = place
    rest = listed & 3
    if rest > 0:
        a, gap_a = _next(words, octets, a, k, limit)
        place += gap_a + 1
        places[listed - rest] = place
    if rest > 1:
        b, gap_b = _next(words, octets, b, k, limit)
        place += gap_b + 1
        places[listed - rest + 1] = place
    if rest > 2:
        c, gap_c = _next(words, octets, c, k, limit)
        place += gap_c + 1
        places[listed - 1] = place
    lanes_end = _ends_at(octets, a, ends[0]) and _ends_at(octets, b, ends[1]) and _ends_at(octets, c, ends[2])
    return place < span and _ends_at(octets, signs, start) and lanes_end and _ends_at(octets, d, ends[3])


@kernel
def _next(words: Words, octets: Octets, bit: int, k: int, limit: int) -> tuple[int, int]:
    """The bit after the code that begins at `bit`, `limit` at most, and the gap of that code.

    `load_word` reads the 8 bytes from byte bit // 8 on; after a shift by bit % 8, at least 57 bits of the stream are in `window`.
    """
    window = load_word(octets, bit >> 3) >> uint64(bit & 7)
    zeros = trailing_zeros(window)
    if zeros >= LONGEST_RUN:
        bit, zeros = skip_zeros(words, bit, limit)
        if bit < 0:
            return limit, 0
        window = peek(words, min(bit, limit))
    else:
        window = window >> uint64(zeros + 1)
        bit += zeros + 1
    return min(bit + k, limit), (zeros << k) | (int64(window) & ((1 << k) - 1))


@kernel
def _ends_at(octets: Octets, bit: int, end: int) -> bool:
    """Whether `bit` lies in the last byte before `end`, or at `end`, and the bits from it to `end` are zero."""
    return (bit + 7) >> 3 == end and (bit & 7 == 0 or int64(octets[bit >> 3]) >> (bit & 7) == 0)
