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
    MergeParameters,
    NotFiniteError,
    compress,
    densify,
    encode,
    layout_of,
    merge,
    parse,
)
from tests.core.merging.merge_oracle import ALONE, ORACLES, merged
from tests.core.oracle import same_bits
from tests.core.strategies import VALUES, gaussian, settings

LAYOUT = layout_of({"a": (70_000,), "b": (30, 40), "head": (5,)}, dense=["head"])
EXACT = ["average", "task_arithmetic", "ties", *ORACLES]
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


def parameters_for(method: str, drawn: MergeParameters) -> MergeParameters:
    """`drawn`, but for what the method does not take."""
    return MergeParameters(**{name: getattr(drawn, name) for name in METHODS[method].takes})


chosen_parameters = st.builds(
    MergeParameters,
    trim=st.sampled_from([0.0, 0.2, 0.34, 0.49]),
    quorum=st.sampled_from([0.0, 0.2, 0.5]),
    drop=st.sampled_from([0.0, 0.3, 0.9]),
    seed=st.sampled_from([0, 2**64 - 1]),
    threshold=st.sampled_from([0.0, 0.4, 1.0]),
    agreement=st.integers(1, 3),
)


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("coefficient", [1.0, 0.3])
def test_agrees_with_the_merge_of_dense_vectors(method: str, coefficient: float) -> None:
    updates, weights = experts(), [3.0, 1.0, 0.25]
    result = merge(method, updates, weights, coefficient=coefficient)
    assert same_bits(result + np.float32(0), merged(method, updates, weights, coefficient) + np.float32(0))


@given(st.sampled_from(EXACT), st.data())
def test_agrees_with_the_merge_of_small_dense_vectors(method: str, data: st.DataObject) -> None:
    vectors = data.draw(st.lists(st.lists(VALUES, min_size=SMALL.size, max_size=SMALL.size), min_size=1, max_size=5))
    updates = [encoded(np.array(v, np.float32), data.draw(settings), SMALL) for v in vectors]
    others = [0.0, 1.0, 0.1, 7.5] + ([] if METHODS[method].normalised else [-0.5, -1.0])
    weights = [1.0, *(data.draw(st.sampled_from(others)) for _ in updates[1:])]
    parameters = parameters_for(method, data.draw(chosen_parameters))
    result = merge(method, updates, weights, parameters=parameters)
    assert same_bits(result + np.float32(0), merged(method, updates, weights, 1.0, parameters) + np.float32(0))


@pytest.mark.parametrize("method", METHODS)
def test_neither_order_nor_number_of_workers_matters(method: str) -> None:
    pairs = list(zip([*experts(), experts()[0]], [0.1, 0.7, 0.3, 0.2], strict=True))
    parameters = ALONE.get(method, MergeParameters())
    orders = [zip(*order, strict=True) for order in itertools.permutations(pairs)]
    results = {merge(method, *order, parameters=parameters, workers=1 + i % 2).tobytes() for i, order in enumerate(orders)}
    assert len(results) == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("granularity", ["vector", "tensor"])
def test_one_update_merges_to_itself(method: str, granularity: str) -> None:
    update = compress(LAYOUT, gaussian(LAYOUT.size), Compression(0.1, granularity=granularity))
    weight = 0.37 if METHODS[method].normalised else 1.0
    result = merge(method, [parse(encode(update))], [weight], parameters=ALONE.get(method, MergeParameters()))
    assert same_bits(result, densify(update))


@pytest.mark.parametrize("method", EXACT)
def test_many_updates_of_few_or_many_entries_merge_alike_two_by_two(method: str) -> None:
    densities = [1.0, 0.9, 0.02, 0.5, 0.0001, 0.3, 0.51]
    updates = [encoded(gaussian(LAYOUT.size, i), Compression(k)) for i, k in enumerate(densities)]
    result = merge(method, updates, [1.0] * 7)
    assert same_bits(result + np.float32(0), merged(method, updates, [1.0] * 7) + np.float32(0))


def test_an_average_divides_by_the_sum_of_the_weights_and_task_arithmetic_does_not() -> None:
    updates = [flat(1, 1), flat(3, -3)]
    assert merge("average", updates, [1, 3]).tolist() == [2.5, -2.0]
    assert merge("task_arithmetic", updates, [1, 3], coefficient=0.5).tolist() == [5.0, -4.0]


