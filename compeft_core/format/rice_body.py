"""The body of an encoding by the codec `rice`: an index of blocks, and their Golomb-coded streams.

A reader gets where each block's stream lies, with every byte checked; a writer gets bytes. The kernels are those of `golomb`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.compress import Ternary, read_only
from compeft_core.errors import FormatError
from compeft_core.format import golomb
from compeft_core.format.golomb import BLOCK
from compeft_core.format.header import Blob, Header, Reader, varints
from compeft_core.parallel import shares, spread

Ints = NDArray[np.int64]
STEP = 64
"""Blocks whose streams are read at a time: at most 1 MiB or so."""


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """counts: entries kept in each block.   starts: where its stream begins, and at last where the last one ends."""

    counts: Ints
    starts: Ints


def write_blocks(ternary: Ternary, workers: int) -> bytes:
    """Index and streams."""
    blocks = -(-ternary.size // BLOCK)
    edges = np.minimum(np.arange(blocks + 1) * BLOCK, ternary.size).astype(np.uint32)
    bounds = np.searchsorted(ternary.positions, edges)
    slots = np.zeros((blocks, golomb.SLOT_WORDS), np.uint64)
    lengths = np.zeros(blocks, np.int64)

    def write(first: int, last: int) -> None:
        golomb.encode_blocks(ternary.positions, ternary.negative, bounds, ternary.size, slots, lengths, first, last)

    spread(write, shares(blocks, workers))
    counts = np.diff(bounds)
    extra = lengths - _least_lengths(counts, ternary.size)
    index = varints(*np.stack([counts, extra], axis=1).reshape(-1).tolist())
    rows = slots.view(np.uint8)
    return b"".join([index, *(rows[block, :length].data for block, length in enumerate(lengths.tolist()))])


def read_index(reader: Reader, size: int) -> Blocks:
    """Counts of the blocks, and where their streams start; the streams themselves are not looked at. Errors: FormatError."""
    blocks = -(-size // BLOCK)
    if 2 * blocks > reader.left:
        raise FormatError(f"encoding of {len(reader.blob)} bytes claims {blocks} blocks")
    pairs = np.array([(reader.varint(), reader.varint()) for _ in range(blocks)], np.int64).reshape(blocks, 2)
    spans = np.minimum(BLOCK, size - np.arange(blocks) * BLOCK)
    if (pairs[:, 0] > spans).any():
        raise FormatError("a block keeps more entries than it has positions")
    counts = pairs[:, 0].copy()
    lengths = _least_lengths(counts, size) + pairs[:, 1]
    return Blocks(read_only(counts), read_only(reader.at + np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])))


def check_streams(blob: Blob, header: Header, blocks: Blocks, workers: int) -> NDArray[np.bool_]:
    """Which scale groups keep anything. Errors: FormatError if a stream, which must lie in `blob`, is not canonical."""
    ends, starts = read_only(header.group_ends), blocks.starts

    def check(first: int, last: int) -> tuple[int, Ints]:
        kept, bad = np.zeros(ends.size, np.int64), -1
        while first < last and bad < 0:
            stop = min(first + STEP, last)
            octets = np.frombuffer(blob[int(starts[first]) : int(starts[stop])], np.uint8)
            own = read_only(starts - starts[first])
            bad, first = golomb.check_blocks(octets, own, blocks.counts, header.ternary_size, ends, kept, first, stop), stop
        return bad, kept

    results = spread(check, shares(blocks.counts.size, workers))
    bad = next((b for b, _ in results if b >= 0), -1)
    if bad >= 0:
        raise FormatError(f"block {bad} is not the canonical stream of {blocks.counts[bad]} entries")
    return sum((kept for _, kept in results), np.zeros(ends.size, np.int64)) > 0


def _least_lengths(counts: Ints, size: int) -> Ints:
    lengths = np.empty(counts.size, np.int64)
    golomb.least_lengths(read_only(counts), size, lengths)
    return lengths
