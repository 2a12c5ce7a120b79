"""Symbols of any kind that have an encoding, for properties."""

import numpy as np
from hypothesis import strategies as st

from compeft_core.product import ProductSymbols
from compeft_core.product.model import NEXT

ENTRY_SIZES = (1, 1, 1, 2, 3, 20, 700, 32766)
"""Magnitudes that are drawn: small ones mostly."""


def with_parity(magnitudes: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Entries near these magnitudes whose parities the dependent quantiser allows, from its first state on."""
    entries, state = np.zeros(magnitudes.size, np.int16), 0
    for t, magnitude in enumerate(magnitudes):
        q = state & 1
        level = (int(magnitude) + q) >> 1
        value = 2 * level - q if level else 0
        entries[t] = -value if signs[t] else value
        state = NEXT[state, level & 1]
    return entries


@st.composite
def symbols(draw: st.DrawFn, most_modules: int = 6, most_side: int = 40) -> ProductSymbols:
    """Random shapes, ranks, scale codes, and vectors of random densities."""
    shapes = draw(st.lists(st.tuples(st.integers(1, most_side), st.integers(1, most_side)), max_size=most_modules))
    if shapes and draw(st.booleans()):
        shapes = shapes + shapes
    ranks = [draw(st.integers(0, min(m, n, 12))) for m, n in shapes]
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vectors = [np.zeros(0, np.int16)]
    for (m, n), rank in zip(shapes, ranks, strict=True):
        for size in [m, n] * rank:
            magnitudes = random.integers(0, draw(st.sampled_from(ENTRY_SIZES)) + 1, size) * (
                random.random(size) < random.random()
            )
            magnitudes[random.integers(size)] = 2  # a magnitude of 2 is 2 or 1, never 0
            vectors.append(with_parity(magnitudes, random.random(size) < 0.5))
    entries = np.concatenate(vectors)
    scales = random.integers(-1024, 1024, sum(ranks)) if draw(st.booleans()) else random.integers(-310, -290, sum(ranks))
    if np.abs(entries).max(initial=0) < 128:
        entries = entries.astype(np.int8)
    return ProductSymbols(tuple(shapes), np.array(ranks, np.int64), scales.astype(np.int64), entries)
