"""The streams of all blocks of a ternary vector: kernels that write, check, unpack and add them, by Golomb codes or by Rice codes.

The ternary part is cut into blocks of 65,536 positions. Each block has a stream of its own, so threads share the work by blocks and a
reader needs memory for one block only. `Blocks` says where the streams lie; the number of its lanes says how they are coded: one lane
is golomb.py, four lanes are rice4.py. Everything after `read_block` is the same for both.

The arrays that belong together travel as a NamedTuple, which numba passes by value. Taking one apart costs about a microsecond a call, so
a kernel that is called once a block takes it as a plain tuple: see `bare`.

Invariant: `read_block` never reads outside the stream or writes outside its scratch memory, whatever the bytes are, and returns True
only for the one stream that `encode_blocks` writes. Every reader goes through it.
"""

from typing import NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from compeft_core.format.bits import READ_PADDING, READ_WORDS, SLOT, Ints, Octets, Places, Words, is_negative, write_signs
from compeft_core.format.golomb import BLOCK, least_length
from compeft_core.format.golomb import read_gaps as read_golomb
from compeft_core.format.golomb import write_gaps as write_golomb
from compeft_core.format.rice4 import LANES, least_lane_length
from compeft_core.format.rice4 import read_gaps as read_rice
from compeft_core.format.rice4 import write_gaps as write_rice
from compeft_core.parallel import int64, kernel

Floats = NDArray[np.float32]
T = TypeVar("T")


class Blocks(NamedTuple):
    """Where the streams of an encoding lie. All arrays are read-only.

    octets: uint8, the encoding.   starts: int64 (blocks + 1,), where each stream begins in `octets`, and where the last one ends.
    counts: int64 (blocks,), entries kept in each block.   lane_ends: int64 (blocks, lanes), bytes from the beginning of the stream to
    the end of each lane; one lane: Golomb codes, four: Rice codes.   size: positions of all blocks.
    """

    octets: Octets
    starts: Ints
    counts: Ints
    lane_ends: Ints
    size: int


class KeptEntries(NamedTuple):
    """Kept entries in order of position: block b holds bounds[b] to bounds[b + 1] of `positions` (uint32, increasing) and `negative`."""

    positions: NDArray[np.uint32]
    negative: NDArray[np.bool_]
    bounds: Ints
    size: int


class GroupValues(NamedTuple):
    """Scale groups: int64 `ends`, and the value of each group (float32 or float64)."""

    ends: Ints
    values: NDArray[np.floating]


class Scratch(NamedTuple):
    """Memory that `read_block` works in: a stream as words, and the places of its entries."""

    words: Words
    places: Places


def scratch() -> Scratch:
    """Fresh memory for reading one block at a time."""
    return Scratch(np.zeros(READ_WORDS, np.uint64), np.empty(BLOCK, np.uint16))


def bare(arrays: T) -> T:
    """A NamedTuple as a plain tuple. numba takes a plain tuple from Python in a third of the time; the kernel names its parts again:
    `blocks = Blocks(*blocks)`.
    """
    return cast(T, tuple(cast(tuple[object, ...], arrays)))


@kernel
def least_lane_lengths(counts: Ints, size: int, lengths: Ints) -> None:
    """Set lengths[block, lane] to the bytes that each lane has at least; with one lane, that includes the signs."""
    for block in range(counts.size):
        span = min(BLOCK, size - block * BLOCK)
        listed = min(counts[block], span - counts[block])
        if lengths.shape[1] == LANES:
            for lane in range(LANES):
                lengths[block, lane] = least_lane_length(listed, span, lane)
        else:
            lengths[block, 0] = least_length(counts[block], listed, span)


@kernel
def encode_blocks(entries: KeptEntries, slots: Words, lane_ends: Ints, first: int, last: int) -> None:
    """Write the streams of blocks first..last-1 to slots[block] (zeroed words), and the bytes where their lanes end to lane_ends[block]."""
    listed = np.empty(BLOCK, np.uint16)
    for block in range(first, last):
        start, stop = entries.bounds[block], entries.bounds[block + 1]
        base = block * BLOCK
        span = min(BLOCK, entries.size - base)
        write_signs(slots[block], entries.negative[start:stop])
        count = _list_places(entries.positions[start:stop], base, span, listed)
        if lane_ends.shape[1] == LANES:
            write_rice(slots[block], stop - start, listed, count, span, lane_ends[block])
        else:
            lane_ends[block, 0] = (write_golomb(slots[block], stop - start, listed, count, span) + 7) >> 3


