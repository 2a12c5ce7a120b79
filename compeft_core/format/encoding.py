"""Update <-> bytes, by one of three codecs: docs/format.md is normative.

`rice` (Golomb-coded gaps) is small and fast. `rice4` (Rice-coded gaps in four lanes) reads and merges more than twice as fast, for about
half a percent more bytes at a density of 5 %. `context` (arithmetic coding with a learned model of rows, columns and signs) is the
smallest and by far the slowest. `decode`, `add_to` and merging read an `Encoded`, whatever its codec; nothing here is dense but the result.

Invariant: an update has one encoding by each codec (by `context`: one for given shapes). `parse` refuses every other sequence of bytes,
and allocates nothing in proportion to a number that the bytes only claim. So a digest of the bytes names the update.

    blob = encode(compress(layout, vector, Compression(density=0.05)), codec="rice4")
    add_to(parse(blob), state)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from compeft_core import bf16
from compeft_core.budget import payload_bytes
from compeft_core.compress import Ternary, Update, read_only, scales_fit
from compeft_core.errors import FormatError, InputError, LayoutMismatchError, LimitError, NotFiniteError
from compeft_core.format.block_streams import Blocks, GroupValues, KeptEntries, add_blocks, unpack_blocks
from compeft_core.format.context_body import read_segments, write_segments
from compeft_core.format.header import Blob, Reader, UpdateHeader, read_header, write_header
from compeft_core.format.matrix_shapes import Shape, check_shapes
from compeft_core.format.rice4 import LANES
from compeft_core.format.rice_body import BlockIndex, check_streams, read_index, write_body
from compeft_core.layout import MAX_SIZE, MAX_TENSORS, Vector
from compeft_core.parallel import shares, spread

Codec = Literal["rice", "context", "rice4"]
CODECS: tuple[Codec, ...] = get_args(Codec)
DENSE_STEP = 1 << 20
"""Dense parameters checked at a time, so that checking needs no memory in proportion."""
IDS: dict[Codec, int] = {"rice": 1, "context": 2, "rice4": 3}
"""Codec ids in the header."""
LANES_BY_ID = {IDS["rice"]: 1, IDS["rice4"]: LANES}
"""Lanes of a stream, for the codecs whose body is an index and streams of blocks."""
CONTEXT_SAVES, CONTEXT_SECONDS = 0.1, 20e-9
"""Fraction of the bytes of `rice4` that `context` saves, and the processor time that it costs for each parameter more, sender and receiver
together: docs/benchmarks/slow-link.md.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """The facts about a checked encoding, without its bytes. count: entries kept. The other fields are those of `Encoded`."""

    codec: Codec
    ternary_size: int
    dense_size: int
    count: int
    scales: Vector


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A checked encoding. Only `parse` and `encoding_of` make one, because the kernels rely on the checks. All arrays are read-only.

    An `Encoded` has two byte strings. `blob` is what travels. `rice` is what the kernels read: an encoding of the same update by blocks,
    which can be decoded, added and merged one block at a time. With the codecs `rice` and `rice4` both are the same object. With `context`,
    whose bytes can only be read from front to back, `rice` is a second encoding, made when `blob` was read. Example: 20 million parameters
    at 5 % by `context` hold 15 MB of `blob` and 17 MB of `rice`.

    codec: of `blob`.   shapes: of the matrices if codec is `context`, else empty.   scales, group_ends: as in `Ternary`.
    index: where the streams of the blocks lie in `rice`; the dense part begins where the last one ends.
    """

    blob: bytes
    codec: Codec
    shapes: tuple[Shape, ...]
    rice: bytes
    ternary_size: int
    dense_size: int
    scales: Vector
    group_ends: NDArray[np.int64]
    index: BlockIndex

    @property
    def block_counts(self) -> NDArray[np.int64]:
        """Entries kept in each block of 65,536 positions."""
        return self.index.counts

    @property
    def block_starts(self) -> NDArray[np.int64]:
        """Where each block's stream begins in `rice`, and where the last one ends."""
        return self.index.starts

    @property
    def streams(self) -> Blocks:
        """The streams as the kernels take them."""
        return self.index.over(self.octets, self.ternary_size)

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return self.ternary_size + self.dense_size

    @property
    def count(self) -> int:
        """Entries kept."""
        return int(self.block_counts.sum())

    @property
    def contents(self) -> Contents:
        """The facts about it, without its bytes."""
        return Contents(self.codec, self.ternary_size, self.dense_size, self.count, self.scales)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.block_counts.size

    @property
    def held_bytes(self) -> int:
        """Bytes of memory: `blob`, `rice` if it is another object, and the arrays."""
        arrays = (self.scales, self.group_ends, self.index.counts, self.index.starts, self.index.lane_ends)
        blobs = len(self.blob) + (0 if self.rice is self.blob else len(self.rice))
        return blobs + sum(array.nbytes for array in arrays)

    @property
    def octets(self) -> NDArray[np.uint8]:
        """`rice` as a uint8 array."""
        return np.frombuffer(self.rice, np.uint8)

    @property
    def dense(self) -> Vector:
        """The dense part, float32 of shape (dense_size,)."""
        return bf16.unpack(np.frombuffer(self.rice, "<u2", self.dense_size, int(self.block_starts[-1])))


