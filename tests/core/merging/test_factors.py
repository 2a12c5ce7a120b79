"""Merges of thin factors against their dense definitions, on matrices small enough to build."""

import math

import numpy as np
import pytest

from compeft_core.errors import InputError, LayoutMismatchError, NotFiniteError
from compeft_core.merging.lora_factors import FACTOR_METHODS, FactorSettings, LoraFactors, merge_factors

ROWS, COLUMNS = 30, 41
RANKS = [2, 5, 3]
WEIGHTS = [1.0, 3.0, 0.5]


def experts(ranks: list[int] = RANKS, seed: int = 0) -> list[LoraFactors]:
    rng = np.random.default_rng(seed)
    return [LoraFactors(rng.standard_normal((ROWS, r)), rng.standard_normal((r, COLUMNS))) for r in ranks]


def dense(factors: LoraFactors) -> np.ndarray:
    return factors.b @ factors.a


def ties(matrices: list[np.ndarray], weights: list[float], keep: float) -> np.ndarray:
    """Entry by entry."""
    result = np.zeros(matrices[0].size)
    flat = []
    for m in matrices:
        x = m.reshape(-1).copy()
        x[np.argsort(-np.abs(x), kind="stable")[math.floor(keep * x.size + 0.5) :]] = 0
        flat.append(x)
    totals = sum(w * x for w, x in zip(weights, flat, strict=True))
    majority = 1 if np.sign(totals).sum() > 0 else -1
    for j in range(result.size):
        sign = np.sign(totals[j]) or majority
        agreeing = [(w, x[j]) for w, x in zip(weights, flat, strict=True) if x[j] * sign > 0]
        if agreeing:
            result[j] = sum(w * v for w, v in agreeing) / sum(w for w, _ in agreeing)
    return result.reshape(matrices[0].shape)


def orthonormal(matrix: np.ndarray) -> np.ndarray:
    """M (M' M)^-1/2, by eigenvalues: another way to the Procrustes solution."""
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    return matrix @ vectors @ np.diag(values**-0.5) @ vectors.T


def test_the_average_is_that_of_the_products_whatever_the_ranks() -> None:
    found = merge_factors("core_average", experts(), FactorSettings(WEIGHTS, 0.7))
    expected = 0.7 * sum(w * dense(e) for w, e in zip(WEIGHTS, experts(), strict=True)) / sum(WEIGHTS)
    np.testing.assert_allclose(dense(found), expected, atol=1e-12)
    assert found.b.shape == (ROWS, sum(RANKS))


def test_a_smaller_rank_is_the_best_approximation_of_that_rank() -> None:
    whole = dense(merge_factors("core_average", experts(), FactorSettings()))
    u, s, v = np.linalg.svd(whole)
    found = merge_factors("core_average", experts(), FactorSettings(rank=4))
    assert found.a.shape == (4, COLUMNS)
    np.testing.assert_allclose(dense(found), (u[:, :4] * s[:4]) @ v[:4], atol=1e-12)


def test_iso_c_gives_every_direction_of_the_sum_the_mean_singular_value() -> None:
    u, s, v = np.linalg.svd(sum(map(dense, experts())))
    rank = sum(RANKS)
    found = dense(merge_factors("iso_c", experts(), FactorSettings()))
    np.testing.assert_allclose(found, s[:rank].mean() * u[:, :rank] @ v[:rank], atol=1e-10)


def test_tsv_m_sums_tasks_whose_singular_vectors_were_made_orthonormal() -> None:
    parts = [np.linalg.svd(dense(e)) for e in experts()]
    u = np.concatenate([p[0][:, :r] for p, r in zip(parts, RANKS, strict=True)], axis=1)
    v = np.concatenate([p[2][:r].T for p, r in zip(parts, RANKS, strict=True)], axis=1)
    s = np.concatenate([p[1][:r] for p, r in zip(parts, RANKS, strict=True)])
    found = dense(merge_factors("tsv_m", experts(), FactorSettings()))
    np.testing.assert_allclose(found, orthonormal(u) @ np.diag(s) @ orthonormal(v).T, atol=1e-10)


def test_knots_is_ties_of_the_aligned_right_sides() -> None:
    u, s, v = np.linalg.svd(np.concatenate([dense(e) for e in experts()], axis=1), full_matrices=False)
    rank = sum(RANKS)
    aligned = np.split(np.diag(s[:rank]) @ v[:rank], 3, axis=1)
    expected = u[:, :rank] @ ties(aligned, WEIGHTS, 0.2)
    found = dense(merge_factors("knots_ties", experts(), FactorSettings(WEIGHTS)))
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_core_ties_is_ties_in_the_coordinates_of_the_common_spaces() -> None:
    made = experts()
    u = np.linalg.svd(np.concatenate([e.b for e in made], axis=1))[0][:, : sum(RANKS)]
    v = np.linalg.svd(np.concatenate([e.a for e in made], axis=0))[2][: sum(RANKS)].T
    expected = u @ ties([u.T @ dense(e) @ v for e in made], WEIGHTS, 0.5) @ v.T
    found = dense(merge_factors("core_ties", made, FactorSettings(WEIGHTS, keep=0.5)))
    np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("method", ["core_average", "core_ties", "knots_ties", "tsv_m"])
def test_one_expert_is_merged_to_itself(method: str) -> None:
    (one,) = experts([4])
    found = merge_factors(method, [one], FactorSettings(keep=1.0))
    np.testing.assert_allclose(dense(found), dense(one), atol=1e-12)
    assert found.b.shape == (ROWS, 4)


@pytest.mark.parametrize("method", FACTOR_METHODS)
def test_experts_that_share_directions_or_are_zero_are_merged_without_warning(method: str) -> None:
    one, _, other = experts()
    same = [one, one, LoraFactors(np.zeros_like(other.b), other.a)]
    assert np.isfinite(dense(merge_factors(method, same, FactorSettings()))).all()
    nothing = LoraFactors(np.zeros((ROWS, 2)), one.a)
    assert not dense(merge_factors(method, [nothing, nothing], FactorSettings())).any()


@pytest.mark.parametrize("method", FACTOR_METHODS)
def test_the_same_experts_give_the_same_bytes(method: str) -> None:
    found = [merge_factors(method, experts(), FactorSettings(WEIGHTS)) for _ in range(2)]
    assert found[0].b.tobytes() == found[1].b.tobytes()


def test_what_cannot_be_merged_is_refused() -> None:
    with pytest.raises(InputError, match="'svd', known for factors are core_average"):
        merge_factors("svd", experts(), FactorSettings())
    with pytest.raises(InputError, match="2 weights for 3 experts"):
        merge_factors("iso_c", experts(), FactorSettings([1.0, 2.0]))
    with pytest.raises(InputError, match="no experts"):
        merge_factors("iso_c", [], FactorSettings())
    with pytest.raises(LayoutMismatchError, match="different shapes"):
        merge_factors("iso_c", [*experts(), LoraFactors(np.ones((3, 1)), np.ones((1, 4)))], FactorSettings())
    with pytest.raises(LayoutMismatchError, match="no product"):
        merge_factors("iso_c", [LoraFactors(np.ones((3, 2)), np.ones((1, 4)))], FactorSettings())
    with pytest.raises(NotFiniteError):
        merge_factors("iso_c", [LoraFactors(np.full((3, 1), np.nan), np.ones((1, 4)))], FactorSettings())
    for bad in ({"keep": 0.0}, {"rank": 0}, {"coefficient": math.inf}):
        with pytest.raises(InputError):
            FactorSettings(**bad)
