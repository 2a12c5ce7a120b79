"""No minority of a cohort moves a merge by more than docs/merging.md says, whatever finite values, weights and counts it sends."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compeft_core import (
    METHODS,
    SCALE_RULES,
    Compression,
    Encoded,
    InputError,
    MergeParameters,
    ScaleRule,
    Vector,
    choose_and_merge,
    compress,
    encode,
    layout_of,
    merge,
    parse,
    state_of,
)
from compeft_core.errors import NotFiniteError
from compeft_core.merging.size_bounds import bounded
from compeft_core.server_optimizer import OPTIMIZERS, ServerOptimizer, descend, no_moments
from compeft_proto.merge_settings import MergeSettings
from compeft_server.aggregation import rounds
from compeft_server.aggregation.expert_log import Carried, compose
from compeft_server.aggregation.rounds import _checked
from compeft_server.domain.client_weights import COHORT, MAX_SIZE, bounded_weights, capped_weights
from compeft_server.domain.limits import Limits

LAYOUT = layout_of({"a": (10, 20), "b": (20, 10), "head": (8,)}, dense=["head"])
MOST = Limits().max_magnitude
SUMS = {"task_arithmetic", "consensus"}
"""Methods whose weights are not divided by their sum."""
METHOD_C = dict.fromkeys(METHODS, 3.0) | {"median": 1.0, "sign_majority": 1.0, "dare": 6.0, "dare_ties": 6.0}
"""The table of docs/merging.md: the largest merged value in multiples of the largest honest one."""
UP = Compression(0.3, "mean_magnitude", granularity="tensor")


@dataclass(frozen=True)
class Client:
    """What one client sends: a vector, its claim of examples, and how it compresses."""

    vector: Vector
    examples: float
    up: Compression = UP

    @property
    def update(self) -> Encoded:
        """Its encoding."""
        return parse(encode(compress(LAYOUT, self.vector, self.up)))


def honest(seed: int) -> Client:
    rng, common = np.random.default_rng(seed), np.random.default_rng(1000).normal(0, 1e-3, LAYOUT.size)
    return Client((common + rng.normal(0, 2e-4, LAYOUT.size)).astype(np.float32), int(rng.integers(50, 200)))


def hostile(size: float, sign: int, dense_only: bool, examples: float, seed: int, up: Compression) -> Client:
    vector = sign * size * np.sign(np.random.default_rng(seed).normal(0, 1, LAYOUT.size))
    vector *= np.random.default_rng(seed + 1).uniform(0.1, 1, LAYOUT.size)
    if dense_only:
        vector[: LAYOUT.ternary_size] = 0
    return Client(np.clip(vector, -MOST, MOST).astype(np.float32), examples, up)


UPLINKS = st.builds(
    Compression,
    st.sampled_from([0.01, 0.3, 1.0]),
    st.sampled_from(["mean_magnitude", "norm", "bounded_norm"]),
    granularity=st.sampled_from(["vector", "tensor"]),
)
HOSTILE = st.builds(
    hostile,
    st.floats(0, MOST, width=32),
    st.sampled_from([-1, 1]),
    st.booleans(),
    st.one_of(st.integers(0, Limits().max_examples), st.floats(0, Limits().max_examples), st.sampled_from([0.0, 5e-324, 1e-9])),
    st.integers(0, 99),
    UPLINKS,
)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[Client], list[Client]]:
    """Honest clients, and fewer hostile ones; 1 to 9 together."""
    count = draw(st.integers(1, 9))
    bad = draw(st.lists(HOSTILE, max_size=(count - 1) // 2))
    return [honest(draw(st.integers(0, 50))) for _ in range(count - len(bad))], bad


def merged_step(
    clients: Sequence[Client], method: str, before: Carried, optimizer: ServerOptimizer, down: Compression
) -> Carried:
    """What a round of these clients leads to, by the functions that the aggregator closes a round with."""
    updates = [c.update for c in clients]
    claimed, scales = [c.examples for c in clients], [float(u.scales.max()) for u in updates]
    norms = [float(np.linalg.norm(u.dense.astype(np.float64))) for u in updates]
    weights = capped_weights(claimed) if method in rounds.SUMS else bounded_weights(claimed, scales, norms)
    parameters = _checked(MergeSettings(method), len(clients)).parameters
    cut = bounded(updates, MAX_SIZE if len(clients) >= COHORT else 0.0)
    coefficient = 1 / sum(c.examples for c in clients) if method in SUMS else 1.0
    merged = choose_and_merge(method, cut, weights, coefficient=coefficient, parameters=parameters)
    return compose(LAYOUT, before, merged.vector, optimizer, down).after


def largest_honest(clients: Sequence[Client]) -> float:
    return max(max(float(c.update.scales.max()), float(np.abs(c.update.dense).max())) for c in clients)


def compression_c(down: Compression) -> float:
    """How much larger than the largest merged value a compressed one may be: docs/merging.md."""
    kept = 1 / np.sqrt(max(1, int(down.density * LAYOUT.ternary_size)) / LAYOUT.ternary_size)
    return {"bounded_norm": 1.5, "mean_magnitude": 1.0, "norm": float(kept), "alpha_sigma": 1.01}[down.scale]


def start() -> Carried:
    zeros = np.zeros(LAYOUT.size, np.float32)
    return Carried(state_of(LAYOUT, zeros), zeros, np.zeros((0, LAYOUT.size), np.float32), "")


@settings(max_examples=160, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    cohorts(),
    st.sampled_from(sorted(METHODS)),
    st.sampled_from(sorted(OPTIMIZERS)),
    st.sampled_from(sorted(SCALE_RULES)),
    st.sampled_from([0.05, 0.2, 1.0]),
)
def test_the_step_of_a_round_with_a_hostile_minority_is_bounded_and_the_next_round_closes(
    cohort: tuple[list[Client], list[Client]], method: str, optimizer_name: str, rule: ScaleRule, density: float
) -> None:
    good, bad = cohort
    optimizer, down = ServerOptimizer(optimizer_name, 1.0, 0.9), Compression(density, rule)
    if "krum" in method and len(good) + len(bad) < 5:
        with pytest.raises(InputError, match="krum needs 5 updates"):
            merged_step([*good, *bad], method, start(), optimizer, down)
        return
    after = merged_step([*good, *bad], method, start(), optimizer, down)
    most = METHOD_C[method] * largest_honest(good)
    if method in SUMS:  # weights of the hostile are at most 4 times the median each, and the coefficient divides by all claims
        most *= 5
    step, _ = descend(optimizer, np.full(1, most, np.float32), no_moments(optimizer, 1))
    assert np.abs(after.state.vector).max() <= 1.01 * compression_c(down) * float(step[0])
    following = merged_step(good, "average", after, optimizer, down)
    assert np.isfinite(following.state.vector).all()
    assert np.isfinite(following.residual).all()


@pytest.mark.parametrize("factor", [1e2, 1e4, 1e9])
@pytest.mark.parametrize("count", [3, 4, 5, 9])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_clients_that_agree_move_on_at_most_ten_times_as_far_with_one_that_does_not(
    method: str, count: int, factor: float
) -> None:
    """The comparison that an operator makes: the same round without and with the attack."""
    if count < 5 and "krum" in method:
        pytest.skip("krum refuses fewer than five updates by name")
    good = [honest(i) for i in range(count)]
    against = np.clip(-good[0].vector * factor, -MOST, MOST).astype(np.float32)
    bad = [*good[1:], Client(against, Limits().max_examples)]
    far = [
        float(np.abs(merged_step(clients, method, start(), ServerOptimizer(), Compression(0.2)).state.vector).max())
        for clients in (good, bad)
    ]
    assert far[1] < 10 * far[0]


def test_a_trimmed_mean_of_three_trims_one_at_either_end_and_says_so() -> None:
    assert int(_checked(MergeSettings("trimmed_mean"), 3).parameters.trim * 3) == 1
    assert _checked(MergeSettings("trimmed_mean", parameters=MergeParameters(trim=0.0)), 3).parameters.trim == 0.0


def test_cutting_leaves_updates_within_the_bound_as_they_are_and_keeps_the_names_of_the_others() -> None:
    updates = [honest(i).update for i in range(3)] + [Client(honest(3).vector * np.float32(1e6), 1).update]
    cut = bounded(updates, 3.0)
    assert cut[:3] == updates[:3]
    assert cut[3].blob == updates[3].blob
    assert cut[3].scales.max() <= 3 * np.float32(np.median([u.scales.max() for u in updates]))
    assert np.abs(cut[3].dense).max() <= 3 * np.median([np.abs(u.dense).max() for u in updates])
    assert np.abs(merge("emr", cut, [1] * 4)).max() < 1e-2 < np.abs(merge("emr", updates, [1] * 4)).max()


def test_a_state_that_would_not_be_finite_is_never_composed() -> None:
    huge = np.full(LAYOUT.size, 3e38, np.float32)
    before = Carried(state_of(LAYOUT, huge), np.zeros_like(huge), np.zeros((0, LAYOUT.size), np.float32), "")
    with pytest.raises(NotFiniteError, match="the next state is not finite"):
        compose(LAYOUT, before, np.full(LAYOUT.size, 1e38, np.float32), ServerOptimizer(), Compression(1.0, "mean_magnitude"))
