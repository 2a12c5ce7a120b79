"""Merge LoRA experts as what they are, products of thin factors: core space, KnOTS, TSV-M, Iso-C. Nothing of size d_out x d_in is built.

An expert changes a matrix by B A with B (d_out, r) and A (r, d_in), each expert with a rank of its own. Every method works in
coordinates of the experts' common column space U and row space V, where expert i is the small matrix M_i = U' B_i A_i V, without loss.
All in float64. Signs of singular vectors follow a rule, but LAPACK differs in the last bits between machines: these are for merging
offline, not for `verify-merge`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import InputError, LayoutMismatchError, NotFiniteError

Doubles = NDArray[np.float64]
Matrices = Sequence[Doubles]
NOTHING = 2.0**-40
"""Singular values below this times the largest are zero: float32 factors know no better."""


@dataclass(frozen=True, slots=True, eq=False)
class LoraFactors:
    """A change of one matrix: `b @ a`, with b (d_out, r) and a (r, d_in); float64."""

    b: Doubles
    a: Doubles


@dataclass(frozen=True, slots=True)
class FactorSettings:
    """weights: one finite number >= 0 an expert, one above 0; None: all equal.   coefficient: multiplies the result of every method.

    keep: fraction of the entries that the methods with `ties` keep of each expert; above 0, at most 1.
    rank: most columns of the result, the largest singular values; None: as many as there are.
    """

    weights: Sequence[float] | None = None
    coefficient: float = 1.0
    keep: float = 0.2
    rank: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(f"keep is {self.keep}, it must be above 0 and at most 1")
        if self.rank is not None and self.rank < 1:
            raise InputError(f"rank is {self.rank}, it must be 1 or more")
        if not math.isfinite(self.coefficient):
            raise InputError(f"coefficient is {self.coefficient}, it must be finite")


@dataclass(frozen=True, slots=True, eq=False)
class Core:
    """Experts in common coordinates: expert i is `u @ small[i] @ v.T`; u (d_out, p), v (d_in, q) have orthonormal columns."""

    u: Doubles
    v: Doubles
    small: Matrices


def merge_factors(method: str, experts: Sequence[LoraFactors], settings: FactorSettings) -> LoraFactors:
    """One matrix's experts merged by a method of FACTOR_METHODS, as balanced factors of the least rank that holds the result.

    Errors: InputError on an unknown method or weights; LayoutMismatchError if shapes do not fit; NotFiniteError.
    """
    if method not in FACTOR_METHODS:
        raise InputError(f"merge method is {method!r}, known for factors are {', '.join(FACTOR_METHODS)}")
    _check(experts)
    weights = _weights(len(experts), settings.weights)
    merged = FACTOR_METHODS[method](_core(experts), weights, settings)
    return _thin(LoraFactors(settings.coefficient * merged.b, merged.a), settings.rank)


def core_average(core: Core, weights: Sequence[float], _settings: FactorSettings) -> LoraFactors:
    """The weighted mean of the products, exactly: unlike a mean of the factors, which has cross terms."""
    return _in_full(core, _mean(core.small, weights))


def core_ties(core: Core, weights: Sequence[float], settings: FactorSettings) -> LoraFactors:
    """TIES in core space (Panariello et al., arXiv 2509.17786): of the small matrices in the common coordinates."""
    return _in_full(core, _ties(core.small, weights, settings.keep))


def knots_ties(core: Core, weights: Sequence[float], settings: FactorSettings) -> LoraFactors:
    """KnOTS (Stoica et al., arXiv 2410.19735): with the side-by-side products U S [V_1' ... V_T'], TIES of the S V_i'."""
    left, values, right = _svd(np.concatenate(core.small, axis=1))
    parts = np.split(values[:, None] * right, len(core.small), axis=1)
    return LoraFactors(core.u @ left, _ties([part @ core.v.T for part in parts], weights, settings.keep))


def tsv_m(core: Core, weights: Sequence[float], _settings: FactorSettings) -> LoraFactors:
    """TSV-M (Gargiulo et al., arXiv 2412.00081): singular vectors of all tasks side by side, each side replaced by the nearest orthonormal
    one, and the sum with the singular values as they were. A LoRA's rank is far below the share of 1 / T that each task may keep: all stay.
    """
    parts = [_svd(small) for small in core.small]
    left = np.concatenate([part[0] for part in parts], axis=1)
    right = np.concatenate([part[2] for part in parts], axis=0)
    share = [w * len(weights) for w in weights]
    values = np.concatenate([w * part[1] for w, part in zip(share, parts, strict=True)])
    return LoraFactors(core.u @ (_nearest_orthonormal(left) * values), _nearest_orthonormal(right) @ core.v.T)


def iso_c(core: Core, weights: Sequence[float], _settings: FactorSettings) -> LoraFactors:
    """Iso-C (Marczak et al., arXiv 2502.04959): the sum of the products, every singular value that is not zero at their mean."""
    left, values, right = _svd(len(weights) * _mean(core.small, weights))
    return LoraFactors(core.u @ (left * np.full(values.size, values.mean() if values.size else 0.0)), right @ core.v.T)


