"""Two checked streams of Golomb codes read at once: each code waits for the one before it, so two streams fill each other's waits.

As `golomb.read_block`, but without its checks: only for streams that it has accepted. Reading one position takes no branch that depends
on the bits, but for codes of 46 zeros or more.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compeft_core.format.golomb import Octets, Words, low_bits, parameter_of, peek, read_block, skip_zeros
from compeft_core.parallel import int64, kernel, trailing_zeros, uint64

WHOLE = 64 - 18
"""A code with fewer zeros than this lies in one window of 64 bits."""
ENDLESS = 1 << 40


@kernel
def read_two_blocks(
    blob_a: Octets,
    start_a: int,
    stop_a: int,
    count_a: int,
    blob_b: Octets,
    start_b: int,
    stop_b: int,
    count_b: int,
    span: int,
    words: Words,
    places: NDArray[np.uint16],
) -> None:
    """Two streams -> `words[0]` and `places[0, :count_a]`, `words[1]` and `places[1, :count_b]`, as of `read_block`."""
    if 2 * max(count_a, count_b) > span or min(count_a, count_b) == 0:
        read_block(blob_a, start_a, stop_a, count_a, span, words[0], places[0])
        read_block(blob_b, start_b, stop_b, count_b, span, words[1], places[1])
        return
    _fill(blob_a, start_a, stop_a, words[0])
    _fill(blob_b, start_b, stop_b, words[1])
    both = min(count_a, count_b)
    bit_a, place_a, bit_b, place_b = _walk_two(words, places, count_a, count_b, both, span)
    _walk(words[0], places[0], bit_a, place_a, both, count_a, span)
    _walk(words[1], places[1], bit_b, place_b, both, count_b, span)


@kernel
def _walk_two(
    words: Words, places: NDArray[np.uint16], count_a: int, count_b: int, both: int, span: int
) -> tuple[int, int, int, int]:
    """Read the first `both` codes of each stream; return the bit after the last and the last place, of a and of b."""
    words_a, words_b, places_a, places_b = words[0], words[1], places[0], places[1]
    m_a, m_b = parameter_of(count_a, span), parameter_of(count_b, span)
    low_a, low_b = low_bits(m_a), low_bits(m_b)
    bit_a, bit_b, place_a, place_b = count_a, count_b, -1, -1
    for i in range(both):
        bit_a, gap_a = _next(words_a, bit_a, m_a, low_a)
        bit_b, gap_b = _next(words_b, bit_b, m_b, low_b)
        place_a += 1 + gap_a
        place_b += 1 + gap_b
        places_a[i], places_b[i] = place_a, place_b
    return bit_a, place_a, bit_b, place_b


@kernel
def _walk(words: Words, places: NDArray[np.uint16], bit: int, place: int, first: int, count: int, span: int) -> None:
    parameter = parameter_of(count, span)
    low = low_bits(parameter)
    for i in range(first, count):
        bit, gap = _next(words, bit, parameter, low)
        place += 1 + gap
        places[i] = place


@kernel
def _next(words: Words, bit: int, parameter: int, low: int) -> tuple[int, int]:
    """The bit after the code that begins at `bit`, and its gap."""
    window: Any = peek(words, bit)
    quotient = trailing_zeros(window)
    if quotient >= WHOLE:
        bit, quotient = skip_zeros(words, bit, ENDLESS)
        window = peek(words, bit)
    else:
        window = (window >> uint64(quotient)) >> uint64(1)
        bit += quotient + 1
    remainder = int64(window) & ((1 << low) - 1)
    folded = 2 * remainder + (int64(window >> uint64(low)) & 1) - ((2 << low) - parameter)
    long = int64(remainder >= (2 << low) - parameter)
    return bit + low + long, quotient * parameter + (folded if long else remainder)


@kernel
def _fill(blob: Octets, start: int, stop: int, words: Words) -> None:
    octets, length = words.view(np.uint8), stop - start
    octets[:length] = blob[start:stop]
    octets[length : length + 32 - (length & 7)] = 0
