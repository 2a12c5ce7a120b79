"""Inputs of every merge method: updates of one layout in a fixed order, their weights, the parameters, and the entries of single blocks.

The order is that of the updates' SHA-256, equal ones by weight, so that a merge does not depend on the order of arrival. Nothing here
is dense but one block, or one dense part, of one update.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import InputError, LayoutMismatchError
from compeft_core.format.block_streams import bare, scratch
from compeft_core.format.encoding import Encoded
from compeft_core.format.golomb import BLOCK
from compeft_core.layout import Vector
from compeft_core.merging import block_kernels as kernels

Doubles = NDArray[np.float64]
MAX_SEED = 2**64 - 1
MAX_UPDATES = 2**20


@dataclass(frozen=True, slots=True)
class MergeParameters:
    """Parameters of merge methods beside the weights. METHODS says which ones a method takes; the others must keep their defaults.

    trim: trimmed_mean leaves out floor(trim * n) of n values at either end; at least 0, below 0.5.
    byzantine: how many updates krum and multi_krum take for hostile; they need 2 * byzantine + 3 updates in all, or any number if it is 0.
    keep: how many updates multi_krum averages; 0 stands for n - byzantine - 2, but 1 at least.
    quorum: share of the weight, at least 0 and below 1, by which a sign must win under sign_majority.
    drop: fraction of the entries that dare drops; at least 0, below 1.   seed: which ones; an unsigned 64-bit number.
    threshold: consensus takes an entry for a task's own if its magnitude is this many times what the others make of it, or more; >= 0.
    agreement: how many tasks must claim a position that consensus keeps.
    """

    trim: float = 0.2
    byzantine: int = 1
    keep: int = 0
    quorum: float = 0.2
    drop: float = 0.5
    seed: int = 0
    threshold: float = 0.4
    agreement: int = 2

    def __post_init__(self) -> None:
        for name, (least, below) in FRACTIONS.items():
            if not least <= getattr(self, name) < below:
                raise InputError(f"{name} is {getattr(self, name)}, it must be at least {least:g} and below {below:g}")
        for name, (fewest, most) in COUNTS.items():
            if not fewest <= getattr(self, name) <= most:
                raise InputError(f"{name} is {getattr(self, name)}, it must be a whole number from {fewest} to {most}")

    def within(self, count: int, taken: frozenset[str]) -> "MergeParameters":
        """The same for a method that takes `taken`, with no more hostile updates, and none more to keep, than can be among `count`."""
        most = {"byzantine": min(self.byzantine, max(0, (count - 3) // 2)), "keep": min(self.keep, count)}
        return replace(self, **{name: value for name, value in most.items() if name in taken})

    def beyond(self, taken: frozenset[str]) -> list[str]:
        """Names of the parameters that were set though a method that takes only `taken` has no use for them."""
        return [f.name for f in fields(self) if f.name not in taken and getattr(self, f.name) != f.default]


FRACTIONS = {"trim": (0.0, 0.5), "quorum": (0.0, 1.0), "drop": (0.0, 1.0), "threshold": (0.0, math.inf)}
COUNTS = {"byzantine": (0, MAX_UPDATES), "keep": (0, MAX_UPDATES), "seed": (0, MAX_SEED), "agreement": (1, MAX_UPDATES)}
USUAL = MergeParameters()


@dataclass(frozen=True, slots=True)
class Weighted:
    """An update whose weight is not 0: its place among the arguments, its SHA-256, and its weight as the method uses it."""

    number: int
    digest: bytes
    encoded: Encoded
    weight: float


@dataclass(frozen=True, slots=True)
class Inputs:
    """The updates whose weight is not 0, in their fixed order: at least one, all of one size."""

    updates: tuple[Weighted, ...]
    parameters: MergeParameters

    @property
    def first(self) -> Encoded:
        """The first update, for the sizes that all share."""
        return self.updates[0].encoded

    def span(self, block: int) -> int:
        """Positions in a block."""
        return min(BLOCK, self.first.ternary_size - block * BLOCK)


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """The entries of one update in one block: places in it (int64, increasing), signs, and magnitudes (float64, not weighted)."""

    places: NDArray[np.int64]
    negative: NDArray[np.bool_]
    magnitudes: Doubles

    @property
    def values(self) -> Doubles:
        """Magnitudes with their signs."""
        return np.where(self.negative, -self.magnitudes, self.magnitudes)


def ordered(updates: Sequence[Encoded], weights: Sequence[float], parameters: MergeParameters, normalised: bool) -> Inputs:
    """Those whose weight is not 0 in their order; `normalised`: with weights divided by their sum, which is exact and rounded once.

    Errors: InputError on no updates, or weights that are not one an update or that `check_weights` refuses; LayoutMismatchError if
    sizes differ.
    """
    if not updates or len(updates) != len(weights):
        raise InputError(f"{len(updates)} updates and {len(weights)} weights, there must be one each and at least one")
    sizes = {(e.ternary_size, e.dense_size) for e in updates}
    if len(sizes) > 1:
        raise LayoutMismatchError(f"updates have different sizes (ternary, dense): {sorted(sizes)[:2]}")
    check_weights(weights, normalised)
    pairs = enumerate(zip(updates, weights, strict=True))
    found = [Weighted(i, hashlib.sha256(e.blob).digest(), e, float(w)) for i, (e, w) in pairs if w]
    found.sort(key=lambda u: (u.digest, u.weight))
    return normal(Inputs(tuple(found), parameters)) if normalised else Inputs(tuple(found), parameters)


def check_weights(weights: Sequence[float], normalised: bool) -> None:
    """Errors: InputError if one is not finite or all are 0; if they are to be divided by their sum, also if one is negative."""
    if not all(math.isfinite(w) for w in weights) or not any(weights):
        raise InputError("weights must be finite, one at least not 0")
    if normalised and min(weights) < 0:
        raise InputError(f"a weight is {min(weights):g}: only what is not divided by the sum of the weights takes negative ones")


def normal(inputs: Inputs) -> Inputs:
    """The same with weights divided by their sum. Errors: InputError if that is beyond float64."""
    try:
        total = math.fsum(u.weight for u in inputs.updates)
    except OverflowError as error:
        raise InputError("the sum of the weights is beyond float64") from error
    return Inputs(tuple(Weighted(u.number, u.digest, u.encoded, u.weight / total) for u in inputs.updates), inputs.parameters)


def entries(encoded: Encoded, block: int) -> Entries:
    """The entries of one block."""
    room, negative = scratch(), np.empty(BLOCK, np.bool_)
    kernels.list_block(bare(encoded.streams), bare(room), negative, block)
    count = int(encoded.block_counts[block])
    at = room.places[:count].astype(np.int64)
    groups = np.searchsorted(encoded.group_ends, at + block * BLOCK, side="right")
    return Entries(at, negative[:count], encoded.scales.astype(np.float64)[groups])


def dense_sum(inputs: Inputs) -> Doubles:
    """Sum of weight times the dense part, in order; float64."""
    return sum((u.weight * u.encoded.dense.astype(np.float64) for u in inputs.updates), np.zeros(inputs.first.dense_size))


def dense_rows(inputs: Inputs, columns: slice) -> Doubles:
    """Columns of the dense parts, one row an update; float64, not weighted."""
    return np.stack([u.encoded.dense[columns].astype(np.float64) for u in inputs.updates])


def segment_ends(inputs: Inputs) -> NDArray[np.int64]:
    """Ends of the longest runs of positions within which no update changes its scale: int64, increasing, the last is the size."""
    ends: NDArray[np.int64] = np.unique(np.concatenate([u.encoded.group_ends for u in inputs.updates]))
    return ends


def scales_at(encoded: Encoded, ends: NDArray[np.int64]) -> Vector:
    """The scale that an update has in the segments with these ends."""
    return encoded.scales[np.searchsorted(encoded.group_ends, ends, side="left")]
