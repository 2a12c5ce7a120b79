import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from compeft_core import (
    SCALE_RULES,
    Compression,
    InputError,
    Layout,
    LayoutMismatchError,
    NotFiniteError,
    Ternary,
    Update,
    compress,
    densify,
    layout_of,
    selection,
)
from tests.core.oracle import compressed, dense_of, kept_positions, same_bits
from tests.core.strategies import gaussian, problems

LEAST = 2.0**-126


def compress_flat(values: np.ndarray, workers: int = 1, **settings: object) -> Update:
    vector = np.asarray(values, np.float32)
    return compress(layout_of({"a": vector.shape}), vector, Compression(**settings), workers=workers)


@given(problems())
def test_agrees_with_sorting_and_loops(problem: tuple[Layout, np.ndarray, Compression]) -> None:
    layout, vector, settings = problem
    expected = compressed(layout, vector, settings)
    front = expected[: layout.ternary_size]
    front[np.abs(front) < LEAST] = 0
    update = compress(layout, vector, settings)
    assert same_bits(densify(update), expected)
    assert same_bits(densify(update), dense_of(update))


@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("granularity", ["vector", "tensor"])
def test_agrees_with_the_oracle_over_many_blocks(rule: str, granularity: str) -> None:
    layout = layout_of({"a": (70_000,), "b": (3, 50), "c": (66_000,), "d": (0,)}, dense=["b"])
    vector = gaussian(layout.size)
    settings = Compression(density=0.1, scale=rule, factor=1.5, granularity=granularity)
    assert same_bits(densify(compress(layout, vector, settings)), compressed(layout, vector, settings))


def test_keeps_the_rounded_count_at_least_one_and_at_most_all() -> None:
    counts = [compress_flat(np.arange(1, 11), density=k).ternary.count for k in (0.001, 0.14, 0.15, 0.25, 1.0)]
    assert counts == [1, 1, 2, 3, 10]


def test_equal_magnitudes_at_the_threshold_are_kept_from_the_lowest_position() -> None:
    update = compress_flat([1, -2, 2, -3, 2, 2], density=0.5)
    assert update.ternary.positions.tolist() == [1, 2, 3]
    assert update.ternary.negative.tolist() == [True, False, True]


def test_zeros_are_never_kept() -> None:
    assert compress_flat([0.0, -0.0, 1.0, 0.0], density=1.0).ternary.positions.tolist() == [2]
    empty = compress_flat(np.zeros(5), density=1.0).ternary
    assert (empty.count, empty.scales.tolist()) == (0, [0.0])


