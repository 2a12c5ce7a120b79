"""One expert in memory as what its products are made of: a few integers, half a byte each, and one factor a component.

A file of products has 0 to 8 components a module, and nearly all entries of their vectors are within -7 to 7. Two entries share a byte,
the first in its low half; a half of 8 says that the entry stands in `others`. Example: entries 3, -1, 9 and 0 are the bytes 0xf3 0x08,
and `others` says that entry 2 is 9. An expert that is not of products is kept as its factors in float32, without those that are zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.product import ProductSymbols
from compeft_core.product.symbols import scale_of

Array = NDArray[np.float32]
ESCAPE, LARGEST = 8, 7
HALVES = np.array([[(b & 15) ^ 8, (b >> 4) ^ 8] for b in range(256)], np.float32) - 8
"""Byte -> its two entries: `(x ^ 8) - 8` reads four bits as a signed number."""


@dataclass(frozen=True, slots=True, eq=False)
class ThinExpert:
    """Of each of its modules `ranks` components: the left vector (m), then the right one (n).

    places_in: the number of each module in the pool.
    halves: uint8 of two entries each; absent if `values` has them as float32.   factors: float32, what each component's product is
    multiplied by.   places, others: entries outside -7 to 7.
    """

    places_in: tuple[int, ...]
    ranks: NDArray[np.int64]
    halves: NDArray[np.uint8]
    factors: Array
    places: NDArray[np.uint32]
    others: NDArray[np.int16]
    values: Array | None = None

    @property
    def held_bytes(self) -> int:
        """Memory that the arrays take."""
        arrays = (self.ranks, self.halves, self.factors, self.places, self.others)
        return sum(array.nbytes for array in arrays) + (self.values.nbytes if self.values is not None else 0)

    @property
    def entries(self) -> Array:
        """All entries, float32, component by component."""
        if self.values is not None:
            return self.values
        found = HALVES[self.halves].reshape(-1)
        found[self.places] = self.others
        return found


def thin_of_symbols(symbols: ProductSymbols, scalings: Sequence[float], places_in: Sequence[int]) -> ThinExpert:
    """The expert of parsed symbols; `scalings`: what the adapter multiplies each module's product by, put into the components' factors."""
    both = np.array([scale_of(int(code)) for code in symbols.scales], np.float32).reshape(-1, 2)
    factors = both[:, 0] * both[:, 1] * np.repeat(np.array(scalings, np.float32), symbols.ranks)
    entries = symbols.entries.astype(np.int16)
    places = np.flatnonzero(np.abs(entries) > LARGEST)
    small = np.where(np.abs(entries) > LARGEST, ESCAPE, entries & 15).astype(np.uint8)
    small = np.append(small, np.zeros(small.size % 2, np.uint8))
    halves = (small[::2] | (small[1::2] << 4)).astype(np.uint8)
    ranks = symbols.ranks.astype(np.int64)
    return ThinExpert(tuple(places_in), ranks, halves, factors, places.astype(np.uint32), entries[places])


def thin_of_factors(factors: Sequence[tuple[Array, Array]], places_in: Sequence[int]) -> ThinExpert:
    """The expert of (left (m, r), right (r, n)) of each module; components that are zero are left out."""
    kept = [(left[:, used], right[used]) for left, right in factors for used in [_used(left, right)]]
    parts = [np.concatenate([left.T, right], axis=1).reshape(-1) for left, right in kept]
    none = np.zeros(0, np.uint8)
    return ThinExpert(
        tuple(places_in),
        np.array([right.shape[0] for _, right in kept], np.int64),
        none,
        np.ones(sum(right.shape[0] for _, right in kept), np.float32),
        none.astype(np.uint32),
        none.astype(np.int16),
        np.concatenate([np.zeros(0, np.float32), *parts]).astype(np.float32),
    )


def _used(left: Array, right: Array) -> NDArray[np.int64]:
    return np.flatnonzero(left.any(axis=0) & right.any(axis=1))
