"""Update <-> bytes, codec `rice` (Golomb-Rice family): docs/format.md is normative.

There is one encoding of an update. `parse` refuses every other sequence of bytes, before it allocates anything that the bytes
only claim; what it returns can be decoded, added and merged without a further check.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core import bf16, golomb
from compeft_core.compress import Ternary, Update, read_only, scales_fit
from compeft_core.errors import FormatError, InputError, LayoutMismatchError, LimitError, NotFiniteError
from compeft_core.golomb import BLOCK
from compeft_core.layout import MAX_SIZE, MAX_TENSORS, Vector
from compeft_core.machine import shares, spread

MAGIC = b"CPFT"
VERSION = 1
RICE = 1
"""Codec id. 2 is reserved for `context`."""
HEAD = struct.pack("<4sBB", MAGIC, VERSION, RICE)
MAX_VARINT_BYTES = 5


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A checked encoding. Only `parse` makes one: the kernels rely on it. All arrays are read-only.

    blob: the bytes.   count: entries kept.   scales, group_ends: as in `Ternary`.
    block_counts: int64, entries kept in each block of 65,536 positions.
    block_starts: int64, where each block's stream begins in `blob`, and at last where the dense part begins.
    """

    blob: bytes
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
    def blocks(self) -> int:
        """Number of blocks."""
        return self.block_counts.size

    @property
    def octets(self) -> NDArray[np.uint8]:
        """`blob` as an array."""
        return np.frombuffer(self.blob, np.uint8)

    @property
    def dense(self) -> Vector:
        """The dense part as float32."""
        return bf16.unpack(np.frombuffer(self.blob, "<u2", self.dense_size, int(self.block_starts[-1])))


def encode(update: Update, *, workers: int = 1) -> bytes:
    """The one encoding of an update. Errors: LimitError if it is larger than the format allows."""
    ternary = update.ternary
    if update.size > MAX_SIZE or ternary.scales.size > MAX_TENSORS:
        raise LimitError(
            f"update has {update.size} parameters in {ternary.scales.size} groups, the caps are {MAX_SIZE}, {MAX_TENSORS}"
        )
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
    index = b"".join(_varint(n) + _varint(more) for n, more in zip(counts.tolist(), extra.tolist(), strict=True))
    rows = slots.view(np.uint8)
    streams = [rows[block, :length].data for block, length in enumerate(lengths.tolist())]
    return b"".join([_header(update), index, *streams, bf16.pack(update.dense).astype("<u2", copy=False).data])


def parse(blob: bytes | memoryview, *, max_size: int = MAX_SIZE, workers: int = 1) -> Encoded:
    """Check every byte and return the encoding. Memory used is proportional to `blob`, whatever it claims.

    Errors: LimitError if it holds more than `max_size` parameters, FormatError if it is anything but a canonical encoding.
    """
    blob = bytes(blob)
    if not blob.startswith(HEAD):
        raise FormatError(f"bytes begin {blob[: len(HEAD)].hex()}, a version {VERSION} rice encoding begins {HEAD.hex()}")
    reader = _Reader(blob, len(HEAD))
    ternary_size, dense_size = reader.varint(), reader.varint()
    if ternary_size + dense_size > max_size:
        raise LimitError(f"encoding holds {ternary_size + dense_size} parameters, the cap is {max_size}")
    group_ends = _read_groups(reader, ternary_size)
    scales = np.frombuffer(reader.take(4 * group_ends.size), "<f4").astype(np.float32)
    counts, starts = _read_index(reader, ternary_size)
    if int(starts[-1]) + 2 * dense_size != len(blob):
        raise FormatError(f"encoding has {len(blob)} bytes, its index and dense part make {int(starts[-1]) + 2 * dense_size}")
    encoded = Encoded(
        blob, ternary_size, dense_size, read_only(scales), read_only(group_ends), read_only(counts), read_only(starts)
    )
    _check_streams(encoded, workers)
    _check_dense(encoded)
    return encoded


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


