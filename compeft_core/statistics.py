"""Tensors that hold statistics: which tensors travel dense unless told otherwise, and what keeps a variance from becoming negative.

A running variance of 0.04 with one common ternary step of 0.3 taken off it is negative, and its square root is NaN. So statistics,
short vectors and scalars are coded dense (bfloat16), and before a step is coded, `kept_in_range` limits it: rounding never carries a
dense parameter over zero, and a variance never loses more than 127/128 of itself in one step.

Example: a running variance of 1.003 whose step is -1.002. In bfloat16 the step rounds to -1.0 or to -1.0078, and the second would leave
-0.005. The limit is -1.003 * (1 - 2**-7) = -0.9952, which rounds to -0.9961 at most; what is left of the step stays in the residual.
"""

import math
import re
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from compeft_core.layout import Layout, Vector

LONGEST_DENSE_VECTOR = 2**14
"""Entries of the longest vector that travels dense for its shape alone; a longer one may be a whole model in one array."""
STATISTIC = re.compile(
    r"(^|[._/])((running|moving|ema|batch)_(mean|var|variance|std|avg|average)|mean|var|variance|std|num_batches_tracked)(:\d+)?$"
)
"""Names of PyTorch (`bn1.running_var`), Keras (`bn/moving_variance:0`) and Flax (`batch_stats/BatchNorm_0/var`)."""
VARIANCE = re.compile(r"(^|[._/])((running|moving|ema|batch)_)?(var|variance|std)(:\d+)?$")
LEAST_LEFT = 2.0**-7
"""Part of a value that one step leaves at least. bfloat16 rounds a step by at most 2**-9 of itself, so more than 2**-8 is really left."""


def is_variance(name: str) -> bool:
    """Whether a tensor's name says that it holds variances or standard deviations, which are 0 or more."""
    return VARIANCE.search(name) is not None


def dense_names(shapes: Mapping[str, tuple[int, ...]], buffers: Collection[str] = ()) -> frozenset[str]:
    """Names of the tensors that travel dense by default: `buffers`, statistics by name, scalars, and vectors of up to 16,384 entries.

    shapes: of each tensor by its name. Names in `buffers` that are not in `shapes` are left out.
    """
    return frozenset(
        name for name, shape in shapes.items() if name in buffers or STATISTIC.search(name) is not None or _is_short(shape)
    )


def _is_short(shape: tuple[int, ...]) -> bool:
    return sum(size > 1 for size in shape) < 2 and math.prod(shape) <= LONGEST_DENSE_VECTOR


def variance_places(layout: Layout) -> NDArray[np.bool_]:
    """Bool of shape (layout.size,): which parameters are variances."""
    return np.repeat(np.array([is_variance(t.name) for t in layout.tensors], np.bool_), [t.size for t in layout.tensors])


def limit_variances(layout: Layout, state: Vector, step: Vector) -> None:
    """Raise in `step`, in place, what would take a variance below zero, so that no residual goes on pulling at it.

    state, step: float32 of shape (layout.size,).
    """
    if any(is_variance(t.name) for t in layout.tensors):
        places = variance_places(layout) & (state >= 0)
        step[places] = np.maximum(step[places], -state[places])


def kept_in_range(layout: Layout, state: Vector, step: Vector) -> Vector:
    """The step to code, so that `state` plus the coded step keeps its sign where `state + step` does, and variances stay above zero.

    state, step: float32 of shape (layout.size,). Only the dense part can differ from `step`; `step` itself is returned where nothing
    does. A variance of 0 gets no negative step; one that is negative already is left alone.
    """
    first = layout.ternary_size
    held, wanted = state[first:], step[first:]
    with np.errstate(over="ignore"):  # an overflow keeps its sign, and that is all that is asked of these
        towards_zero, after = held * wanted < 0, held * (held + wanted) > 0
    limit = -held * np.float32(1 - LEAST_LEFT)
    beyond = towards_zero & (np.abs(wanted) > np.abs(limit))
    variance = variance_places(layout)[first:]
    keeps_sign = after & ~variance
    limited = (beyond & (keeps_sign | (variance & (held > 0)))) | (variance & (held == 0) & (wanted < 0))
    if not limited.any():
        return step
    following = step.copy()
    following[first:] = np.where(limited, limit, wanted)
    return following


def negative_variance(layout: Layout, before: Vector, after: Vector) -> str | None:
    """Name of the first variance tensor with an entry that is negative in `after` and was not in `before`, or None."""
    if not any(is_variance(t.name) for t in layout.tensors):
        return None
    newly = (after < 0) & (before >= 0) & variance_places(layout)
    if not newly.any():
        return None
    ends = np.cumsum([t.size for t in layout.tensors])
    return layout.tensors[int(np.searchsorted(ends, int(np.argmax(newly)), side="right"))].name
