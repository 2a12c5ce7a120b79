"""The search for the step size whose encoding has the bytes or the distortion that were asked for."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from compeft_core.product.module_quantiser import WeightedModule
from compeft_core.product.symbols import Shape

T = TypeVar("T")

STEPS = (2.0**-24, 2.0)
"""Relative steps between which the search goes."""
FIRST_STEP = 0.003
SLOPE = 1.45
TRIES = 14
CLOSE = 0.005
"""The search ends when the logarithm of bytes or distortion is less than this below what was asked for."""


class Rate:
    """The bytes that theory expects: a vector of n normal entries of deviation x steps takes n / 2 log2(1 + x**2 / 2) bits."""

    def __init__(self, modules: Sequence[WeightedModule], shapes: Sequence[Shape], norm: float, keep: float) -> None:
        self.values = np.concatenate([m.weight * m.spectrum.values for m in modules]) / norm
        sides = [np.tile(shape, (m.spectrum.values.size, 1)) for m, shape in zip(modules, shapes, strict=True)]
        self.sides, self.keep = np.concatenate(sides).astype(np.float64), keep

    def place(self, step: float) -> float:
        """The logarithm of the bytes, at least one thousandth of one: falls as the step grows."""
        x = self.values[self.values > self.keep * step, None] / step
        sides = self.sides[self.values > self.keep * step]
        return math.log(float((sides * np.log2(1 + x * x / sides / 2)).sum()) / 16 + 1e-3 / (1 + step))

    def step_at(self, place: float) -> float:
        """The step of that place, by bisection."""
        low, high = STEPS
        for _ in range(50):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.place(middle) > place else (low, middle)
        return math.sqrt(low * high)


def search_step(
    first: float,
    place: Callable[[float], float],
    step_at: Callable[[float], float],
    at_step: Callable[[float], T],
    excess: Callable[[T], float],
) -> tuple[float, T]:
    """The step where excess(at_step(step)), a logarithm, is just below 0, and what is there.

    place(step) and its inverse step_at choose a scale on which `excess` is nearly a straight line: the search goes by the slope seen
    last, inside the bracket known so far, and ends within CLOSE of the goal or after TRIES steps with the best that fits.
    """
    edges = sorted(place(step) for step in STEPS)
    low, high, slope = edges[0], edges[1], SLOPE
    at, last, best = min(max(place(first), low), high), None, None
    for _ in range(TRIES):
        coded = at_step(step_at(at))
        value = excess(coded)
        if value <= 0 and (best is None or value > best[0]):
            best = (value, at, coded)
        if -CLOSE <= value <= 0:
            break
        low, high = (low, at) if value > 0 else (at, high)
        if last is not None and last[0] != at and (value - last[1]) / (at - last[0]) > 0.1:
            slope = (value - last[1]) / (at - last[0])
        last = (at, value)
        aim = at - (value + CLOSE / 2) / slope
        at = aim if low < aim < high else (low + high) / 2
    if best is None:
        return step_at(edges[0]), at_step(step_at(edges[0]))
    return step_at(best[1]), best[2]
