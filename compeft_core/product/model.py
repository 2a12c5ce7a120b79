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
from compeft_core.product.symbols import MAX_ENTRY, MAX_SCALE, MIN_SCALE

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
def _learn(logits: Ints, ages: Ints, context: int, error: int) -> None:
    moved = logits[context] + ((error * RATES[ages[context]]) >> 16)
    logits[context] = min(max(moved, -CAP), CAP)
    ages[context] = min(ages[context] + 1, AGES - 1)


@kernel
def _decide(
    bit: int, a: int, b: int, logits: Ints, ages: Ints, coder: Coder, stream: Octets, decoding: bool
) -> tuple[int, Coder]:
    """Code one bit in two contexts (the second one NONE if it has one only) and let them learn."""
    p = squash(logits[a] + logits[b])
    bit, (low, high, word, at) = code_bit(bit, p, coder, stream, decoding)
    error = (bit << 16) - p
    if a != NONE:
        _learn(logits, ages, a, error)
    if b != NONE:
        _learn(logits, ages, b, error)
    return bit, (low, high, word, at)


@kernel
def code_ranks(
    ranks: Ints,
    rows: Ints,
    columns: Ints,
    same: Ints,
    most: int,
    logits: Ints,
    ages: Ints,
    coder: Coder,
    stream: Octets,
    decoding: bool,
) -> Coder:
    """Code the number of components of each module, unary. same[i]: the module before i of the same shape, or -1. INVALID when a module
    has more components than rows or columns, or all of them more than `most` entries.
    """
    before, entries = 0, 0
    for i in range(ranks.size):
        near = ranks[same[i]] if same[i] >= 0 else 0
        count = 0
        while True:
            step = min(count, 7)
            a = RANK + 3 * step + min(max(near - count + 1, 0), 2)
            b = RANK + 24 + 3 * step + min(max(before - count + 1, 0), 2)
            more, coder = _decide(int64(ranks[i] > count), a, b, logits, ages, coder, stream, decoding)
            if more == 0:
                break
            count += 1
            entries += rows[i] + columns[i]
            if count > min(rows[i], columns[i]) or entries > most or (decoding and coder[3] > stream.size):
                return coder[0], coder[1], coder[2], INVALID
        ranks[i] = count
        before = count
    return coder


@kernel
def code_scales(scales: Ints, ranks: Ints, logits: Ints, ages: Ints, coder: Coder, stream: Octets, decoding: bool) -> Coder:
    """Code the scale codes: each as the difference to the one before it in its module, the first to the first of the module before."""
    first, c = 0, 0
    for i in range(ranks.size):
        before = first
        for j in range(ranks[i]):
            base = SCALE + 36 * int64(j > 0)
            delta, coder = _code_difference(scales[c] - before, base, logits, ages, coder, stream, decoding)
            before += delta
            if before < MIN_SCALE or before > MAX_SCALE or (not decoding and before != scales[c]):
                return coder[0], coder[1], coder[2], INVALID
            if coder[3] < 0 or (decoding and coder[3] > stream.size):
                return coder[0], coder[1], coder[2], NO_ROOM
            scales[c] = before
            c += 1
            if j == 0:
                first = before
    return coder


@kernel
def _code_difference(
    value: int, base: int, logits: Ints, ages: Ints, coder: Coder, stream: Octets, decoding: bool
) -> tuple[int, Coder]:
    """A number in -2047..2047: how many bits |value| has, unary; those below the highest; the sign, if it is not 0.

    Example: -6 has 3 bits: "more" in the contexts 0, 1, 2, "no more" in 3, then the bits 1 (in context 12 + 3) and 0, then "negative".
    """
    size, magnitude = 0, abs(value)
    while size < 11:
        more, coder = _decide(int64(magnitude >> size != 0), base + size, NONE, logits, ages, coder, stream, decoding)
        if more == 0:
            break
        size += 1
    if size == 0:
        return 0, coder
    got = 1
    for i in range(size - 2, -1, -1):
        context = base + 12 + size if i == size - 2 else NONE
        bit, coder = _decide((magnitude >> i) & 1, context, NONE, logits, ages, coder, stream, decoding)
        got = got << 1 | bit
    negative, coder = _decide(int64(value < 0), base + 24 + size, NONE, logits, ages, coder, stream, decoding)
    return (-got if negative else got), coder


