"""Symbols <-> bytes: docs/product-format.md is normative. Each set of symbols has one encoding, and everything else is refused.

Modules are cut into segments with a model and a stream of their own, so that many threads can work at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.compress import read_only
from compeft_core.errors import FormatError, LimitError
from compeft_core.format.header import MAGIC, Reader, varints
from compeft_core.parallel import shares, spread
from compeft_core.product import model
from compeft_core.product.symbols import MAX_COMPONENTS, ProductLimits, ProductSymbols, Shape, check_shapes

CODEC = 3
"""Codec id in the header."""
HEAD = MAGIC + bytes([1, CODEC])
SEGMENT = 1 << 20
"""Sum of m + n at which a segment ends, with the module that reaches it."""
ENTRIES_PER_BYTE = 1 << 14
"""A bound on the time and the memory that a few bytes can ask for."""
SLACK = 64
"""Bytes of a stream that are let go before the entries are counted against it."""
DEFAULT_LIMITS = ProductLimits()


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Modules first..stop with their sides; `same`: the module before of the same shape in the segment, or -1."""

    first: int
    stop: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    same: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The symbols of a segment: int64 ranks and scale codes, int16 entries."""

    ranks: NDArray[np.int64]
    scales: NDArray[np.int64]
    entries: NDArray[np.int16]


def segments_of(shapes: Sequence[Shape]) -> list[Segment]:
    """Modules in order; each segment ends with the first that makes its sum of sides SEGMENT or more."""
    segments, first, size = list[Segment](), 0, 0
    for i, (m, n) in enumerate(shapes):
        size += m + n
        if size >= SEGMENT or i == len(shapes) - 1:
            segments.append(_segment(first, shapes[first : i + 1]))
            first, size = i + 1, 0
    return segments


def _segment(first: int, shapes: Sequence[Shape]) -> Segment:
    last: dict[Shape, int] = {}
    same = list[int]()
    for i, shape in enumerate(shapes):
        same.append(last.get(shape, -1))
        last[shape] = i
    sides = np.array(shapes, np.int64)
    return Segment(first, first + len(shapes), sides[:, 0].copy(), sides[:, 1].copy(), np.array(same))


def write_product(symbols: ProductSymbols, *, workers: int = 1) -> bytes:
    """The one encoding of symbols; segments whose streams would be too short for their entries are refused (`is_plausible`)."""
    segments = segments_of(symbols.shapes)
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(symbols.ranks)])
    starts = symbols.starts

    def write(first: int, last: int) -> list[bytes]:
        made = []
        for s in segments[first:last]:
            scales = symbols.scales[bounds[s.first] : bounds[s.stop]]
            entries = symbols.entries[starts[s.first] : starts[s.stop]].astype(np.int16)
            made.append(write_stream(s, Part(symbols.ranks[s.first : s.stop].copy(), scales.copy(), entries)))
        return made

    streams = sum(spread(write, shares(len(segments), workers)), list[bytes]()) if segments else []
    return assemble(len(symbols.shapes), streams)


def assemble(modules: int, streams: Sequence[bytes]) -> bytes:
    """Head, number of modules, lengths of all streams but the last, streams."""
    return b"".join([HEAD, varints(modules, *map(len, streams[:-1])), *streams])


def write_stream(segment: Segment, part: Part) -> bytes:
    """The stream of one segment."""
    room = part.entries.size + 4 * part.scales.size + part.ranks.size + 64
    while True:
        stream = np.empty(room, np.uint8)
        length = _code(segment, part, stream)
        if length >= 0:
            return stream[:length].tobytes()
        if room > 8 * part.entries.size + (1 << 20):
            raise FormatError("symbols cannot be written: a vector is zero, or an entry or a scale code too large")
        room *= 4


def is_plausible(entries: int, octets: int) -> bool:
    """Whether a stream of so many bytes may stand for so many entries."""
    return entries <= ENTRIES_PER_BYTE * (octets + SLACK)


def _code(segment: Segment, part: Part, stream: NDArray[np.uint8]) -> int:
    logits, ages = model.new_model()
    coder = model.start(stream, False)
    coder = model.code_ranks(part.ranks, segment.same, MAX_COMPONENTS, logits, ages, coder, stream, False)
    coder = model.code_scales(part.scales, part.ranks, logits, ages, coder, stream, False)
    coder = model.code_modules(part.entries, part.ranks, segment.rows, segment.columns, logits, ages, coder, stream, False)
    return model.finish(coder, stream)


def read_stream(segment: Segment, stream: NDArray[np.uint8], limits: ProductLimits) -> Part:
    """The symbols of one segment. Errors: FormatError, LimitError; nothing is allocated for a claim that the stream is too short for."""
    logits, ages = model.new_model()
    coder = model.start(stream, True)
    ranks = np.zeros(segment.rows.size, np.int64)
    coder = model.code_ranks(ranks, segment.same, MAX_COMPONENTS, logits, ages, coder, stream, True)
    if coder[3] < 0:
        raise FormatError(
            f"modules from {segment.first} on claim more than {MAX_COMPONENTS} components, or their stream ends early"
        )
    if int(ranks.max(initial=0)) > limits.rank:
        raise LimitError(f"a module has {int(ranks.max())} components, the cap is {limits.rank}")
    if (ranks > np.minimum(segment.rows, segment.columns)).any():
        raise FormatError("a module has more components than rows or columns")
    entries = int((ranks * (segment.rows + segment.columns)).sum())
    if not is_plausible(entries, stream.size):
        raise FormatError(f"a stream of {stream.size} bytes claims {entries} entries")
    if entries > limits.entries:
        raise LimitError(f"encoding holds {entries} entries, the cap is {limits.entries}")
    part = Part(ranks, np.zeros(int(ranks.sum()), np.int64), np.zeros(entries, np.int16))
    coder = model.code_scales(part.scales, ranks, logits, ages, coder, stream, True)
    if coder[3] < 0:
        raise FormatError("a scale code is out of range")
    coder = model.code_modules(part.entries, ranks, segment.rows, segment.columns, logits, ages, coder, stream, True)
    if coder[3] < 0 or not model.is_finished(coder, stream):
        raise FormatError(f"modules {segment.first} to {segment.stop - 1}: not the canonical stream of their symbols")
    return part


def parse_product(
    blob: bytes | memoryview, shapes: Sequence[Shape], limits: ProductLimits = DEFAULT_LIMITS, *, workers: int = 1
) -> ProductSymbols:
    """Check every byte and return the symbols. `shapes`: rows and columns of the modules, in the order in which they were encoded.

    Errors: FormatError on anything but the encoding of some symbols of such shapes; LimitError above `limits`; InputError on shapes.
    """
    known = check_shapes(shapes)
    segments = segments_of(known)
    streams = _streams(Reader(bytes(blob)), len(known), len(segments))

    def read(first: int, last: int) -> list[Part]:
        return [read_stream(segments[i], streams[i], limits) for i in range(first, last)]

    parts = sum(spread(read, shares(len(segments), workers)), list[Part]()) if segments else []
    if (entries := sum(p.entries.size for p in parts)) > limits.entries:
        raise LimitError(f"encoding holds {entries} entries, the cap is {limits.entries}")
    return symbols_of(known, parts)


def symbols_of(shapes: tuple[Shape, ...], parts: Sequence[Part]) -> ProductSymbols:
    """One set of symbols from those of all segments; entries as int8 if they fit."""
    ranks = np.concatenate([np.zeros(0, np.int64), *(p.ranks for p in parts)])
    scales = np.concatenate([np.zeros(0, np.int64), *(p.scales for p in parts)])
    small = all(p.entries.size == 0 or (p.entries.min() >= -128 and p.entries.max() < 128) for p in parts)
    kind = np.int8 if small else np.int16
    entries = np.concatenate([np.zeros(0, kind), *(p.entries.astype(kind) for p in parts)])
    return ProductSymbols(shapes, read_only(ranks), read_only(scales), read_only(entries))


def check_product(
    blob: bytes | memoryview, shapes: Sequence[Shape], limits: ProductLimits = DEFAULT_LIMITS, *, workers: int = 1
) -> int:
    """Check every byte as `parse_product`, a segment at a time, and keep nothing; the number of components. Errors: as there."""
    known = check_shapes(shapes)
    segments = segments_of(known)
    streams = _streams(Reader(bytes(blob)), len(known), len(segments))

    def read(first: int, last: int) -> tuple[int, int]:
        counts, sizes = 0, 0
        for i in range(first, last):
            part = read_stream(segments[i], streams[i], limits)
            counts, sizes = counts + part.scales.size, sizes + part.entries.size
        return counts, sizes

    done = spread(read, shares(len(segments), workers)) if segments else []
    if (entries := sum(size for _, size in done)) > limits.entries:
        raise LimitError(f"encoding holds {entries} entries, the cap is {limits.entries}")
    return sum(count for count, _ in done)


def _streams(reader: Reader, modules: int, segments: int) -> list[NDArray[np.uint8]]:
    if (head := reader.take(min(len(HEAD), reader.left))) != HEAD:
        raise FormatError(f"bytes begin {head.hex()}, a product-space encoding begins {HEAD.hex()}")
    if (claimed := reader.varint()) != modules:
        raise FormatError(f"encoding holds {claimed} modules, {modules} were expected")
    lengths = [reader.varint() for _ in range(segments - 1)]
    streams = [reader.take(length) for length in lengths]
    if segments:
        streams.append(reader.take(reader.left))
    if reader.left:
        raise FormatError(f"{reader.left} bytes follow the last stream")
    return [np.frombuffer(bytearray(stream), np.uint8) for stream in streams]
