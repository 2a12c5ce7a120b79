"""The model and the walk of the product-space codec: kernels around the coder of `arithmetic_coder`. docs/product-format.md is normative.

Every bit is coded with the probability squash(L[a] + L[b] + L[c] + L[d]): four contexts, each with a logit L that starts at a known
value and moves by rate(age) times the error of the probability, so that it soon says what was seen there. Nothing is sent for it.
Integers only, and `>>` rounds down. One walk serves both directions: an encoder and a decoder that differ only in where a bit
comes from cannot disagree about its probability.
"""

import numpy as np
from numpy.typing import NDArray

from compeft_core.format.arithmetic_coder import FULL, Octets, code_bit, first_word, last_octet
from compeft_core.format.context_model import ONE, SQUASH
from compeft_core.parallel import int64, kernel, uint64

Ints = NDArray[np.int64]
Entries = NDArray[np.int16]
Coder = tuple[int, int, int, int]
"""low, high, word, at: see `arithmetic_coder`."""

AGES = 1024
REACH = SQUASH.size // 2
RATES = np.array([max(8 * ONE // (32 + age), ONE // 256) for age in range(AGES)], np.int64)
"""Logit per unit of error, by how often a context was used."""
CAP = 1 << 20
"""No logit leaves +-16."""
MEAN_RATES = np.array([ONE // (3 + t) for t in range(AGES)], np.int64)
"""By which a vector's running mean moves at its entry t."""

NEXT = np.array([[0, 2], [5, 7], [1, 3], [6, 4], [2, 0], [4, 6], [3, 1], [7, 5]], np.int64)
"""States of the dependent quantiser: the next one, by the parity of the level."""

LEVELS = 14
"""Unary part of a magnitude; what is larger goes on by Exp-Golomb."""
BINS = 32
"""Bins of a mean magnitude, two for each factor of two; bin 12 begins at 1."""
INVALID, NO_ROOM = -1, -2
"""Places that say why coding stopped."""
NONE = 0
"""The context that is always 0."""
RANK = 1
SCALE = RANK + 48
ZERO_MEAN = SCALE + 2 * 36
ZERO_NEAR = ZERO_MEAN + 2 * BINS
MORE_MEAN = ZERO_NEAR + 2 * BINS
MORE_NEAR = MORE_MEAN + LEVELS * BINS
VECTOR = MORE_NEAR + 3 * BINS
CONTEXTS = VECTOR + 2
"""First contexts of each kind, and how many contexts there are."""


def new_model() -> tuple[Ints, Ints]:
    """Logits and ages of the contexts before anything is learned: straight lines near what normally distributed vectors end with."""
    logits = np.zeros(CONTEXTS, np.int64)
    for b in range(BINS):
        logits[ZERO_MEAN + b] = (2 * b - 21) << 13
        logits[ZERO_MEAN + BINS + b] = (2 * b - 23) << 13 if b > 12 else max((2 * b - 25) * 3 << 13, -7 << 15)
        for step in range(LEVELS):
            logits[MORE_MEAN + step * BINS + b] = min(max(3 * (b - 14 - min(step, 2)) << 14, -5 << 15), 4 << 16)
    return logits, np.zeros(CONTEXTS, np.int64)


@kernel
def start(stream: Octets, decoding: bool) -> Coder:
    """The coder before the first bit."""
    return 0, FULL, first_word(stream) if decoding else 0, 0


@kernel
def finish(coder: Coder, stream: Octets) -> int:
    """Write the end of a stream; its length, or NO_ROOM, or INVALID if the symbols were."""
    last, at = last_octet(coder[0]), coder[3]
    if at < 0 or (last != 0 and at >= stream.size):
        return INVALID if at == INVALID else NO_ROOM
    if last != 0:
        stream[at] = last
        return at + 1
    return at


@kernel
def is_finished(coder: Coder, stream: Octets) -> bool:
    """Whether the stream ends here, and as a writer ends it."""
    last, at = last_octet(coder[0]), coder[3]
    if last == 0:
        return at == stream.size
    return at + 1 == stream.size and stream[at] == last


@kernel
def squash(logit: int) -> int:
    """Logit -> probability, 1..ONE - 1, both in units of 1 / ONE."""
    step = min(max(logit >> 8, -REACH), REACH)
    return int64(SQUASH[uint64(step + REACH)])


@kernel
def learn(logits: Ints, ages: Ints, context: int, error: int) -> None:
    """Move a context's logit by its rate times 65536 times the bit less its probability."""
    moved = logits[context] + ((error * RATES[ages[context]]) >> 16)
    logits[context] = min(max(moved, -CAP), CAP)
    ages[context] = min(ages[context] + 1, AGES - 1)


@kernel
def decide(bit: int, a: int, b: int, logits: Ints, ages: Ints, coder: Coder, stream: Octets, decoding: bool) -> tuple[int, Coder]:
    """Code one bit in two contexts (the second one NONE if it has one only) and let them learn."""
    p = squash(logits[a] + logits[b])
    bit, (low, high, word, at) = code_bit(bit, p, coder, stream, decoding)
    error = (bit << 16) - p
    if a != NONE:
        learn(logits, ages, a, error)
    if b != NONE:
        learn(logits, ages, b, error)
    return bit, (low, high, word, at)
