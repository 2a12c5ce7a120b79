"""The body of an encoding by `rice` or `rice4`: an index of blocks, then the streams of the blocks.

A reader gets the place of each block's stream, and checks every byte; a writer gets the bytes of a body. The two codecs differ in the
number of lanes of a stream, 1 or LANES, and share the rest. The kernels are in block_streams.py.

Invariant: `read_index` allocates nothing in proportion to a number that is only claimed: a block takes at least one byte for its
count and one for each lane.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.compress import Ternary, read_only
from compeft_core.errors import FormatError
from compeft_core.format.bits import SLOT_WORDS, Ints, Octets
from compeft_core.format.block_streams import Blocks, KeptEntries, check_blocks, encode_blocks, least_lane_lengths
from compeft_core.format.golomb import BLOCK
from compeft_core.format.header import Blob, Reader, UpdateHeader, varints
from compeft_core.format.rice4 import LANES
from compeft_core.parallel import shares, spread

STEP = 64
"""Blocks whose streams are read at a time: about 1 MiB at most."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockIndex:
    """Where the streams lie; the arrays are those of `Blocks`, with `starts` counted from the beginning of the encoding."""

    counts: Ints
    starts: Ints
    lane_ends: Ints

    def over(self, octets: Octets, size: int) -> Blocks:
        """The blocks of an encoding with these bytes and `size` ternary parameters."""
        return Blocks(octets, self.starts, self.counts, self.lane_ends, size)


def write_body(ternary: Ternary, lanes: int, workers: int) -> bytes:
    """Index and streams, with `lanes` lanes a stream: 1 for `rice`, LANES for `rice4`."""
    blocks = -(-ternary.size // BLOCK)
    edges = np.minimum(np.arange(blocks + 1) * BLOCK, ternary.size).astype(np.uint32)
    entries = KeptEntries(ternary.positions, ternary.negative, np.searchsorted(ternary.positions, edges), ternary.size)
    slots = np.zeros((blocks, SLOT_WORDS), np.uint64)
    lane_ends = np.zeros((blocks, lanes), np.int64)
    spread(lambda first, last: encode_blocks(entries, slots, lane_ends, first, last), shares(blocks, workers))
    counts = np.diff(entries.bounds)
    lengths = np.diff(lane_ends, axis=1, prepend=_sign_bytes(counts, lanes)[:, None])
    extra = lengths - _least_lengths(counts, ternary.size, lanes)
    index = varints(*np.column_stack([counts, extra]).reshape(-1).tolist())
    rows = slots.view(np.uint8)
    return b"".join([index, *(rows[block, :length].data for block, length in enumerate(lane_ends[:, -1].tolist()))])


def read_index(reader: Reader, size: int, lanes: int) -> BlockIndex:
    """Counts of the blocks and places of their streams; the streams themselves are not read. Errors: FormatError."""
    blocks = -(-size // BLOCK)
    if (1 + lanes) * blocks > reader.left:
        raise FormatError(f"encoding of {len(reader.blob)} bytes claims {blocks} blocks")
    numbers = np.array(reader.varints((1 + lanes) * blocks), np.int64).reshape(blocks, 1 + lanes)
    counts = numbers[:, 0].copy()
    if (counts > np.minimum(BLOCK, size - np.arange(blocks) * BLOCK)).any():
        raise FormatError("a block keeps more entries than it has positions")
    lengths = _least_lengths(counts, size, lanes) + numbers[:, 1:]
    lane_ends = _sign_bytes(counts, lanes)[:, None] + np.cumsum(lengths, axis=1)
    starts = reader.at + np.concatenate([np.zeros(1, np.int64), np.cumsum(lane_ends[:, -1])])
    return BlockIndex(read_only(counts), read_only(starts), read_only(lane_ends))


def check_streams(blob: Blob, header: UpdateHeader, index: BlockIndex, workers: int) -> NDArray[np.bool_]:
    """Whether each scale group keeps anything. Errors: FormatError if a stream, which must lie in `blob`, is not canonical."""
    ends, starts = read_only(header.group_ends), index.starts

    def check(first: int, last: int) -> tuple[int, Ints]:
        kept, bad = np.zeros(ends.size, np.int64), -1
        while first < last and bad < 0:
            stop = min(first + STEP, last)
            octets = np.frombuffer(blob[int(starts[first]) : int(starts[stop])], np.uint8)
            blocks = index.over(octets, header.ternary_size)._replace(starts=read_only(starts - starts[first]))
            bad, first = check_blocks(blocks, ends, kept, first, stop), stop
        return bad, kept

    results = spread(check, shares(index.counts.size, workers))
    bad = next((b for b, _ in results if b >= 0), -1)
    if bad >= 0:
        raise FormatError(f"block {bad} is not the canonical stream of {index.counts[bad]} entries")
    return sum((kept for _, kept in results), np.zeros(ends.size, np.int64)) > 0


def _sign_bytes(counts: Ints, lanes: int) -> Ints:
    """Bytes before the first lane: the signs in whole bytes with LANES lanes; none with one lane, which begins with the signs."""
    return (counts + 7) >> 3 if lanes == LANES else np.zeros_like(counts)


def _least_lengths(counts: Ints, size: int, lanes: int) -> Ints:
    lengths = np.empty((counts.size, lanes), np.int64)
    least_lane_lengths(read_only(counts), size, lengths)
    return lengths
