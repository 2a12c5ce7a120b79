"""Clipping and exact sums: no contribution is longer than the clip, whatever a client sends; the order is clip, noise, compress."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_core import Compression, compress, decode, densify, encoding_of, layout_of
from compeft_core.errors import InputError, NotFiniteError
from compeft_core.privacy.clipping import (
    Noise,
    clipped,
    noised,
    noised_count,
    norm_of,
    on_grid,
    private_mean,
    unit_of,
    update_norm,
)
from compeft_core.privacy.terms import ClientPrivacy, bit_noise, next_clip, value_noise

LAYOUT = layout_of({"a": (30, 20), "b": (8, 8), "head": (5, 4)}, dense=["head"])
NOISE = Noise(0.5, 1.0, b"\x03" * 32)
TINY = Noise(0.5, 1e-9, b"\x03" * 32)


def update(seed: int, size: float = 1.0, density: float = 0.2):
    vector = np.random.default_rng(seed).normal(0, size, LAYOUT.size).astype(np.float32)
    return encoding_of(compress(LAYOUT, vector, Compression(density, "norm", granularity="tensor")))


@given(st.floats(1e-6, 1e6), st.integers(0, 99), st.floats(1e-3, 1e3))
def test_a_clipped_vector_is_never_longer_than_the_clip(size: float, seed: int, clip: float) -> None:
    vector = np.random.default_rng(seed).normal(0, size, 200).astype(np.float32)
    found, within = clipped(vector, clip)
    assert norm_of(found) <= clip
    assert within == (norm_of(vector) <= clip * (1 - 2.0**-40))
    if within:
        np.testing.assert_array_equal(found, vector)
    else:
        assert norm_of(found) > clip * (1 - 1e-5)


@given(st.floats(1e-3, 1e3), st.integers(0, 50), st.floats(0, 5))
def test_one_client_moves_a_private_sum_by_at_most_the_clip_whatever_it_sends(size: float, seed: int, weight: float) -> None:
    others = [update(1), update(2)]
    with_it = private_mean([*others, update(seed, size)], [1.0, 1.0, weight], TINY).astype(np.float64) * 3
    without = private_mean([*others, update(seed, size)], [1.0, 1.0, 0.0], TINY).astype(np.float64) * 3
    assert np.linalg.norm(with_it - without) <= TINY.clip * (1 + 1e-5)


def test_a_private_mean_is_the_mean_of_clipped_updates_plus_noise() -> None:
    updates = [update(seed, 0.1 * (seed + 1)) for seed in range(4)]
    exact = np.zeros(LAYOUT.size)
    for encoded in updates:
        exact += densify(decode(encoded)).astype(np.float64) * min(1.0, NOISE.clip / update_norm(encoded))
    found = private_mean(updates, [1.0] * 4, NOISE)
    left = found * 4 - exact
    assert abs(left.std() / NOISE.deviation - 1) < 0.08
    quiet = private_mean(updates, [1.0] * 4, TINY)
    np.testing.assert_allclose(quiet, exact / 4, atol=1e-6)
    np.testing.assert_array_equal(found, private_mean(updates[::-1], [1.0] * 4, NOISE))


def test_noise_of_a_client_is_added_to_every_value_on_the_grid_of_the_clip() -> None:
    vector, _ = clipped(np.random.default_rng(0).normal(0, 1, LAYOUT.size).astype(np.float32), NOISE.clip)
    found = noised(vector, NOISE)
    unit = unit_of(NOISE.deviation)
    assert np.count_nonzero(found - vector) > 0.99 * LAYOUT.size
    assert 2**12 <= NOISE.deviation / unit < 2**13
    np.testing.assert_array_equal(found / unit, np.rint(found / unit))


def test_rounding_to_the_grid_makes_no_value_larger() -> None:
    values = np.random.default_rng(1).normal(0, 1, 1000).astype(np.float32)
    assert (np.abs(on_grid(values, 0.7, 2.0**-10) * 2.0**-10) <= np.abs(values) * 0.7).all()


def test_an_adaptive_clip_goes_to_the_quantile_of_the_norms() -> None:
    terms = ClientPrivacy(clip=10.0, noise_multiplier=1.0, delta=1e-5, target_quantile=0.5)
    norms = np.random.default_rng(2).lognormal(0, 0.3, 100)
    clip = terms.clip
    for number in range(60):
        within = noised_count(int((norms <= clip).sum()), bit_noise(terms, 100), number.to_bytes(32, "big"))
        clip = next_clip(terms, clip, within, 100)
    assert abs(clip / np.median(norms) - 1) < 0.15


def test_values_and_count_together_are_as_noisy_as_the_terms_say() -> None:
    terms = ClientPrivacy(clip=1.0, noise_multiplier=1.1, delta=1e-5, target_quantile=0.5)
    for clients in (1, 10, 100, 1000):
        joint = (value_noise(terms, clients) ** -2 + (2 * bit_noise(terms, clients)) ** -2) ** -0.5
        assert math.isclose(joint, 1.1)
    fixed = ClientPrivacy(clip=1.0, noise_multiplier=1.1, delta=1e-5)
    assert value_noise(fixed, 10) == 1.1
    assert next_clip(fixed, 3.0, 0, 10) == 3.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip": 0.0},
        {"noise_multiplier": -1.0},
        {"delta": 1.0},
        {"epsilon": math.inf},
        {"where": "here"},
        {"target_quantile": 1.0},
        {"target_quantile": 0.5, "where": "local"},
    ],
)
def test_terms_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ClientPrivacy(**({"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5} | wrong))


def test_a_vector_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NotFiniteError):
        clipped(np.array([1, np.nan], np.float32), 1.0)
