"""A part of an expert file whose tensors are tables of positions: a sparse method's rows and columns, sorted, as SHiRA saves them.

A table of shape (2, k) lists rows and columns in increasing order of row * columns + column; with `columns` of the manifest above every
column. The payload is deflated: one byte a gap, min(gap, 255), table after table; then the gaps of 255 and more as little-endian uint64.
A gap is the number of positions skipped before one. docs/expert-file.md, section 5, is normative. Example: columns 10, rows 0 0 2 and
columns 1 3 4 are the positions 1 3 24, so the gaps are 1 1 20.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compeft_core import Layout
from compeft_core.errors import FormatError
from compeft_proto.packed_manifest import deflate, inflate

Table = NDArray[np.int64]
"""Rows and columns, int64 of shape (2, k)."""
ESCAPE = 255
MAX_COLUMNS = 2**31
MAX_POSITION = 2.0**62
"""Positions lie below it, so that int64 holds them."""


def columns_of(table: Table) -> int:
    """One more than the largest column of a table that can be coded; 0 if it cannot: nothing in it, negative, too large, not sorted."""
    if table.ndim != 2 or table.shape[0] != 2 or table.shape[1] == 0 or int(table.min()) < 0:
        return 0
    columns = int(table[1].max()) + 1
    if columns > MAX_COLUMNS or (int(table[0].max()) + 1) * columns >= MAX_POSITION:
        return 0
    positions = table[0] * columns + table[1]
    return columns if bool((np.diff(positions) > 0).all()) else 0


def write_tables(tables: Sequence[Table], columns: Sequence[int]) -> bytes:
    """The payload of tables and of what `columns_of` says of each."""
    gaps = np.concatenate([np.diff(t[0] * c + t[1], prepend=-1) - 1 for t, c in zip(tables, columns, strict=True)])
    octets = np.minimum(gaps, ESCAPE).astype(np.uint8)
    return deflate(octets.tobytes() + gaps[octets == ESCAPE].astype("<u8").tobytes())


def read_tables(payload: bytes, layout: Layout, columns: Sequence[int]) -> list[Table]:
    """The tables of a payload, in layout order. Errors: FormatError, LimitError."""
    counts = [t.shape[1] for t in layout.tensors]
    size = sum(counts)
    data = inflate(payload, 9 * size)
    octets = np.frombuffer(data[:size], np.uint8)
    far = octets == ESCAPE
    if octets.size != size or len(data) != size + 8 * int(far.sum()):
        raise FormatError(
            f"positions payload holds {len(data)} bytes, {size} positions with {int(far.sum())} large gaps need others"
        )
    gaps, large = octets.astype(np.int64), np.frombuffer(data[size:], "<u8")
    if large.size and (int(large.min()) < ESCAPE or float(large.astype(np.float64).sum()) >= MAX_POSITION):
        raise FormatError(f"positions payload has a gap of {int(large.min())} in 8 bytes, or gaps that reach above 2^62")
    gaps[far] = large.astype(np.int64)
    found, at = [], 0
    for count, width in zip(counts, columns, strict=True):
        positions = np.cumsum(gaps[at : at + count] + 1) - 1
        found.append(np.stack([positions // width, positions % width]))
        at += count
    return found
