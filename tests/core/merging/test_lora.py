"""Averages of LoRA updates, each against the dense matrices that it never makes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_core.errors import InputError, LayoutMismatchError, NotFiniteError
from compeft_core.merging.lora_averages import (
    ScaledFactors,
    average_factors,
    average_product,
    low_rank,
    product_gap,
    scaling_of,
    stack,
)

OUT, INPUTS = 9, 7


def update(seed: int, rank: int = 3, scaling: float = 2.0) -> ScaledFactors:
    rng = np.random.default_rng(seed)
    return ScaledFactors(rng.normal(size=(OUT, rank)), rng.normal(size=(rank, INPUTS)), scaling)


def dense(factors: ScaledFactors) -> np.ndarray:
    return factors.scaling * factors.b @ factors.a


def mean(updates: list[ScaledFactors], weights: list[float]) -> np.ndarray:
    return sum(w * dense(u) for u, w in zip(updates, weights, strict=True)) / sum(weights)


def nearest(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vt[:rank]


MIXED = [update(1, 2, 0.5), update(2, 4, 2.0), update(3, 1, 1.0)]
WEIGHTS = [3.0, 1.0, 2.0]


def test_stacking_is_the_exact_mean_whatever_the_ranks_and_scalings() -> None:
    stacked = stack(MIXED, WEIGHTS)
    assert (stacked.rank, stacked.scaling) == (7, 1.0)
    np.testing.assert_allclose(dense(stacked), mean(MIXED, WEIGHTS), atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_the_product_average_is_the_nearest_of_its_rank(rank: int) -> None:
    found = average_product(MIXED, WEIGHTS, rank)
    assert found.b.shape == (OUT, rank)
    assert found.a.shape == (rank, INPUTS)
    np.testing.assert_allclose(dense(found), nearest(mean(MIXED, WEIGHTS), rank), atol=1e-12)


def test_at_full_rank_the_product_average_is_exact_and_padding_changes_nothing() -> None:
    for rank in (7, 9, 20):
        np.testing.assert_allclose(dense(average_product(MIXED, WEIGHTS, rank)), mean(MIXED, WEIGHTS), atol=1e-12)
    assert not average_product(MIXED, WEIGHTS, 20).b[:, 9:].any()


def test_equal_updates_come_back_in_one_split_whoever_made_them() -> None:
    one, turn = update(4), np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    other = ScaledFactors(-one.b @ turn, -turn.T @ one.a, one.scaling)
    first, second = low_rank(one, 3), low_rank(other, 3)
    np.testing.assert_allclose(first.b, second.b, atol=1e-9)
    np.testing.assert_allclose(first.a, second.a, atol=1e-9)
    np.testing.assert_allclose(first.b.T @ first.b, first.a @ first.a.T, atol=1e-9, err_msg="evenly shared")
    assert (first.b[np.abs(first.b).argmax(axis=0), np.arange(3)] > 0).all()


def test_factors_averaged_apart_are_off_by_their_covariance() -> None:
    updates = [update(seed) for seed in range(4)]
    apart = average_factors(updates, [1.0] * 4)
    np.testing.assert_allclose(apart.b, np.mean([u.b for u in updates], axis=0))
    pairs = [(x, y) for x in updates for y in updates]
    covariance = sum(2.0 * (x.b - y.b) @ (x.a - y.a) for x, y in pairs) / (2 * 16)
    np.testing.assert_allclose(mean(updates, [1.0] * 4) - dense(apart), covariance, atol=1e-12)
    expected = np.linalg.norm(covariance) / np.linalg.norm(mean(updates, [1.0] * 4))
    assert product_gap(updates, [1.0] * 4) == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["a", "b"]))
def test_with_one_factor_shared_averaging_the_other_is_exact(seed: int, shared: str) -> None:
    updates = [update(seed + i) for i in range(3)]
    first = updates[0]
    updates = [ScaledFactors(u.b, first.a, 2.0) if shared == "a" else ScaledFactors(first.b, u.a, 2.0) for u in updates]
    np.testing.assert_allclose(dense(average_factors(updates, WEIGHTS)), mean(updates, WEIGHTS), atol=1e-10)
    assert product_gap(updates, WEIGHTS) < 1e-10


def test_updates_of_nothing_average_to_nothing() -> None:
    nothing = ScaledFactors(np.zeros((OUT, 2)), np.ones((2, INPUTS)), 2.0)
    assert not dense(average_product([nothing, nothing], [1.0, 1.0], 2)).any()
    assert product_gap([nothing], [1.0]) == 0.0


@pytest.mark.parametrize(
    ("changes", "module", "expected"),
    [
        ({}, "layer.0.query", 2.0),
        ({"use_rslora": True}, "layer.0.query", 16 / math.sqrt(8)),
        ({"rank_pattern": {"query": 4}}, "layer.0.query", 4.0),
        ({"rank_pattern": {"query": 4}}, "layer.0.key", 2.0),
        ({"alpha_pattern": {r"layer\.0\.key": 64}, "rank_pattern": {"key": 4}, "use_rslora": True}, "layer.0.key", 32.0),
    ],
)
def test_the_scaling_is_what_peft_multiplies_with(changes: dict[str, object], module: str, expected: float) -> None:
    assert scaling_of({"peft_type": "LORA", "r": 8, "lora_alpha": 16} | changes, module) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LORA", "use_dora": True, "r": 8, "lora_alpha": 8}, "not a product of two factors"),
        ({"peft_type": "IA3"}, "only LORA has factors"),
        ({"peft_type": "LORA", "r": None, "lora_alpha": 8}, "where a rank"),
        ({"peft_type": "LORA", "r": 0, "lora_alpha": 8}, "has rank 0"),
    ],
)
def test_what_has_no_factors_to_average_is_refused_with_a_reason(config: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        scaling_of(config, "layer")


def test_what_cannot_be_averaged_is_named() -> None:
    with pytest.raises(LayoutMismatchError, match=r"ranks \[1, 2, 4\]"):
        average_factors(MIXED, WEIGHTS)
    with pytest.raises(InputError, match="scalings"):
        average_factors([update(1), update(2, scaling=1.0)], [1.0, 1.0])
    with pytest.raises(InputError, match="weights"):
        stack(MIXED, [0.0, 0.0, 0.0])
    with pytest.raises(InputError, match="3 updates and 1 weights"):
        stack(MIXED, [1.0])
    with pytest.raises(LayoutMismatchError, match="different shapes"):
        stack([update(1), ScaledFactors(np.ones((2, 1)), np.ones((1, 2)), 1.0)], [1.0, 1.0])
    with pytest.raises(LayoutMismatchError, match="expected"):
        ScaledFactors(np.ones((2, 1)), np.ones((2, 2)), 1.0)
    with pytest.raises(NotFiniteError):
        ScaledFactors(np.full((2, 1), np.nan), np.ones((1, 2)), 1.0)
    with pytest.raises(InputError, match="rank is 0"):
        low_rank(update(1), 0)
