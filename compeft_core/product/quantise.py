"""The quantiser: levels of a vector by the trellis of the dependent quantiser, least distortion plus a price for each bit."""

import numpy as np
from numpy.typing import NDArray

from compeft_core.parallel import int64, kernel
from compeft_core.product.model import NEXT
from compeft_core.product.symbols import MAX_ENTRY

LEVELS = 64
"""Levels whose cost is known by counting; above, each further level costs BEYOND bits."""
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
    """Viterbi over the eight states; in each step level 0 and the two levels around |x| are tried."""
    size = vector.size
    source = np.empty((size, 8), np.int8)
    chosen = np.empty((size, 8), np.int16)
    cost, fresh = np.full(8, np.inf), np.empty(8)
    cost[0] = 0.0
    for t in range(size):
        fresh[:] = np.inf
        x = abs(vector[t])
        for state in range(8):
            if cost[state] == np.inf:
                continue
            q = state & 1
            base = min(int((x + q) / 2.0), MAX_ENTRY // 2 - 2)
            for level in (0, base, base + 1):
                value = 2 * level - q if level else 0
                index = min(level, LEVELS - 1)
                spent = cost[state] + (x - value) ** 2 + price * (bits[q, index] + BEYOND * (level - index))
                to = NEXT[state, level & 1]
                if spent < fresh[to]:
                    fresh[to], source[t, to], chosen[t, to] = spent, state, level
        cost[:] = fresh
    state = int64(np.argmin(cost))
    some = False
    for t in range(size - 1, -1, -1):
        level, before = chosen[t, state], source[t, state]
        value = 2 * level - (before & 1) if level else 0
        entries[t] = value if vector[t] >= 0.0 else -value
        some = some or level != 0
        state = before
    return some
