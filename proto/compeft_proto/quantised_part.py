"""A part of an expert file whose tensors are integers times one step each: heads and other layers saved whole, at 8 bits or less.

The payload is deflated: one byte an entry in layout order, the integer plus 127, and 255 for an integer beyond -127..127; those follow as
little-endian int32 in the same order. docs/expert-file.md, section 5, is normative. Example: 3, -200 are the bytes 82 ff, then 38 ff ff ff.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compeft_core import Layout, Vector
from compeft_core.errors import FormatError
from compeft_proto.packed_manifest import deflate, inflate

SHIFT, ESCAPE = 127, 255
MAX_ENTRY = 2**24
"""Integers are below it in magnitude, so that float32 holds them."""


def write_entries(entries: NDArray[np.int32]) -> bytes:
    """The payload of integers, all tensors one after the other."""
    small = np.abs(entries) <= SHIFT
    octets = np.where(small, entries + SHIFT, ESCAPE).astype(np.uint8)
    return deflate(octets.tobytes() + entries[~small].astype("<i4").tobytes())


def read_entries(payload: bytes, size: int) -> NDArray[np.int32]:
    """The integers of a payload for `size` parameters. Errors: FormatError, LimitError."""
    data = inflate(payload, 5 * size)
    octets = np.frombuffer(data[:size], np.uint8)
    entries = octets.astype(np.int32) - SHIFT
    far = octets == ESCAPE
    if octets.size != size or len(data) != size + 4 * int(far.sum()):
        raise FormatError(
            f"quantised payload holds {len(data)} bytes, {size} parameters with {int(far.sum())} large ones need others"
        )
    large = np.frombuffer(data[size:], "<i4")
    if large.size and (
        int(np.abs(large.astype(np.int64)).min()) <= SHIFT or int(np.abs(large.astype(np.int64)).max()) >= MAX_ENTRY
    ):
        raise FormatError(
            f"quantised payload writes an integer in 4 bytes that is not {SHIFT + 1} to {MAX_ENTRY - 1} in magnitude"
        )
    entries[far] = large
    return entries


def values_of(payload: bytes, layout: Layout, steps: Sequence[float]) -> Vector:
    """Float32 of shape (layout.size,): each integer times its tensor's step, rounded once. Errors: as `read_entries`."""
    vector = read_entries(payload, layout.size).astype(np.float32)
    at = 0
    for tensor, step in zip(layout.tensors, steps, strict=True):
        vector[at : at + tensor.size] *= np.float32(step)
        at += tensor.size
    return vector
