"""One module at one step: its strongest components as integer vectors, and the scales that they need."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compeft_core.product.low_rank import LowRank, Matrix, Spectrum
from compeft_core.product.symbols import MAX_ENTRY
from compeft_core.product.trellis import quantise


@dataclass(frozen=True, slots=True)
class Tuning:
    """Constants of the encoder, chosen in docs/decisions/0015-product-space.md."""

    keep: float = 20.0
    price: float = 0.5
    rounds: int = 2
    weight_power: float = 0.25
    left_gain: float = 2.0
    right_gain: float = 5.0
    module_gain: float = 1.0
    whole_gain: float = 1.5


@dataclass(slots=True, eq=False)
class WeightedModule:
    """One module at work: float64 `parts`, the weighted left parts of its strongest components."""

    low_rank: LowRank
    spectrum: Spectrum
    weight: float
    parts: Matrix = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def norm(self) -> float:
        """Of dW, without the weight."""
        return float(np.sqrt((self.spectrum.values**2).sum()))

    def left_parts(self, count: int) -> Matrix:
        """Weighted U s of the first `count` components."""
        if self.parts.shape[1] < count:
            self.parts = self.low_rank.left @ (self.weight * self.spectrum.to_left[:, :count])
        return self.parts[:, :count]


@dataclass(frozen=True, slots=True, eq=False)
class CodedModule:
    """A module's choice: int16 entries (left and right of each component), float64 scales in terms of the unweighted left @ right, and
    <dW, decoded>, ||decoded||^2 of the weighted dW.
    """

    entries: NDArray[np.int16]
    scales: Matrix
    inner: float
    square: float


def nothing_coded() -> CodedModule:
    """A module without components."""
    return CodedModule(np.zeros((0, 0), np.int16), np.zeros(0), 0.0, 0.0)


def quantise_module(module: WeightedModule, step: float, tuning: Tuning, max_rank: int) -> CodedModule:
    """One module at one step (of the weighted dW, absolute)."""
    x, w = module.low_rank, module.weight
    (m, _), (_, n) = x.left.shape, x.right.shape
    step = max(step, float(w * module.spectrum.values[0]) / (MAX_ENTRY - 5))  # finer, entries would be clipped
    kept = int((w * module.spectrum.values > tuning.keep * step).sum())
    kept = min(kept, max_rank, m, n)
    if kept == 0:
        return nothing_coded()
    parts = module.left_parts(kept)
    left = _rounded(parts / step, tuning)
    chosen = np.abs(left).sum(0) > 0
    left, parts = left[:, chosen], parts[:, chosen]
    if left.shape[1] == 0:
        return nothing_coded()
    gram = left.T.astype(np.float64) @ left * step**2
    length = np.sqrt(np.diag(gram))
    pulled = w * x.scale * (x.left.T @ left * step)  # dW^T left = right^T (left^T left')
    fitted = (x.right.T @ pulled @ _inverse(gram)) * length
    right = _rounded(fitted / step, tuning)
    chosen = np.abs(right).sum(0) > 0
    if not chosen.any():
        return nothing_coded()
    left, right, parts, fitted, length = left[:, chosen], right[:, chosen], parts[:, chosen], fitted[:, chosen], length[chosen]
    gains = _gains(fitted, right * step, tuning.right_gain) * _gains(parts, left * step, tuning.left_gain)
    scales = step * step * gains / length  # of the weighted dW
    pulled = w * x.scale * (x.left.T @ left)
    inner = float((pulled * (x.right @ right) * scales).sum())
    across = (left.T.astype(np.float64) @ left) * (right.T.astype(np.float64) @ right)
    square = float(scales @ across @ scales)
    norm2 = (w * module.norm) ** 2
    gain = min(max(norm2 / max(inner, 1e-300), 1.0), tuning.module_gain)
    scales, inner, square = scales * gain, inner * gain, square * gain**2
    entries = np.ascontiguousarray(np.concatenate([left, right if x.scale > 0 else -right]).T)  # of left @ right, not of dW
    return CodedModule(entries, scales / (w * abs(x.scale)), inner, square)


def _rounded(vectors: Matrix, tuning: Tuning) -> NDArray[np.int16]:
    entries = np.zeros(vectors.shape[::-1], np.int16)
    columns = np.ascontiguousarray(vectors.T, np.float64)
    np.nan_to_num(columns, copy=False)
    np.clip(columns, 5 - MAX_ENTRY, MAX_ENTRY - 5, out=columns)  # so that the level above is one too
    for j in range(len(columns)):
        if not quantise(columns[j], tuning.price, tuning.rounds, entries[j]):
            entries[j] = 0
    return entries.T


def _gains(wanted: Any, given: Any, most: float) -> Any:
    """What restores the projection of each column: ||x||^2 / <x, x'>, at least 1 and at most `most`."""
    inner = (wanted * given).sum(0)
    return np.clip((wanted * wanted).sum(0) / np.maximum(inner, 1e-300), 1.0, most)


def _inverse(gram: Matrix) -> Matrix:
    small = 1e-9 * np.trace(gram) / len(gram) + 1e-300
    return np.asarray(np.linalg.inv(gram + small * np.eye(len(gram))), np.float64)
