"""Noise from a secret seed: its distribution, its vectors, and what it refuses."""

import hashlib

import numpy as np
import pytest
from scipy import stats

from compeft_core.errors import InputError
from compeft_core.privacy import gaussian
from compeft_core.privacy.gaussian import rounded_gaussian


def test_the_inverse_of_the_normal_distribution_agrees_with_scipy_to_the_last_bits() -> None:
    p = np.concatenate([np.logspace(-15.9, -1, 400), np.linspace(0.01, 0.99, 999), 1 - np.logspace(-15.6, -1, 400)])
    p = p[p != 0.5]
    found = np.array([gaussian._normal(x) for x in p])
    np.testing.assert_allclose(found, stats.norm.ppf(p), rtol=2e-15)


def test_vectors_of_a_seed_stay() -> None:
    assert rounded_gaussian(bytes(32), b"values", 4096.0, 4).tolist() == [-7422, -6413, 3739, -2507]
    found = rounded_gaussian(bytes(range(32)), b"values", 5000.0, 2**20 + 3)
    assert hashlib.sha256(found.astype("<i8").tobytes()).hexdigest() == VECTOR


def test_numbers_are_normal_of_the_deviation_and_independent_of_each_other() -> None:
    found = rounded_gaussian(b"\x07" * 32, b"values", 4096.0, 400_000) / 4096.0
    assert stats.kstest(found, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.01


def test_another_domain_or_seed_gives_other_numbers() -> None:
    one, other = (rounded_gaussian(bytes(32), domain, 4096.0, 1000) for domain in (b"values", b"count"))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.15
    assert (one != rounded_gaussian(b"\x01" * 32, b"values", 4096.0, 1000)).mean() > 0.99


@pytest.mark.parametrize(("seed", "domain", "sigma"), [(bytes(31), b"", 1.0), (bytes(32), bytes(13), 1.0), (bytes(32), b"", 0.0)])
def test_a_short_seed_a_long_domain_and_no_deviation_are_refused(seed: bytes, domain: bytes, sigma: float) -> None:
    with pytest.raises(InputError, match="expected"):
        rounded_gaussian(seed, domain, sigma, 1)


VECTOR = "c6dd45e23ca8cd094e86741aae5cb0ef6d528a8b4fd4fd59fca84afa7028fd8b"
