"""What peers put on a link: a vector in, what the other side reads and how many bytes that took.

Bytes are those of the values alone, without names, framing or signatures: every doubt is decided in the peer's favour.
"""

from collections.abc import Callable

import numpy as np

from compeft_core import Vector

Sent = tuple[Vector, int]
Format = Callable[[Vector], Sent]

NF4 = np.array(
    [
        *(-1, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0),
        *(0.0795803, 0.1609302, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1),
    ],
    np.float32,
)
"""The 16 levels of NormalFloat-4 (QLoRA, Dettmers et al. 2023, appendix E)."""


def fp32(vector: Vector) -> Sent:
    """As it is."""
    return vector, 4 * vector.size


def bf16(vector: Vector) -> Sent:
    """Rounded to bfloat16, nearest, ties to even."""
    bits = vector.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32), 2 * vector.size


def blockwise8(vector: Vector) -> Sent:
    """8 bits a value, one fp32 absolute maximum a block of 256."""
    return _blockwise(vector, 256, np.arange(-127, 128, dtype=np.float32) / 127, 8)


def nf4(vector: Vector) -> Sent:
    """4 bits a value, one fp32 absolute maximum a block of 64."""
    return _blockwise(vector, 64, NF4, 4)


def top_k(density: float) -> Format:
    """The largest magnitudes as fp32 with their positions: a bitmap or, if that is less, 12.5 % over the entropy bound."""

    def send(vector: Vector) -> Sent:
        kept = max(1, round(density * vector.size))
        chosen = np.argpartition(np.abs(vector), -kept)[-kept:]
        sparse = np.zeros_like(vector)
        sparse[chosen] = vector[chosen]
        bound = -vector.size * (density * np.log2(density) + (1 - density) * np.log2(1 - density)) / 8
        return sparse, int(4 * kept + min(vector.size / 8, 1.125 * bound))

    return send


def _blockwise(vector: Vector, block: int, levels: Vector, bits: int) -> Sent:
    padded = np.zeros(-(-vector.size // block) * block, np.float32)
    padded[: vector.size] = vector
    blocks = padded.reshape(-1, block)
    largest = np.abs(blocks).max(1, keepdims=True)
    scaled = np.divide(blocks, largest, out=np.zeros_like(blocks), where=largest > 0)
    nearest = np.clip(np.searchsorted((levels[1:] + levels[:-1]) / 2, scaled), 0, len(levels) - 1)
    read = (levels[nearest] * largest).reshape(-1)[: vector.size].astype(np.float32)
    return read, vector.size * bits // 8 + 4 * len(blocks)
