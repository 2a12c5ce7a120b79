"""How much one client may sway a merge: its weight and its scale are held against those of its cohort. Arithmetic only.

A client says itself what its weight is (its number of examples, or another number of 0 or more), how large its scale is and what its
dense tensors hold, and all of them multiply its update. So a client's weight is capped at MAX_WEIGHT times the cohort's median, and its
values are cut at MAX_SIZE times theirs (`compeft_core.merging.size_bounds`); where weights vote, a weight is lowered besides by as much as
the update's scale, or the norm of its dense part, exceeds MAX_SIZE times the cohort's median. The cohort are the
clients with a weight above 0; with fewer than three of them nothing is bounded.
"""

import math
from collections.abc import Sequence
from statistics import median

MAX_WEIGHT = 4.0
MAX_SIZE = 3.0
COHORT = 3


def capped_weights(claimed: Sequence[float]) -> list[float]:
    """Weights of one round's updates for a sum of values that are cut at MAX_SIZE times the cohort's median: what they claim, at most
    MAX_WEIGHT times the cohort's median; one each, in the same order.
    """
    alike = [1.0] * len(claimed)
    return bounded_weights(claimed, alike, alike)


def bounded_weights(claimed: Sequence[float], scales: Sequence[float], dense_norms: Sequence[float]) -> list[float]:
    """Weights of one round's updates that vote, from the weights that they claim, their largest scales and the norms of their dense
    parts; one each, in the same order.
    """
    counted = [i for i, weight in enumerate(claimed) if weight > 0]
    bounded = [float(weight) for weight in claimed]
    if len(counted) < COHORT:
        return bounded
    most = MAX_WEIGHT * median(bounded[i] for i in counted)
    by_scale, by_norm = (_damping([sizes[i] for i in counted]) for sizes in (scales, dense_norms))
    for i, *factors in zip(counted, by_scale, by_norm, strict=True):
        bounded[i] = min(bounded[i], most) * min(factors)
    return bounded


def late_weight(weight: float, staleness: int) -> float:
    """The weight of an update whose base is `staleness` versions older: weight / sqrt(1 + staleness) (FedBuff, arXiv 2106.06639)."""
    return weight / math.sqrt(1 + staleness)


def _damping(sizes: Sequence[float]) -> list[float]:
    largest = MAX_SIZE * median(sizes)
    return [largest / size if size > largest > 0 else 1.0 for size in sizes]
