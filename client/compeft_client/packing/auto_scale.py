"""`--scale auto`: which scale suits a one-shot expert at a density, when nobody can try it on the task.

The norm-preserving scale, times a factor that grows as the density falls: min(2, 1 / cosine between the task vector and what is
kept of it). Measured on 16 LoRA adapters of two kinds of task; docs/decisions/0006-the-default-scale.md has the evidence, and the
warning: an over-trained expert of a hard task loses half its gain at 5 %, so take 10 % there.
"""

import math
from itertools import pairwise

from compeft_core import Compression

FACTORS = ((0.03, 2.0), (0.05, 1.8), (0.10, 1.47), (0.20, 1.25), (0.50, 1.12))
"""(density, factor). Between two densities the factor is linear in the logarithm of the density; outside, that of the nearest."""


def auto_factor(density: float) -> float:
    """The factor for a density, 0 < density <= 1."""
    for (low, high_factor), (high, low_factor) in pairwise(FACTORS):
        if low <= density <= high:
            part = math.log(density / low) / math.log(high / low)
            return high_factor + part * (low_factor - high_factor)
    return FACTORS[0][1] if density < FACTORS[0][0] else FACTORS[-1][1]


def auto_compression(density: float, factor: float | None = None) -> Compression:
    """The data-free settings for a one-shot expert; `factor` in place of the table's. Errors: InputError."""
    chosen = Compression(density=density)
    return Compression(density=chosen.density, scale="norm", factor=auto_factor(density) if factor is None else factor)
