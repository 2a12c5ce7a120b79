"""The vectors of all components under the dependent quantiser. Section 4 of docs/product-format.md."""

from compeft_core.format.arithmetic_coder import Octets, code_bit
from compeft_core.format.context_model import ONE
from compeft_core.parallel import int64, kernel
from compeft_core.product.model import (
    AGES,
    BINS,
    INVALID,
    LEVELS,
    MEAN_RATES,
    MORE_MEAN,
    MORE_NEAR,
    NEXT,
    NO_ROOM,
    VECTOR,
    ZERO_MEAN,
    ZERO_NEAR,
    Coder,
    Entries,
    Ints,
    decide,
    learn,
    squash,
)
from compeft_core.product.symbols import MAX_ENTRY


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
        learn(logits, ages, c, error)
        learn(logits, ages, d, error)
        learn(logits, ages, e, error)
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
        more, coder = decide(int64(magnitude > step + 1), c, d, logits, ages, coder, stream, decoding)
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
