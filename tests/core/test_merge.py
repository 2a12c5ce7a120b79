import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_core import (
    METHODS,
    Compression,
    Encoded,
    InputError,
    LayoutMismatchError,
    NotFiniteError,
    compress,
    densify,
    encode,
    layout_of,
    merge,
    parse,
)
from tests.core.oracle import merged, same_bits
from tests.core.strategies import VALUES, gaussian, gaussian_update, settings

LAYOUT = layout_of({"a": (70_000,), "b": (30, 40), "head": (5,)}, dense=["head"])
SMALL = layout_of({"a": (6,), "b": (3,), "head": (2,)}, dense=["head"])


def encoded(vector: np.ndarray, settings: Compression, layout: object = LAYOUT) -> Encoded:
    return parse(encode(compress(layout, vector, settings)))


def experts() -> list[Encoded]:
    kinds = [(0.05, "norm", "vector"), (0.3, "mean_magnitude", "tensor"), (0.8, "alpha_sigma", "tensor")]
    return [encoded(gaussian(LAYOUT.size, i), Compression(k, s, 1.0, g)) for i, (k, s, g) in enumerate(kinds)]


def flat(*values: float) -> Encoded:
    """An update with these signs, its scale the largest magnitude."""
    vector = np.array(values, np.float32)
    return encoded(vector, Compression(1.0, "mean_magnitude"), layout_of({"a": vector.shape}))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("coefficient", [1.0, 0.3])
def test_agrees_with_the_merge_of_dense_vectors(method: str, coefficient: float) -> None:
    updates, weights = experts(), [3.0, 1.0, 0.25]
    assert same_bits(merge(method, updates, weights, coefficient=coefficient), merged(method, updates, weights, coefficient))


@given(st.sampled_from(list(METHODS)), st.data())
def test_agrees_with_the_merge_of_small_dense_vectors(method: str, data: st.DataObject) -> None:
    vectors = data.draw(st.lists(st.lists(VALUES, min_size=SMALL.size, max_size=SMALL.size), min_size=1, max_size=5))
    updates = [encoded(np.array(v, np.float32), data.draw(settings), SMALL) for v in vectors]
    weights = [1.0, *(data.draw(st.sampled_from([0.0, 1.0, 0.1, 7.5])) for _ in updates[1:])]
    assert same_bits(merge(method, updates, weights) + np.float32(0), merged(method, updates, weights) + np.float32(0))


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_arguments_does_not_matter(method: str) -> None:
    pairs = list(zip([*experts(), experts()[0]], [0.1, 0.7, 0.3, 0.2], strict=True))
    results = {merge(method, *zip(*order, strict=True)).tobytes() for order in itertools.permutations(pairs)}
    assert len(results) == 1


@pytest.mark.parametrize("method", METHODS)
def test_one_update_merges_to_itself(method: str) -> None:
    update = gaussian_update(70_000, 0.1, dense=3)
    weight = 1.0 if method == "task_arithmetic" else 0.37
    assert same_bits(merge(method, [parse(encode(update))], [weight]), densify(update))


def test_an_average_divides_by_the_sum_of_the_weights_and_task_arithmetic_does_not() -> None:
    updates = [flat(1, 1), flat(3, -3)]
    assert merge("average", updates, [1, 3]).tolist() == [2.5, -2.0]
    assert merge("task_arithmetic", updates, [1, 3], coefficient=0.5).tolist() == [5.0, -4.0]


def test_ties_averages_only_the_entries_that_have_the_elected_sign() -> None:
    updates = [flat(1, 0, -1, 1), flat(1, 0, 1, 1), flat(-3, 0, 3, 0)]
    assert merge("ties", updates, [1, 1, 1]).tolist() == [-3.0, 0.0, 2.0, 1.0]


def test_ties_with_equal_masses_takes_the_sign_that_most_positions_elected() -> None:
    assert merge("ties", [flat(1, 1, 1), flat(-1, 1, 1)], [1, 1]).tolist() == [1.0, 1.0, 1.0]
    assert merge("ties", [flat(1, -1, -1), flat(-1, -1, -1)], [1, 1]).tolist() == [-1.0, -1.0, -1.0]
    assert merge("ties", [flat(1, 1, -1), flat(-1, 1, -1)], [1, 1]).tolist() == [-1.0, 1.0, -1.0]


def test_an_update_of_weight_zero_has_no_say() -> None:
    for method in METHODS:
        assert merge(method, [flat(1, -1), flat(-9, 9)], [1, 0]).tolist() == [1.0, -1.0]


def test_updates_of_different_sizes_are_refused() -> None:
    with pytest.raises(LayoutMismatchError):
        merge("average", [flat(1, 1), flat(1, 1, 1)], [1, 1])


@pytest.mark.parametrize("weights", [[1], [1, math.nan], [1, -1], [0, 0], [1, math.inf], [1e308, 1e308], [1, 1, 1]])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(InputError):
        merge("average", [flat(1), flat(2)], weights)


def test_no_updates_an_unknown_method_and_results_beyond_float32_are_refused() -> None:
    with pytest.raises(InputError):
        merge("average", [], [])
    with pytest.raises(InputError, match="median"):
        merge("median", [flat(1)], [1])
    for weight, coefficient in [(1e39, 1.0), (1.0, 1e39), (1.0, math.nan), (1e308, 10.0)]:
        with pytest.raises(NotFiniteError):
            merge("task_arithmetic", [flat(1)], [weight], coefficient=coefficient)
