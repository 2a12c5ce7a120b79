"""The quantiser: levels of a vector by the trellis of the dependent quantiser, least distortion plus a price for each bit."""

import numpy as np
from numpy.typing import NDArray

from compeft_core.parallel import int64, kernel
from compeft_core.product.model import NEXT

LEVELS = 64
"""Levels whose cost is known by counting; each further one costs BEYOND bits more."""
BEYOND = 0.05


@kernel
def quantise(vector: NDArray[np.float64], price: float, rounds: int, entries: NDArray[np.int16]) -> bool:
    """Choose `entries` (int16) for a vector in half steps: least sum of (x - entry)**2 + price * bits. False if all are 0.

    Bits are counted from the vector's own histogram, first of plain rounding, then of the last round's choice.
    """
    counts = np.full((2, LEVELS), 0.02)
    for t in range(vector.size):
        level = min(int(abs(vector[t]) / 2.0 + 0.4), LEVELS - 1)
        counts[0, level] += 1.0
        counts[1, level] += 1.0
    some = False
    for _ in range(rounds):
        bits = _bits(counts)
        some = _best_path(vector, price, bits, entries)
        if not some:
            return False
        _count(entries, counts)
    return some


@kernel
def _bits(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    bits = np.empty((2, LEVELS))
    for q in range(2):
        total = np.log2(np.sum(counts[q]))
        for level in range(LEVELS):
            bits[q, level] = total - np.log2(counts[q, level]) + (1.0 if level else 0.0)
        for level in range(2, LEVELS):  # holes of a short histogram: a level costs at most 1.5 bits more than the one below
            bits[q, level] = min(bits[q, level], bits[q, level - 1] + 1.5)
    return bits


@kernel
def _count(entries: NDArray[np.int16], counts: NDArray[np.float64]) -> None:
    counts[:] = 0.02
    state = 0
    for t in range(entries.size):
        q = state & 1
        level = (abs(int(entries[t])) + q) >> 1
        counts[q, min(level, LEVELS - 1)] += 1.0
        state = NEXT[state, level & 1]


@kernel
def _best_path(vector: NDArray[np.float64], price: float, bits: NDArray[np.float64], entries: NDArray[np.int16]) -> bool:
    """Viterbi over the eight states.

    A state allows even entries or odd ones and 0 (its quantiser q), and the level's parity leads to the next state. So a step has four
    branches, q times parity, each with one best level: of the two levels around |x| the one of that parity, or 0 if that is even and
    cheaper. Each state is reached by two branches, and the cheaper one stays.
    """
    size = vector.size
    source = np.empty((size, 8), np.int8)
    levels = np.empty((size, 4), np.int16)
    branch = np.empty(4)
    cost, fresh = np.full(8, np.inf), np.empty(8)
    cost[0] = 0.0
    for t in range(size):
        x = abs(vector[t])
        for q in range(2):
            base = int((x + q) / 2.0)
            for level in (base, base + 1):
                index = min(level, LEVELS - 1)
                value = 2 * level - q if level else 0
                at = 2 * q + (level & 1)
                branch[at] = (x - value) ** 2 + price * (bits[q, index] + BEYOND * (level - index))
                levels[t, at] = level
            none = x * x + price * bits[q, 0]
            if none < branch[2 * q]:
                branch[2 * q], levels[t, 2 * q] = none, 0
        fresh[:] = np.inf
        for state in range(8):
            for parity in range(2):
                to = NEXT[state, parity]
                spent = cost[state] + branch[2 * (state & 1) + parity]
                if spent < fresh[to]:
                    fresh[to], source[t, to] = spent, state
        cost[:] = fresh
    state, some = int64(np.argmin(cost)), False
    for t in range(size - 1, -1, -1):
        before = int64(source[t, state])
        q = before & 1
        level = levels[t, 2 * q + int64(NEXT[before, 1] == state)]
        value = 2 * level - q if level else 0
        entries[t] = value if vector[t] >= 0.0 else -value
        some = some or level != 0
        state = before
    return some
