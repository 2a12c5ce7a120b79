"""A module's update as a product of thin factors, and its singular components."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import InputError, NotFiniteError

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """dW = scale * left @ right: float32 left (m x r), right (r x n). `scale` decides how much the module matters beside others;
    what is decoded stands for left @ right, without it.
    """

    left: NDArray[np.float32]
    right: NDArray[np.float32]
    scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Singular values (float64, falling) of scale * left @ right, and what makes its components from the factors themselves:
    left @ to_left = U s and right.T @ to_right = V s (both r x r; the scale is in them).
    """

    values: Matrix
    to_left: Matrix
    to_right: Matrix


def spectrum_of(module: LowRank) -> Spectrum:
    """The SVD of a product without ever forming it: with B = Qb Rb and A^T = Qa Ra (Q orthonormal, R of r x r), B A = Qb (Rb Ra^T) Qa^T,
    and Rb Ra^T = u s v^T is small. So U s = Qb u s = B (Ra^T v) and V s = Qa v s = A^T (Rb^T u), and no Q is needed: any R with
    R^T R = B^T B does, such as the root of its eigendecomposition. Values below 1e-8 of the largest are noise, far below any step.
    Errors: InputError on shapes that do not fit, NotFiniteError.
    """
    left, right = module.left, module.right
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0] or 0 in (*left.shape, *right.shape):
        raise InputError(f"factors are {left.shape} and {right.shape}, expected (m, r) and (r, n)")
    if not (np.isfinite(left).all() and np.isfinite(right).all() and math.isfinite(module.scale)):
        raise NotFiniteError("a factor or its scale is NaN or infinite")
    rb, ra = _root(left), _root(right.T)
    u, values, vt = np.linalg.svd(module.scale * (rb @ ra.T))
    return Spectrum(values, module.scale * (ra.T @ vt.T), module.scale * (rb.T @ u))


def _root(tall: NDArray[np.float32]) -> Matrix:
    """An r x r matrix R with R^T R = X^T X."""
    exact = tall.astype(np.float64)
    squares, vectors = np.linalg.eigh(exact.T @ exact)
    return np.asarray(np.sqrt(np.maximum(squares, 0.0))[:, None] * vectors.T, np.float64)


def low_rank_of(matrix: NDArray[np.float32], max_rank: int, *, rounds: int = 3) -> LowRank:
    """The best approximation (nearly) of an m x n matrix by one of rank at most `max_rank`, for matrices that are not products.

    A full SVD where the shorter side is at most 4 max_rank, else subspace iteration from a fixed start (Halko et al., 2011),
    `rounds` of them. Errors: InputError, NotFiniteError.
    """
    if matrix.ndim != 2 or 0 in matrix.shape or max_rank < 1:
        raise InputError(f"matrix is {matrix.shape} and max_rank {max_rank}, expected two dimensions and at least 1")
    if not np.isfinite(matrix).all():
        raise NotFiniteError("a matrix has entries that are NaN or infinite")
    rank = min(max_rank, *matrix.shape)
    if min(matrix.shape) <= 4 * max_rank:
        u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
        root = np.sqrt(s[:rank])
        return LowRank((u[:, :rank] * root).astype(np.float32), (root[:, None] * vt[:rank]).astype(np.float32))
    probe = np.random.Generator(np.random.PCG64(0)).standard_normal((matrix.shape[1], rank + 8)).astype(np.float32)
    basis, _ = np.linalg.qr(matrix @ probe)
    for _ in range(rounds):
        basis, _ = np.linalg.qr(matrix @ np.linalg.qr(matrix.T @ basis)[0])
    u, s, vt = np.linalg.svd((basis.T @ matrix).astype(np.float64), full_matrices=False)
    root = np.sqrt(s[:rank])
    return LowRank((basis @ (u[:, :rank] * root)).astype(np.float32), (root[:, None] * vt[:rank]).astype(np.float32))
