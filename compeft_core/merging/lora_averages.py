"""Averages of LoRA updates by their products: mean(B) mean(A) is not mean(B A). Pure functions on factors, float64.

A LoRA update is dW = scaling * B A. Averaging the factors apart (FedIT, arXiv 2305.05644) leaves out the cross-covariance of B and A and
depends on how each client split its product. Two averages are those of the products: `stack` (FLoRA, arXiv 2409.05976) exactly, at the sum
of the ranks; `average_product` (as FlexLoRA, arXiv 2402.11505) at any rank, the nearest in the Frobenius norm. Neither ever makes
a matrix of outputs x inputs.

They are for use offline: LAPACK's last bits differ between machines, so a round merged with them could not be recomputed. (Rounds that
recompute bit for bit freeze one factor: `compeft_core.frozen_tensors`.) No command calls them; they are public for applications, and
`benchmarks.lora_averaging` uses them.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import InputError, LayoutMismatchError, NotFiniteError

Matrix = NDArray[np.float64]
__all__ = ["ScaledFactors", "average_factors", "average_product", "low_rank", "product_gap", "scaling_of", "stack"]


@dataclass(frozen=True, slots=True, eq=False)
class ScaledFactors:
    """One module's update, scaling * b @ a: `b` float64 (outputs, rank), `a` float64 (rank, inputs)."""

    b: Matrix
    a: Matrix
    scaling: float

    def __post_init__(self) -> None:
        if self.b.ndim != 2 or self.a.ndim != 2 or self.b.shape[1] != self.a.shape[0]:
            raise LayoutMismatchError(f"factors of shapes {self.b.shape} and {self.a.shape}, expected (m, r) and (r, n)")
        if not (np.isfinite(self.b).all() and np.isfinite(self.a).all() and math.isfinite(self.scaling)):
            raise NotFiniteError("a factor or its scaling is NaN or infinite")

    @property
    def rank(self) -> int:
        """Columns of b."""
        return int(self.b.shape[1])


def scaling_of(config: Mapping[str, object], module: str) -> float:
    """The factor that PEFT multiplies B A of `module` with, by an adapter's configuration: lora_alpha / r, for rsLoRA lora_alpha / sqrt(r).

    rank_pattern and alpha_pattern are followed. Errors: InputError for anything but plain LoRA, and for an invalid rank or lora_alpha.
    """
    if config.get("use_dora"):
        raise InputError(
            "DoRA cannot be averaged: its magnitudes rescale the rows of W + BA, so its update is not a product of two factors"
        )
    if config.get("peft_type") != "LORA":
        raise InputError(f"adapter is {config.get('peft_type')!r}, only LORA has factors to average")
    rank = _pattern(config, "rank_pattern", module, config.get("r"))
    alpha = _pattern(config, "alpha_pattern", module, config.get("lora_alpha"))
    if not (rank > 0 and math.isfinite(alpha)):
        raise InputError(f"module {module!r} has rank {rank:g} and lora_alpha {alpha:g}")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def average_factors(updates: Sequence[ScaledFactors], weights: Sequence[float]) -> ScaledFactors:
    """mean(b) and mean(a), apart: what rounds do where both factors train. Not the mean of the updates (see `product_gap`).

    Errors: LayoutMismatchError if shapes or ranks differ; InputError if scalings do, or on weights.
    """
    shares = _shares(updates, weights)
    if len({(u.b.shape, u.a.shape) for u in updates}) > 1:
        raise LayoutMismatchError(f"updates have ranks {sorted({u.rank for u in updates})}: factors average only at one rank")
    if len({u.scaling for u in updates}) > 1:
        raise InputError(f"updates have scalings {sorted({u.scaling for u in updates})}: factors average only at one scaling")
    b = sum((w * u.b for u, w in zip(updates, shares, strict=True)), np.zeros_like(updates[0].b))
    a = sum((w * u.a for u, w in zip(updates, shares, strict=True)), np.zeros_like(updates[0].a))
    return ScaledFactors(b, a, updates[0].scaling)


