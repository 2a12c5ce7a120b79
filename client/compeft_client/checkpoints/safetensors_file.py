"""Reads and writes safetensors files, a piece at a time and without torch: headers are checked like any hostile bytes.

Not the library's own reader: that one knows no bfloat16 in numpy, and maps whole files. A header must describe the rest of its
file exactly: no gap, no overlap, no byte left over. Values come out as float32, into the caller's vector, 4 MiB at a time.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from compeft_core import MAX_SIZE, Vector, bf16
from compeft_core.errors import FormatError, InputError, LimitError, NotFiniteError
from compeft_core.layout import MAX_NAME_BYTES, MAX_RANK, MAX_TENSORS
from compeft_proto.expert_manifest import WIDTHS

MAX_HEADER_BYTES = 100_000_000
"""The cap that safetensors itself has."""
AGAIN = "save or copy it again"
"""The way out of a damaged file."""
PIECE = 2**20
"""Parameters read or written at a time."""
METADATA = "__metadata__"
FIELDS = {"dtype", "shape", "data_offsets"}
NUMPY: dict[str, str] = {
    "F32": "<f4",
    "BF16": "<u2",
    "F16": "<f2",
    "F64": "<f8",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "C64": "<c8",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
    "F8_E8M0": "u1",
    "F8_E4M3FNUZ": "u1",
    "F8_E5M2FNUZ": "u1",
}
"""The types that are read, by safetensors' names, and how numpy holds their bytes: bfloat16 and the 8-bit floats as their bits."""
SUB_BYTE = ("F4", "F6_E2M3", "F6_E3M2")
"""Types of safetensors whose values share bytes: not supported."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor in a file: `start` is where its bytes begin, from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int

    @property
    def size(self) -> int:
        """Number of parameters."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Length in the file."""
        return self.size * WIDTHS[self.dtype]


@dataclass(frozen=True, slots=True)
class Header:
    """What a file, or a sharded checkpoint, says of itself: its tensors by name, and its metadata."""

    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]


def read_header(file: Path) -> Header:
    """The checked header of a safetensors file. Errors: InputError if it cannot be read, FormatError, LimitError."""
    try:
        with file.open("rb") as stream:
            total = stream.seek(0, 2)
            stream.seek(0)
            return parse_header(stream.read(8), stream, total, file)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error


def parse_header(prefix: bytes, stream: BinaryIO, total: int, file: Path) -> Header:
    """The header whose length is `prefix` and whose bytes come next, of a file of `total` bytes. Errors: FormatError, LimitError."""
    if len(prefix) < 8:
        raise _not_whole(file, f"it has {len(prefix)} bytes, such a file has 8 at least")
    (length,) = struct.unpack("<Q", prefix)
    if length > total - 8:
        raise _not_whole(file, f"it has {total} bytes, its header alone claims {length}")
    if length > MAX_HEADER_BYTES:
        raise LimitError(f"{file} has a header of {length} bytes, the cap is {MAX_HEADER_BYTES}")
    entries = _json_object(stream.read(length), file)
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(_is_text(key) and _is_text(value) for key, value in metadata.items()):
        raise FormatError(f"{file} has metadata that are not strings by name")
    if len(entries) > MAX_TENSORS:
        raise LimitError(f"{file} has {len(entries)} tensors, the cap is {MAX_TENSORS}")
    tensors = [_entry(name, entry, file, 8 + length) for name, entry in entries.items()]
    _check_cover(sorted(tensors, key=lambda t: (t.start, t.bytes)), 8 + length, total, file)
    return Header({t.name: t for t in tensors}, metadata)


def read_shards(index: Path) -> Header:
    """The tensors of a sharded checkpoint, by its model.safetensors.index.json. Errors: InputError, FormatError, LimitError."""
    try:
        entries = _json_object(index.read_bytes(), index)
    except OSError as error:
        raise InputError(f"cannot read {index}: {error.strerror}") from error
    where = entries.get("weight_map")
    if not isinstance(where, dict) or not where:
        raise FormatError(f"{index} has no weight_map")
    shards = {shard: read_header(_beside(index, shard)) for shard in sorted(set(map(str, where.values())))}
    tensors = {}
    for name, shard in where.items():
        if name not in shards[str(shard)].tensors:
            raise FormatError(f"{index} says that {name[:80]!a} is in {shard}, it is not")
        tensors[name] = shards[str(shard)].tensors[name]
    return Header(tensors, next(iter(shards.values())).metadata)


def read_values(tensor: Stored) -> Iterator[Vector]:
    """The values of a float tensor, flat, PIECE at a time. Errors: InputError, NotFiniteError for NaN, infinity or an F64 too large."""
    kind, left = np.dtype(NUMPY[tensor.dtype]), tensor.size
    try:
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start)
            while left:
                count = min(PIECE, left)
                data = stream.read(count * kind.itemsize)
                if len(data) != count * kind.itemsize:
                    raise InputError(f"{tensor.file} changed while it was read")
                yield _finite(tensor.name, to_float32(tensor.dtype, np.frombuffer(data, kind)))
                left -= count
    except OSError as error:
        raise InputError(f"cannot read {tensor.file}: {error.strerror}") from error


