"""The beginning of an encoding, the same for every codec, and the bounded reader that all of it is read with.

docs/format.md is normative. Nothing here allocates for a number that was only claimed: a reader checks what is left first.
"""

import struct
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import FormatError, LimitError
from compeft_core.layout import MAX_SIZE, MAX_TENSORS, Vector

MAGIC = b"CPFT"
VERSION = 1
HEAD = struct.pack("<4sB", MAGIC, VERSION)
MAX_VARINT_BYTES = 5


@dataclass(frozen=True, slots=True, eq=False)
class UpdateHeader:
    """Codec id, sizes of the two parts, and the scale groups: int64 ends, float32 scales (any bits, as read)."""

    codec: int
    ternary_size: int
    dense_size: int
    group_ends: NDArray[np.int64]
    scales: Vector


class Blob(Protocol):
    """Bytes at rest, in memory or elsewhere: how many they are, and any part of them. `bytes` is one."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> bytes: ...


@dataclass(slots=True)
class Reader:
    """A place in bytes; every step checks what is left. Errors: FormatError."""

    blob: Blob
    at: int = 0

    @property
    def left(self) -> int:
        """Bytes not yet taken."""
        return len(self.blob) - self.at

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        if length > self.left:
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

    def varints(self, count: int) -> list[int]:
        """The next `count` numbers. Those of one byte, which are most numbers of an index, are read without a call each."""
        start, octets, values = self.at, self.blob[self.at : self.at + MAX_VARINT_BYTES * count], list[int]()
        for _ in range(count):
            at = self.at - start
            if at < len(octets) and octets[at] < 0x80:
                values.append(octets[at])
                self.at += 1
            else:
                values.append(self.varint())
        return values


def varints(*values: int) -> bytes:
    """Unsigned LEB128, one after the other."""
    octets = bytearray()
    for value in values:
        while value >= 0x80:
            octets.append(value & 0x7F | 0x80)
            value >>= 7
        octets.append(value)
    return bytes(octets)


def write_header(header: UpdateHeader) -> bytes:
    """From the magic to the scales."""
    groups = header.group_ends.size
    sizes = np.diff(header.group_ends, prepend=0).tolist() if groups > 1 else []
    numbers = varints(header.ternary_size, header.dense_size, groups, *sizes)
    return HEAD + bytes([header.codec]) + numbers + header.scales.astype("<f4", copy=False).tobytes()


def read_header(reader: Reader, max_size: int) -> UpdateHeader:
    """From the magic to the scales. Errors: LimitError above `max_size` parameters, FormatError."""
    if (begins := reader.blob[: len(HEAD)]) != HEAD:
        raise FormatError(f"bytes begin {begins.hex()}, a version {VERSION} encoding begins {HEAD.hex()}")
    codec = reader.take(len(HEAD) + 1)[-1]
    ternary_size, dense_size = reader.varint(), reader.varint()
    if ternary_size + dense_size > max_size:
        raise LimitError(f"encoding holds {ternary_size + dense_size} parameters, the cap is {max_size}")
    group_ends = _read_groups(reader, ternary_size)
    scales = np.frombuffer(reader.take(4 * group_ends.size), "<f4").astype(np.float32)
    return UpdateHeader(codec, ternary_size, dense_size, group_ends, scales)


def _read_groups(reader: Reader, ternary_size: int) -> NDArray[np.int64]:
    """Ends of the scale groups. Each group takes at least 4 bytes more, so their number is checked before they are read."""
    groups = reader.varint()
    if (groups == 0) != (ternary_size == 0) or groups > MAX_TENSORS:
        raise FormatError(f"encoding has {groups} scale groups for {ternary_size} parameters, the cap is {MAX_TENSORS}")
    sizes = [reader.varint() for _ in range(groups)] if groups > 1 else [ternary_size] * groups
    if sum(sizes) != ternary_size or 0 in sizes:
        raise FormatError(f"scale groups hold {sum(sizes)} parameters, or one is empty; the header says {ternary_size}")
    return np.cumsum(np.array(sizes, np.int64))
