"""A binary arithmetic coder with 32-bit integers: the steps that an encoder and a decoder share. docs/format.md is normative.

An interval low..high is narrowed by each bit; the leading bytes that its ends share are settled. A decoder knows low and high as
well as the encoder did, so it needs to check only the number of bytes and the last one to know that a stream is canonical.
"""

import numpy as np
from numpy.typing import NDArray

from compeft_core.parallel import int64, kernel

FULL = 0xFFFFFFFF
"""The first interval is 0..FULL."""
Octets = NDArray[np.uint8]


@kernel
def first_word(stream: Octets) -> int:
    """The first four bytes, the first one highest."""
    word = 0
    for i in range(4):
        word = word << 8 | _octet(stream, i)
    return word


@kernel
def _octet(stream: Octets, i: int) -> int:
    """Byte i, or 0 after the end."""
    return int64(stream[i]) if i < stream.size else 0


@kernel
def code_bit(
    bit: int, p: int, low: int, high: int, word: int, at: int, stream: Octets, decoding: bool
) -> tuple[int, int, int, int, int]:
    """Code a bit that is 1 with probability p / ONE; `at` becomes negative when there is no room."""
    middle = low + (((high - low) * p) >> 16)
    if decoding:
        bit = int64(word <= middle)
    if bit:
        high = middle
    else:
        low = middle + 1
    low, high, word, at = settle(low, high, word, at, stream, decoding)
    return bit, low, high, word, at


@kernel
def settle(low: int, high: int, word: int, at: int, stream: Octets, decoding: bool) -> tuple[int, int, int, int]:
    """Settle the leading bytes that both ends of the interval share."""
    while (low ^ high) >> 24 == 0:
        if decoding:
            word = (word << 8 & FULL) | _octet(stream, at + 4)
        elif 0 <= at < stream.size:
            stream[at] = low >> 24
        else:
            at = -FULL
        at += 1
        low = low << 8 & FULL
        high = (high << 8 & FULL) | 255
    return low, high, word, at


@kernel
def last_octet(low: int) -> int:
    """The end of a stream: a byte that, with zeros after it, lies in the interval; 0, which is not written, if zeros alone do."""
    return (low >> 24) + 1 if low else 0