def sooner_codec(density: float, bytes_per_s: float, workers: int) -> Codec:
    """The codec with the shorter estimated encoding plus transfer time: "rice4" or "context".

    density: of the update.   bytes_per_s: rate of the link; 0 means unknown and gives the smallest codec.   workers: threads that code.
    """
    many = 10**6
    saved_bytes = CONTEXT_SAVES * (payload_bytes(many, 0, density) - payload_bytes(many, 0, 0)) / many
    return "rice4" if bytes_per_s * CONTEXT_SECONDS / workers > saved_bytes else "context"


def encode(update: Update, *, codec: Codec = "rice", shapes: Sequence[Shape] = (), workers: int = 1) -> bytes:
    """The bytes of `encoding_of`. Errors: as there."""
    return encoding_of(update, codec=codec, shapes=shapes, workers=workers).blob


def encoding_of(update: Update, *, codec: Codec = "rice", shapes: Sequence[Shape] = (), workers: int = 1) -> Encoded:
    """The encoding of an update, as `parse` would return it. With `context`, the result is by `rice` where that is not longer.

    shapes: rows and columns of the matrices that make up the ternary part, for `context`; see `shapes_of`.
    Errors: LimitError if the update is larger than the format allows; InputError on an unknown codec or shapes of another size.
    """
    if codec not in CODECS:
        raise InputError(f"invalid codec {codec!r}: expected one of {', '.join(CODECS)}")
    ternary = update.ternary
    if update.size > MAX_SIZE or ternary.scales.size > MAX_TENSORS:
        raise LimitError(
            f"update has {update.size} parameters in {ternary.scales.size} groups, the caps are {MAX_SIZE}, {MAX_TENSORS}"
        )
    by_blocks: Codec = "rice4" if codec == "rice4" else "rice"
    rice = _assemble(by_blocks, update, write_body(ternary, LANES_BY_ID[IDS[by_blocks]], workers))
    reader = Reader(rice)
    header = read_header(reader, MAX_SIZE)
    index = read_index(reader, ternary.size, LANES_BY_ID[header.codec])
    encoded = _encoded(rice, by_blocks, header, index)
    if codec == "context":
        check_shapes(shapes, ternary.size)
        body = write_segments(ternary, shapes, workers)
        context = b"" if body is None else _assemble("context", update, body)
        if 0 < len(context) < len(rice):
            return replace(encoded, blob=context, codec="context", shapes=tuple(shapes))
    return encoded


def parse(blob: bytes | memoryview, *, max_size: int = MAX_SIZE, workers: int = 1) -> Encoded:
    """Check every byte and return the encoding. Memory used is proportional to the length of `blob`, whatever it claims.

    Errors: LimitError if it holds more than `max_size` parameters; FormatError if it is not a canonical encoding.
    """
    octets = bytes(blob)
    reader = Reader(octets)
    header = _read_head(reader, max_size)
    if header.codec == IDS["context"]:
        return _read_context(octets, reader, header, workers)
    return _encoded(octets, CODEC_BY_ID[header.codec], header, _check_blocks(reader, header, workers))


def check(blob: Blob, *, max_size: int = MAX_SIZE, workers: int = 1) -> Contents:
    """Check every byte, as `parse` does, and keep none of them.

    An encoding by `rice` or `rice4` is read one or two MiB at a time, in order, so memory does not grow with it. One by `context` is
    parsed whole, because its streams are few and long. Errors: as `parse`, and those of `blob`.
    """
    reader = Reader(blob)
    header = _read_head(reader, max_size)
    if header.codec == IDS["context"]:
        return parse(blob[: len(blob)], max_size=max_size, workers=workers).contents
    count = int(_check_blocks(reader, header, workers).counts.sum())
    return Contents(CODEC_BY_ID[header.codec], header.ternary_size, header.dense_size, count, read_only(header.scales))


def decode(encoded: Encoded, *, workers: int = 1) -> Update:
    """The update that was encoded; its arrays are new."""
    e, streams = encoded, encoded.streams
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(e.block_counts)])
    entries = KeptEntries(np.empty(e.count, np.uint32), np.empty(e.count, np.bool_), bounds, e.ternary_size)
    spread(lambda first, last: unpack_blocks(streams, entries, first, last), shares(e.blocks, workers))
    return Update(Ternary(e.ternary_size, entries.positions, entries.negative, e.group_ends, e.scales), e.dense)


