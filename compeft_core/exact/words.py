"""The walk over the words of one block: kernels around the coder of `format/arithmetic_coder`. docs/exact-delta.md is normative.

A word is a float's bits, 16 or 32 of them. Its rank orders all floats of its type: positive ones are their bits, negative ones count down
from -1. So the next larger float is one rank up, and a small step is a small number whatever the float's exponent is.

Example, bfloat16: 1.0 is 3F80, rank 16256; the next float, 1.0078125, has rank 16257. -0.0 is 8000, rank -1; 0.0 has rank 0.

For each word the walk codes whether it changed, then the sign and the size of its step in ranks. A small weight changes by many ranks
where a large one, under the same update, rounds to what it was: the old word's exponent says most about both, and is a context of each
bit; the other is how many of the last words changed. Contexts learn as in the product-space codec; nothing is sent for them.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compeft_core.format.arithmetic_coder import Octets, code_bit
from compeft_core.parallel import int64, kernel
from compeft_core.product.model import INVALID, Coder, Ints, decide

Words = NDArray[np.uint32]

EXPONENTS = 256
RECENT = 16
"""Contexts of the words before: whether each of the last two changed, and how many of the last eight did, from 0 to 3 or more."""
SIZES = 33
"""Bits of a step's size, less one: 0 to 32."""
CHANGED = 1
CHANGED_NEAR = CHANGED + EXPONENTS
SIGN = CHANGED_NEAR + RECENT
SIGN_NEAR = SIGN + 2 * EXPONENTS
SIZE = SIGN_NEAR + 3
SIZE_NEAR = SIZE + EXPONENTS * SIZES
UPPER = SIZE_NEAR + SIZES * SIZES
CONTEXTS = UPPER + SIZES
"""First contexts of each kind, and how many there are. Context 0 stays 0."""
HALF = 1 << 15
"""A probability of one half."""


class Learned(NamedTuple):
    """What the contexts have learned: logits and ages, int64 of shape (CONTEXTS,)."""

    logits: Ints
    ages: Ints


def new_learned() -> Learned:
    """Contexts before anything is learned: a word that changed is unlikely."""
    logits = np.zeros(CONTEXTS, np.int64)
    logits[CHANGED : CHANGED + EXPONENTS] = -3 << 16
    return Learned(logits, np.zeros(CONTEXTS, np.int64))


@kernel
def rank_of(word: int, bits: int) -> int:
    """The rank of a float's bits among all of its type."""
    top = 1 << (bits - 1)
    return word if word < top else top - 1 - word


@kernel
def word_of(rank: int, bits: int) -> int:
    """The bits of the float with this rank."""
    return rank if rank >= 0 else (1 << (bits - 1)) - 1 - rank


@kernel
def code_words(old: Words, new: Words, bits: int, learned: Learned, coder: Coder, stream: Octets, decoding: bool) -> Coder:
    """Code a block of words of `bits` bits (16 or 32); a decoder writes `new`. INVALID if a step leaves the type's ranks."""
    shift = bits - 9
    top = 1 << (bits - 1)
    recent, direction, size = 0, 2, 0
    for i in range(old.size):
        before = int64(old[i])
        exponent = (before >> shift) & (EXPONENTS - 1)
        step = 0
        if not decoding:
            step = rank_of(int64(new[i]), bits) - rank_of(before, bits)
        few = min(_ones(recent), 3)
        near = CHANGED_NEAR + (recent & 3) * 4 + few
        changed, coder = decide(int64(step != 0), CHANGED + exponent, near, learned.logits, learned.ages, coder, stream, decoding)
        recent = (recent << 1 | changed) & 255
        if changed:
            sign = SIGN + 2 * exponent + (before >> (bits - 1))
            down, coder = decide(
                int64(step < 0), sign, SIGN_NEAR + direction, learned.logits, learned.ages, coder, stream, decoding
            )
            magnitude, size, coder = _code_size(abs(step), exponent, size, learned, coder, stream, decoding)
            step = -magnitude if down else magnitude
            direction = down
        if coder[3] < 0:
            return coder
        if decoding:
            after = rank_of(before, bits) + step
            if after >= top or after < -top:
                return coder[0], coder[1], coder[2], INVALID
            new[i] = word_of(after, bits)
    return coder


@kernel
def _ones(octet: int) -> int:
    """Number of ones among eight bits."""
    octet = octet - ((octet >> 1) & 0x55)
    octet = (octet & 0x33) + ((octet >> 2) & 0x33)
    return (octet + (octet >> 4)) & 0x0F


@kernel
def _code_size(
    magnitude: int, exponent: int, last: int, learned: Learned, coder: Coder, stream: Octets, decoding: bool
) -> tuple[int, int, Coder]:
    """Code a number >= 1: its bits less one by ones and a zero, then the bits below the highest one, the first of them with a context.

    Returns the number, its bits less one, and the coder. Example: 6 is 110: two ones and a zero, then 1 (with a context), then 0.
    """
    width = 0
    if not decoding:
        while magnitude >> (width + 1):
            width += 1
    steps = 0
    while steps < SIZES - 1:
        more, coder = decide(
            int64(steps < width),
            SIZE + exponent * SIZES + steps,
            SIZE_NEAR + last * SIZES + steps,
            learned.logits,
            learned.ages,
            coder,
            stream,
            decoding,
        )
        if not more:
            break
        steps += 1
    value = 1
    for place in range(steps - 1, -1, -1):
        bit = (magnitude >> place) & 1
        if place == steps - 1:
            bit, coder = decide(bit, UPPER + steps, 0, learned.logits, learned.ages, coder, stream, decoding)
        else:
            bit, coder = code_bit(bit, HALF, coder, stream, decoding)
        value = value << 1 | bit
    return value, steps, coder
