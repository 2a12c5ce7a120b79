"""Merge encoded updates block by block, without making any of them dense: memory is one block, the encodings and the result.

The same updates, weights, coefficient and parameters give the same bytes on every machine, in whatever order they are passed and by
any number of workers: what is added is added in the order of the updates' SHA-256, in float64, and rounded to float32 once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from compeft_core.errors import InputError, NotFiniteError
from compeft_core.format.encoding import Encoded
from compeft_core.format.golomb import BLOCK
from compeft_core.layout import Vector
from compeft_core.merging import robust, sums
from compeft_core.merging import task_masks as tasks
from compeft_core.merging.block_kernels import round_block
from compeft_core.merging.inputs import USUAL, Doubles, Inputs, MergeParameters, dense_sum, ordered
from compeft_core.parallel import shares, spread


def _all(inputs: Inputs) -> Inputs:
    return inputs


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method.

    values: the ternary part, block by block.   dense: the dense part.   takes: the names of its parameters.
    normalised: whether weights are first divided by their sum.   choose: which inputs it merges; all but for Krum.
    """

    values: Callable[[Inputs], sums.Values]
    dense: Callable[[Inputs], Doubles] = dense_sum
    takes: frozenset[str] = frozenset()
    normalised: bool = True
    choose: robust.Choose = _all


METHODS: dict[str, Method] = {
    "average": Method(sums.signed_sum),
    "task_arithmetic": Method(sums.signed_sum, normalised=False),
    "ties": Method(sums.ties),
    "dare": Method(sums.dare, takes=frozenset({"drop", "seed"})),
    "dare_ties": Method(sums.dare_ties, takes=frozenset({"drop", "seed"})),
    "consensus": Method(tasks.consensus, takes=frozenset({"threshold", "agreement"}), normalised=False),
    "emr": Method(tasks.emr),
    "sign_majority": Method(robust.sign_majority, robust.dense_median, frozenset({"quorum"})),
    "trimmed_mean": Method(robust.trimmed_mean, robust.dense_trimmed_mean, frozenset({"trim"})),
    "median": Method(robust.median, robust.dense_median),
    "krum": Method(sums.signed_sum, takes=frozenset({"byzantine"}), choose=robust.krum),
    "multi_krum": Method(sums.signed_sum, takes=frozenset({"byzantine", "keep"}), choose=robust.multi_krum),
}


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """A merge: the flat float32 vector, and of each update, in the order given, whether the method merged it or left it out."""

    vector: Vector
    chosen: tuple[bool, ...]


def merge(
    method: str,
    updates: Sequence[Encoded],
    weights: Sequence[float],
    *,
    coefficient: float = 1.0,
    parameters: MergeParameters = USUAL,
    workers: int = 1,
) -> Vector:
    """Merge updates of one layout into a flat float32 vector by a method of METHODS; docs/format.md, "Merging", defines them.

    `coefficient` multiplies the result of every method. An update of weight 0 is left out.

    Errors: InputError on an unknown method, a parameter that it does not take, no updates, or weights that are not one finite
    number an update, one at least not 0, and none negative but for a method that does not normalise them; LayoutMismatchError if
    sizes differ; NotFiniteError if a result is beyond float32.
    """
    return choose_and_merge(method, updates, weights, coefficient=coefficient, parameters=parameters, workers=workers).vector


def choose_and_merge(
    method: str,
    updates: Sequence[Encoded],
    weights: Sequence[float],
    *,
    coefficient: float = 1.0,
    parameters: MergeParameters = USUAL,
    workers: int = 1,
) -> Merged:
    """As `merge`, and which updates the result is made of: all whose weight is not 0, or those that Krum has chosen."""
    check_parameters(method, parameters)
    chosen = METHODS[method].choose(ordered(updates, weights, parameters, METHODS[method].normalised))
    values, first = METHODS[method].values(chosen), chosen.first
    vector = np.empty(first.size, np.float32)

    def fill(start: int, stop: int) -> None:
        for block in range(start, stop):
            _round_into(vector[block * BLOCK : min(first.ternary_size, (block + 1) * BLOCK)], coefficient, values(block))

    spread(fill, shares(first.blocks, workers))
    _round_into(vector[first.ternary_size :], coefficient, METHODS[method].dense(chosen))
    numbers = {u.number for u in chosen.updates}
    return Merged(vector, tuple(i in numbers for i in range(len(updates))))


def check_parameters(method: str, parameters: MergeParameters) -> None:
    """Check a method's name and parameters. Errors: InputError on an unknown method, or a parameter set that the method does not take."""
    if method not in METHODS:
        raise InputError(f"invalid merge method {method!r}: expected one of {', '.join(METHODS)}")
    taken = METHODS[method].takes
    if useless := parameters.beyond(taken):
        raise InputError(f"merge method {method} takes {', '.join(sorted(taken)) or 'no parameters'}, not {useless[0]}")


def _round_into(part: Vector, coefficient: float, values: Doubles) -> None:
    """Write float32(coefficient * values) to `part`. Errors: NotFiniteError."""
    if not round_block(coefficient, values, part):
        raise NotFiniteError(f"the merge is not finite in float32: coefficient {coefficient:g} or the weights are too large")