def add_to(encoded: Encoded, state: Vector, weight: float = 1.0, *, workers: int = 1) -> None:
    """`state += weight * update`, in place, in float32: each term is float32(weight * value), then one float32 addition.

    Errors, before anything is written: LayoutMismatchError on another length; InputError on another dtype, a read-only or strided
    state; NotFiniteError if the weight, or it times a value, is not a finite float32.
    """
    e, streams = encoded, encoded.streams
    if state.shape != (e.size,):
        raise LayoutMismatchError(f"state has shape {state.shape}, the update says ({e.size},)")
    if state.dtype != np.float32 or not (state.flags.c_contiguous and state.flags.writeable):
        raise InputError(f"state is {state.dtype} or not writeable and contiguous, it must be float32 and both")
    groups, dense = GroupValues(e.group_ends, weighted(e.scales, weight)), weighted(e.dense, weight)
    spread(lambda first, last: add_blocks(streams, groups, state, first, last), shares(e.blocks, workers))
    state[e.ternary_size :] += dense


def weighted(values: Vector, weight: float) -> Vector:
    """float32(weight * value), the product in float64. Errors: NotFiniteError."""
    with np.errstate(over="ignore", invalid="ignore"):
        products = (np.float64(weight) * values.astype(np.float64)).astype(np.float32)
    if not (math.isfinite(weight) and np.isfinite(products).all()):
        raise NotFiniteError(f"weight {weight} times the update is not a finite float32")
    return read_only(products)


def _assemble(codec: Codec, update: Update, body: bytes) -> bytes:
    ternary = update.ternary
    header = UpdateHeader(IDS[codec], ternary.size, update.dense.size, ternary.group_ends, ternary.scales)
    return b"".join([write_header(header), body, bf16.pack(update.dense).astype("<u2", copy=False).data])


CODEC_BY_ID: dict[int, Codec] = {number: codec for codec, number in IDS.items()}


def _read_head(reader: Reader, max_size: int) -> UpdateHeader:
    header = read_header(reader, max_size)
    if header.codec not in CODEC_BY_ID:
        raise FormatError(f"invalid codec id {header.codec}: expected one of {', '.join(map(str, CODEC_BY_ID))}")
    return header


def _check_blocks(reader: Reader, header: UpdateHeader, workers: int) -> BlockIndex:
    """The index of an encoding by blocks, after a check of every byte, in pieces and in order. Errors: FormatError."""
    index = read_index(reader, header.ternary_size, LANES_BY_ID[header.codec])
    expected = int(index.starts[-1]) + 2 * header.dense_size
    if expected != len(reader.blob):
        raise FormatError(f"encoding has {len(reader.blob)} bytes, its index and dense part make {expected}")
    _check_scales(header.scales, check_streams(reader.blob, header, index, workers))
    _check_dense(reader.blob, header.dense_size)
    return index


def _read_context(blob: bytes, reader: Reader, header: UpdateHeader, workers: int) -> Encoded:
    """An encoding by `context`: decoded, then encoded by `rice`, which must be longer. Errors: FormatError."""
    shapes, positions, negative = read_segments(reader, header.ternary_size, workers)
    if reader.left != 2 * header.dense_size:
        raise FormatError(f"{reader.left} bytes follow the streams, the dense part has {2 * header.dense_size}")
    _check_dense(blob, header.dense_size)
    bounds = np.searchsorted(positions, header.group_ends.astype(np.uint32))
    _check_scales(header.scales, np.diff(bounds, prepend=0) > 0)
    ternary = Ternary(header.ternary_size, positions, negative, header.group_ends, header.scales)
    rice = encoding_of(Update(ternary, bf16.unpack(np.frombuffer(blob, "<u2", header.dense_size, reader.at))), workers=workers)
    if len(rice.blob) <= len(blob):
        raise FormatError(f"encoding by context has {len(blob)} bytes, it must have fewer than the {len(rice.blob)} by rice")
    return replace(rice, blob=blob, codec="context", shapes=tuple(shapes))


def _encoded(blob: bytes, codec: Codec, header: UpdateHeader, index: BlockIndex) -> Encoded:
    """An encoding by blocks; `blob` is also what the kernels read."""
    scales, ends = read_only(header.scales), read_only(header.group_ends)
    return Encoded(blob, codec, (), blob, header.ternary_size, header.dense_size, scales, ends, index)


def _check_scales(scales: Vector, kept: NDArray[np.bool_]) -> None:
    if not scales_fit(scales, kept):
        raise FormatError("a scale must be zero for a group that keeps nothing, else finite and at least 2**-126")


def _check_dense(blob: Blob, size: int) -> None:
    """Check the dense part, the last `size` 16-bit words, a step at a time. Errors: FormatError."""
    start = len(blob) - 2 * size
    for at in range(start, len(blob), 2 * DENSE_STEP):
        part = np.frombuffer(blob[at : at + 2 * DENSE_STEP], "<u2")
        if not bf16.is_finite(part) or (part == bf16.NEGATIVE_ZERO).any():
            raise FormatError("a dense parameter is NaN, infinite or -0.0")
