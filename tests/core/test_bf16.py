import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_core import NotFiniteError, bf16
from tests.core.oracle import to_bf16


@given(st.floats(-(2.0**126), 2.0**126, width=32))
def test_rounds_to_the_nearest_and_ties_to_even(value: float) -> None:
    assert bf16.unpack(bf16.pack(np.array([value], np.float32))).tolist() == [to_bf16(value)]


def test_there_is_one_zero() -> None:
    assert bf16.pack(np.array([0.0, -0.0, -1e-45], np.float32)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.finfo(np.float32).max])
def test_what_is_not_finite_or_becomes_infinite_is_refused(value: float) -> None:
    with pytest.raises(NotFiniteError):
        bf16.pack(np.array([1.0, value], np.float32))
