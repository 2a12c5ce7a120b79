"""The context model: the kernels behind the codec `context`, around the coder of arithmetic_coder.py. docs/format.md is normative.

What a task vector keeps is not independent: some rows and columns keep more, two slots of a line are kept together, and the signs
of two slots agree or differ all along a tensor, because gradients of low-rank factors are close to low rank. A logistic
regression learns all of that while it codes, entry by entry, the same on both sides, so none of it is sent.

How one matrix is coded, with the numbers that the code uses. A LoRA B matrix of 4096 x 16 is walked in 4,096 lines of 16 slots (a line
runs along the shorter side). In a line, for each slot:

1. The logit that the slot is kept is a sum: the density of the segment, `bias[slot]` (how often this slot was kept in earlier lines),
   `pairs[slot, other]` for each slot of this line that was kept before it, and a shared weight for the strength of the sign evidence.
2. The evidence for a sign is the sum of `signs[slot, other]` times the sign of each slot kept before it. Example: slots 2 and 5 had
   opposite signs in the last 50 lines, so signs[5, 2] is very negative; where slot 2 is + now, the evidence for slot 5 is for -.
3. `_squash` makes a probability of the logit, the coder spends -log2 of it in bits, and every weight used moves a step towards what
   happened (error times learning rate; the rates fall with the age of a weight, as in a running mean).

Weights are integers in units of 2**-16, and `>>` rounds down, so every machine computes the same bits. One walk serves both directions:
an encoder and a decoder that differ only in where a bit comes from cannot disagree about its probability.

Invariant: whatever the bytes, `decode_segment` reads and writes only inside its arrays, ends after as many steps as there are positions,
and returns True only for the stream that `encode_segment` writes.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compeft_core.format.arithmetic_coder import FULL, Coder, Octets, code_bit, first_word, last_octet, settle
from compeft_core.parallel import int64, kernel, uint64

WINDOW = 64
"""Slots that may be contexts of each other: those with the same slot // WINDOW."""
ONE = 1 << 16
"""One, of a probability, a logit or a weight."""
STEPS = 256
"""Steps of the squash table in a logit."""
REACH = 12 * STEPS - 1
"""Last step of the squash table; the logit of a probability below 2**-17 is not told apart from it."""
DECAY = 4278222805
"""round-down(2**32 * exp(-1 / STEPS))."""
BINS = 32
BIN_BITS = 13
"""The evidence for a sign is cut into bins of an eighth of a logit."""
AGES = 512
"""After this many steps a learning rate falls no further."""
PAIR_START = ONE // 4
"""The first value of a pair weight, before anything is learned: a kept slot makes the others of its line a little more likely."""
PAIR_SHIFT = 4
"""Pair weights learn at a rate of 1/16."""
WEIGHT_CAP = 1 << 24
"""No weight leaves +-256 logits, so 32 bits hold it whatever the bytes."""
LEAST_AGREE = 64

KEPT, KEPT_AGE, AGREE, AGREE_AGE = range(4)
"""Rows of the shared model, BINS columns each: weight of the evidence for being kept, probability that a sign agrees with its
evidence, and how often each was used."""

Ints = NDArray[np.int64]
Weights = NDArray[np.int32]
Words = NDArray[np.uint64]


class SegmentModel(NamedTuple):
    """What all matrices of a segment share: the logit of its density, the learning rates by age, and the table KEPT .. AGREE_AGE."""

    logit: int
    rates: Ints
    shared: Ints


class MatrixModel(NamedTuple):
    """Weights of one matrix: `bias` of each slot, `pairs` of slots, and the slots kept so far in this line, `seen`."""

    bias: Ints
    pairs: Weights
    seen: Words


