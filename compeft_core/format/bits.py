"""Reading and writing the bits of a block's stream, which golomb.py and rice4.py share. Kernels only; docs/format.md is normative.

Bits are numbered from the lowest bit of the first byte up, so bit i of a stream is bit i % 64 of its word i // 64 (words are
little-endian). Example: the bytes `2a 03` are 00101010 00000011, so their bits in order are 0101 0100 1100 0000.

Invariant: every function reads only inside `words`. The caller leaves READ_PADDING zero bytes after a stream, because a read at the
last bit of a stream takes the 8 to 16 bytes after it too.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compeft_core.parallel import CHUNK, int64, kernel, trailing_zeros, true_mask, uint64

SLOT = 14336
"""Upper bound on the bytes of a stream, over all counts: 14,247 by Golomb codes, 13,881 by Rice codes in four lanes."""
SLOT_WORDS = SLOT // 8
READ_PADDING = 32
READ_WORDS = (SLOT + READ_PADDING) // 8
"""Words of a buffer that holds any stream and the zero bytes after it."""

Words = NDArray[np.uint64]
Octets = NDArray[np.uint8]
Ints = NDArray[np.int64]
Places = NDArray[np.uint16]


@kernel
def peek(words: Words, bit: int) -> Any:
    """The 64 bits from `bit` on, as a uint64, the first one lowest."""
    shift = uint64(bit & 63)
    return (words[bit >> 6] >> shift) | ((words[(bit >> 6) + 1] << uint64(1)) << (uint64(63) - shift))


@kernel
def skip_zeros(words: Words, bit: int, end: int) -> tuple[int, int]:
    """The bit after the next one bit, and the number of zeros before that one; bit -1 if only zeros are left before `end`."""
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
def write_signs(words: Words, negative: NDArray[np.bool_]) -> None:
    """Set bit i of `words` (zeroed before) to negative[i]."""
    whole = negative.size // CHUNK
    for i in range(whole):
        words[i] = true_mask(negative, i * CHUNK)
    for i in range(whole * CHUNK, negative.size):
        words[whole] |= uint64(negative[i]) << uint64(i & 63)


@kernel
def is_negative(words: Words, i: int) -> int:
    """The sign bit of the i-th kept entry of a stream: 1 if the entry is negative, else 0."""
    return int64((words[i >> 6] >> uint64(i & 63)) & uint64(1))
