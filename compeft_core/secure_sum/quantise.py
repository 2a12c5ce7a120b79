"""Vectors as small integers on a support that all clients share, so that masks cover the support and not the whole vector.

    whole = floor(value / step + u), u uniform in [0, 1), cut to -most to most;  step = bound / most,  most = 2^(value_bits - 1) - 1

Rounding at random makes each value right in the mean. A sum of n vectors lies in -n most to n most, and words have 4 bits more than that
takes: a vector masked with a wrong key is uniform, and leads out of the range in 15 of 16 entries.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import FormatError, InputError
from compeft_core.layout import Vector
from compeft_core.secure_sum.masks import Words, mask_of

SPARE_BITS = 4


@dataclass(frozen=True, slots=True)
class Quantiser:
    """How values become integers. bound: largest magnitude, > 0; value_bits: of one value, 2 to 20; clients: most that are added up."""

    bound: float
    value_bits: int
    clients: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bound) and self.bound > 0 and 2 <= self.value_bits <= 20 and self.clients >= 1):
            raise InputError(f"invalid {self}: expected a bound above 0, 2 to 20 bits and 1 or more clients")
        if self.bits > 32:
            raise InputError(f"{self.value_bits} bits of {self.clients} clients take words of {self.bits} bits, the most is 32")

    @property
    def most(self) -> int:
        """Largest integer of one client."""
        return (1 << (self.value_bits - 1)) - 1

    @property
    def step(self) -> float:
        """What one unit stands for."""
        return self.bound / self.most

    @property
    def bits(self) -> int:
        """Bits of a word: a sum with its sign, and SPARE_BITS."""
        return self.value_bits + math.ceil(math.log2(self.clients)) + SPARE_BITS

    def words(self, values: Vector, seed: bytes) -> Words:
        """float32 values as words modulo 2^32, rounded at random by a secret 32-byte seed."""
        uniform = mask_of(seed, values.size) * 2.0**-32
        whole = np.clip(np.floor(values.astype(np.float64) / self.step + uniform), -self.most, self.most)
        return whole.astype(np.int64).astype(np.uint32)

    def total(self, words: Words, clients: int) -> NDArray[np.int64]:
        """A sum of `clients` vectors of words as integers. Errors: FormatError if one is beyond what these many clients can lead to."""
        shift = 32 - self.bits
        whole = ((words << np.uint32(shift)).view(np.int32) >> np.int32(shift)).astype(np.int64)
        outside = int(np.count_nonzero(np.abs(whole) > clients * self.most))
        if outside:
            raise FormatError(
                f"{outside} of {whole.size} entries of the sum are beyond {clients} times {self.most}: a client masked its vector with "
                "other keys than it advertised; the round is given up"
            )
        return whole

    def mean(self, total: NDArray[np.int64], clients: int) -> Vector:
        """The mean of the clients' values, float32."""
        return (total * (self.step / clients)).astype(np.float32)


def shared_support(last_step: NDArray[np.uint32], size: int, count: int, seed: bytes) -> NDArray[np.uint32]:
    """`count` positions below `size`, increasing: those of the last published step (uint32, different, at most `count`), the rest at
    random by a public 32-byte seed. Every client that knows version and round computes the same.
    """
    if not 0 < count <= size or last_step.size > count:
        raise InputError(f"support of {count} positions of {size} for a step of {last_step.size}")
    taken = np.zeros(size, np.bool_)
    taken[last_step] = True
    missing, drawn = count - last_step.size, 0
    words = mask_of(seed, 64 + 4 * missing) if missing < size // 4 else np.empty(0, np.uint32)
    for word in words:
        if drawn == missing:
            break
        place = int(word) * size >> 32
        if not taken[place]:
            taken[place] = True
            drawn += 1
    if drawn < missing:  # few positions are left: order them all by a word each
        left = np.flatnonzero(~taken)
        taken[left[np.argsort(mask_of(seed, left.size), kind="stable")[: missing - drawn]]] = True
    return np.flatnonzero(taken).astype(np.uint32)
