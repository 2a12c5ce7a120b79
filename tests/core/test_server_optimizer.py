"""Server optimizers against plain Python, one parameter at a time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_core.errors import InputError, LayoutMismatchError, NotFiniteError
from compeft_core.server_optimizer import OPTIMIZERS, ServerOptimizer, descend, no_moments

F32 = np.float32


def by_hand(o: ServerOptimizer, value: float, m: float, v: float) -> tuple[float, float, float]:
    """(step, m, v) in Python's floats, with the roundings to float32 that the docs name."""
    if o.name == "fedavg":
        return float(F32(o.learning_rate * value)), 0.0, 0.0
    if o.name == "fedavgm":
        m = float(F32(o.momentum * m + value))
        return float(F32(o.learning_rate * m)), m, 0.0
    m = float(F32(o.momentum * m + (1 - o.momentum) * value))
    square = value * value
    sign = float(np.sign(v - square))
    v = {
        "fedadam": o.second * v + (1 - o.second) * square,
        "fedyogi": v - (1 - o.second) * square * sign,
        "fedadagrad": v + square,
    }[o.name]
    v = float(F32(v))
    return float(F32(o.learning_rate * m / (math.sqrt(v) + o.tau))), m, v


@given(
    st.sampled_from(list(OPTIMIZERS)),
    st.floats(0.01, 2.0),
    st.floats(0.0, 0.99),
    st.floats(0.0, 0.999),
    st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=4),
)
def test_every_optimizer_does_what_its_formula_says_bit_for_bit(
    name: str, rate: float, momentum: float, second: float, history: list[float]
) -> None:
    o = ServerOptimizer(name, rate, momentum, second, 1e-3)
    moments, m, v = no_moments(o, 1), 0.0, 0.0
    for value in history:
        step, moments = descend(o, np.array([value], F32), moments)
        expected, m, v = by_hand(o, value, m, v)
        assert float(step[0]) == expected
        assert moments[:, 0].tolist() == [m, v][: len(moments)]


def test_fedavg_at_rate_one_is_the_merged_vector_itself() -> None:
    merged = np.random.default_rng(0).normal(size=1000).astype(F32)
    step, moments = descend(ServerOptimizer(), merged, no_moments(ServerOptimizer(), 1000))
    assert step.tobytes() == merged.tobytes()
    assert moments.shape == (0, 1000)


def test_momentum_gathers_what_points_the_same_way() -> None:
    o, moments = ServerOptimizer("fedavgm", 1.0, 0.5), np.zeros((1, 1), F32)
    steps = []
    for _ in range(3):
        step, moments = descend(o, np.ones(1, F32), moments)
        steps.append(float(step[0]))
    assert steps == [1.0, 1.5, 1.75]


def test_adam_moves_rare_and_frequent_parameters_alike() -> None:
    o = ServerOptimizer("fedadam", 0.1, 0.0, 0.0, 1e-6)
    step, _ = descend(o, np.array([100.0, 0.01, -5.0, 0.0], F32), no_moments(o, 4))
    np.testing.assert_allclose(step, [0.1, 0.1, -0.1, 0.0], rtol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam"}, "expected one of fedavg"),
        ({"learning_rate": 0.0}, "learning rate is 0.0"),
        ({"learning_rate": math.inf}, "learning rate is inf"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"second": math.nan}, "second is nan"),
        ({"tau": 0.0}, "tau is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ServerOptimizer(**fields)


def test_moments_of_another_optimizer_and_steps_beyond_float32_are_refused() -> None:
    o = ServerOptimizer("fedadam")
    with pytest.raises(LayoutMismatchError, match="fedadam needs"):
        descend(o, np.ones(3, F32), np.zeros((1, 3), F32))
    with pytest.raises(NotFiniteError, match="learning rate"):
        descend(ServerOptimizer(learning_rate=1e30), np.full(1, 1e30, F32), np.zeros((0, 1), F32))