@kernel
def read_block(blocks: Blocks, block: int, scratch: Scratch) -> bool:
    """Read one stream into `scratch`: its bits, signs first, and places[:count] (kept, increasing). False if it is not canonical.

    When more than half of the positions are kept, the stream lists the others. They are read to places[count:span], behind the room for
    the result, and `_complement` turns the list around in place.
    """
    start, count = blocks.starts[block], blocks.counts[block]
    length, span = blocks.starts[block + 1] - start, min(BLOCK, blocks.size - block * BLOCK)
    if length > SLOT:
        return False
    octets = scratch.words.view(np.uint8)
    octets[:length] = blocks.octets[start : start + length]
    octets[length : length + READ_PADDING - (length & 7)] = 0
    invert = 2 * count > span
    listed = span - count if invert else count
    places = scratch.places[count if invert else 0 :]
    ends = blocks.lane_ends[block]
    if blocks.lane_ends.shape[1] == LANES:
        good = read_rice(scratch.words, count, ends, listed, span, places)
    else:
        good = read_golomb(scratch.words, count, ends, listed, span, places)
    if good and invert:
        _complement(scratch.places, count, span)
    return good


@kernel
def check_blocks(blocks: Blocks, group_ends: Ints, kept: Ints, first: int, last: int) -> int:
    """The first of blocks first..last-1 whose stream is not canonical, or -1; adds the entries of each scale group to `kept`."""
    room = Scratch(np.zeros(READ_WORDS, np.uint64), np.empty(BLOCK, np.uint16))
    for block in range(first, last):
        if not read_block(blocks, block, room):
            return block
        base = block * BLOCK
        group = np.searchsorted(group_ends, base, side="right")
        if group_ends[group] >= min(base + BLOCK, blocks.size):
            kept[group] += blocks.counts[block]
            continue
        for i in range(blocks.counts[block]):
            while base + room.places[i] >= group_ends[group]:
                group += 1
            kept[group] += 1
    return -1


@kernel
def unpack_blocks(blocks: Blocks, entries: KeptEntries, first: int, last: int) -> None:
    """Write the entries of blocks first..last-1 (checked ones) to their part of entries.positions and entries.negative."""
    room = Scratch(np.zeros(READ_WORDS, np.uint64), np.empty(BLOCK, np.uint16))
    for block in range(first, last):
        read_block(blocks, block, room)
        base, at = block * BLOCK, entries.bounds[block]
        for i in range(blocks.counts[block]):
            entries.positions[at + i] = base + room.places[i]
            entries.negative[at + i] = is_negative(room.words, i)


@kernel
def add_blocks(blocks: Blocks, groups: GroupValues, state: Floats, first: int, last: int) -> None:
    """Add the value of its group, with its sign, to `state` at every entry of blocks first..last-1 (checked ones)."""
    room = Scratch(np.zeros(READ_WORDS, np.uint64), np.empty(BLOCK, np.uint16))
    for block in range(first, last):
        read_block(blocks, block, room)
        base = block * BLOCK
        part = state[base : min(base + BLOCK, blocks.size)]
        group = np.searchsorted(groups.ends, base, side="right")
        end, value = groups.ends[group] - base, groups.values[group]
        for i in range(blocks.counts[block]):
            place = int64(room.places[i])
            while place >= end:
                group += 1
                end, value = groups.ends[group] - base, groups.values[group]
            part[place] += -value if is_negative(room.words, i) else value


@kernel
def _list_places(positions: NDArray[np.uint32], base: int, span: int, listed: Places) -> int:
    """Fill `listed` with the places kept, or with those not kept when more than half are; return their number."""
    if 2 * positions.size <= span:
        for i in range(positions.size):
            listed[i] = positions[i] - base
        return positions.size
    count = place = 0
    for i in range(positions.size + 1):
        stop = int64(positions[i]) - base if i < positions.size else span
        while place < stop:
            listed[count] = place
            count += 1
            place += 1
        place += 1
    return count


@kernel
def _complement(places: Places, count: int, span: int) -> None:
    """Turn places[count:span], which lists what is not kept, into places[:count], what is kept.

    Writing never overtakes reading: at place p, s of the places below p are not kept, so the writer is at p - s <= count and the reader
    at count + s. Example, span 5, count 3: places[3:5] = 1 3 becomes places[:3] = 0 2 4.
    """
    seen, at = count, 0
    for place in range(span):
        if seen < span and places[seen] == place:
            seen += 1
        else:
            places[at] = place
            at += 1
