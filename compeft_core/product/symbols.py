"""What a product-space encoding says: ranks, scale codes and integer vectors; and the float32 factors that they stand for.

A component j of a module of m x n is an integer vector u of m entries, an integer vector v of n entries, and a scale code k. It
stands for the matrix 2**(k / 16) * u v^T, with 2**(1/16) taken from a table of 16 numbers. A module is the sum of its components.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import InputError

Shape = tuple[int, int]
Factor = NDArray[np.float32]
Ints = NDArray[np.int64]

SCALE_STEPS = 16
"""Scale codes in a factor of two."""
MANTISSAS = (128, 134, 140, 146, 152, 159, 166, 173, 181, 189, 197, 206, 215, 225, 235, 245)
"""round(128 * 2**(i / 16)), i = 0..15: a scale is MANTISSAS[k % 16] / 128 * 2**(k // 16)."""
MIN_SCALE, MAX_SCALE = -1024, 1023
"""Scale codes, so that no product with an entry leaves the normal float32 numbers."""
MAX_ENTRY = 1 << 15
"""Entries lie in -MAX_ENTRY + 1..MAX_ENTRY - 1."""
MAX_SIDE = 1 << 24
MAX_MODULES = 1 << 18


class Factors(NamedTuple):
    """float32 left (m x r') and right (r' x n) of one module: its dW is left @ right."""

    left: Factor
    right: Factor


@dataclass(frozen=True, slots=True)
class ProductLimits:
    """What a decoder accepts: components of one module, and entries (components times m + n) of all of them together."""

    rank: int = 256
    entries: int = 1 << 28


@dataclass(frozen=True, slots=True, eq=False)
class ProductSymbols:
    """Symbols of a checked encoding; all arrays are read-only.

    shapes: rows m and columns n of each module.   ranks: int64, components of each module.
    scales: int64, the scale code of each component, module by module.
    entries: int8 or int16, for each component its m left and then its n right entries.
    """

    shapes: tuple[Shape, ...]
    ranks: Ints
    scales: Ints
    entries: NDArray[np.int8] | NDArray[np.int16]

    @property
    def held_bytes(self) -> int:
        """Memory that the arrays take."""
        return self.ranks.nbytes + self.scales.nbytes + self.entries.nbytes

    @property
    def starts(self) -> list[int]:
        """Where each module's entries begin in `entries`, and the end of the last."""
        sizes = [int(r) * (m + n) for r, (m, n) in zip(self.ranks, self.shapes, strict=True)]
        return [0, *np.cumsum(sizes, dtype=np.int64).tolist()] if sizes else [0]


def check_shapes(shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """The same shapes as a tuple. Errors: InputError."""
    if len(shapes) > MAX_MODULES:
        raise InputError(f"{len(shapes)} modules, the cap is {MAX_MODULES}")
    for i, (m, n) in enumerate(shapes):
        if not (1 <= m <= MAX_SIDE and 1 <= n <= MAX_SIDE):
            raise InputError(f"module {i} is {m} x {n}, both sides must be 1 to {MAX_SIDE}")
    return tuple((int(m), int(n)) for m, n in shapes)


def scale_of(code: int) -> tuple[np.float32, np.float32]:
    """The two float32 numbers whose product is the scale of a code: a power of two for the left side, the rest for the right.

    The power of two is about the root of the scale, so both factors of an adapter get about the same norm. Example: code -300 is
    2**-18.75; the left side gets 2**-10, the right side MANTISSAS[4] / 128 * 2**(-19 + 10).
    """
    half = code // (2 * SCALE_STEPS)
    right = MANTISSAS[code % SCALE_STEPS] / 128 * 2.0 ** (code // SCALE_STEPS - half)
    return np.float32(2.0**half), np.float32(right)


def factors_of(symbols: ProductSymbols, first: int = 0, last: int | None = None) -> list[Factors]:
    """The factors of modules first..last (all unless told otherwise). Each number is one exact or once-rounded float32 product."""
    stop = len(symbols.shapes) if last is None else last
    starts, component = symbols.starts, int(symbols.ranks[:first].sum())
    made = []
    for i in range(first, stop):
        (m, n), rank = symbols.shapes[i], int(symbols.ranks[i])
        table = symbols.entries[starts[i] : starts[i + 1]].reshape(rank, m + n)
        left, right = np.empty((m, rank), np.float32), np.empty((rank, n), np.float32)
        for j in range(rank):
            power, rest = scale_of(int(symbols.scales[component + j]))
            np.multiply(table[j, :m], power, out=left[:, j], dtype=np.float32)
            np.multiply(table[j, m:], rest, out=right[j], dtype=np.float32)
        component += rank
        made.append(Factors(left, right))
    return made