def stack(updates: Sequence[ScaledFactors], weights: Sequence[float]) -> ScaledFactors:
    """The exact weighted mean of the updates, of rank sum of ranks and scaling 1 (FLoRA). Ranks and scalings may differ."""
    shares = _shares(updates, weights)
    b = np.hstack([w * u.scaling * u.b for u, w in zip(updates, shares, strict=True)])
    return ScaledFactors(b, np.vstack([u.a for u in updates]), 1.0)


def average_product(updates: Sequence[ScaledFactors], weights: Sequence[float], rank: int) -> ScaledFactors:
    """The update of this rank that is nearest to the weighted mean of the updates. Ranks and scalings may differ."""
    return low_rank(stack(updates, weights), rank)


def low_rank(update: ScaledFactors, rank: int) -> ScaledFactors:
    """The nearest update of rank `rank` (Eckart and Young), by thin QR and the SVD of a small matrix; scaling 1.

    Singular values are shared evenly, b = U sqrt(S) and a = sqrt(S) V^T, and of each column of U the largest entry (the first,
    if several are as large) is positive, so the split is one. Beyond the update's own rank the factors are padded with zeros.
    """
    if rank < 1:
        raise InputError(f"rank is {rank}, it must be at least 1")
    left, upper = np.linalg.qr(update.b)
    right, lower = np.linalg.qr(update.a.T)
    u, s, vt = np.linalg.svd(update.scaling * (upper @ lower.T))
    kept = min(rank, s.size)
    u, v = left @ u[:, :kept], right @ vt[:kept].T
    signs = np.where(u[np.abs(u).argmax(axis=0), np.arange(kept)] < 0, -1.0, 1.0)
    root = np.sqrt(s[:kept]) * signs
    b, a = np.zeros((u.shape[0], rank)), np.zeros((rank, v.shape[0]))
    b[:, :kept], a[:kept] = u * root, (v * root).T
    return ScaledFactors(b, a, 1.0)


def product_gap(updates: Sequence[ScaledFactors], weights: Sequence[float]) -> float:
    """How far `average_factors` is from the mean of the updates: Frobenius norm of the difference over that of the mean."""
    mean, apart = stack(updates, weights), average_factors(updates, weights)
    difference = ScaledFactors(np.hstack([mean.b, -apart.scaling * apart.b]), np.vstack([mean.a, apart.a]), 1.0)
    size = _norm(mean)
    return _norm(difference) / size if size > 0 else _norm(difference)


def _norm(update: ScaledFactors) -> float:
    """Frobenius norm of the update, without making it."""
    upper, lower = np.linalg.qr(update.b)[1], np.linalg.qr(update.a.T)[1]
    return float(abs(update.scaling) * np.linalg.norm(upper @ lower.T))


def _shares(updates: Sequence[ScaledFactors], weights: Sequence[float]) -> list[float]:
    """Weights divided by their sum. Errors: InputError, LayoutMismatchError."""
    if not updates or len(updates) != len(weights):
        raise InputError(f"{len(updates)} updates and {len(weights)} weights, there must be one each and at least one")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise InputError("weights must be finite, none negative, one at least above 0")
    if len({(u.b.shape[0], u.a.shape[1]) for u in updates}) > 1:
        raise LayoutMismatchError(
            f"updates are of modules of different shapes: {(updates[0].b.shape[0], updates[0].a.shape[1])} first"
        )
    total = math.fsum(weights)
    return [w / total for w in weights]


def _pattern(config: Mapping[str, object], field: str, module: str, default: object) -> float:
    """The number for a module: of the first pattern that matches the end of its name, as PEFT looks it up, else `default`."""
    patterns = config.get(field) or {}
    found = default
    if isinstance(patterns, Mapping):
        found = next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise InputError(f"module {module!r} has {found!r} where a rank or lora_alpha should be")
    return float(found)
