"""Symbols <-> bytes: docs/product-format.md is normative. Each set of symbols has one encoding, and everything else is refused.

Modules are cut into segments with a model and a stream of their own, so that many threads can work at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.compress import read_only
from compeft_core.errors import FormatError, InputError, LimitError
from compeft_core.format.header import MAGIC, Reader, varints
from compeft_core.parallel import shares, spread
from compeft_core.product import model, ranks_and_scales, vectors
from compeft_core.product.symbols import Factors, ProductLimits, ProductSymbols, Shape, check_shapes, factors_of

CODEC = 3
"""Codec id in the header."""
HEAD = MAGIC + bytes([1, CODEC])
SEGMENT = 1 << 20
"""Sum of m + n at which a segment ends, with the module that reaches it."""
ENTRIES_PER_BYTE = 1 << 12
"""A bound on the time and the memory that a few bytes can ask for."""
SLACK = 16
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
    """The one encoding of symbols. Errors: InputError where no encoding stands for them."""
    segments = segments_of(check_shapes(symbols.shapes))
    if symbols.ranks.size != len(symbols.shapes) or (symbols.ranks < 0).any() or symbols.scales.size != symbols.ranks.sum():
        raise InputError(
            f"{symbols.scales.size} scales for {symbols.ranks.size} ranks and {len(symbols.shapes)} shapes do not fit together"
        )
    if symbols.entries.size != symbols.starts[-1]:
        raise InputError(f"there are {symbols.entries.size} entries, ranks and shapes make {symbols.starts[-1]}")
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(symbols.ranks)])
    starts = symbols.starts

    def write(first: int, last: int) -> list[bytes]:
        made = []
        for s in segments[first:last]:
            scales = symbols.scales[bounds[s.first] : bounds[s.stop]]
            entries = symbols.entries[starts[s.first] : starts[s.stop]].astype(np.int16)
            stream = write_stream(s, Part(symbols.ranks[s.first : s.stop].copy(), scales.copy(), entries))
            if not is_plausible(entries.size, len(stream)):
                raise InputError(f"{entries.size} entries take {len(stream)} bytes, fewer than a decoder accepts")
            made.append(stream)
        return made

    streams = sum(spread(write, shares(len(segments), workers)), list[bytes]()) if segments else []
    return assemble(len(symbols.shapes), streams)


def assemble(modules: int, streams: Sequence[bytes]) -> bytes:
    """Head, number of modules, lengths of all streams but the last, streams."""
    return b"".join([HEAD, varints(modules, *map(len, streams[:-1])), *streams])


def write_stream(segment: Segment, part: Part) -> bytes:
    """The stream of one segment. Errors: InputError on symbols that no stream stands for."""
    room = part.entries.size // 2 + 4 * part.scales.size + part.ranks.size + 64
    while True:
        stream = np.empty(room, np.uint8)
        length = _write(segment, part, stream)
        if length >= 0:
            return stream[:length].tobytes()
        if length == model.INVALID:
            raise InputError(
                "symbols cannot be written: a vector is zero, an entry has the wrong parity, or a number is out of range"
            )
        room *= 4


def is_plausible(entries: int, octets: int) -> bool:
    """Whether a stream of this length in bytes may stand for this number of entries."""
    return entries <= _most_entries(octets)


def _most_entries(octets: int) -> int:
    return ENTRIES_PER_BYTE * (octets + SLACK)


def _write(segment: Segment, part: Part, stream: NDArray[np.uint8]) -> int:
    logits, ages = model.new_model()
    sides = segment.rows, segment.columns
    coder = model.start(stream, False)
    coder = ranks_and_scales.code_ranks(
        part.ranks, *sides, segment.same, np.iinfo(np.int64).max, logits, ages, coder, stream, False
    )
    if coder[3] >= 0:
        coder = ranks_and_scales.code_scales(part.scales, part.ranks, logits, ages, coder, stream, False)
    if coder[3] >= 0:
        coder = vectors.code_modules(part.entries, part.ranks, *sides, logits, ages, coder, stream, False)
    return model.finish(coder, stream)


@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    """A stream whose ranks are read: the model and the coder where they are then, and the entries that it claims."""

    segment: Segment
    stream: NDArray[np.uint8]
    ranks: NDArray[np.int64]
    logits: NDArray[np.int64]
    ages: NDArray[np.int64]
    coder: model.Coder
    entries: int


def _open(segment: Segment, stream: NDArray[np.uint8], limits: ProductLimits) -> _Opened:
    logits, ages = model.new_model()
    ranks, most = np.zeros(segment.rows.size, np.int64), _most_entries(stream.size)
    coder = model.start(stream, True)
    coder = ranks_and_scales.code_ranks(
        ranks, segment.rows, segment.columns, segment.same, most, logits, ages, coder, stream, True
    )
    if coder[3] < 0:
        raise FormatError(
            f"a stream of {stream.size} bytes claims more components than it or the shapes have room for, or ends early"
        )
    if (rank := int(ranks.max(initial=0))) > limits.rank:
        raise LimitError(f"a module has {rank} components, the cap is {limits.rank}")
    return _Opened(segment, stream, ranks, logits, ages, coder, int((ranks * (segment.rows + segment.columns)).sum()))


def _read(opened: _Opened) -> Part:
    o, s = opened, opened.segment
    part = Part(o.ranks, np.zeros(int(o.ranks.sum()), np.int64), np.zeros(o.entries, np.int16))
    coder = ranks_and_scales.code_scales(part.scales, o.ranks, o.logits, o.ages, o.coder, o.stream, True)
    if coder[3] >= 0:
        coder = vectors.code_modules(part.entries, o.ranks, s.rows, s.columns, o.logits, o.ages, coder, o.stream, True)
    if coder[3] < 0 or not model.is_finished(coder, o.stream):
        raise FormatError(f"modules {s.first} to {s.stop - 1}: not the canonical stream of any symbols")
    return part


def parse_product(
    blob: bytes | memoryview, shapes: Sequence[Shape], limits: ProductLimits = DEFAULT_LIMITS, *, workers: int = 1
) -> ProductSymbols:
    """Check every byte and return the symbols. `shapes`: rows and columns of the modules, in the order in which they were encoded.

    Errors: FormatError on anything but the encoding of some symbols of such shapes; LimitError above `limits`; InputError on shapes.
    """
    known, opened = _open_all(blob, shapes, limits)

    def read(first: int, last: int) -> list[Part]:
        return [_read(o) for o in opened[first:last]]

    return symbols_of(known, sum(spread(read, shares(len(opened), workers)), list[Part]()) if opened else [])


def check_product(
    blob: bytes | memoryview, shapes: Sequence[Shape], limits: ProductLimits = DEFAULT_LIMITS, *, workers: int = 1
) -> int:
    """Check every byte as `parse_product`, keep no symbols, and return the number of components. Errors: as there."""
    _, opened = _open_all(blob, shapes, limits)

    def read(first: int, last: int) -> int:
        return sum(_read(o).scales.size for o in opened[first:last])

    return sum(spread(read, shares(len(opened), workers))) if opened else 0


def _open_all(
    blob: bytes | memoryview, shapes: Sequence[Shape], limits: ProductLimits
) -> tuple[tuple[Shape, ...], list[_Opened]]:
    """Ranks of all segments, before anything is allocated for entries."""
    known = check_shapes(shapes)
    segments = segments_of(known)
    streams = _streams(Reader(bytes(blob)), len(known), len(segments))
    opened = [_open(segment, stream, limits) for segment, stream in zip(segments, streams, strict=True)]
    if (entries := sum(o.entries for o in opened)) > limits.entries:
        raise LimitError(f"encoding holds {entries} entries, the cap is {limits.entries}")
    return known, opened


def symbols_of(shapes: tuple[Shape, ...], parts: Sequence[Part]) -> ProductSymbols:
    """One set of symbols from those of all segments; entries as int8 if they fit."""
    ranks = np.concatenate([np.zeros(0, np.int64), *(p.ranks for p in parts)])
    scales = np.concatenate([np.zeros(0, np.int64), *(p.scales for p in parts)])
    small = all(p.entries.size == 0 or (p.entries.min() >= -128 and p.entries.max() < 128) for p in parts)
    kind = np.int8 if small else np.int16
    entries = np.concatenate([np.zeros(0, kind), *(p.entries.astype(kind) for p in parts)])
    return ProductSymbols(shapes, read_only(ranks), read_only(scales), read_only(entries))


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


def decode_product(
    blob: bytes | memoryview, shapes: Sequence[Shape], limits: ProductLimits = DEFAULT_LIMITS, *, workers: int = 1
) -> list[Factors]:
    """The factors of each module: left (m x r'), right (r' x n), float32, whose product stands for left @ right of the input.

    Errors: as `parse_product`.
    """
    return factors_of(parse_product(blob, shapes, limits, workers=workers))
