"""A centred head predicts what it predicted, and needs fewer entries."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_core import layout_of, unflatten
from compeft_core.centred_heads import centred
from compeft_core.errors import InputError

HEADS = ("head.bias", "head.weight")


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_a_softmax_over_classes_does_not_see_the_difference(classes: int, features: int, seed: int) -> None:
    layout = layout_of({"head.weight": (classes, features), "head.bias": (classes,), "q.lora_A.weight": (2, 3)})
    rng = np.random.default_rng(seed)
    vector = rng.normal(0, 1, layout.size).astype(np.float32)
    before, after = unflatten(layout, vector), unflatten(layout, centred(layout, vector, HEADS))
    rows = rng.normal(0, 1, (5, features)).astype(np.float32)
    logits = [rows @ arrays["head.weight"].T + arrays["head.bias"] for arrays in (before, after)]
    shift = logits[0] - logits[1]
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1], shift.shape), atol=1e-4)
    np.testing.assert_array_equal(before["q.lora_A.weight"], after["q.lora_A.weight"])


def test_the_given_vector_is_not_written_to() -> None:
    layout = layout_of({"head.weight": (3, 2)})
    vector = np.arange(6, dtype=np.float32)
    assert centred(layout, vector, ["head.weight"]).tolist() == [-2, -2, 0, 0, 2, 2]
    assert vector.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("name", "found"), [("hed.weight", "the model has no such array"), ("scale", "it is a scalar")])
def test_a_name_that_is_no_head_is_refused(name: str, found: str) -> None:
    layout = layout_of({"head.weight": (3, 2), "scale": ()})
    with pytest.raises(InputError, match=f"invalid centred head {name!r}: {found}"):
        centred(layout, np.zeros(7, np.float32), [name])
