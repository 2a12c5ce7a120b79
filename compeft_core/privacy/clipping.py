"""Clipping to a norm, and exact sums of clipped updates on a grid of powers of two.

    contribution = min(1, clip / norm) * update, each value rounded towards zero to a multiple of `unit`
    sum          = sum of the contributions + noise, in whole units
    mean         = sum * unit / clients

Rounding towards zero makes no norm larger, so a contribution moves the sum by at most `clip`, exactly. The unit is 2^-12 of the noise's
standard deviation, or finer: 2,000 times smaller than the noise of one value.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import NotFiniteError
from compeft_core.format.encoding import Encoded, decode
from compeft_core.layout import Vector
from compeft_core.privacy.gaussian import rounded_gaussian

FINE_BITS = 12
"""A unit is between 2^-13 and 2^-12 of the noise's standard deviation."""
SLACK = 1 - 2.0**-40
"""Clip factors are lower by this, so that no rounding of float64 leads beyond the clip."""
VALUES, COUNT = b"values", b"count"
"""Domains of a round's seed: the noise on the values, and on the number of clients within the clip."""


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of one sum. clip: norm of a contribution; multiplier: standard deviation in clips; seed: 32 secret bytes, used once."""

    clip: float
    multiplier: float
    seed: bytes

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on each value of the sum."""
        return self.clip * self.multiplier


def unit_of(deviation: float) -> float:
    """The power of two that values are multiples of, for noise of this standard deviation."""
    return math.ldexp(1.0, math.frexp(deviation)[1] - 1 - FINE_BITS)


def norm_of(vector: Vector) -> float:
    """L2 norm of a float32 vector. Errors: NotFiniteError for NaN or infinity."""
    wide = vector.astype(np.float64)
    norm = math.sqrt(float(wide @ wide))
    if not math.isfinite(norm):
        raise NotFiniteError("the task vector holds NaN or infinity")
    return norm


def clip_factor(norm: float, clip: float) -> float:
    """What a vector of this norm is multiplied by: 1 if the norm is at most `clip`."""
    return 1.0 if norm <= clip * SLACK else clip * SLACK / norm


def clipped(vector: Vector, clip: float) -> tuple[Vector, bool]:
    """The vector (float32) at most as long as `clip`, and whether it was within it before. Errors: NotFiniteError."""
    norm = norm_of(vector)
    if norm <= clip * SLACK:
        return vector, True
    factor = clip * SLACK / norm
    return (vector * np.float32(factor * (1 - 2.0**-20))).astype(np.float32), False


def on_grid(values: NDArray[np.floating], factor: float, unit: float) -> NDArray[np.int64]:
    """Factor * values in whole units, rounded towards zero: int64."""
    whole: NDArray[np.int64] = np.trunc(values.astype(np.float64) * factor / unit).astype(np.int64)
    return whole


def noised(vector: Vector, noise: Noise) -> Vector:
    """A clipped vector with noise on every value, float32: the update of one client with local noise."""
    unit = unit_of(noise.deviation)
    whole = on_grid(vector, 1.0, unit) + rounded_gaussian(noise.seed, VALUES, noise.deviation / unit, vector.size)
    return (whole * unit).astype(np.float32)


def update_norm(encoded: Encoded) -> float:
    """L2 norm of what an encoded update stands for."""
    update = decode(encoded)
    ternary = update.ternary.scales.astype(np.float64) ** 2 @ update.ternary.group_counts.astype(np.float64)
    dense = update.dense.astype(np.float64)
    return math.sqrt(float(ternary + dense @ dense))


def private_mean(updates: Sequence[Encoded], weights: Sequence[float], noise: Noise, coefficient: float = 1.0) -> Vector:
    """Coefficient * (sum of the clipped updates + noise) / number of updates, float32 of shape (size,); the order does not matter.

    weights: 0 to 1, at most 1 so that no contribution is longer than the clip. Errors: NotFiniteError if the mean is beyond float32.
    """
    unit = unit_of(noise.deviation)
    total = rounded_gaussian(noise.seed, VALUES, noise.deviation / unit, updates[0].ternary_size + updates[0].dense_size)
    for encoded, weight in zip(updates, weights, strict=True):
        factor = min(1.0, max(0.0, weight)) * clip_factor(update_norm(encoded), noise.clip)
        update = decode(encoded)
        magnitudes = np.repeat(on_grid(update.ternary.scales, factor, unit), update.ternary.group_counts)
        total[update.ternary.positions] += np.where(update.ternary.negative, -magnitudes, magnitudes)
        total[update.ternary.size :] += on_grid(update.dense, factor, unit)
    with np.errstate(over="ignore"):
        mean = (total * (unit * coefficient / len(updates))).astype(np.float32)
    if not np.isfinite(mean).all():
        raise NotFiniteError(
            f"the private mean is not finite in float32: coefficient {coefficient:g} or clip {noise.clip:g} is too large"
        )
    return mean


def noised_count(within: int, deviation: float, seed: bytes) -> float:
    """A count with Gaussian noise of this standard deviation."""
    unit = unit_of(deviation)
    return (round(within / unit) + int(rounded_gaussian(seed, COUNT, deviation / unit, 1)[0])) * unit