def read_bytes(tensor: Stored) -> bytes:
    """A tensor's own bytes. Errors: InputError."""
    try:
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start)
            return stream.read(tensor.bytes)
    except OSError as error:
        raise InputError(f"cannot read {tensor.file}: {error.strerror}") from error


def to_float32(dtype: str, values: NDArray[np.generic]) -> Vector:
    """Float values as numpy holds them -> float32; too large an F64 becomes infinite."""
    if dtype == "BF16":
        return bf16.unpack(values.view("<u2"))
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def from_float32(dtype: str, values: Vector) -> bytes:
    """Float32 values as the bytes of a float type, to nearest, ties to even. Errors: NotFiniteError if one does not fit."""
    if dtype == "BF16":
        return bf16.pack(np.ascontiguousarray(values)).astype("<u2", copy=False).tobytes()
    with np.errstate(over="ignore"):
        cast = values.astype(NUMPY[dtype])
    if not np.isfinite(cast).all():
        raise NotFiniteError(f"a decoded parameter does not fit {dtype}")
    return cast.tobytes()


def header_bytes(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a safetensors file with these (name, dtype, shape), and where each tensor begins.

    Wider types come first, then names in order, and the header is padded to 8 bytes, as safetensors does for alignment.
    """
    at, entries, starts = 0, dict[str, object](), dict[str, int]()
    for name, dtype, shape in sorted(tensors, key=lambda t: (-WIDTHS[t[1]], t[0])):
        end = at + math.prod(shape) * WIDTHS[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        starts[name], at = at, end
    fields: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    text = json.dumps(fields | entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, {name: 8 + len(text) + start for name, start in starts.items()}


def _not_whole(file: Path, why: str) -> FormatError:
    return FormatError(f"{file} is not a whole safetensors file: {why}; {AGAIN}")


def _json_object(data: bytes, file: Path) -> dict[str, object]:
    try:
        found = json.loads(data.decode(), object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file} does not hold a JSON object where it should: {str(error)[:80]}; {AGAIN}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{file} holds a JSON {type(found).__name__}, expected an object")
    return found


def _no_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key is there twice")
    return fields


def _entry(name: str, entry: object, file: Path, data_start: int) -> Stored:
    if not isinstance(entry, dict) or set(entry) != FIELDS:
        raise FormatError(f"{file} describes {name[:80]!a} by something else than {', '.join(sorted(FIELDS))}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _is_text(name) or not 0 < len(name.encode()) <= MAX_NAME_BYTES:
        raise FormatError(f"{file} names a tensor by {len(name)} characters, expected 1 to {MAX_NAME_BYTES} bytes")
    if dtype in SUB_BYTE:
        raise InputError(f"{file} stores {name[:80]!a} as {dtype}, which is not supported: convert it to BF16")
    if not isinstance(dtype, str) or dtype not in NUMPY:
        raise FormatError(f"{file} stores {name[:80]!a} as {str(dtype)[:20]!a}, known are {', '.join(NUMPY)}")
    if not _naturals(shape) or len(shape) > MAX_RANK or not _naturals(offsets) or len(offsets) != 2:
        raise FormatError(f"{file} gives {name[:80]!a} a shape or a place that is invalid")
    tensor = Stored(name, dtype, tuple(shape), file, data_start + offsets[0])
    if tensor.size > MAX_SIZE:
        raise LimitError(f"{file} gives {name[:80]!a} {tensor.size} parameters, the cap is {MAX_SIZE}")
    if offsets[1] - offsets[0] != tensor.bytes:
        raise FormatError(f"{file} gives {name[:80]!a} {offsets[1] - offsets[0]} bytes, its shape and type need {tensor.bytes}")
    return tensor


def _is_text(value: object) -> bool:
    """Whether it is a string without half characters, which JSON can spell and UTF-8 cannot."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_cover(tensors: Sequence[Stored], start: int, total: int, file: Path) -> None:
    """The tensors, in order, fill the file from `start` to its end."""
    edges = [start, *(t.start + t.bytes for t in tensors)]
    for tensor, (before, _) in zip(tensors, pairwise(edges), strict=True):
        if tensor.start != before:
            raise FormatError(f"{file} has {tensor.name[:80]!a} at byte {tensor.start}, the one before ends at {before}")
    if edges[-1] != total:
        raise _not_whole(file, f"it has {total} bytes, its tensors end at {edges[-1]}")


def _beside(index: Path, shard: str) -> Path:
    """A shard's path: a plain file name, in the same folder. Errors: FormatError."""
    if shard != Path(shard).name or not shard.endswith(".safetensors"):
        raise FormatError(f"{index} names {shard[:80]!a}, expected a .safetensors file beside it")
    return index.with_name(shard)


def _finite(name: str, values: Vector) -> Vector:
    if not np.isfinite(values).all():
        raise NotFiniteError(f"tensor {name!r} holds NaN or infinity")
    return values
