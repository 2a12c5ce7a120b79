"""A binary arithmetic coder with 32-bit integers: the steps that an encoder and a decoder share. docs/format.md is normative.

The coder keeps an interval low..high of 32-bit numbers. A bit that is 1 with probability p takes the lowest fraction p of the interval,
a 0 takes the rest, so a likely bit narrows the interval little and costs few bits. When low and high have the same leading byte, that
byte can no longer change: it is settled, written, and shifted out.

Example, from 00000000..FFFFFFFF with p = 1/4. A 1 leads to 00000000..3FFFFFFF. Another 1 with p = 1/256 leads to 00000000..003FFFFF: the
leading byte 00 is settled, and the interval becomes 00000000..3FFFFFFF again. Both bits together cost 2 + 8 = 10 bits: one byte, and two
bits that the width of the interval remembers.

A decoder follows the same interval, and compares it with `word`, the next four bytes of the stream.

Invariant: encoder and decoder compute the same low and high from the same bits. So a decoder that has read the last bit knows the number
of bytes and the last byte that an encoder would have written, and checks no more than these to know that a stream is canonical.
"""

import numpy as np
from numpy.typing import NDArray

from compeft_core.parallel import int64, kernel

FULL = 0xFFFFFFFF
"""The first interval is 0..FULL."""
Octets = NDArray[np.uint8]
Coder = tuple[int, int, int, int]
"""low, high, word (decoding only), and `at`, the number of settled bytes; negative when there was no room to write one."""


@kernel
def first_word(stream: Octets) -> int:
    """The first four bytes of a stream as a number, the first byte highest."""
    word = 0
    for i in range(4):
        word = word << 8 | _octet(stream, i)
    return word


@kernel
def _octet(stream: Octets, i: int) -> int:
    """Byte i, or 0 after the end."""
    return int64(stream[i]) if i < stream.size else 0


@kernel
def code_bit(bit: int, p: int, coder: Coder, stream: Octets, decoding: bool) -> tuple[int, Coder]:
    """Code a bit that is 1 with probability p / 2**16; return the bit, which a decoder learns here, and the coder's state."""
    low, high, word, at = coder
    middle = low + (((high - low) * p) >> 16)
    if decoding:
        bit = int64(word <= middle)
    if bit:
        high = middle
    else:
        low = middle + 1
    return bit, settle(low, high, word, at, stream, decoding)


@kernel
def settle(low: int, high: int, word: int, at: int, stream: Octets, decoding: bool) -> Coder:
    """Write (or, decoding, pass) the leading bytes that both ends of the interval share; return the coder's state."""
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
