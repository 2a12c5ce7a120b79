"""An attack on the noise of private versions: what canaries show stays below the account's epsilon, and a build without noise is caught."""

import numpy as np
import pytest

from benchmarks.privacy.audit import audit, lower_bound
from compeft_core.privacy import clipping


@pytest.mark.parametrize("multiplier", [0.7, 1.0, 2.0])
def test_what_an_attacker_shows_stays_below_the_claimed_epsilon(multiplier: float) -> None:
    found = audit(multiplier)
    assert 0 < found.shown <= found.claimed


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_build_whose_noise_is_left_out_or_too_small_is_caught(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    real = clipping.rounded_gaussian
    monkeypatch.setattr(clipping, "rounded_gaussian", lambda *arguments: np.rint(real(*arguments) * share).astype(np.int64))
    found = audit(1.0)
    assert found.shown > found.claimed


def test_half_of_the_guesses_right_show_nothing_and_all_right_show_much() -> None:
    assert lower_bound(1000, 1000, 500) == 0
    assert lower_bound(1000, 100, 100) > 3
    assert lower_bound(1000, 100, 90) < lower_bound(1000, 100, 100)
