"""Snapshots: a whole state in few bytes. docs/protocol.md, "Catching up", is normative.

A state is coded against a reference that both sides can compute (the seeded state, or zeros): which parameters differ, and for those
the distance in units in the last place. Both are exact, so what is decoded has the very bits that were coded.
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from compeft_core import Vector
from compeft_core.errors import FormatError, NotFiniteError

Words = NDArray[np.uint32]
PLANES = 4
SIGN = np.uint32(2**31)
_LENGTH = struct.Struct("<I")


def encode_snapshot(state: Vector, reference: Vector) -> bytes:
    """`state` against `reference`, both float32 of one shape: five deflated streams, each behind its length."""
    changed = state.view(np.uint32) != reference.view(np.uint32)
    steps = _zigzag(_ordered(state[changed]) - _ordered(reference[changed]))
    planes = steps.astype("<u4").view(np.uint8).reshape(-1, PLANES)
    streams = [np.packbits(changed), *(np.ascontiguousarray(planes[:, i]) for i in range(PLANES))]
    return b"".join(_LENGTH.pack(len(s)) + s for s in map(_deflate, streams))


def decode_snapshot(data: bytes, reference: Vector) -> Vector:
    """The state that was coded, float32 of the shape of `reference`. Errors: FormatError; NotFiniteError for NaN or infinity."""
    streams = _cut(data)
    mask = np.frombuffer(_inflate(streams[0], (reference.size + 7) // 8), np.uint8)
    changed = np.unpackbits(mask).view(np.bool_)
    if changed[reference.size :].any():
        raise FormatError(f"snapshot changes parameters beyond the {reference.size} of the layout")
    changed = changed[: reference.size]
    count = int(np.count_nonzero(changed))
    planes = np.empty((count, PLANES), np.uint8)
    for i, stream in enumerate(streams[1:]):
        planes[:, i] = np.frombuffer(_inflate(stream, count), np.uint8)
    steps = planes.view("<u4").reshape(-1).astype(np.uint32)
    state = reference.copy()
    state[changed] = _floats(_ordered(reference[changed]) + _unzigzag(steps))
    if not np.isfinite(state).all():
        raise NotFiniteError("snapshot holds NaN or infinity")
    return state


def least_bytes(state: Vector, reference: Vector) -> int:
    """Estimated least bytes of a snapshot of `state` after a few steps: two bytes of each changed float32 are noise."""
    return 2 * int(np.count_nonzero(state.view(np.uint32) != reference.view(np.uint32)))


def _ordered(values: Vector) -> Words:
    """Floats as integers in the same order, so that neighbours differ by one."""
    bits = values.view(np.uint32)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _floats(ordered: Words) -> Vector:
    return np.where(ordered & SIGN, ordered ^ SIGN, ~ordered).view(np.float32)


def _zigzag(differences: Words) -> Words:
    """Differences modulo 2^32, as signed numbers, to 0, -1, 1, -2, 2 ... -> 0, 1, 2, 3, 4 ..."""
    signed = differences.view(np.int32)
    return ((signed << 1) ^ (signed >> 31)).view(np.uint32)


def _unzigzag(steps: Words) -> Words:
    return (steps >> np.uint32(1)) ^ (np.uint32(0) - (steps & np.uint32(1)))


def _deflate(stream: NDArray[np.uint8]) -> bytes:
    """Raw deflate with runs and Huffman codes only: the streams have no repeated strings, and it is several times faster."""
    deflater = zlib.compressobj(6, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
    return deflater.compress(stream.data) + deflater.flush()


def _inflate(stream: bytes, size: int) -> bytes:
    """Exactly `size` bytes. Errors: FormatError; no more than `size` + 1 bytes are ever made."""
    inflater = zlib.decompressobj(-15)
    try:
        data = inflater.decompress(stream, size + 1)
    except zlib.error as error:
        raise FormatError(f"snapshot holds a damaged stream: {error}") from error
    if len(data) != size or not inflater.eof or inflater.unused_data:
        raise FormatError(f"snapshot holds a stream that does not make {size} bytes, and only these")
    return data


def _cut(data: bytes) -> list[bytes]:
    streams, at = [], 0
    for _ in range(1 + PLANES):
        if len(data) < at + _LENGTH.size:
            raise FormatError(f"snapshot of {len(data)} bytes ends before its streams do")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        streams.append(data[at : at + length])
        at += length
    if at != len(data):
        raise FormatError(f"snapshot of {len(data)} bytes, its streams make {at}")
    return streams