@pytest.mark.parametrize("density", [0.0005, 0.05, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("kind", ["gaussian", "sparse", "sparse and tiny", "few values", "sorted", "periodic"])
def test_selection_is_exact_whether_the_sample_guesses_well_or_not(kind: str, density: float) -> None:
    size = 4 * selection.SAMPLE + 12_345
    vector = gaussian(size)
    if kind.startswith("sparse"):
        vector[np.abs(vector) < 1.5] = 0
    if kind == "sparse and tiny":
        vector[vector > 2] = 2.0**-149
    if kind == "few values":
        vector = np.round(vector)
    elif kind == "sorted":
        vector.sort()
    elif kind == "periodic":
        vector[:: size // selection.SAMPLE] *= 1000
    kept = compress_flat(vector, density=density).ternary
    assert np.array_equal(kept.positions, kept_positions(vector, density))
    assert np.array_equal(kept.negative, vector[kept.positions] < 0)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_vector_of_few_values_as_a_merged_one_is_surveyed_once(workers: int) -> None:
    vector = np.round(gaussian(8 * selection.SAMPLE))
    spans = selection.spans_of(np.array([vector.size], np.int64))
    for wanted in (vector.size // 20, vector.size // 5, vector.size // 2):
        assert selection.survey(vector.view(np.uint32), spans, wanted, workers).parts


@pytest.mark.parametrize("granularity", ["vector", "tensor"])
def test_the_number_of_workers_does_not_change_the_result(granularity: str) -> None:
    vector = np.round(gaussian(400_000) * 8) / 8
    layout = layout_of({"a": (150_000,), "b": (250_000,)})
    settings = Compression(density=0.07, granularity=granularity)
    one = compress(layout, vector, settings).ternary
    for workers in (2, 3, 50):
        many = compress(layout, vector, settings, workers=workers).ternary
        for name in ("positions", "negative", "group_ends", "scales"):
            assert same_bits(getattr(one, name), getattr(many, name))


def test_alpha_sigma_is_alpha_times_the_deviation_of_the_dense_vector() -> None:
    vector = gaussian(1000) + 3
    scale = compress_flat(vector, scale="alpha_sigma", factor=4.0).ternary.scales[0]
    assert scale == pytest.approx(4.0 * vector.astype(np.float64).std(ddof=1), rel=1e-6)


def test_norm_keeps_the_norm_and_mean_magnitude_is_the_mean_of_what_is_kept() -> None:
    vector = gaussian(1000)
    assert np.linalg.norm(densify(compress_flat(vector, scale="norm"))) == pytest.approx(np.linalg.norm(vector), rel=1e-6)
    kept = vector[kept_positions(vector, 0.05)]
    assert compress_flat(vector, scale="mean_magnitude").ternary.scales[0] == pytest.approx(np.abs(kept).mean(), rel=1e-6)


def left_of(vector: np.ndarray, **settings: object) -> float:
    kept = densify(compress_flat(vector, **settings)).astype(np.float64)
    return float(np.linalg.norm(vector - kept) / np.linalg.norm(vector.astype(np.float64)))


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=300), st.floats(0.001, 1.0))
def test_bounded_norm_leaves_less_than_there_was_and_nearly_as_little_as_the_mean(values: list[float], density: float) -> None:
    vector = np.array(values, np.float32)
    assume(np.abs(vector).max() > 1e-3)
    taken, most = (1 - left_of(vector, density=density, scale=rule) ** 2 for rule in ("bounded_norm", "mean_magnitude"))
    assert taken > 0
    assert taken > 0.7499 * most


def test_bounded_norm_is_the_norm_where_that_is_near_the_mean_and_norm_alone_may_leave_more_than_there_was() -> None:
    vector = gaussian(100_000)
    few, many = (
        {rule: compress_flat(vector, density=k, scale=rule).ternary.scales[0] for rule in SCALE_RULES} for k in (0.02, 0.2)
    )
    assert many["bounded_norm"] == many["norm"]
    assert few["bounded_norm"] == np.float32(1.5 * np.abs(vector[kept_positions(vector, 0.02)]).astype(np.float64).mean())
    assert left_of(vector, density=0.02, scale="norm") > 1 > left_of(vector, density=0.02, scale="bounded_norm")


def test_each_tensor_has_its_own_scale_when_asked_and_the_same_entries_are_kept() -> None:
    layout = layout_of({"a": (100,), "b": (0,), "c": (200,)})
    vector = np.concatenate([gaussian(100), 3 * gaussian(200)])
    whole, each = (compress(layout, vector, Compression(0.2, granularity=g)).ternary for g in ("vector", "tensor"))
    assert np.array_equal(whole.positions, each.positions)
    assert (whole.group_ends.tolist(), each.group_ends.tolist()) == ([300], [100, 300])
    assert len(set(each.scales.tolist())) == 2


def test_a_group_whose_scale_would_be_subnormal_keeps_nothing() -> None:
    layout = layout_of({"a": (2,), "b": (2,)})
    tiny = compress(layout, np.array([1e-40, 1e-40, 1, 1], np.float32), Compression(1.0, granularity="tensor")).ternary
    assert (tiny.positions.tolist(), tiny.scales.tolist()) == ([2, 3], [0.0, 1.0])
    assert compress_flat([5.0], density=1.0, scale="alpha_sigma").ternary.count == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_a_vector_that_is_not_finite_is_refused(value: float, place: int) -> None:
    layout, vector = layout_of({"a": (1,), "h": (1,)}, dense=["h"]), np.ones(2, np.float32)
    vector[place] = value
    with pytest.raises(NotFiniteError):
        compress(layout, vector, Compression())


def test_a_scale_beyond_float32_is_refused() -> None:
    with pytest.raises(NotFiniteError, match="factor"):
        compress_flat([3e38, 3e38], factor=2.0, density=1.0)


def test_another_length_or_dtype_is_refused() -> None:
    layout = layout_of({"a": (3,)})
    with pytest.raises(LayoutMismatchError):
        compress(layout, np.zeros(4, np.float32), Compression())
    with pytest.raises(InputError):
        compress(layout, np.zeros(3, np.float64), Compression())


@pytest.mark.parametrize(
    "wrong",
    [
        {"density": 0},
        {"density": 1.1},
        {"density": math.nan},
        {"scale": "max"},
        {"factor": 0},
        {"factor": math.inf},
        {"granularity": "row"},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Compression(**wrong)


def test_an_empty_layout_gives_an_empty_update() -> None:
    update = compress(layout_of({}), np.zeros(0, np.float32), Compression())
    assert (update.size, update.ternary.count, densify(update).size) == (0, 0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"positions": np.array([3, 1], np.uint32)},
        {"positions": np.array([1, 9], np.uint32)},
        {"positions": np.array([1, 3], np.int64)},
        {"negative": np.array([True])},
        {"group_ends": np.array([4], np.int64)},
        {"scales": np.array([0], np.float32)},
        {"scales": np.array([-1], np.float32)},
        {"scales": np.array([1e-40], np.float32)},
        {"scales": np.array([np.inf], np.float32)},
        {"scales": np.array([1, 1], np.float32)},
    ],
)
def test_a_ternary_vector_that_breaks_a_rule_cannot_be_made(change: dict[str, np.ndarray]) -> None:
    good = {
        "positions": np.array([1, 3], np.uint32),
        "negative": np.array([True, False]),
        "group_ends": np.array([5], np.int64),
        "scales": np.array([2], np.float32),
    }
    assert Ternary(5, **good).count == 2
    with pytest.raises(InputError):
        Ternary(5, **(good | change))


@pytest.mark.parametrize("value", [1.001, -0.0])
def test_a_dense_part_that_is_not_canonical_bfloat16_cannot_be_made(value: float) -> None:
    with pytest.raises(InputError):
        Update(compress_flat([1.0]).ternary, np.array([value], np.float32))
