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
RATES = np.array([max(8 * ONE // (16 + age), ONE // 250) for age in range(AGES)], np.int64)
"""Logit per unit of error, by how often a context was used."""
CAP = 1 << 20
"""No logit leaves +-16."""

NEXT = np.array([[0, 2], [5, 7], [1, 3], [6, 4], [2, 0], [4, 6], [3, 1], [7, 5]], np.int64)
"""States of the dependent quantiser: the next one, by the parity of the level."""

LEVELS = 14
"""Unary part of a magnitude; what is larger goes on by Exp-Golomb."""
ACTIVITIES = 10
"""Bins of an activity."""
NONE = 0
"""The context that is always 0."""
RANK = 1
SCALE = RANK + 64
BIAS = SCALE + 192
ZERO = BIAS + 32
ZERO_KINDS = 40
MORE = ZERO + 4 * ZERO_KINDS
MORE_KINDS = 16 + 6 * ACTIVITIES
VECTOR = MORE + 2 * MORE_KINDS
CONTEXTS = VECTOR + 4
"""First contexts of each kind, and how many contexts there are."""


def new_model() -> tuple[Ints, Ints]:
    """Logits and ages of the contexts before anything is learned."""
    logits = np.zeros(CONTEXTS, np.int64)
    logits[BIAS : BIAS + 32] = -144179
    for side in range(2):
        logits[MORE + side * MORE_KINDS : MORE + side * MORE_KINDS + 16] = -52429
    return logits, np.zeros(CONTEXTS, np.int64)


@kernel
def start(stream: Octets, decoding: bool) -> Coder:
    """The coder before the first bit."""
    return 0, FULL, first_word(stream) if decoding else 0, 0


@kernel
def finish(coder: Coder, stream: Octets) -> int:
    """Write the end of a stream; its length, or -1 if there was no room."""
    last, at = last_octet(coder[0]), coder[3]
    if at < 0 or (last != 0 and at >= stream.size):
        return -1
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
    bit: int, a: int, b: int, c: int, d: int, logits: Ints, ages: Ints, coder: Coder, stream: Octets, decoding: bool
) -> tuple[int, Coder]:
    """Code one bit in four contexts (NONE for those it has not) and let them learn."""
    p = squash(logits[a] + logits[b] + logits[c] + logits[d])
    bit, low, high, word, at = code_bit(bit, p, coder[0], coder[1], coder[2], coder[3], stream, decoding)
    error = (bit << 16) - p
    for context in (a, b, c, d):
        if context != NONE:
            _learn(logits, ages, context, error)
    return bit, (low, high, word, at)


@kernel
def code_ranks(
    ranks: Ints, same: Ints, most: int, logits: Ints, ages: Ints, coder: Coder, stream: Octets, decoding: bool
) -> Coder:
    """Code the number of components of each module, unary. same[i]: the module before i of the same shape, or -1. When more than
    `most` are claimed, the place becomes negative.
    """
    before = 0
    for i in range(ranks.size):
        near = ranks[same[i]] if same[i] >= 0 else 0
        count = 0
        while True:
            step = min(count, 7)
            b = RANK + 8 + 3 * step + min(max(near - count + 1, 0), 2)
            c = RANK + 32 + 3 * step + min(max(before - count + 1, 0), 2)
            more, coder = _decide(int64(ranks[i] > count), RANK + step, b, c, NONE, logits, ages, coder, stream, decoding)
            if more == 0:
                break
            count += 1
            if count > most or (decoding and coder[3] > stream.size):
                return coder[0], coder[1], coder[2], -1
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
            delta, coder = _code_number(scales[c] - before, SCALE + 96 * int64(j > 0), logits, ages, coder, stream, decoding)
            before += delta
            if before < MIN_SCALE or before > MAX_SCALE or coder[3] < 0:
                return coder[0], coder[1], coder[2], -1
            scales[c] = before
            c += 1
            if j == 0:
                first = before
    return coder


@kernel
def _code_number(
    value: int, base: int, logits: Ints, ages: Ints, coder: Coder, stream: Octets, decoding: bool
) -> tuple[int, Coder]:
    """A signed number: how many bits |value| has, unary; the bits below the highest, the upper one in a context; the sign."""
    size, magnitude = 0, abs(value)
    while True:
        more, coder = _decide(int64(magnitude >> size != 0), base + size, NONE, NONE, NONE, logits, ages, coder, stream, decoding)
        if more == 0 or size == 12:
            break
        size += 1
    got = 1 if size else 0
    for i in range(size - 2, -1, -1):
        context = base + 32 + size if i == size - 2 else NONE
        low, coder = _decide((magnitude >> i) & 1, context, NONE, NONE, NONE, logits, ages, coder, stream, decoding)
        got = got << 1 | low
    if got == 0:
        return 0, coder
    negative, coder = _decide(int64(value < 0), base + 64 + size, NONE, NONE, NONE, logits, ages, coder, stream, decoding)
    return (-got if negative else got), coder


@kernel
def code_modules(
    entries: Entries,
    ranks: Ints,
    rows: Ints,
    columns: Ints,
    channels: Ints,
    activity: Ints,
    logits: Ints,
    ages: Ints,
    coder: Coder,
    stream: Octets,
    decoding: bool,
) -> Coder:
    """Code the entries of all components. channels[i]: where the activities of the rows of module i and those of its columns lie in
    `activity`. The place becomes negative when there is no room, a vector is zero or an entry too large.
    """
    at = 0
    for i in range(ranks.size):
        sides = (rows[i], columns[i])
        before = np.zeros(rows[i] + columns[i], np.int64)
        for j in range(ranks[i]):
            for side in range(2):
                size = sides[side]
                own = before[:size] if side == 0 else before[sides[0] :]
                shared = activity[channels[i, side] : channels[i, side] + size]
                coder = _code_vector(entries[at : at + size], side, j, own, shared, logits, ages, coder, stream, decoding)
                at += size
                if coder[3] < 0:
                    return coder
        if ranks[i] > 0:
            for side in range(2):
                size = sides[side]
                own = before[:size] if side == 0 else before[sides[0] :]
                shared = activity[channels[i, side] : channels[i, side] + size]
                for t in range(size):
                    shared[t] += (16 * own[t] - shared[t]) >> 3
    return coder


@kernel
def _bin(activity: int) -> int:
    """0..ACTIVITIES - 1, each bin half as wide again as the one before."""
    b = 0
    limit = 8
    while b < ACTIVITIES - 1 and activity >= limit:
        limit += limit >> 1
        b += 1
    return b


@kernel
def _code_vector(
    entries: Entries,
    side: int,
    j: int,
    own: Ints,
    shared: Ints,
    logits: Ints,
    ages: Ints,
    coder: Coder,
    stream: Octets,
    decoding: bool,
) -> Coder:
    """Code one vector of levels under the dependent quantiser."""
    start = BIAS + 16 * side + min(j, 15)
    for q in range(2):
        logits[VECTOR + q], ages[VECTOR + q] = logits[start], 24
    state, near, far, any_left = 0, 0, 0, 0
    for t in range(entries.size):
        q = state & 1
        a, b = _bin(own[t]), _bin(shared[t])
        zero = ZERO + (2 * side + q) * ZERO_KINDS
        value = int64(entries[t])
        magnitude = (abs(value) + q) >> 1
        some, coder = _decide(
            int64(magnitude != 0),
            VECTOR,
            zero + a,
            zero + 10 + b,
            zero + 20 + 3 * near + far,
            logits,
            ages,
            coder,
            stream,
            decoding,
        )
        level = 0
        if some:
            more = MORE + side * MORE_KINDS
            level = 1
            while level <= LEVELS:
                step = min(level - 1, 2)
                c, d = more + 16 + step * ACTIVITIES + a, more + 46 + step * ACTIVITIES + b
                larger, coder = _decide(
                    int64(magnitude > level), more + level - 1, c, d, NONE, logits, ages, coder, stream, decoding
                )
                if larger == 0:
                    break
                level += 1
            if level > LEVELS:
                level, coder = _code_rest(magnitude, coder, stream, decoding)
            negative, coder = _decide(int64(value < 0), NONE, NONE, NONE, NONE, logits, ages, coder, stream, decoding)
            if 2 * level - q >= MAX_ENTRY:
                return coder[0], coder[1], coder[2], -1
            entries[t] = -(2 * level - q) if negative else 2 * level - q
            any_left = 1
        else:
            entries[t] = 0
        state = NEXT[state, level & 1]
        far = near
        near = min(level, 2)
        own[t] += 8 * min(level, 6)
        if coder[3] < 0 or (decoding and coder[3] > stream.size):
            return coder[0], coder[1], coder[2], -1
    logits[start] += (logits[VECTOR] - logits[start]) >> 2
    if any_left == 0:
        return coder[0], coder[1], coder[2], -1
    return coder


@kernel
def _code_rest(magnitude: int, coder: Coder, stream: Octets, decoding: bool) -> tuple[int, Coder]:
    """A magnitude above LEVELS: magnitude - LEVELS by Exp-Golomb, all bits of probability one half."""
    rest = magnitude - LEVELS
    low, high, word, at = coder
    size = 0
    while size < 16:
        more, low, high, word, at = code_bit(int64(rest >> (size + 1) != 0), ONE >> 1, low, high, word, at, stream, decoding)
        if more == 0:
            break
        size += 1
    got = 1
    for i in range(size - 1, -1, -1):
        bit, low, high, word, at = code_bit((rest >> i) & 1, ONE >> 1, low, high, word, at, stream, decoding)
        got = got << 1 | bit
    return LEVELS + got, (low, high, word, at)
