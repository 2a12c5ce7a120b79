"""Update <-> bytes, by one of two codecs: docs/format.md is normative.

`rice` (Golomb-coded gaps) is fast; `context` (arithmetic coding with a learned model of rows, columns and signs) is the smaller.
An update has one encoding by each. `parse` refuses every other sequence of bytes, before it allocates anything that the bytes only
claim. What it returns holds the blocks of `rice` whichever codec was read: those can be decoded, added and merged one at a time,
without a further check and without anything dense.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compeft_core import bf16
from compeft_core.budget import payload_bytes
from compeft_core.compress import Ternary, Update, read_only, scales_fit
from compeft_core.errors import FormatError, InputError, LayoutMismatchError, LimitError, NotFiniteError
from compeft_core.format import golomb
from compeft_core.format.context_body import read_segments, write_segments
from compeft_core.format.header import Blob, Header, Reader, read_header, write_header
from compeft_core.format.matrix_shapes import Shape, check_shapes
from compeft_core.format.rice_body import Blocks, check_streams, read_index, write_blocks
from compeft_core.layout import MAX_SIZE, MAX_TENSORS, Vector
from compeft_core.parallel import shares, spread

Codec = Literal["rice", "context"]
DENSE_STEP = 1 << 20
"""Dense parameters checked at a time, so that checking needs no memory in proportion."""
RICE, CONTEXT = 1, 2
"""Codec ids in the header."""
CONTEXT_SAVES, CONTEXT_SECONDS = 0.1, 20e-9
"""What `context` saves of the bytes of `rice`, and costs in processor time for each parameter more than that, sender and receiver
together: docs/benchmarks/slow-link.md.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """What a checked encoding holds, without its bytes: `count` entries kept; the others as in `Encoded`."""

    codec: Codec
    ternary_size: int
    dense_size: int
    count: int
    scales: Vector


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A checked encoding. Only `parse` and `encoding_of` make one: the kernels rely on it. All arrays are read-only.

    blob: the bytes.   codec: what they were written by.   shapes: of the matrices, if that is `context`, else none.
    rice: the encoding by `rice` of the same update; if that is the codec, `blob` itself.
    scales, group_ends: as in `Ternary`.
    block_counts: int64, entries kept in each block of 65,536 positions.
    block_starts: int64, where each block's stream begins in `rice`, and at last where the dense part begins.
    """

    blob: bytes
    codec: Codec
    shapes: tuple[Shape, ...]
    rice: bytes
    ternary_size: int
    dense_size: int
    scales: Vector
    group_ends: NDArray[np.int64]
    block_counts: NDArray[np.int64]
    block_starts: NDArray[np.int64]

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
        """What it holds."""
        return Contents(self.codec, self.ternary_size, self.dense_size, self.count, self.scales)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.block_counts.size

    @property
    def held_bytes(self) -> int:
        """Memory that it takes: its bytes, those of `rice` if they are others, and the arrays."""
        arrays = (self.scales, self.group_ends, self.block_counts, self.block_starts)
        blobs = len(self.blob) + (0 if self.rice is self.blob else len(self.rice))
        return blobs + sum(array.nbytes for array in arrays)

    @property
    def octets(self) -> NDArray[np.uint8]:
        """`rice` as an array."""
        return np.frombuffer(self.rice, np.uint8)

    @property
    def dense(self) -> Vector:
        """The dense part as float32."""
        return bf16.unpack(np.frombuffer(self.rice, "<u2", self.dense_size, int(self.block_starts[-1])))


def sooner_codec(density: float, bytes_per_s: float, workers: int) -> Codec:
    """The codec by which an update of this density is there sooner over a link of this rate, coded on so many cores; 0 is no known rate,
    and then it is the one of the fewest bytes.
    """
    many = 10**6
    saved_bytes = CONTEXT_SAVES * (payload_bytes(many, 0, density) - payload_bytes(many, 0, 0)) / many
    return "rice" if bytes_per_s * CONTEXT_SECONDS / workers > saved_bytes else "context"


def encode(update: Update, *, codec: Codec = "rice", shapes: Sequence[Shape] = (), workers: int = 1) -> bytes:
    """The bytes of `encoding_of`. Errors: as there."""
    return encoding_of(update, codec=codec, shapes=shapes, workers=workers).blob


def encoding_of(update: Update, *, codec: Codec = "rice", shapes: Sequence[Shape] = (), workers: int = 1) -> Encoded:
    """The encoding of an update, as `parse` would return it; with `context`, that by `rice` unless the one by `context` is shorter.

    shapes: rows and columns of the matrices that the ternary part consists of, for `context`; see `shapes_of`.
    Errors: LimitError if it is larger than the format allows; InputError on an unknown codec or shapes of another size.
    """
    if codec not in ("rice", "context"):
        raise InputError(f"codec is {codec!r}, known are rice, context")
    ternary = update.ternary
    if update.size > MAX_SIZE or ternary.scales.size > MAX_TENSORS:
        raise LimitError(
            f"update has {update.size} parameters in {ternary.scales.size} groups, the caps are {MAX_SIZE}, {MAX_TENSORS}"
        )
    rice = _assemble(RICE, update, write_blocks(ternary, workers))
    reader = Reader(rice)
    header, blocks = read_header(reader, MAX_SIZE), read_index(reader, ternary.size)
    if codec == "context":
        check_shapes(shapes, ternary.size)
        body = write_segments(ternary, shapes, workers)
        context = b"" if body is None else _assemble(CONTEXT, update, body)
        if 0 < len(context) < len(rice):
            return _encoded(context, "context", tuple(shapes), rice, header, blocks)
    return _encoded(rice, "rice", (), rice, header, blocks)


def parse(blob: bytes | memoryview, *, max_size: int = MAX_SIZE, workers: int = 1) -> Encoded:
    """Check every byte and return the encoding. Memory used is proportional to `blob`, whatever it claims.

    Errors: LimitError if it holds more than `max_size` parameters, FormatError if it is anything but a canonical encoding.
    """
    octets = bytes(blob)
    reader = Reader(octets)
    header = read_header(reader, max_size)
    if header.codec not in READERS:
        raise FormatError(f"codec id is {header.codec}, known are {', '.join(map(str, READERS))}")
    return READERS[header.codec](octets, reader, header, workers)


def check(blob: Blob, *, max_size: int = MAX_SIZE, workers: int = 1) -> Contents:
    """Check every byte, as `parse`, but keep none: an encoding by `rice` is read a MiB or two at a time, in order, and takes no
    memory in proportion. One by `context` is parsed whole: its streams are few and long.

    Errors: as `parse`, and those of `blob`.
    """
    reader = Reader(blob)
    header = read_header(reader, max_size)
    if header.codec != RICE:
        return parse(blob[: len(blob)], max_size=max_size, workers=workers).contents
    blocks = _check_rice(reader, header, workers)
    return Contents("rice", header.ternary_size, header.dense_size, int(blocks.counts.sum()), read_only(header.scales))


def decode(encoded: Encoded, *, workers: int = 1) -> Update:
    """The update that was encoded."""
    e, octets = encoded, encoded.octets
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(e.block_counts)])
    positions, negative = np.empty(e.count, np.uint32), np.empty(e.count, np.bool_)

    def unpack(first: int, last: int) -> None:
        golomb.unpack_blocks(octets, e.block_starts, e.block_counts, e.ternary_size, bounds, positions, negative, first, last)

    spread(unpack, shares(e.blocks, workers))
    return Update(Ternary(e.ternary_size, positions, negative, e.group_ends, e.scales), e.dense)


def add_to(encoded: Encoded, state: Vector, weight: float = 1.0, *, workers: int = 1) -> None:
    """`state += weight * update`, in place, in float32: each term is float32(weight * value), then one float32 addition.

    Errors, before anything is written: LayoutMismatchError on another length; InputError on another dtype, a read-only or strided
    state; NotFiniteError if the weight, or it times a value, is not a finite float32.
    """
    e, octets = encoded, encoded.octets
    if state.shape != (e.size,):
        raise LayoutMismatchError(f"state has shape {state.shape}, the update says ({e.size},)")
    if state.dtype != np.float32 or not (state.flags.c_contiguous and state.flags.writeable):
        raise InputError(f"state is {state.dtype} or not writeable and contiguous, it must be float32 and both")
    values, dense = weighted(e.scales, weight), weighted(e.dense, weight)

    def add(first: int, last: int) -> None:
        golomb.add_blocks(octets, e.block_starts, e.block_counts, e.ternary_size, e.group_ends, values, state, first, last)

    spread(add, shares(e.blocks, workers))
    state[e.ternary_size :] += dense


def weighted(values: Vector, weight: float) -> Vector:
    """float32(weight * value), the product in float64. Errors: NotFiniteError."""
    with np.errstate(over="ignore", invalid="ignore"):
        products = (np.float64(weight) * values.astype(np.float64)).astype(np.float32)
    if not (math.isfinite(weight) and np.isfinite(products).all()):
        raise NotFiniteError(f"weight {weight} times the update is not a finite float32")
    return read_only(products)


def _assemble(codec: int, update: Update, body: bytes) -> bytes:
    ternary = update.ternary
    header = Header(codec, ternary.size, update.dense.size, ternary.group_ends, ternary.scales)
    return b"".join([write_header(header), body, bf16.pack(update.dense).astype("<u2", copy=False).data])


def _read_rice(blob: bytes, reader: Reader, header: Header, workers: int) -> Encoded:
    return _encoded(blob, "rice", (), blob, header, _check_rice(reader, header, workers))


def _check_rice(reader: Reader, header: Header, workers: int) -> Blocks:
    """Where the streams lie, once every byte was checked, in pieces and in order. Errors: FormatError."""
    blocks = read_index(reader, header.ternary_size)
    if int(blocks.starts[-1]) + 2 * header.dense_size != len(reader.blob):
        raise FormatError(
            f"encoding has {len(reader.blob)} bytes, its index and dense part make {int(blocks.starts[-1]) + 2 * header.dense_size}"
        )
    _check_scales(header.scales, check_streams(reader.blob, header, blocks, workers))
    _check_dense(reader.blob, header.dense_size)
    return blocks


def _read_context(blob: bytes, reader: Reader, header: Header, workers: int) -> Encoded:
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


READERS: dict[int, Callable[[bytes, Reader, Header, int], Encoded]] = {RICE: _read_rice, CONTEXT: _read_context}


def _encoded(blob: bytes, codec: Codec, shapes: tuple[Shape, ...], rice: bytes, header: Header, blocks: Blocks) -> Encoded:
    scales, ends = read_only(header.scales), read_only(header.group_ends)
    return Encoded(blob, codec, shapes, rice, header.ternary_size, header.dense_size, scales, ends, blocks.counts, blocks.starts)


def _check_scales(scales: Vector, kept: NDArray[np.bool_]) -> None:
    if not scales_fit(scales, kept):
        raise FormatError("a scale must be zero for a group that keeps nothing, else finite and at least 2**-126")


def _check_dense(blob: Blob, size: int) -> None:
    """The last `size` 16-bit words, a step at a time. Errors: FormatError."""
    start = len(blob) - 2 * size
    for at in range(start, len(blob), 2 * DENSE_STEP):
        part = np.frombuffer(blob[at : at + 2 * DENSE_STEP], "<u2")
        if not bf16.is_finite(part) or (part == bf16.NEGATIVE_ZERO).any():
            raise FormatError("a dense parameter is NaN, infinite or -0.0")
