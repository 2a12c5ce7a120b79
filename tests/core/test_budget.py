"""A density chosen for a budget: what is then really encoded fits, and hardly more would have."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_core import Compression, compress, encode, layout_of
from compeft_core.budget import HIGHEST, bytes_of, density_for, payload_bytes, within
from compeft_core.errors import InputError


@given(size=st.integers(2_000, 300_000), density=st.floats(1e-3, 1.0), dense=st.integers(0, 500), seed=st.integers(0, 99))
def test_an_update_takes_no_more_than_foretold(size: int, density: float, dense: int, seed: int) -> None:
    layout = layout_of({"a": (size,), "head": (dense,)}, dense=["head"])
    vector = np.random.default_rng(seed).standard_normal(layout.size).astype(np.float32)
    assert len(encode(compress(layout, vector, Compression(density)))) <= payload_bytes(size, dense, density)


@given(size=st.integers(100_000, 10**9), density=st.floats(1e-3, 0.6))
def test_the_density_for_the_bytes_of_a_density_is_that_density(size: int, density: float) -> None:
    budget = payload_bytes(size, 0, density)
    assert density_for(size, 0, budget) == pytest.approx(density, rel=2e-2)
    assert payload_bytes(size, 0, density_for(size, 0, budget)) <= budget


def test_more_than_enough_is_the_density_of_the_largest_update() -> None:
    assert density_for(1000, 0, 10**6) == HIGHEST


def test_a_budget_lowers_a_density_and_never_raises_it() -> None:
    settings = Compression(0.05, "norm", 1.5, "tensor")
    assert within(settings, 10**6, 0, 10**6) == settings
    low = within(settings, 10**6, 0, 10_000)
    assert 0 < low.density < 0.05
    assert (low.scale, low.factor, low.granularity) == ("norm", 1.5, "tensor")


def test_a_budget_below_the_dense_part_is_refused_with_both_figures() -> None:
    with pytest.raises(InputError, match=r"budget of 150 bytes is below the least possible, 2[67][0-9]: 200 of it are dense"):
        density_for(1000, 100, 150)
    with pytest.raises(InputError, match="nothing here is ternary"):
        density_for(0, 3, 100)


@pytest.mark.parametrize(
    ("text", "octets"), [("200kB", 200_000), ("5 MB", 5_000_000), ("1.5MiB", 1_572_864), ("77", 77), ("1GB", 10**9)]
)
def test_sizes_are_read_as_people_write_them(text: str, octets: int) -> None:
    assert bytes_of(text) == octets


@pytest.mark.parametrize("text", ["", "0", "-1kB", "5 mb", "many", "1e3", "5 MB each"])
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="size"):
        bytes_of(text)
