"""Ways to write a ternary vector down, ours and others': bytes, and seconds to encode and to decode on one thread.

A format is two functions on the same problem. Those whose package is not installed are left out of the table.
"""

import gzip
import importlib.util
import json
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from compeft_core import Layout, Update, bf16, decode, densify, encode, parse, shapes_of


@dataclass(frozen=True)
class Problem:
    """An update, its layout, and the same as int8 signs and as dense float32, made beforehand: they are not timed."""

    layout: Layout
    update: Update
    signs: np.ndarray
    dense: np.ndarray


@dataclass(frozen=True)
class Format:
    """encode: problem -> bytes.   decode: bytes, problem (only its sizes) -> something that holds every entry."""

    encode: Callable[[Problem], bytes]
    decode: Callable[[bytes, Problem], object]
    package: str = ""


@dataclass(frozen=True)
class Row:
    """What a format took for a problem."""

    size_bytes: int
    encode_s: float
    decode_s: float


def problem_of(layout: Layout, update: Update) -> Problem:
    dense = densify(update)
    return Problem(layout, update, np.sign(dense).astype(np.int8), dense)


def measure(form: Format, problem: Problem, repeats: int) -> Row:
    """Bytes, and the fastest of several runs."""
    encodes, decodes = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        blob = form.encode(problem)
        middle = time.perf_counter()
        form.decode(blob, problem)
        encodes.append(middle - start)
        decodes.append(time.perf_counter() - middle)
    return Row(len(blob), min(encodes), min(decodes))


def two_bits(signs: np.ndarray) -> np.ndarray:
    """Four entries a byte."""
    padded = np.zeros(-(-signs.size // 4) * 4, np.uint8)
    padded[: signs.size] = signs.view(np.uint8) & 3
    quads = padded.reshape(-1, 4)
    return quads[:, 0] | quads[:, 1] << 2 | quads[:, 2] << 4 | quads[:, 3] << 6


def from_two_bits(packed: np.ndarray, size: int) -> np.ndarray:
    codes = np.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], axis=1).reshape(-1)[:size]
    return np.array([0, 1, 0, -1], np.int8)[codes]


def _zstd_encode(p: Problem) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=19).compress(two_bits(p.signs).tobytes())


def _zstd_decode(blob: bytes, p: Problem) -> object:
    import zstandard

    return from_two_bits(np.frombuffer(zstandard.ZstdDecompressor().decompress(blob), np.uint8), p.signs.size)


def _masks_encode(p: Problem) -> bytes:
    return np.packbits(p.signs > 0).tobytes() + np.packbits(p.signs < 0).tobytes()


def _masks_decode(blob: bytes, p: Problem) -> object:
    plus, minus = np.frombuffer(blob, np.uint8).reshape(2, -1)
    return np.unpackbits(plus, count=p.signs.size).view(np.int8) - np.unpackbits(minus, count=p.signs.size).view(np.int8)


def _roaring_encode(p: Problem) -> bytes:
    import pyroaring

    positions = pyroaring.BitMap(p.update.ternary.positions)
    positions.run_optimize()
    blob = positions.serialize()
    return struct.pack("<I", len(blob)) + blob + np.packbits(p.update.ternary.negative).tobytes()


def _roaring_decode(blob: bytes, _p: Problem) -> object:
    import pyroaring

    end = 4 + struct.unpack_from("<I", blob)[0]
    positions = np.array(pyroaring.BitMap.deserialize(blob[4:end]), np.uint32)
    return positions, np.unpackbits(np.frombuffer(blob, np.uint8, offset=end), count=positions.size)


def _openfl_encode(p: Problem) -> bytes:
    return gzip.compress((p.signs + np.int8(1)).astype(np.float32).tobytes())


def _openfl_decode(blob: bytes, _p: Problem) -> object:
    return np.frombuffer(gzip.decompress(blob), np.float32) - 1


def _bf16_encode(p: Problem) -> bytes:
    """The header that safetensors writes, and the values."""
    entries, start = {}, 0
    for t in p.layout.tensors:
        entries[t.name] = {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [2 * start, 2 * (start + t.size)]}
        start += t.size
    header = json.dumps(entries, separators=(",", ":")).encode()
    return struct.pack("<Q", len(header)) + header + bf16.pack(p.dense).tobytes()


def _bf16_decode(blob: bytes, p: Problem) -> object:
    return bf16.unpack(np.frombuffer(blob, np.uint16, p.dense.size, len(blob) - 2 * p.dense.size))


def _ours(codec: str) -> Format:
    return Format(
        lambda p: encode(p.update, codec=codec, shapes=shapes_of(p.layout)),  # type: ignore[arg-type]  # one of the two literals
        lambda blob, _p: decode(parse(blob)),
    )


FORMATS = {
    "context": _ours("context"),
    "rice": _ours("rice"),
    "zstd -19 of 2-bit codes": Format(_zstd_encode, _zstd_decode, "zstandard"),
    "Roaring bitmap and signs": Format(_roaring_encode, _roaring_decode, "pyroaring"),
    "two bitmasks": Format(_masks_encode, _masks_decode),
    "gzip of float32 classes, as OpenFL's STC": Format(_openfl_encode, _openfl_decode),
    "bf16 safetensors": Format(_bf16_encode, _bf16_decode),
}


def installed() -> dict[str, Format]:
    """The formats that can run here."""
    return {name: form for name, form in FORMATS.items() if not form.package or importlib.util.find_spec(form.package)}
