"""Merge encoded updates block by block, without making any of them dense: memory is one block, the encodings and the result.

The same updates, weights and coefficient give the same bytes on every machine, in whatever order they are passed: they are added
in the order of their SHA-256, in float64, and rounded to float32 once.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.codec import Encoded
from compeft_core.errors import InputError, LayoutMismatchError, NotFiniteError
from compeft_core.golomb import BLOCK, tally_block
from compeft_core.layout import Vector

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tally:
    """What the updates say about each place of a block, apart for + (row 0) and - (row 1); float64, shape (2, span).

    sums: of weight times magnitude.   masses: of the weights that gave an entry.
    """

    sums: Doubles
    masses: Doubles


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method: whether its weights are first divided by their sum, and a block's values from its tally.

    `settle` also gets the majority sign of all blocks, which is computed only for a method that says it votes.
    """

    normalised: bool
    votes: bool
    settle: Callable[[Tally, bool], Doubles]


def _signed_sum(tally: Tally, _majority_positive: bool) -> Doubles:
    difference: Doubles = tally.sums[0] - tally.sums[1]
    return difference


def _disjoint_mean(tally: Tally, majority_positive: bool) -> Doubles:
    """TIES (Yadav et al., arXiv 2306.01708): the mean of the entries that have the sign with more mass."""
    positive = _elect(tally, majority_positive)
    sums = np.where(positive, tally.sums[0], -tally.sums[1])
    masses = np.where(positive, tally.masses[0], tally.masses[1])
    means: Doubles = np.divide(sums, masses, out=np.zeros_like(sums), where=masses > 0)
    return means


METHODS: dict[str, Method] = {
    "average": Method(normalised=True, votes=False, settle=_signed_sum),
    "task_arithmetic": Method(normalised=False, votes=False, settle=_signed_sum),
    "ties": Method(normalised=True, votes=True, settle=_disjoint_mean),
}


def merge(method: str, updates: Sequence[Encoded], weights: Sequence[float], *, coefficient: float = 1.0) -> Vector:
    """Merge updates of one layout into a flat float32 vector; `coefficient` multiplies the result of every method.

    average: sum of w * update, the weights divided by their sum.   task_arithmetic: the same sum, the weights as they are.
    ties: at each position the sign with more weighted mass is elected, and the entries of that sign are averaged by weight.
    Where the masses are equal, the sign that most positions elected decides, negative if that is even too, as in the authors'
    code. The dense part is the weighted sum, for ties too. An update of weight 0 has no say.

    Errors: InputError on an unknown method, no updates, or weights that are not one finite number >= 0 an update, one at least
    above 0; LayoutMismatchError if sizes differ; NotFiniteError if a result is beyond float32.
    """
    if method not in METHODS:
        raise InputError(f"merge method is {method!r}, known are {', '.join(METHODS)}")
    ordered = _ordered(updates, weights, METHODS[method].normalised)
    job = _Job(METHODS[method], ordered, coefficient)
    first = ordered[0][0]
    vector = np.empty(first.size, np.float32)
    majority_positive = job.method.votes and _majority(job) > 0
    for block in range(first.blocks):
        span = vector[block * BLOCK : min(first.ternary_size, (block + 1) * BLOCK)]
        span[:] = _rounded(job, job.method.settle(_tally(job, block), majority_positive))
    dense = sum((w * e.dense.astype(np.float64) for e, w in ordered), np.zeros(first.dense_size))
    vector[first.ternary_size :] = _rounded(job, dense)
    return vector


@dataclass(frozen=True, slots=True)
class _Job:
    method: Method
    ordered: list[tuple[Encoded, float]]
    coefficient: float


def _ordered(updates: Sequence[Encoded], weights: Sequence[float], normalised: bool) -> list[tuple[Encoded, float]]:
    """Updates that have a say, with their weights, by digest; equal ones by weight."""
    if not updates or len(updates) != len(weights):
        raise InputError(f"{len(updates)} updates and {len(weights)} weights, there must be one each and at least one")
    sizes = {(e.ternary_size, e.dense_size) for e in updates}
    if len(sizes) > 1:
        raise LayoutMismatchError(f"updates have different sizes (ternary, dense): {sorted(sizes)[:2]}")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise InputError("weights must be finite, none negative, one at least above 0")
    keyed = [(hashlib.sha256(e.blob).digest(), float(w), e) for e, w in zip(updates, weights, strict=True) if w > 0]
    keyed.sort(key=lambda item: item[:2])
    total = _sum([w for _, w, _ in keyed]) if normalised else 1.0
    return [(e, w / total) for _, w, e in keyed]


def _sum(weights: list[float]) -> float:
    try:
        return math.fsum(weights)
    except OverflowError as error:
        raise InputError("the sum of the weights is beyond float64") from error


def _tally(job: _Job, block: int) -> Tally:
    span = min(BLOCK, job.ordered[0][0].ternary_size - block * BLOCK)
    tally = Tally(np.zeros((2, span)), np.zeros((2, span)))
    for e, weight in job.ordered:
        values = weight * e.scales.astype(np.float64)
        tally_block(
            e.octets,
            e.block_starts,
            e.block_counts,
            e.ternary_size,
            e.group_ends,
            values,
            weight,
            tally.sums,
            tally.masses,
            block,
        )
    return tally


def _elect(tally: Tally, majority_positive: bool) -> NDArray[np.bool_]:
    """Whether + is elected at each place."""
    plus, minus = tally.sums
    elected: NDArray[np.bool_] = (plus > minus) | ((plus == minus) & majority_positive)
    return elected


def _majority(job: _Job) -> int:
    """Positions that elect + less those that elect -, over all blocks."""
    votes = 0
    for block in range(job.ordered[0][0].blocks):
        plus, minus = _tally(job, block).sums
        votes += int((plus > minus).sum()) - int((plus < minus).sum())
    return votes


def _rounded(job: _Job, values: Doubles) -> Vector:
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = (job.coefficient * values).astype(np.float32)
    if not np.isfinite(rounded).all():
        raise NotFiniteError(f"the merge is not finite in float32: coefficient {job.coefficient:g} or the weights are too large")
    return rounded
