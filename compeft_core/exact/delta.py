"""Two arrays of words <-> bytes: blocks of 2**20 words, each with a stream and contexts of its own. docs/exact-delta.md is normative.

Blocks are independent, so several threads can work at once, and a checkpoint of any size is coded a few blocks at a time.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import FormatError, InputError
from compeft_core.exact.words import code_words, new_learned
from compeft_core.format.arithmetic_coder import Octets
from compeft_core.parallel import shares, spread
from compeft_core.product.model import NO_ROOM, finish, is_finished, start

BLOCK = 1 << 20
"""Words of a block."""
WIDTHS = {np.dtype(np.uint16): 16, np.dtype(np.uint32): 32}
LENGTH_BYTES = 4


def encode_exact(old: NDArray[Any], new: NDArray[Any], *, workers: int = 1) -> bytes:
    """What turns `old` into `new`, without loss: any bits, NaN payloads and signs of zero among them.

    old, new: uint16 or uint32 of shape (n,), the bits of floats of 16 or 32 bits. Returns for each block of 2**20 words its length in
    bytes (4, little-endian), then its stream. Errors: InputError for other types or unequal shapes.
    """
    bits = _bits_of(old)
    if old.shape != new.shape or old.dtype != new.dtype or old.ndim != 1:
        raise InputError(
            f"cannot compare {old.dtype} of shape {old.shape} with {new.dtype} of shape {new.shape}: expected the same"
        )

    def some(first: int, last: int) -> list[bytes]:
        return [
            _encode_block(old[at : at + BLOCK], new[at : at + BLOCK], bits) for at in range(first * BLOCK, last * BLOCK, BLOCK)
        ]

    found = spread(some, shares(_blocks(old.size), workers))
    return b"".join(len(s).to_bytes(LENGTH_BYTES, "little") + s for part in found for s in part)


def decode_exact(blob: bytes, old: NDArray[Any], *, workers: int = 1) -> NDArray[Any]:
    """The array that was encoded against `old`, of its shape and dtype.

    Errors: FormatError if the bytes are not what `encode_exact` makes for an array of this size; InputError for another type of array.
    A wrong `old` of the right size gives a wrong result or a FormatError: whoever calls compares digests.
    """
    bits = _bits_of(old)
    new = np.empty_like(old)
    streams = _streams(blob, _blocks(old.size))

    def some(first: int, last: int) -> None:
        for i in range(first, last):
            _decode_block(streams[i], old[i * BLOCK : (i + 1) * BLOCK], new[i * BLOCK : (i + 1) * BLOCK], bits)

    spread(some, shares(len(streams), workers))
    return new


def check_exact(blob: bytes, words: int) -> None:
    """Check that bytes are cut into the blocks of this number of words. The words themselves cannot be checked without the old ones.

    Errors: FormatError.
    """
    _streams(blob, _blocks(words))


def _bits_of(array: NDArray[Any]) -> int:
    if array.dtype not in WIDTHS:
        raise InputError(f"exact deltas are of uint16 or uint32 words, not of {array.dtype}")
    return WIDTHS[array.dtype]


def _blocks(size: int) -> int:
    return math.ceil(size / BLOCK)


def _encode_block(old: NDArray[Any], new: NDArray[Any], bits: int) -> bytes:
    before, after = old.astype(np.uint32), new.astype(np.uint32)
    room = 64 + int(np.count_nonzero(old != new)) * (bits // 4) + old.size // 8
    while True:
        stream = np.zeros(room, np.uint8)
        used = int(finish(code_words(before, after, bits, new_learned(), start(stream, False), stream, False), stream))
        if used != NO_ROOM:
            return stream[:used].tobytes()
        room *= 2


def _decode_block(data: memoryview, old: NDArray[Any], new: NDArray[Any], bits: int) -> None:
    stream: Octets = np.frombuffer(data, np.uint8).copy()  # kernels are compiled for writable arrays
    before, after = old.astype(np.uint32), np.zeros(old.size, np.uint32)
    coder = code_words(before, after, bits, new_learned(), start(stream, True), stream, True)
    if coder[3] < 0 or not is_finished(coder, stream):
        raise FormatError("not a canonical exact delta: a block's stream does not end with its last word")
    new[:] = after


def _streams(blob: bytes, count: int) -> list[memoryview]:
    """The streams of all blocks. Errors: FormatError if there are more or fewer bytes than the lengths say."""
    view, at, found = memoryview(blob), 0, list[memoryview]()
    for i in range(count):
        length = int.from_bytes(view[at : at + LENGTH_BYTES], "little")
        at += LENGTH_BYTES + length
        if at > len(view):
            raise FormatError(f"exact delta ends within block {i} of {count}: it has {len(view)} bytes, {at} are needed")
        found.append(view[at - length : at])
    if at != len(view):
        raise FormatError(f"exact delta has {len(view)} bytes, its {count} blocks end at {at}")
    return found
