import hashlib
import math

import numpy as np
import pytest

from compeft_core import InputError, layout_of, seeded_state

LAYOUT = layout_of({"a": (3, 5), "b": (7,), "c": (1000,)}, dense=["b"])


def test_values_follow_the_written_steps() -> None:
    state = seeded_state(LAYOUT, 258, [0.3, 1.0, 0.0])
    name = b"compeft.initial.v1\0" + b"\x02\x01" + bytes(6) + b"\x01\0\0\0a"
    stream = hashlib.shake_256(name).digest(60)
    for i in range(15):
        u = int.from_bytes(stream[4 * i : 4 * i + 4], "little")
        assert state[i] == np.float32(((u >> 8) / 2**23 - 1) * float(np.float32(0.3)))
    assert state.dtype == np.float32
    assert state[-7:].tobytes() == bytes(28)


def test_values_are_the_same_for_ever() -> None:
    digest = hashlib.sha256(seeded_state(LAYOUT, 7, [0.1, 0.2, 0.3]).tobytes()).hexdigest()
    assert digest == "90e3276195113bb7ef93d7562678a832c469fa8a92437193ad34726548da51df"


def test_values_fill_the_interval_evenly() -> None:
    values = seeded_state(layout_of({"a": (10_000,)}), 1, [2.0])
    assert -2 <= values.min() < -1.99
    assert 1.99 < values.max() < 2
    assert abs(values.mean()) < 0.05
    assert values.std() == pytest.approx(2 / math.sqrt(3), rel=0.02)


def test_a_tensor_does_not_depend_on_the_others_but_on_seed_and_name() -> None:
    alone = seeded_state(layout_of({"c": (1000,)}), 7, [0.5])
    assert np.array_equal(alone, seeded_state(LAYOUT, 7, [0.1, 0.5, 0.1])[15:1015])
    assert not np.array_equal(alone, seeded_state(layout_of({"c": (1000,)}), 8, [0.5]))
    assert not np.array_equal(alone, seeded_state(layout_of({"d": (1000,)}), 7, [0.5]))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_is_no_u64_is_refused(seed: int) -> None:
    with pytest.raises(InputError):
        seeded_state(LAYOUT, seed, [1, 1, 1])


@pytest.mark.parametrize("bounds", [[1, 1], [1, 1, -1], [1, math.nan, 1], [math.inf, 1, 1], [1e39, 1, 1]])
def test_bad_bounds_are_refused(bounds: list[float]) -> None:
    with pytest.raises(InputError):
        seeded_state(LAYOUT, 1, bounds)
