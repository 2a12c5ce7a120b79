"""Which tensors a round trains, and what that makes of a density."""

import numpy as np
import pytest

from compeft_core import Compression, compress, layout_of
from compeft_core.errors import InputError
from compeft_core.frozen_tensors import A_ENDING, AVERAGING, B_ENDING, active_places, resting_in_round, share_of_active

LAYOUT = layout_of({"q.lora_A.weight": (4, 30), "q.lora_B.weight": (50, 4), "head": (2, 5)}, dense=["head"])


def test_in_turns_b_comes_first_because_beside_a_b_of_zeros_a_has_no_gradient() -> None:
    assert [resting_in_round("alternating", n) for n in (1, 2, 3)] == [(A_ENDING,), (B_ENDING,), (A_ENDING,)]
    assert [resting_in_round("frozen_a", n) for n in (1, 2)] == [(A_ENDING,), (A_ENDING,)]
    assert resting_in_round("factors", 1) == ()
    with pytest.raises(InputError, match=f"known are {', '.join(AVERAGING)}"):
        resting_in_round("fedit", 1)


def test_everything_that_does_not_rest_is_active_the_head_too() -> None:
    active = active_places(LAYOUT, [A_ENDING])
    assert not active[:120].any()
    assert active[120:].all()
    assert active_places(LAYOUT, []).all()


def test_an_ending_of_no_tensor_and_a_round_without_any_are_refused() -> None:
    with pytest.raises(InputError, match=r"invalid ending '\.lora_C'"):
        active_places(LAYOUT, [".lora_C"])
    with pytest.raises(InputError, match="no tensor is left"):
        active_places(LAYOUT, ["weight", "head"])


def test_the_density_is_of_the_active_parameters_and_nothing_else_is_kept() -> None:
    vector = np.random.default_rng(0).normal(size=LAYOUT.size).astype(np.float32)
    active = active_places(LAYOUT, [A_ENDING])
    share = share_of_active(LAYOUT, Compression(0.1), [A_ENDING])
    update = compress(LAYOUT, np.where(active, vector, np.float32(0)), share)
    assert update.ternary.count == 20, "a tenth of B's 200"
    assert update.ternary.positions.min() >= 120
    assert share_of_active(LAYOUT, Compression(0.1), []) == Compression(0.1)
