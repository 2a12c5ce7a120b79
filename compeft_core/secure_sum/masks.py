"""Masks: uniform words from a 32-byte key, and words of fewer than 32 bits packed one after the other.

Words are added modulo 2^32. As 2^bits divides 2^32, the lower `bits` of a sum are the sum modulo 2^bits.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from compeft_core.errors import FormatError, InputError

Words = NDArray[np.uint32]
MASK_NONCE = bytes(4) + b"secure-sum\0\0"
PIECE = 2**16
"""Words that are packed at a time."""


def mask_of(key: bytes, count: int) -> Words:
    """`count` words, the ChaCha20 key stream of a 32-byte key as little-endian uint32."""
    stream = Cipher(ChaCha20(key, MASK_NONCE), None).encryptor()
    return np.frombuffer(stream.update(bytes(4 * count)), "<u4")


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` words of this many bits take."""
    return (count * bits + 7) // 8


def pack(words: Words, bits: int) -> bytes:
    """The lower `bits` (1 to 32) of each word, the highest bit first, without gaps; unused bits of the last byte are 0."""
    if not 1 <= bits <= 32:
        raise InputError(f"invalid bits {bits}: expected 1 to 32")
    parts = []
    for start in range(0, words.size, PIECE):
        octets = (words[start : start + PIECE] << np.uint32(32 - bits)).astype(">u4").view(np.uint8).reshape(-1, 4)
        parts.append(np.packbits(np.unpackbits(octets, axis=1)[:, :bits]).tobytes())
    return b"".join(parts)


def unpack(data: bytes, count: int, bits: int) -> Words:
    """What `pack` packed: uint32 of shape (count,). Errors: FormatError for another number of bytes, or unused bits that are not 0."""
    if len(data) != packed_bytes(count, bits):
        raise FormatError(
            f"masked vector of {len(data)} bytes, expected {packed_bytes(count, bits)} for {count} words of {bits} bits"
        )
    words = np.empty(count, np.uint32)
    for start in range(0, count, PIECE):
        size = min(PIECE, count - start)
        first = start * bits // 8
        octets = np.frombuffer(data, np.uint8, packed_bytes(size, bits), first)
        rows = np.zeros((size, 32), np.uint8)
        rows[:, 32 - bits :] = np.unpackbits(octets, count=size * bits).reshape(size, bits)
        words[start : start + size] = np.packbits(rows, axis=1).view(">u4").reshape(-1)
    if count and count * bits % 8 and data[-1] & ((1 << (8 - count * bits % 8)) - 1):
        raise FormatError("masked vector has unused bits that are not 0")
    return words
