"""A density chosen for a budget: what is then really encoded fits, and hardly more would have."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_core import Compression, compress, encode, layout_of
from compeft_core.budget import HIGHEST, TRIES, bytes_of, density_for, filled, payload_bytes, within
from compeft_core.errors import InputError
from compeft_core.format.encoding import sooner_codec


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


@given(
    size=st.integers(20_000, 200_000),
    dense=st.integers(0, 300),
    part=st.floats(0.02, 1.5),
    clustered=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_budget_is_filled_and_never_exceeded(size: int, dense: int, part: float, clustered: bool, seed: int) -> None:
    layout = layout_of({"a": (size,), "head": (dense,)}, dense=["head"])
    rng = np.random.default_rng(seed)
    vector = rng.standard_normal(layout.size).astype(np.float32)
    if clustered:
        vector[: size // 2] *= 1e-3
    asked, made = Compression(0.3), []

    def make(settings: Compression) -> bytes:
        made.append(settings.density)
        return encode(compress(layout, vector, settings))

    budget = int(part * payload_bytes(size, dense, 0.3)) + payload_bytes(size, dense, 0)
    used, blob = filled(make, len, asked, size, dense, budget)
    assert blob == encode(compress(layout, vector, used))
    assert len(blob) <= budget
    assert used.density <= 0.3
    assert used.density == 0.3 or len(blob) > 0.95 * budget - 20
    assert len(made) <= TRIES


def test_a_budget_that_nothing_made_fits_is_refused_with_the_least_that_was_made() -> None:
    with pytest.raises(InputError, match="budget of 1,000 bytes: the least that it came to was 5,000"):
        filled(lambda _: bytes(5000), len, Compression(0.3), 10_000, 0, 1000)


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
    with pytest.raises(InputError, match="has no ternary parameters"):
        density_for(0, 3, 100)


def test_the_codec_of_the_fewest_bytes_is_sooner_on_a_slow_link_and_on_many_cores() -> None:
    assert sooner_codec(0.05, 0.0, 1) == "context"
    assert sooner_codec(0.05, 125_000, 1) == "context"  # 1 Mbit/s
    assert sooner_codec(0.05, 1_250_000, 1) == "rice4"  # 10 Mbit/s
    assert sooner_codec(0.05, 1_250_000, 8) == "context"
    assert sooner_codec(0.05, 12_500_000, 8) == "rice4"
    assert sooner_codec(0.5, 400_000, 1) == "context"
    assert sooner_codec(0.005, 400_000, 1) == "rice4"


@pytest.mark.parametrize(
    ("text", "octets"), [("200kB", 200_000), ("5 MB", 5_000_000), ("1.5MiB", 1_572_864), ("77", 77), ("1GB", 10**9)]
)
def test_sizes_are_read_as_people_write_them(text: str, octets: int) -> None:
    assert bytes_of(text) == octets


@pytest.mark.parametrize("text", ["", "0", "-1kB", "5 mb", "many", "1e3", "5 MB each"])
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="size"):
        bytes_of(text)