@kernel
def code_modules(
    entries: Entries,
    ranks: Ints,
    rows: Ints,
    columns: Ints,
    logits: Ints,
    ages: Ints,
    coder: Coder,
    stream: Octets,
    decoding: bool,
) -> Coder:
    """Code the entries of all components. INVALID where a vector is zero or an entry too large or not of its state's parity."""
    at, first = 0, ONE >> 2
    for i in range(ranks.size):
        left = first
        for j in range(ranks[i]):
            left, coder = _code_vector(entries[at : at + rows[i]], left, logits, ages, coder, stream, decoding)
            at += rows[i]
            if coder[3] < 0:
                return coder
            _, coder = _code_vector(entries[at : at + columns[i]], left, logits, ages, coder, stream, decoding)
            at += columns[i]
            if coder[3] < 0:
                return coder
            if j == 0:
                first = left
    return coder


@kernel
def bin_of(mean: int) -> int:
    """The bin of a mean in units of 1 / ONE: twice the number of its bits, plus its second highest bit, less 22, in 0..BINS - 1.

    Example: 1.0 is 65536, of 17 bits, 10000000000000000 in binary: bin 34 + 0 - 22 = 12; 1.5 is 11000...: bin 13; 2.0: bin 14.
    """
    bits, left = 0, mean
    for width in (16, 8, 4, 2, 1):
        if left >> width:
            bits += width
            left >>= width
    upper = (mean >> (bits - 1)) & 1 if bits > 0 else 0
    return min(max(2 * (bits + 1) + upper - 22, 0), BINS - 1)


@kernel
def _code_vector(
    entries: Entries, mean: int, logits: Ints, ages: Ints, coder: Coder, stream: Octets, decoding: bool
) -> tuple[int, Coder]:
    """Code one vector (of zeros when decoding) under the dependent quantiser, beginning with the running mean of another; its own."""
    for q in range(2):
        logits[VECTOR + q], ages[VECTOR + q] = 0, 0
    near, state, some = mean, 0, 0
    low, high, word, at = coder
    for t in range(entries.size):
        q = state & 1
        value = int64(entries[t])
        magnitude = (abs(value) + q) >> 1
        a, b = bin_of(mean), bin_of(near)
        c, d, e = ZERO_MEAN + q * BINS + a, ZERO_NEAR + q * BINS + b, VECTOR + q
        p = squash(logits[c] + logits[d] + logits[e])
        bit, (low, high, word, at) = code_bit(int64(magnitude != 0), p, (low, high, word, at), stream, decoding)
        error = (bit << 16) - p
        _learn(logits, ages, c, error)
        _learn(logits, ages, d, error)
        _learn(logits, ages, e, error)
        level = 0
        if bit:
            level, coder = _code_level(magnitude, a, b, logits, ages, (low, high, word, at), stream, decoding)
            sign, (low, high, word, at) = code_bit(int64(value < 0), ONE >> 1, coder, stream, decoding)
            size = 2 * level - q
            if size >= MAX_ENTRY or (not decoding and size != abs(value)):
                return mean, (low, high, word, INVALID)
            if decoding:
                entries[t] = -size if sign else size
            mean += (((size << 16) - mean) * MEAN_RATES[min(t, AGES - 1)]) >> 16
            near += ((size << 16) - near) >> 3
            some = 1
        else:
            mean += (-mean * MEAN_RATES[min(t, AGES - 1)]) >> 16
            near += -near >> 3
        state = NEXT[state, level & 1]
        if at < 0 or (decoding and at > stream.size):
            return mean, (low, high, word, NO_ROOM)
    return mean, (low, high, word, at if some else INVALID)


@kernel
def _code_level(
    magnitude: int, a: int, b: int, logits: Ints, ages: Ints, coder: Coder, stream: Octets, decoding: bool
) -> tuple[int, Coder]:
    """A magnitude of at least 1: unary up to LEVELS, the rest by Exp-Golomb with bits of probability one half."""
    for step in range(LEVELS):
        c, d = MORE_MEAN + step * BINS + a, MORE_NEAR + min(step, 2) * BINS + b
        more, coder = _decide(int64(magnitude > step + 1), c, d, logits, ages, coder, stream, decoding)
        if more == 0:
            return step + 1, coder
    low, high, word, at = coder
    order = max(a - 16, 0) >> 1
    rest, size = magnitude - LEVELS - 1 + (1 << order), order
    while size < 16:
        more, (low, high, word, at) = code_bit(int64(rest >> (size + 1) != 0), ONE >> 1, (low, high, word, at), stream, decoding)
        if more == 0:
            break
        size += 1
    got = 1
    for i in range(size - 1, -1, -1):
        bit, (low, high, word, at) = code_bit((rest >> i) & 1, ONE >> 1, (low, high, word, at), stream, decoding)
        got = got << 1 | bit
    return LEVELS + 1 + got - (1 << order), (low, high, word, at)
