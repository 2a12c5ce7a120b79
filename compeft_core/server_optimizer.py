"""Server optimizers: a merged task vector -> the step that is published, by a learning rate, momentum, or an adaptive rule (FedOpt).

Algorithm 2 of Reddi et al. (arXiv 2003.00295), with the merged task vector as the pseudo-gradient, and FedAvgM (Hsu et al., arXiv
1909.06335). Moments start at zero; nothing is corrected for bias. All is elementwise: float64, single IEEE operations in the order
written, each moment rounded to float32 before the step is computed from it, the step rounded to float32 once. So a round recomputes
bit for bit anywhere.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import InputError, LayoutMismatchError, NotFiniteError
from compeft_core.layout import Vector

Doubles = NDArray[np.float64]
Moments = NDArray[np.float32]
"""Shape (moments of the optimizer, size): none, the momentum, or the momentum and the second moment."""


@dataclass(frozen=True, slots=True)
class ServerOptimizer:
    """name: a key of `OPTIMIZERS`. learning_rate: finite, > 0. momentum (beta 1) and second (beta 2): 0 <= beta < 1. tau: > 0, added
    to the root of the second moment. An optimizer ignores the settings that it does not use.
    """

    name: str = "fedavg"
    learning_rate: float = 1.0
    momentum: float = 0.0
    second: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise InputError(f"invalid server optimizer {self.name!r}: expected one of {', '.join(OPTIMIZERS)}")
        for field, value in (("learning rate", self.learning_rate), ("tau", self.tau)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"the server optimizer's {field} is {value}, it must be finite and above 0")
        for field, value in (("momentum", self.momentum), ("second", self.second)):
            if not 0 <= value < 1:
                raise InputError(f"the server optimizer's {field} is {value}, it must be at least 0 and below 1")


def _momentum(o: ServerOptimizer, merged: Doubles, old: list[Doubles]) -> list[Doubles]:
    return [o.momentum * old[0] + merged]


def _adam(o: ServerOptimizer, merged: Doubles, old: list[Doubles]) -> list[Doubles]:
    return [_mean(o, merged, old), o.second * old[1] + (1 - o.second) * (merged * merged)]


def _yogi(o: ServerOptimizer, merged: Doubles, old: list[Doubles]) -> list[Doubles]:
    squares = merged * merged
    return [_mean(o, merged, old), old[1] - ((1 - o.second) * squares) * np.sign(old[1] - squares)]


def _adagrad(o: ServerOptimizer, merged: Doubles, old: list[Doubles]) -> list[Doubles]:
    return [_mean(o, merged, old), old[1] + merged * merged]


def _mean(o: ServerOptimizer, merged: Doubles, old: list[Doubles]) -> Doubles:
    return o.momentum * old[0] + (1 - o.momentum) * merged


@dataclass(frozen=True, slots=True)
class _Rule:
    """An optimizer: its number of moments, and the function (settings, merged vector, old moments) -> new moments."""

    moments: int
    move: Callable[[ServerOptimizer, Doubles, list[Doubles]], list[Doubles]]


OPTIMIZERS: dict[str, _Rule] = {
    "fedavg": _Rule(0, lambda _, merged, old: []),
    "fedavgm": _Rule(1, _momentum),
    "fedadam": _Rule(2, _adam),
    "fedyogi": _Rule(2, _yogi),
    "fedadagrad": _Rule(2, _adagrad),
}


def no_moments(optimizer: ServerOptimizer, size: int) -> Moments:
    """The moments an optimizer starts with: zeros."""
    return np.zeros((OPTIMIZERS[optimizer.name].moments, size), np.float32)


def descend(optimizer: ServerOptimizer, merged: Vector, moments: Moments) -> tuple[Vector, Moments]:
    """The step to publish for a merged task vector (float32, flat), and the moments after it; the arguments are left alone.

    fedavg: learning_rate * merged, which is `merged` itself at rate 1.   fedavgm: learning_rate * m.   The others:
    learning_rate * m / (sqrt(v) + tau). Errors: LayoutMismatchError for moments of another shape; NotFiniteError beyond float32.
    """
    rule = OPTIMIZERS[optimizer.name]
    if moments.shape != (rule.moments, merged.size):
        raise LayoutMismatchError(f"moments of shape {moments.shape}, {optimizer.name} needs {(rule.moments, merged.size)}")
    if rule.moments == 0 and optimizer.learning_rate == 1:
        return merged, moments
    moved = [_rounded(m) for m in rule.move(optimizer, merged.astype(np.float64), [m.astype(np.float64) for m in moments])]
    direction = (moved[0] if moved else merged).astype(np.float64)
    step = optimizer.learning_rate * direction
    if rule.moments == 2:
        step = step / (np.sqrt(moved[1].astype(np.float64)) + optimizer.tau)
    return _rounded(step), np.array(moved, np.float32).reshape(moments.shape)


def _rounded(values: Doubles) -> Vector:
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        rounded = values.astype(np.float32)
    if not np.isfinite(rounded).all():
        raise NotFiniteError("the server optimizer's step is not finite in float32: lower its learning rate")
    return rounded
