"""Methods for cohorts that hold hostile clients: each is attacked here, and plain averaging falls where they stand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_core import (
    Compression,
    Encoded,
    InputError,
    MergeParameters,
    choose_and_merge,
    compress,
    decode,
    densify,
    encode,
    layout_of,
    merge,
    parse,
)
from compeft_core.merging import robust
from compeft_core.merging.inputs import ordered
from compeft_core.merging.robust import squared_distances
from tests.core.oracle import same_bits
from tests.core.strategies import gaussian, updates

LAYOUT = layout_of({"a": (100, 100), "b": (200, 50), "head": (20,)}, dense=["head"])
HOSTILE = 3
DEFENCES = {
    "trimmed_mean": MergeParameters(trim=0.25),
    "median": MergeParameters(),
    "krum": MergeParameters(byzantine=HOSTILE),
    "multi_krum": MergeParameters(byzantine=HOSTILE),
    "sign_majority": MergeParameters(quorum=0.25),
}


def encoded(vector: np.ndarray, density: float = 0.1, granularity: str = "tensor") -> Encoded:
    return parse(encode(compress(LAYOUT, vector.astype(np.float32), Compression(density, granularity=granularity))))


SIGNAL = gaussian(LAYOUT.size, 100) * gaussian(LAYOUT.size, 101) ** 2
HONEST = [SIGNAL + 0.3 * gaussian(LAYOUT.size, i) for i in range(10)]
COHORT = [encoded(vector) for vector in HONEST]
ATTACKS = {
    "flipped signs": [encoded(-vector) for vector in HONEST[:HOSTILE]],
    "a hundred times the size": [encoded(-100 * vector) for vector in HONEST[:HOSTILE]],
    "one shared vector": [encoded(10 * gaussian(LAYOUT.size, 200), 1.0)] * HOSTILE,
    "noise": [encoded(3 * gaussian(LAYOUT.size, 300 + i), 1.0, "vector") for i in range(HOSTILE)],
    "the honest direction turned round": [encoded(-SIGNAL)] * HOSTILE,
}


def error(vector: np.ndarray, honest: np.ndarray) -> float:
    return float(np.linalg.norm(vector - honest) / np.linalg.norm(honest))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("method", DEFENCES)
def test_a_hostile_minority_does_not_lead_the_merge_astray(method: str, attack: str) -> None:
    honest_mean = merge("average", COHORT, [1.0] * len(COHORT))
    attacked = [*COHORT, *ATTACKS[attack]]
    weights = [1.0] * len(attacked)
    found = merge(method, attacked, weights, parameters=DEFENCES[method])
    head = slice(LAYOUT.ternary_size, None)
    assert error(found, honest_mean) < min(0.45, error(merge("average", attacked, weights), honest_mean))
    assert error(found[head], honest_mean[head]) < 0.5


@pytest.mark.parametrize("attack", ATTACKS)
def test_krum_names_whom_it_has_chosen_and_no_attacker_is_among_them(attack: str) -> None:
    attacked = [*ATTACKS[attack], *COHORT]
    result = choose_and_merge("multi_krum", attacked, [1.0] * 13, parameters=DEFENCES["multi_krum"])
    assert sum(result.chosen) == 13 - HOSTILE - 2
    assert not any(result.chosen[:HOSTILE])
    kept = [e for e, chosen in zip(attacked, result.chosen, strict=True) if chosen]
    assert same_bits(result.vector, merge("average", kept, [1.0] * len(kept)))


@pytest.mark.parametrize("method", ["trimmed_mean", "median", "krum"])
def test_claiming_much_weight_changes_nothing(method: str) -> None:
    attacked = [*ATTACKS["flipped signs"], *COHORT]
    greedy = merge(method, attacked, [1e6] * HOSTILE + [1.0] * 10, parameters=DEFENCES[method])
    assert same_bits(greedy, merge(method, attacked, [1.0] * 13, parameters=DEFENCES[method]))


@given(st.data())
def test_distances_are_those_of_the_dense_vectors(data: st.DataObject) -> None:
    first = data.draw(updates())
    size = first.ternary.size
    layout = layout_of({"t": (size,), "d": (first.size - size,)}, dense=["d"])
    others = [compress(layout, gaussian(layout.size, i), Compression(0.4)) for i in range(3)]
    inputs = ordered([parse(encode(u)) for u in [first, *others]], [1.0] * 4, MergeParameters(), True)
    rows = np.stack([densify(decode(u.encoded)).astype(np.float64) for u in inputs.updates])
    dense = ((rows[:, None] - rows[None, :]) ** 2).sum(axis=2)
    np.testing.assert_allclose(squared_distances(inputs), dense, rtol=1e-9, atol=1e-9 * (1 + dense.max(initial=0.0)))


def test_distances_hold_across_blocks_and_groups_that_lie_across_them() -> None:
    layout = layout_of({"a": (65_530,), "b": (10,), "c": (70_000,), "d": (1,)})
    vectors = [gaussian(layout.size, i) for i in range(3)]
    how = [Compression(0.05), Compression(0.6, granularity="tensor"), Compression(1.0, granularity="tensor")]
    made = [compress(layout, v, settings) for v, settings in zip(vectors, how, strict=True)]
    inputs = ordered([parse(encode(u)) for u in made], [1.0] * 3, MergeParameters(), True)
    rows = np.stack([densify(decode(u.encoded)).astype(np.float64) for u in inputs.updates])
    np.testing.assert_allclose(squared_distances(inputs), ((rows[:, None] - rows[None, :]) ** 2).sum(axis=2), rtol=1e-9)


def test_krum_is_the_update_with_the_least_sum_of_distances_to_its_nearest() -> None:
    cohort = COHORT[:7]
    rows = np.stack([densify(decode(e)).astype(np.float64) for e in cohort])
    distances = ((rows[:, None] - rows[None, :]) ** 2).sum(axis=2)
    scores = [np.sort(np.delete(distances[i], i))[: 7 - 2 - 2].sum() for i in range(7)]
    result = choose_and_merge("krum", cohort, [1.0] * 7, parameters=MergeParameters(byzantine=2))
    assert result.chosen.index(True) == int(np.argmin(scores))
    assert same_bits(result.vector, densify(decode(cohort[int(np.argmin(scores))])))


def test_krum_refuses_a_cohort_that_is_too_small_for_its_promise() -> None:
    with pytest.raises(InputError, match="needs 5 updates to withstand 1 hostile ones, but got 4"):
        merge("krum", COHORT[:4], [1.0] * 4)
    with pytest.raises(InputError, match="keep 9 updates, but got 5"):
        merge("multi_krum", COHORT[:5], [1.0] * 5, parameters=MergeParameters(keep=9))
    assert merge("krum", COHORT[:2], [1.0, 1.0], parameters=MergeParameters(byzantine=0)).size == LAYOUT.size


def test_a_sign_needs_its_quorum_and_takes_the_median_scale() -> None:
    def flat(*values: float) -> Encoded:
        layout = layout_of({"a": (len(values),)})
        return parse(encode(compress(layout, np.array(values, np.float32), Compression(1.0, "mean_magnitude"))))

    votes = [flat(1, 1, 0, -1), flat(2, 2, 0, 0), flat(9, -9, 9, 0)]
    assert merge("sign_majority", votes, [1, 1, 1]).tolist() == [2.0, 2.0, 2.0, -2.0]
    half = MergeParameters(quorum=0.5)
    assert merge("sign_majority", votes, [1, 1, 1], parameters=half).tolist() == [2.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("method", ["trimmed_mean", "median"])
def test_sorting_a_little_at_a_time_changes_nothing(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = merge(method, COHORT, [1.0] * 10)
    monkeypatch.setattr(robust, "MOST_ENTRIES", 100)
    assert same_bits(merge(method, COHORT, [1.0] * 10), whole)
