"""How much one client may sway a merge: its weight and its scale are held against those of its cohort. Arithmetic only.

A client says itself how many examples it has, how large its scale is and what its dense tensors hold, and all of them multiply its
update. So a client's weight is capped at MAX_WEIGHT times the cohort's median, and lowered again by as much as its scale, or the norm
of its dense part, exceeds MAX_SIZE times the cohort's median. With fewer than three clients there is no cohort to compare with.
"""

import math
from collections.abc import Sequence
from statistics import median

MAX_WEIGHT = 4.0
MAX_SIZE = 3.0
COHORT = 3


def bounded_weights(examples: Sequence[int], scales: Sequence[float], dense_norms: Sequence[float]) -> list[float]:
    """Weights of one round's updates, from their numbers of examples, largest scales and norms of their dense parts; one each, in
    the same order.
    """
    weights = [float(n) for n in examples]
    if len(weights) < COHORT:
        return weights
    most = MAX_WEIGHT * median(weights)
    damped = zip(weights, _damping(scales), _damping(dense_norms), strict=True)
    return [min(w, most) * min(by_scale, by_norm) for w, by_scale, by_norm in damped]


def late_weight(weight: float, staleness: int) -> float:
    """The weight of an update whose base is `staleness` versions older: weight / sqrt(1 + staleness) (FedBuff, arXiv 2106.06639)."""
    return weight / math.sqrt(1 + staleness)


def _damping(sizes: Sequence[float]) -> list[float]:
    largest = MAX_SIZE * median(sizes)
    return [largest / size if size > largest > 0 else 1.0 for size in sizes]
