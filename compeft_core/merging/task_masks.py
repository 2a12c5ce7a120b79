"""Merge methods with a mask for each task: consensus by TALL masks, and EMR.

EMR gives one unified vector, and for each task a mask and a factor; `elect_mask_rescale` computes masks and factors. No command calls it:
it is public for applications that keep one vector for many tasks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.compress import read_only
from compeft_core.errors import NotFiniteError
from compeft_core.format.encoding import Encoded
from compeft_core.format.golomb import BLOCK
from compeft_core.layout import Vector
from compeft_core.merging.inputs import Doubles, Inputs, MergeParameters, entries, ordered
from compeft_core.merging.sums import Values, elect, signed_sum, tally, weighted_scales, with_values


@dataclass(frozen=True, slots=True, eq=False)
class Specialised:
    """One task in EMR: the positions of its mask (uint32, increasing), its factor, and its own dense part."""

    positions: NDArray[np.uint32]
    rescale: float
    dense: Vector

    def vector(self, unified: Vector) -> Vector:
        """The task's vector: the unified one where the mask is, times the factor; float32, one rounding. Errors: NotFiniteError."""
        result = np.zeros_like(unified)
        with np.errstate(over="ignore"):
            result[self.positions] = self.rescale * unified[self.positions].astype(np.float64)
        result[unified.size - self.dense.size :] = self.dense
        if not np.isfinite(result).all():
            raise NotFiniteError(f"the factor {self.rescale:g} takes a task's vector beyond float32")
        return result


def consensus(inputs: Inputs) -> Values:
    """Consensus merging (Wang et al., arXiv 2405.07813): task arithmetic where at least `agreement` of the TALL masks are set.

    With x the weighted entry of a task and X the sum of all, the mask of that task is where x is not 0 and |x| >= threshold * |X - x|.
    """
    total = signed_sum(inputs)
    needed = min(inputs.parameters.agreement, len(inputs.updates))

    def values(block: int) -> Doubles:
        sums = total(block)
        claims = np.zeros(sums.size, np.int64)
        for u in inputs.updates:
            found = entries(u.encoded, block)
            own = u.weight * found.values
            others = np.abs(sums[found.places] - own)
            claims[found.places] += np.abs(own) >= inputs.parameters.threshold * others
        kept: Doubles = np.where(claims >= needed, sums, 0.0)
        return kept

    return values


def emr(inputs: Inputs) -> Values:
    """The unified vector of EMR (Huang et al., arXiv 2405.17461): the sign with more mass, - if they are even, times the largest
    magnitude among the entries that have it.
    """
    scaled = with_values(inputs, weighted_scales)

    def values(block: int) -> Doubles:
        positive = elect(tally(inputs, scaled, block), False)
        largest = np.zeros((positive.size, 2))
        for u in inputs.updates:
            found = entries(u.encoded, block)
            at = found.places, found.negative.astype(np.intp)
            largest[at] = np.maximum(largest[at], found.magnitudes)
        unified: Doubles = np.where(positive, largest[:, 0], 0.0 - largest[:, 1])
        return unified

    return values


def elect_mask_rescale(updates: Sequence[Encoded], weights: Sequence[float], unified: Vector) -> list[Specialised | None]:
    """For each update, in the order given, its mask on `unified` (what `merge("emr", updates, weights)` gave) and its factor.

    The mask is where the update has the elected sign; the factor makes the mean magnitude of what is masked that of the whole ternary part
    of the update. None for an update of weight 0.
    """
    result: list[Specialised | None] = [None] * len(updates)
    for u in ordered(updates, weights, MergeParameters(), True).updates:
        result[u.number] = _specialised(u.encoded, unified)
    return result


def _specialised(encoded: Encoded, unified: Vector) -> Specialised:
    masks, own, shared = [np.zeros(0, np.uint32)], list[float](), list[float]()
    for block in range(encoded.blocks):
        found = entries(encoded, block)
        elected = unified[found.places + block * BLOCK].astype(np.float64)
        agrees = elected * found.values > 0
        masks.append((found.places[agrees] + block * BLOCK).astype(np.uint32))
        own.extend(found.magnitudes.tolist())
        shared.extend(np.abs(elected[agrees]).tolist())
    total = math.fsum(shared)
    return Specialised(read_only(np.concatenate(masks)), math.fsum(own) / total if total else 0.0, encoded.dense)
