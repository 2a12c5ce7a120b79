"""A reproducible initial state: the same seed gives the same bytes on every machine, by SHAKE-256. docs/format.md is normative."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from compeft_core.errors import InputError
from compeft_core.layout import Layout, Tensor, Vector

DOMAIN = b"compeft.initial.v1\0"
MAX_SEED = 2**64 - 1
MAX_BOUND = float(np.finfo(np.float32).max)


def seeded_state(layout: Layout, seed: int, bounds: Sequence[float]) -> Vector:
    """Flat float32 vector of length `layout.size`; tensor t is uniform in [-bounds[t], bounds[t]), zero where the bound is 0.

    A tensor's values depend on the seed, its name, its size and its bound, not on the rest of the layout.
    Errors: InputError if the seed is not an unsigned 64-bit number, or the bounds are not one finite float32 >= 0 a tensor.
    """
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed is {seed}, it must be between 0 and {MAX_SEED}")
    if len(bounds) != len(layout.tensors):
        raise InputError(f"{len(bounds)} bounds for {len(layout.tensors)} tensors")
    parts = [_uniform(tensor, seed, bound) for tensor, bound in zip(layout.tensors, bounds, strict=True)]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def _uniform(tensor: Tensor, seed: int, bound: float) -> Vector:
    if not (math.isfinite(bound) and 0 <= bound <= MAX_BOUND):
        raise InputError(f"bound of tensor {tensor.name!r} is {bound}, it must be a finite float32 of 0 or more")
    if bound == 0:
        return np.zeros(tensor.size, np.float32)
    name = tensor.name.encode()
    stream = hashlib.shake_256(DOMAIN + seed.to_bytes(8, "little") + len(name).to_bytes(4, "little") + name)
    words = np.frombuffer(stream.digest(4 * tensor.size), "<u4")
    unit = (words >> 8).astype(np.float32) * np.float32(2**-23) - np.float32(1)
    return unit * np.float32(bound)
