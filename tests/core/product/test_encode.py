"""The encoder: budgets, targets, what it reports, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compeft_core.errors import InputError, LimitError, NotFiniteError
from compeft_core.product import (
    LowRank,
    ProductSettings,
    decode_product,
    encode_product,
    low_rank_of,
    parse_product,
    write_product,
)
from tests.core.product.experts import expert, shapes_of


@settings(deadline=None, max_examples=25)
@given(budget=st.integers(30, 6000), seed=st.integers(0, 5))
def test_a_budget_is_never_exceeded_and_the_blob_says_what_was_reported(budget: int, seed: int) -> None:
    modules = expert(seed)
    encoded = encode_product(modules, ProductSettings(budget=budget))
    assert len(encoded.blob) <= budget
    symbols = parse_product(encoded.blob, shapes_of(modules))
    assert write_product(symbols) == encoded.blob
    assert np.array_equal(symbols.entries, encoded.symbols.entries)
    assert np.array_equal(symbols.scales, encoded.symbols.scales)
    assert [f.components for f in encoded.modules] == symbols.ranks.tolist()


def test_a_finer_step_comes_closer_and_the_facts_say_how_close() -> None:
    modules, reached = expert(), []
    for step in (0.01, 0.003, 0.0003):
        encoded = encode_product(modules, ProductSettings(step=step))
        inner = square = norm = 0.0
        for x, (left, right) in zip(modules, decode_product(encoded.blob, shapes_of(modules)), strict=True):
            want, got = x.left.astype(np.float64) @ x.right, left.astype(np.float64) @ right
            inner, square, norm = inner + (want * got).sum(), square + (got**2).sum(), norm + (want**2).sum()
        assert encoded.cos2 == pytest.approx(inner**2 / (square * norm), abs=1e-5)
        assert encoded.projection == pytest.approx(inner / norm, abs=1e-5)
        reached.append(encoded.cos2)
    assert reached == sorted(reached)
    assert reached[-1] > 0.99


def test_a_distortion_is_reached_with_fewer_bytes_than_a_smaller_one() -> None:
    modules = expert()
    coarse, fine = (encode_product(modules, ProductSettings(distortion=d)) for d in (0.5, 0.1))
    assert 1 - fine.cos2 < 0.15
    assert len(coarse.blob) < len(fine.blob)


def test_the_scale_of_a_module_moves_bytes_to_it_and_is_not_in_what_is_decoded() -> None:
    a, b = expert(shapes=[(96, 96), (96, 96)])
    plain = encode_product([a, b], ProductSettings(budget=800))
    louder = encode_product([a, LowRank(b.left, b.right, 8 * b.scale)], ProductSettings(budget=800))
    weighted = encode_product([a, b], ProductSettings(budget=800), [1.0, 4.0])
    assert louder.modules[1].cos2 > plain.modules[1].cos2
    assert weighted.modules[1].cos2 > plain.modules[1].cos2
    left, right = decode_product(louder.blob, shapes_of([a, b]))[1]
    assert 0.5 < (left @ right * (b.left @ b.right)).sum() / ((b.left @ b.right) ** 2).sum() < 2


def test_a_negative_scale_does_not_turn_what_is_decoded() -> None:
    modules = expert(shapes=[(96, 40)])
    turned = [LowRank(x.left, x.right, -x.scale) for x in modules]
    one, other = (encode_product(x, ProductSettings(budget=500)) for x in (modules, turned))
    assert one.cos2 == pytest.approx(other.cos2, abs=0.02)
    assert other.projection > 0.5
    (left, right), x = decode_product(other.blob, shapes_of(turned))[0], turned[0]
    assert (left @ right * (x.left @ x.right)).sum() > 0


def test_an_expert_of_zeros_takes_a_few_bytes() -> None:
    modules = [LowRank(np.zeros((50, 4), np.float32), np.ones((4, 30), np.float32))] * 3
    encoded = encode_product(modules, ProductSettings(budget=100))
    assert len(encoded.blob) < 12
    assert [left.shape for left, _ in decode_product(encoded.blob, [(50, 30)] * 3)] == [(50, 0)] * 3


def test_no_modules_at_all_are_an_encoding_too() -> None:
    encoded = encode_product([], ProductSettings(budget=100))
    assert decode_product(encoded.blob, []) == []


def test_what_cannot_be_encoded_is_refused() -> None:
    good = expert()
    with pytest.raises(InputError, match="exactly one"):
        encode_product(good, ProductSettings())
    with pytest.raises(InputError, match="exactly one"):
        encode_product(good, ProductSettings(budget=10, step=0.1))
    with pytest.raises(InputError, match="weights"):
        encode_product(good, ProductSettings(budget=1000), [1.0])
    with pytest.raises(LimitError, match="budget is 5 bytes"):
        encode_product(good, ProductSettings(budget=5))
    with pytest.raises(InputError, match="factors are"):
        encode_product([LowRank(np.ones((3, 2), np.float32), np.ones((3, 2), np.float32))], ProductSettings(budget=1000))
    with pytest.raises(NotFiniteError):
        encode_product([LowRank(np.full((3, 2), np.nan, np.float32), np.ones((2, 3), np.float32))], ProductSettings(budget=1000))


@pytest.mark.parametrize("shape", [(400, 300), (300, 400), (30, 300), (5, 4)])
def test_a_matrix_of_low_rank_is_found_again(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    made = (random.normal(size=(shape[0], 3)) @ random.normal(size=(3, shape[1]))).astype(np.float32)
    low = low_rank_of(made, 8)
    assert np.allclose(low.left @ low.right, made, atol=1e-3)
    again = low_rank_of(made, 8)
    assert np.array_equal(low.left, again.left)


@pytest.mark.parametrize("modules", [1, 4])
def test_few_modules_keep_little_where_little_is_asked_for(modules: int) -> None:
    random = np.random.default_rng(3)
    made = [
        LowRank(random.standard_normal((48, 4)).astype(np.float32), random.standard_normal((4, 64)).astype(np.float32))
        for _ in range(modules)
    ]
    kept = [encode_product(made, ProductSettings(distortion=d)).cos2 for d in (0.05, 0.5, 0.9)]
    assert kept[0] >= 0.95
    assert kept[0] > kept[1] > kept[2] > 0
    assert kept[2] < 0.5