def squash_table() -> Weights:
    """round-down(ONE / (1 + exp(-i / STEPS))) for i = -REACH..REACH, by the integer rule of docs/format.md; within 1 of exact."""
    power, half = 1 << 32, []
    for _ in range(REACH + 1):
        half.append((1 << 48) // ((1 << 32) + power))
        power = power * DECAY >> 32
    return np.array([ONE - p for p in half[:0:-1]] + half, np.int32)


SQUASH = squash_table()
SIGN_RATES = np.array([math.isqrt((1 << 34) // (4 + age)) for age in range(AGES)], np.int64)
"""ONE / sqrt(1 + age / 4)."""
AGREE_RATES = np.array([ONE // (12 + age) for age in range(AGES)], np.int64)


@kernel
def encode_segment(
    stream: Octets, positions: NDArray[np.uint32], negative: NDArray[np.bool_], rows: Ints, columns: Ints, base: int
) -> int:
    """Write the entries kept in the matrices rows x columns, which begin at position `base`, to `stream`.

    Returns the length written, or -1 if the buffer is too small.
    """
    cells = np.empty(np.max(rows * columns), np.int8)
    density = _density(positions.size, rows, columns)
    model = SegmentModel(_stretch(density), _rates(density), _shared_model())
    coder = (0, FULL, 0, 0)
    count, place = 0, base
    for t in range(rows.size):
        end = place + rows[t] * columns[t]
        cells[: end - place] = 0
        while count < positions.size and positions[count] < end:
            cells[positions[count] - place] = -1 if negative[count] else 1
            count += 1
        coder = _code_matrix(cells, (rows[t], columns[t]), model, coder, stream, False)
        if coder[3] < 0:
            return -1
        place = end
    last, at = last_octet(coder[0]), coder[3]
    if last == 0:
        return at
    if at >= stream.size:
        return -1
    stream[at] = last
    return at + 1


@kernel
def decode_segment(
    stream: Octets, positions: NDArray[np.uint32], negative: NDArray[np.bool_], rows: Ints, columns: Ints, base: int
) -> bool:
    """Fill `positions` and `negative` from `stream`. False if it is not the one stream of this many entries.

    Whatever the bytes, nothing outside the arrays is read or written, and the time taken is that of as many positions.
    """
    cells = np.empty(np.max(rows * columns), np.int8)
    density = _density(positions.size, rows, columns)
    model = SegmentModel(_stretch(density), _rates(density), _shared_model())
    coder = (0, FULL, first_word(stream), 0)
    count, place = 0, base
    for t in range(rows.size):
        end = place + rows[t] * columns[t]
        cells[: end - place] = 0
        coder = _code_matrix(cells, (rows[t], columns[t]), model, coder, stream, True)
        count = _gather(cells[: end - place], place, positions, negative, count)
        if coder[3] < 0 or count < 0:
            return False
        place = end
    last, at = last_octet(coder[0]), coder[3]
    if last == 0:
        return count == positions.size and at == stream.size
    return count == positions.size and at + 1 == stream.size and stream[at] == last


@kernel
def _density(count: int, rows: Ints, columns: Ints) -> int:
    size: int = np.sum(rows * columns)
    return min(max((count << 16) // size, 1), ONE - 1)


@kernel
def _shared_model() -> Ints:
    shared = np.zeros((4, BINS), np.int64)
    for b in range(BINS):
        shared[AGREE, b] = _squash((2 * b + 1) << (BIN_BITS - 1))
    return shared


@kernel
def _squash(logit: int) -> int:
    """Logit -> probability, 1..ONE - 1, both in units of 1 / ONE."""
    step = min(max(logit >> 8, -REACH), REACH)
    return int64(SQUASH[uint64(step + REACH)])


@kernel
def _stretch(probability: int) -> int:
    """The least logit on the table whose squash is at least `probability`."""
    step = -REACH
    while SQUASH[step + REACH] < probability:
        step += 1
    return step << 8


@kernel
def _rates(density: int) -> Ints:
    """Learning rates by age: min(16, 1 / (p (1 - p))) / (40 + age), the step of a mean, carried over to logits."""
    slope = min((1 << 48) // (density * (ONE - density)), 16 << 16)
    rates = np.empty(AGES, np.int64)
    for age in range(AGES):
        rates[age] = slope // (40 + age)
    return rates


@kernel
def _gather(cells: NDArray[np.int8], place: int, positions: NDArray[np.uint32], negative: NDArray[np.bool_], count: int) -> int:
    """Append the entries of a matrix that begins at `place` to the `count` there are; the new count, or -1 if the buffer is too small."""
    for i in range(cells.size):
        if cells[i] != 0:
            if count >= positions.size:
                return -1
            positions[count] = place + i
            negative[count] = cells[i] < 0
            count += 1
    return count


@kernel
def _code_matrix(
    cells: NDArray[np.int8], shape: tuple[int, int], model: SegmentModel, coder: Coder, stream: Octets, decoding: bool
) -> Coder:
    """Code one matrix of `shape` (rows, columns) along the lines of its shorter side; return the coder's state, `at` -1 if it failed.

    cells: -1, 0 or 1 for each position; read when encoding, written when decoding.
    """
    rows, columns = shape
    logit, rates, shared = model
    tall = rows >= columns
    lines, slots = (rows, columns) if tall else (columns, rows)
    by_line, by_slot = (columns, 1) if tall else (1, columns)
    bias = np.zeros(slots, np.int64)
    sign_age = np.zeros(slots, np.int64)
    pairs = np.full((slots, WINDOW), PAIR_START, np.int32)
    signs = np.zeros((slots, WINDOW), np.int32)
    seen, seen_sign = np.zeros(WINDOW, np.uint64), np.zeros(WINDOW, np.int64)
    weights = MatrixModel(bias, pairs, seen)
    low, high, word, at = coder  # the interval, the four bytes ahead when decoding, the bytes settled
    for line in range(lines):
        rate = rates[uint64(min(line, AGES - 1))]
        count = 0
        for slot in range(slots):
            here = uint64(slot)
            if slot % WINDOW == 0:
                count = 0
            evidence, z = 0, logit + bias[here]
            for i in range(count):
                z += pairs[here, seen[uint64(i)]]
                evidence += signs[here, seen[uint64(i)]] * seen_sign[uint64(i)]
            b = uint64(min(abs(evidence) >> BIN_BITS, BINS - 1))
            p = _squash(z + shared[uint64(KEPT), b])
            cell = uint64(line * by_line + slot * by_slot)
            middle = low + (((high - low) * p) >> 16)
            if (word > middle) if decoding else (cells[cell] == 0):  # a branch: the processor guesses "not kept" and goes on
                low = middle + 1
                if (low ^ high) >> 24 == 0:
                    low, high, word, at = settle(low, high, word, at, stream, decoding)
                _learn_kept(model, weights, -p, (rate, count), here, b)
                continue
            high = middle
            if (low ^ high) >> 24 == 0:
                low, high, word, at = settle(low, high, word, at, stream, decoding)
            _learn_kept(model, weights, ONE - p, (rate, count), here, b)
            p = shared[AGREE, b] if evidence >= 0 else ONE - shared[AGREE, b]
            plus, (low, high, word, at) = code_bit(int64(cells[cell] > 0), p, (low, high, word, at), stream, decoding)
            _learn_agreement(shared, b, int64(evidence >= 0) == plus)
            step = (((plus << 16) - _squash(evidence)) * SIGN_RATES[sign_age[slot]]) >> 16
            sign_age[slot] = min(sign_age[slot] + 1, AGES - 1)
            for i in range(count):
                signs[here, seen[uint64(i)]] = _capped(signs[here, seen[uint64(i)]] + step * seen_sign[uint64(i)])
            seen[uint64(count)], seen_sign[uint64(count)] = uint64(slot % WINDOW), 2 * plus - 1
            cells[cell] = 2 * plus - 1
            count += 1
        if at < 0 or (decoding and at > stream.size):
            return low, high, word, -1
    return low, high, word, at


@kernel
def _capped(weight: int) -> int:
    return min(max(weight, -WEIGHT_CAP), WEIGHT_CAP)


@kernel
def _learn_kept(model: SegmentModel, weights: MatrixModel, error: int, line: tuple[int, int], slot: int, b: int) -> None:
    """Move every weight that gave the probability of `slot` by `error`, what happened less that probability, times its learning rate.

    line: the rate of this line's biases, and how many slots of it were kept before.   b: the bin of the sign evidence.
    """
    rate, count = line
    rates, shared = model.rates, model.shared
    weights.bias[slot] += (error * rate) >> 16
    shared[uint64(KEPT), b] += (error * rates[uint64(shared[uint64(KEPT_AGE), b])]) >> 16
    shared[uint64(KEPT_AGE), b] = min(shared[uint64(KEPT_AGE), b] + 1, AGES - 1)
    for i in range(count):
        other = weights.seen[uint64(i)]
        weights.pairs[slot, other] = _capped(weights.pairs[slot, other] + (error >> PAIR_SHIFT))


@kernel
def _learn_agreement(shared: Ints, b: int, agrees: bool) -> None:
    p, age = shared[AGREE, b], shared[AGREE_AGE, b]
    p += (((ONE if agrees else 0) - p) * AGREE_RATES[age]) >> 16
    shared[AGREE, b] = min(max(p, LEAST_AGREE), ONE - LEAST_AGREE)
    shared[AGREE_AGE, b] = min(age + 1, AGES - 1)