def test_task_arithmetic_subtracts_an_update_of_negative_weight() -> None:
    assert merge("task_arithmetic", [flat(1, 1), flat(3, -3)], [1, -1]).tolist() == [-2.0, 4.0]


def test_ties_averages_only_the_entries_that_have_the_elected_sign() -> None:
    updates = [flat(1, 0, -1, 1), flat(1, 0, 1, 1), flat(-3, 0, 3, 0)]
    assert merge("ties", updates, [1, 1, 1]).tolist() == [-3.0, 0.0, 2.0, 1.0]


def test_ties_with_equal_masses_takes_the_sign_that_most_positions_elected() -> None:
    assert merge("ties", [flat(1, 1, 1), flat(-1, 1, 1)], [1, 1]).tolist() == [1.0, 1.0, 1.0]
    assert merge("ties", [flat(1, -1, -1), flat(-1, -1, -1)], [1, 1]).tolist() == [-1.0, -1.0, -1.0]
    assert merge("ties", [flat(1, 1, -1), flat(-1, 1, -1)], [1, 1]).tolist() == [-1.0, 1.0, -1.0]


def test_an_update_of_weight_zero_has_no_say() -> None:
    for method in METHODS:
        parameters = ALONE.get(method, MergeParameters())
        assert merge(method, [flat(1, -1), flat(-9, 9)], [1, 0], parameters=parameters).tolist() == [1.0, -1.0]


def test_updates_of_different_sizes_are_refused() -> None:
    with pytest.raises(LayoutMismatchError):
        merge("average", [flat(1, 1), flat(1, 1, 1)], [1, 1])


@pytest.mark.parametrize("weights", [[1], [1, math.nan], [1, -1], [0, 0], [1, math.inf], [1e308, 1e308], [1, 1, 1]])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(InputError):
        merge("average", [flat(1), flat(2)], weights)


def test_weights_that_are_all_zero_are_refused_by_every_method() -> None:
    for method in METHODS:
        with pytest.raises(InputError, match="one at least not 0"):
            merge(method, [flat(1), flat(2)], [0, 0], parameters=ALONE.get(method, MergeParameters()))


def test_no_updates_an_unknown_method_and_results_beyond_float32_are_refused() -> None:
    with pytest.raises(InputError):
        merge("average", [], [])
    with pytest.raises(InputError, match="mode"):
        merge("mode", [flat(1)], [1])
    for weight, coefficient in [(1e39, 1.0), (1.0, 1e39), (1.0, math.nan), (1e308, 10.0)]:
        with pytest.raises(NotFiniteError):
            merge("task_arithmetic", [flat(1)], [weight], coefficient=coefficient)


def test_a_parameter_that_a_method_does_not_take_is_refused() -> None:
    with pytest.raises(InputError, match="average takes no parameters, not trim"):
        merge("average", [flat(1)], [1], parameters=MergeParameters(trim=0.1))
    with pytest.raises(InputError, match="multi_krum takes byzantine, keep, not seed"):
        merge("multi_krum", [flat(1)], [1], parameters=MergeParameters(seed=1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trim", 0.5),
        ("trim", -0.1),
        ("drop", 1.0),
        ("drop", math.nan),
        ("quorum", 1.0),
        ("threshold", math.inf),
        ("byzantine", -1),
        ("keep", -1),
        ("seed", 2**64),
        ("agreement", 0),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        MergeParameters(**{name: value})


def test_dare_keeps_the_mean_and_other_seeds_keep_other_entries() -> None:
    update = encoded(gaussian(LAYOUT.size), Compression(0.5))
    whole = merge("average", [update], [1.0])
    once, again = (merge("dare", [update], [1.0], parameters=MergeParameters(drop=0.75, seed=seed)) for seed in (1, 2))
    front = slice(0, LAYOUT.ternary_size)
    assert abs(np.count_nonzero(once[front]) / np.count_nonzero(whole[front]) - 0.25) < 0.02
    assert np.allclose(once[front][once[front] != 0], 4 * whole[front][once[front] != 0])
    assert not np.array_equal(once, again)


def test_consensus_drops_what_only_one_task_wants() -> None:
    updates = [flat(1, 1, 0, 1), flat(1, -1, 0, 0)]
    assert merge("consensus", updates, [1, 1]).tolist() == [2.0, 0.0, 0.0, 0.0]
    alone = MergeParameters(agreement=1)
    assert merge("consensus", updates, [1, 1], parameters=alone).tolist() == [2.0, 0.0, 0.0, 1.0]
