"""The body of an encoding by the codec `context`: shapes of matrices, an index of segments, and their arithmetic-coded streams.

A segment is a run of whole matrices with a stream of its own, so threads share the work by segments, and a reader holds one matrix at a
time beside what is kept. The model is in context_model.py and the coder in arithmetic_coder.py.

Invariant: nothing is allocated for a number that is only claimed. A byte of the streams stands for at most MAX_POSITIONS positions and
MAX_KEPT kept entries; an update that needs fewer bytes than that is written by `rice`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.compress import Ternary, read_only
from compeft_core.errors import FormatError
from compeft_core.format import context_model
from compeft_core.format.header import Reader, varints
from compeft_core.format.matrix_shapes import Shape, read_shapes, write_shapes
from compeft_core.parallel import shares, spread

SEGMENT = 1 << 20
"""Positions at which a segment ends, with the matrix that reaches them."""
MAX_POSITIONS = 4096
MAX_KEPT = 64
"""Bounds for each byte of the streams, and so on the time and the memory that a few bytes can ask for."""


@dataclass(frozen=True, slots=True, eq=False)
class MatrixSegment:
    """Matrices with int64 `rows` and `columns`, at positions start..stop."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    start: int
    stop: int


def segments_of(shapes: Sequence[Shape]) -> list[MatrixSegment]:
    """Matrices in order; each segment ends with the first of them that makes it SEGMENT positions or more."""
    segments, first, start, stop = list[MatrixSegment](), 0, 0, 0
    for i, (rows, columns) in enumerate(shapes):
        stop += rows * columns
        if stop - start >= SEGMENT or i == len(shapes) - 1:
            table = np.array(shapes[first : i + 1], np.int64).T.copy()
            segments.append(MatrixSegment(read_only(table[0]), read_only(table[1]), start, stop))
            first, start = i + 1, stop
    return segments


def write_segments(ternary: Ternary, shapes: Sequence[Shape], workers: int) -> bytes | None:
    """Shapes, index and streams; None where the streams would break the bounds MAX_POSITIONS and MAX_KEPT."""
    segments = segments_of(shapes)
    bounds = np.searchsorted(ternary.positions, np.array([0, *(s.stop for s in segments)], np.uint64).astype(np.uint32))

    def write(first: int, last: int) -> list[bytes]:
        return [write_stream(ternary, segments[i], int(bounds[i]), int(bounds[i + 1])) for i in range(first, last)]

    streams = sum(spread(write, shares(len(segments), workers)), list[bytes]())
    if not _is_plausible(ternary.size, ternary.count, sum(map(len, streams))):
        return None
    index = varints(*(n for pair in zip(np.diff(bounds).tolist(), map(len, streams), strict=True) for n in pair))
    return b"".join([write_shapes(shapes), index, *streams])


def read_segments(reader: Reader, size: int, workers: int) -> tuple[list[Shape], NDArray[np.uint32], NDArray[np.bool_]]:
    """Shapes, positions (uint32, increasing) and which of them are negative. Errors: FormatError."""
    shapes = read_shapes(reader, size)
    segments = segments_of(shapes)
    if 2 * len(segments) > reader.left:
        raise FormatError(f"encoding of {len(reader.blob)} bytes claims {len(segments)} segments")
    pairs = [(reader.varint(), reader.varint()) for _ in segments]
    counts, lengths = [n for n, _ in pairs], [length for _, length in pairs]
    if any(n > s.stop - s.start or (n == 0 and length > 0) for (n, length), s in zip(pairs, segments, strict=True)):
        raise FormatError("a segment keeps more entries than it has positions, or none in a stream that is not empty")
    streams = np.frombuffer(bytearray(reader.take(sum(lengths))), np.uint8)
    if not _is_plausible(size, sum(counts), streams.size):
        raise FormatError(f"streams of {streams.size} bytes claim {sum(counts)} entries in {size} positions")
    return shapes, *_read(segments, counts, lengths, streams, workers)


def _read(
    segments: list[MatrixSegment], counts: list[int], lengths: list[int], streams: NDArray[np.uint8], workers: int
) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    bounds, starts = np.cumsum([0, *counts]).tolist(), np.cumsum([0, *lengths]).tolist()
    positions, negative = np.empty(bounds[-1], np.uint32), np.empty(bounds[-1], np.bool_)

    def read(first: int, last: int) -> int:
        for i in range(first, last):
            at, s = slice(bounds[i], bounds[i + 1]), segments[i]
            stream = streams[starts[i] : starts[i + 1]]
            if counts[i] and not context_model.decode_segment(stream, positions[at], negative[at], s.rows, s.columns, s.start):
                return i
        return -1

    bad = max(spread(read, shares(len(segments), workers)), default=-1)
    if bad >= 0:
        raise FormatError(f"segment {bad} is not the canonical stream of {counts[bad]} entries")
    return positions, negative


def write_stream(ternary: Ternary, segment: MatrixSegment, first: int, last: int) -> bytes:
    """The stream of entries first..last-1. Only the coder knows the length, so it gets room for most segments, then four times as much."""
    if first == last:
        return b""
    positions, negative, room = (
        ternary.positions[first:last],
        ternary.negative[first:last],
        (segment.stop - segment.start) // 4 + 64,
    )
    while True:
        stream = np.empty(room, np.uint8)
        length = context_model.encode_segment(stream, positions, negative, segment.rows, segment.columns, segment.start)
        if length >= 0:
            return stream[:length].tobytes()
        room *= 4


def _is_plausible(size: int, count: int, octets: int) -> bool:
    return size <= MAX_POSITIONS * octets and count <= MAX_KEPT * octets
