"""Kernels as plain Python, where numba is not installed: the same bits, 100 to 500 times slower. For decoding inside programs that pin
another numba, or none.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])

CHUNK = 64
"""Values whose test fits in one 64-bit mask."""
MAGNITUDE = 0x7FFFFFFF
"""A float32 without its sign bit: for these, order of bits is order of values."""

int64 = int
uint64 = np.uint64


def kernel(function: F) -> F:
    """The function itself."""
    return function


def trailing_zeros(word: np.uint64) -> int:
    """Number of zero bits below the lowest one of a uint64; 64 for zero."""
    bits = int(word)
    return (bits & -bits).bit_length() - 1 if bits else 64


def ones(word: np.uint64) -> int:
    """Number of one bits of a uint64."""
    return int(word).bit_count()


def magnitude_mask(bits: NDArray[np.uint32], index: int, least: int) -> np.uint64:
    """Bit j says whether `bits[index + j]`, a float32 as uint32, has magnitude bits >= `least`; j < CHUNK."""
    return _mask((bits[index : index + CHUNK] & np.uint32(MAGNITUDE)) >= np.uint32(least))


def true_mask(flags: NDArray[np.bool_], index: int) -> np.uint64:
    """Bit j says whether `flags[index + j]` is true; j < CHUNK."""
    return _mask(flags[index : index + CHUNK])


def load_word(octets: NDArray[np.uint8], index: int) -> np.uint64:
    """The eight bytes from `octets[index]` on as a uint64, the first one lowest."""
    return np.uint64(int.from_bytes(octets[index : index + 8].tobytes(), "little"))


def _mask(flags: NDArray[np.bool_]) -> np.uint64:
    return np.uint64(int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little"))
