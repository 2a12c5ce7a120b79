"""bfloat16 as numpy integers: the upper half of a float32, rounded to nearest, ties to even.

There is one zero: -0.0 becomes +0.0, so that equal vectors have equal bytes.
"""

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import NotFiniteError
from compeft_core.layout import Vector

INFINITY = 0x7F80
NEGATIVE_ZERO = 0x8000


def pack(vector: Vector) -> NDArray[np.uint16]:
    """Finite float32 -> bfloat16 bits. Errors: NotFiniteError on NaN, infinity, or a value that rounds to infinity."""
    bits = vector.view(np.uint32).astype(np.uint64)
    half = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    if not np.isfinite(vector).all() or not is_finite(half):
        raise NotFiniteError("a dense parameter is NaN, infinite or too large for bfloat16")
    half[half == NEGATIVE_ZERO] = 0
    return half


def unpack(half: NDArray[np.uint16]) -> Vector:
    """bfloat16 bits -> float32, exact."""
    return (half.astype(np.uint32) << 16).view(np.float32)


def is_finite(half: NDArray[np.uint16]) -> bool:
    """Whether no value is NaN or infinite."""
    return not ((half & INFINITY) == INFINITY).any()
