"""A density chosen for a budget: what is then really encoded fits, and hardly more would have."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_core import Compression, compress, encode, layout_of
from compeft_core.budget import HIGHEST, density_for, payload_bytes
from compeft_core.errors import InputError


@given(size=st.integers(2_000, 300_000), density=st.floats(1e-3, 1.0), dense=st.integers(0, 500), seed=st.integers(0, 99))
def test_an_update_takes_no_more_than_foretold(size: int, density: float, dense: int, seed: int) -> None:
    layout = layout_of({"a": (size,), "head": (dense,)}, dense=["head"])
    vector = np.random.default_rng(seed).standard_normal(layout.size).astype(np.float32)
    assert len(encode(compress(layout, vector, Compression(density)))) <= payload_bytes(layout, density)


@given(size=st.integers(100_000, 10**9), density=st.floats(1e-3, 0.6))
def test_the_density_for_the_bytes_of_a_density_is_that_density(size: int, density: float) -> None:
    layout = layout_of({"a": (size,)})
    budget = payload_bytes(layout, density)
    assert density_for(layout, budget) == pytest.approx(density, rel=2e-2)
    assert payload_bytes(layout, density_for(layout, budget)) <= budget


def test_more_than_enough_is_the_density_of_the_largest_update() -> None:
    assert density_for(layout_of({"a": (1000,)}), 10**6) == HIGHEST


def test_a_budget_below_the_dense_part_is_refused_with_both_figures() -> None:
    layout = layout_of({"a": (1000,), "head": (100,)}, dense=["head"])
    with pytest.raises(InputError, match=r"budget of 150 bytes is below the least possible, 2[67][0-9]: 200 are dense"):
        density_for(layout, 150)
    with pytest.raises(InputError, match="nothing here is ternary"):
        density_for(layout_of({"head": (3,)}, dense=["head"]), 100)