@dataclass(slots=True)
class _Reader:
    """A place in bytes; every step checks what is left."""

    blob: bytes
    at: int

    def take(self, length: int) -> bytes:
        if length > len(self.blob) - self.at:
            raise FormatError(f"encoding ends at byte {len(self.blob)}, {length} more are needed at {self.at}")
        self.at += length
        return self.blob[self.at - length : self.at]

    def varint(self) -> int:
        """An unsigned LEB128 of minimal length, at most MAX_SIZE."""
        value = 0
        for i in range(MAX_VARINT_BYTES):
            octet = self.take(1)[0]
            value |= (octet & 0x7F) << 7 * i
            if octet < 0x80:
                if (octet == 0 and i > 0) or value > MAX_SIZE:
                    break
                return value
        raise FormatError(f"number before byte {self.at} is too large or not of minimal length")


def _varint(value: int) -> bytes:
    octets = bytearray()
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def _header(update: Update) -> bytes:
    ternary = update.ternary
    groups = ternary.group_ends.size
    sizes = np.diff(ternary.group_ends, prepend=0).tolist() if groups > 1 else []
    numbers = [ternary.size, update.dense.size, groups, *sizes]
    return HEAD + b"".join(map(_varint, numbers)) + ternary.scales.astype("<f4", copy=False).tobytes()


def _read_groups(reader: _Reader, ternary_size: int) -> NDArray[np.int64]:
    """Ends of the scale groups. Each group takes at least 4 bytes more, so their number is checked before they are read."""
    groups = reader.varint()
    if (groups == 0) != (ternary_size == 0) or groups > MAX_TENSORS:
        raise FormatError(f"encoding has {groups} scale groups for {ternary_size} parameters, the cap is {MAX_TENSORS}")
    sizes = [reader.varint() for _ in range(groups)] if groups > 1 else [ternary_size] * groups
    if sum(sizes) != ternary_size or 0 in sizes:
        raise FormatError(f"scale groups hold {sum(sizes)} parameters, or one is empty; the header says {ternary_size}")
    return np.cumsum(np.array(sizes, np.int64))


def _read_index(reader: _Reader, ternary_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts of the blocks, and where their streams start, the end of the last included."""
    blocks = -(-ternary_size // BLOCK)
    if 2 * blocks > len(reader.blob) - reader.at:
        raise FormatError(f"encoding of {len(reader.blob)} bytes claims {blocks} blocks")
    pairs = np.array([(reader.varint(), reader.varint()) for _ in range(blocks)], np.int64).reshape(blocks, 2)
    spans = np.minimum(BLOCK, ternary_size - np.arange(blocks) * BLOCK)
    if (pairs[:, 0] > spans).any():
        raise FormatError("a block keeps more entries than it has positions")
    counts = pairs[:, 0].copy()
    lengths = _least_lengths(counts, ternary_size) + pairs[:, 1]
    return counts, reader.at + np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _least_lengths(counts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    lengths = np.empty(counts.size, np.int64)
    golomb.least_lengths(read_only(counts), size, lengths)
    return lengths


def _check_streams(encoded: Encoded, workers: int) -> None:
    e, octets = encoded, encoded.octets

    def check(first: int, last: int) -> tuple[int, NDArray[np.int64]]:
        kept = np.zeros(e.group_ends.size, np.int64)
        bad = golomb.check_blocks(octets, e.block_starts, e.block_counts, e.ternary_size, e.group_ends, kept, first, last)
        return bad, kept

    results = spread(check, shares(e.blocks, workers))
    bad = next((b for b, _ in results if b >= 0), -1)
    if bad >= 0:
        raise FormatError(f"block {bad} is not the canonical stream of {e.block_counts[bad]} entries")
    kept = sum((k for _, k in results), np.zeros(e.group_ends.size, np.int64))
    if not scales_fit(e.scales, kept > 0):
        raise FormatError("a scale must be zero for a group that keeps nothing, else finite and at least 2**-126")


def _check_dense(encoded: Encoded) -> None:
    half = np.frombuffer(encoded.blob, "<u2", encoded.dense_size, int(encoded.block_starts[-1]))
    if not bf16.is_finite(half) or (half == bf16.NEGATIVE_ZERO).any():
        raise FormatError("a dense parameter is NaN, infinite or -0.0")
