"""Bytes and density: what an update takes before it is made, and the density that fits into so many bytes.

A ternary vector of n entries, a fraction k of them kept, has an entropy of n (H(k) + k) bits if positions and signs are independent, with
H(k) = -k log2 k - (1 - k) log2 (1 - k); a dense entry takes 16 bits. Real positions are not independent, which only helps.
"""

import math

from compeft_core.errors import InputError
from compeft_core.layout import Layout

SLACK = 1.02
"""Most that the codec `rice` needs over the entropy on average, from a density of 1 in 1,000 on."""
HEADER_BYTES, BLOCK_BYTES, BLOCK = 64, 8, 2**16
"""The header with one scale; the index of a block; parameters in a block."""
HIGHEST = 2 / 3
"""Where H(k) + k is largest: a third of zeros, plus and minus each."""
STEPS = 60


def payload_bytes(layout: Layout, density: float) -> int:
    """Bytes that an update of this layout takes at most, 0 < density <= 1, with one scale and positions no worse than random: the
    entropy with SLACK, header and index, and a byte for the square root of the number kept, because gaps vary.
    """
    k = min(max(density, 1 / max(1, layout.ternary_size)), 1.0)
    other = 1 - k
    entropy = -(k * math.log2(k) + (other * math.log2(other) if other > 0 else 0.0)) + k
    fixed = HEADER_BYTES + BLOCK_BYTES * -(-layout.ternary_size // BLOCK) + math.sqrt(k * layout.ternary_size)
    return math.ceil(fixed + SLACK * layout.ternary_size * entropy / 8 + 2 * layout.dense_size)


def density_for(layout: Layout, budget_bytes: int) -> float:
    """The highest density, at most 2/3, at which an update fits into `budget_bytes`.

    Errors: InputError if not even one entry fits, or there is nothing ternary to choose a density for.
    """
    if layout.ternary_size == 0:
        raise InputError("nothing here is ternary: no density changes what it costs")
    low, high = 1 / layout.ternary_size, HIGHEST
    least = payload_bytes(layout, low)
    if least > budget_bytes:
        raise InputError(
            f"a budget of {budget_bytes:,} bytes is below the least possible, {least:,}: {2 * layout.dense_size:,} are dense"
        )
    if payload_bytes(layout, high) <= budget_bytes:
        return high
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if payload_bytes(layout, middle) <= budget_bytes else (low, middle)
    return low
