"""Which tensors travel dense by default, and what keeps variances positive."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compeft_core import Compression, add_to, compress, encoding_of, layout_of
from compeft_core.statistics import dense_names, is_variance, kept_in_range, limit_variances, negative_variance

VARIANCES = ["bn.running_var", "bn/moving_variance:0", "batch_stats/BatchNorm_0/var", "0.1.running_variance", "ema_var", "std"]
OTHERS = ["bn.running_mean", "varnish.weight", "invar", "head.weight", "variance_head.weight", "lora_A.weight"]


def test_names_of_the_usual_frameworks_say_what_is_a_variance() -> None:
    assert [is_variance(name) for name in VARIANCES + OTHERS] == [True] * 6 + [False] * 6


@pytest.mark.parametrize(
    ("name", "shape", "dense"),
    [
        ("conv.weight", (32, 16, 3, 3), False),
        ("conv.bias", (32,), True),
        ("scale", (), True),
        ("gate", (1, 1, 64), True),
        ("everything", (2**14 + 1,), False),
        ("bn.running_mean", (2**20,), True),
        ("codes.running_mean", (64, 64), True),
        ("bn.num_batches_tracked", (), True),
        ("lora_B.weight", (3, 3), False),
    ],
)
def test_statistics_and_short_vectors_travel_dense(name: str, shape: tuple[int, ...], dense: bool) -> None:
    assert dense_names({name: shape}) == (frozenset([name]) if dense else frozenset())


def test_what_the_model_lists_as_a_buffer_travels_dense_whatever_its_shape() -> None:
    assert dense_names({"table": (64, 64), "w": (64, 64)}, buffers=["table", "gone"]) == {"table"}


def applied(names: list[str], state: np.ndarray, step: np.ndarray) -> np.ndarray:
    """The state after one coded step of dense tensors with as many entries each."""
    each = state.size // len(names)
    layout = layout_of(dict.fromkeys(names, (each,)), dense=names)
    order = [names.index(t.name) for t in layout.tensors]
    held = np.concatenate([state[i * each : (i + 1) * each] for i in order]).astype(np.float32)
    wanted = np.concatenate([step[i * each : (i + 1) * each] for i in order]).astype(np.float32)
    limit_variances(layout, held, wanted)
    after = held.copy()
    add_to(encoding_of(compress(layout, kept_in_range(layout, held, wanted), Compression(1.0))), after)
    return np.concatenate([after[order.index(i) * each : (order.index(i) + 1) * each] for i in range(len(names))])


numbers = st.floats(2.0**-60, 2.0**60, width=32)


@given(st.lists(st.tuples(numbers, st.floats(-(2.0**61), 2.0**61, width=32)), min_size=1, max_size=20))
@settings(max_examples=300, deadline=None)
def test_no_step_makes_a_variance_negative(pairs: list[tuple[float, float]]) -> None:
    state, step = (np.array(column, np.float32) for column in zip(*pairs, strict=True))
    assert (applied(["bn.running_var"], state, step) > 0).all()


@given(st.lists(st.tuples(numbers, st.floats(0, 1, width=32)), min_size=1, max_size=20), st.booleans())
@settings(max_examples=300, deadline=None)
def test_rounding_carries_no_dense_parameter_over_zero(pairs: list[tuple[float, float]], negative: bool) -> None:
    state, part = (np.array(column, np.float32) for column in zip(*pairs, strict=True))
    step, sign = state * part - state, np.float32(-1 if negative else 1)
    after = sign * applied(["0"], sign * state, sign * step)
    assert (after[state + step > 0] > 0).all()


def test_a_variance_of_zero_stays_zero_and_a_step_within_range_is_left_alone() -> None:
    layout = layout_of({"bn.running_var": (2,)}, dense=["bn.running_var"])
    assert not applied(["bn.running_var"], np.zeros(2), np.array([-1.0, -3.0])).any()
    step = np.array([-0.5, 3], np.float32)
    assert kept_in_range(layout, np.ones(2, np.float32), step) is step


def test_what_makes_a_variance_negative_is_named() -> None:
    layout = layout_of({"a.weight": (2, 2), "bn.running_var": (3,)})
    before, after = np.ones(7, np.float32), np.ones(7, np.float32)
    after[0] = -1
    assert negative_variance(layout, before, after) is None
    after[5] = -0.1
    assert negative_variance(layout, before, after) == "bn.running_var"
    assert negative_variance(layout, after, after) is None, "it was before"