FACTOR_METHODS: dict[str, Callable[[Core, Sequence[float], FactorSettings], LoraFactors]] = {
    "core_average": core_average,
    "core_ties": core_ties,
    "knots_ties": knots_ties,
    "tsv_m": tsv_m,
    "iso_c": iso_c,
}


def _check(experts: Sequence[LoraFactors]) -> None:
    if not experts:
        raise InputError("no experts to merge")
    for expert in experts:
        if expert.b.ndim != 2 or expert.a.ndim != 2 or expert.b.shape[1] != expert.a.shape[0]:
            raise LayoutMismatchError(f"factors have shapes {expert.b.shape} and {expert.a.shape}, they make no product")
        if (expert.b.shape[0], expert.a.shape[1]) != (experts[0].b.shape[0], experts[0].a.shape[1]):
            raise LayoutMismatchError("experts change matrices of different shapes")
        if not (np.isfinite(expert.b).all() and np.isfinite(expert.a).all()):
            raise NotFiniteError("a factor holds NaN or infinity")


def _weights(count: int, given: Sequence[float] | None) -> list[float]:
    """Weights that sum to 1."""
    weights = [1.0] * count if given is None else list(given)
    if len(weights) != count or not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise InputError(
            f"{len(weights)} weights for {count} experts: there must be one each, finite, none negative, one above 0"
        )
    total = math.fsum(weights)
    return [w / total for w in weights]


def _core(experts: Sequence[LoraFactors]) -> Core:
    u = _basis(np.concatenate([expert.b for expert in experts], axis=1))
    v = _basis(np.concatenate([expert.a for expert in experts], axis=0).T)
    return Core(u, v, [(u.T @ expert.b) @ (expert.a @ v) for expert in experts])


def _basis(columns: Doubles) -> Doubles:
    """Orthonormal columns with the same span: the left singular vectors, by a thin QR and the SVD of its small factor."""
    q, r = np.linalg.qr(columns)
    left, _, _ = _svd(r)
    return _signed(q @ left)[0]


def _svd(matrix: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Left vectors as columns, singular values that are not zero (one at least, if the matrix has any), right vectors as rows."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    rank = max(min(1, values.size), int((values > NOTHING * values.max(initial=0.0)).sum()))
    left, signs = _signed(left[:, :rank])
    return left, values[:rank], signs[:, None] * right[:rank]


def _signed(columns: Doubles) -> tuple[Doubles, Doubles]:
    """Columns turned so that the first of their largest entries is positive, and the signs that did it."""
    if 0 in columns.shape:
        return columns, np.ones(columns.shape[1])
    largest = np.argmax(np.abs(columns), axis=0)
    signs = np.where(columns[largest, np.arange(columns.shape[1])] < 0, -1.0, 1.0)
    return columns * signs, signs


def _nearest_orthonormal(matrix: Doubles) -> Doubles:
    """Procrustes: P Q' of the SVD P D Q'."""
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    nearest: Doubles = left @ right
    return nearest


def _mean(matrices: Matrices, weights: Sequence[float]) -> Doubles:
    return sum((w * m for w, m in zip(weights, matrices, strict=True)), np.zeros_like(matrices[0]))


def _ties(matrices: Matrices, weights: Sequence[float], keep: float) -> Doubles:
    """TIES as in docs/format.md, each matrix trimmed to its largest magnitudes first."""
    trimmed = [_trimmed(m, keep) for m in matrices]
    total = _mean(trimmed, weights)
    signs = np.sign(total)
    signs[signs == 0] = 1.0 if signs.sum() > 0 else -1.0
    agree = [m * signs > 0 for m in trimmed]
    over = _mean([np.where(yes, m, 0.0) for yes, m in zip(agree, trimmed, strict=True)], weights)
    under = _mean([yes.astype(np.float64) for yes in agree], weights)
    return np.divide(over, under, out=np.zeros_like(over), where=under > 0)


def _trimmed(matrix: Doubles, keep: float) -> Doubles:
    """The largest magnitudes, the first among equals; the rest zero."""
    wanted = min(matrix.size, max(1, math.floor(keep * matrix.size + 0.5)))
    order = np.argsort(-np.abs(matrix).reshape(-1), kind="stable")[:wanted]
    result = np.zeros(matrix.size)
    result[order] = matrix.reshape(-1)[order]
    return result.reshape(matrix.shape)


def _in_full(core: Core, small: Doubles) -> LoraFactors:
    return LoraFactors(core.u @ small, core.v.T)


def _thin(factors: LoraFactors, rank: int | None) -> LoraFactors:
    """The same product as balanced factors, without singular values that are zero or beyond `rank`."""
    q_b, r_b = np.linalg.qr(factors.b)
    q_a, r_a = np.linalg.qr(factors.a.T)
    left, values, right = _svd(r_b @ r_a.T)
    root = np.sqrt(values[:rank])
    return LoraFactors(q_b @ (left[:, :rank] * root), (root[:, None] * right[:rank]) @ q_a.T)
