"""Bounds on the values of each update of a cohort, so that no minority of it decides how far a merge goes.

A client chooses its scales and dense values itself, and a merge method may use them whatever weight the client has (TIES averages the
entries of one sign, EMR takes the largest). So before a merge every value is cut at a multiple of the cohort's median of largest values:
if fewer than half of the updates are hostile, that median is at most the largest value of an honest update.
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from compeft_core.compress import read_only
from compeft_core.format.encoding import Encoded
from compeft_core.layout import Vector

COHORT = 3
"""Fewest updates that have a majority to be compared with."""
BF16_MASK = 0xFFFF0000


def bounded(updates: Sequence[Encoded], most: float) -> list[Encoded]:
    """The updates with every scale, and every dense value, cut at `most` times the median over the updates of their largest one.

    `most` 0 means no bound; fewer than COHORT updates are left as they are. The bytes that name an update (`blob`) stay, so its place in
    the order of a merge does. Bounds are float32, rounded towards zero to a bfloat16 for the dense part.
    """
    if not most or len(updates) < COHORT:
        return list(updates)
    scale = np.float32(most * median(_largest(u.scales) for u in updates))
    dense = _bf16_below(np.float32(most * median(_largest(u.dense) for u in updates)))
    return [_cut(u, scale, dense) for u in updates]


def _largest(values: Vector) -> float:
    return float(np.abs(values).max(initial=np.float32(0)))


def _bf16_below(value: np.float32) -> np.float32:
    """The largest bfloat16 that is at most `value` (0 or more, finite): the upper half of its bits."""
    return np.float32((np.array([value], np.float32).view(np.uint32) & np.uint32(BF16_MASK)).view(np.float32)[0])


def _cut(update: Encoded, scale: np.float32, dense: np.float32) -> Encoded:
    if _largest(update.scales) > scale:
        update = replace(update, scales=read_only(np.minimum(update.scales, scale)))
    if _largest(update.dense) > dense:
        halves = np.clip(update.dense, -dense, dense).astype("<f4") + np.float32(0)  # -0.0 becomes 0.0
        start = int(update.block_starts[-1])
        update = replace(update, rice=update.rice[:start] + (halves.view(np.uint32) >> 16).astype("<u2").tobytes())
    return update
