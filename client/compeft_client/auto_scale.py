"""`--scale auto`: which scale suits a one-shot expert at a density, when nobody can try it on the task.

The norm-preserving scale, times a factor that grows as the density falls. Source: trials on four sentiment experts over
all-MiniLM-L6-v2 (LoRA, r = 16), mean gain retained on unseen rows: with these factors 0.89 at 2 %, 1.03 at 5 %, 1.07 at 10 %,
about 1 at 20 %; with factor 1 0.39, 0.63, 0.82 and 0.95. Rounds with a residual are another matter: there the mean magnitude is right.
"""

import math
from itertools import pairwise

from compeft_core import Compression

FACTORS = ((0.02, 2.0), (0.05, 1.75), (0.10, 1.5), (0.20, 1.2), (0.50, 1.0))
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
