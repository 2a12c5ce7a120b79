"""Audit of the noise in one run: many canaries, each in or out by a coin, and guesses from the published version (Steinke, Nasr and
Jagielski, arXiv 2305.08846).

A canary is a client whose update lies in entries of its own and is as long as the clip; one that is out contributes zero. The attacker
knows all updates and the clip, sees the compressed step that clients fetch, and guesses the canaries that it is surest of.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from compeft_core import Compression, Layout, compress, densify, encoding_of, layout_of
from compeft_core.privacy.clipping import Noise, private_mean
from compeft_server.privacy.accountant import NoisyRelease, epsilon_of

ENTRIES = 8
"""Entries of one canary."""
CLIP, DELTA, CONFIDENCE = 0.5, 1e-5, 0.95


@dataclass(frozen=True, slots=True)
class AuditFigures:
    """claimed: epsilon of the account at DELTA; shown: the lower bound at CONFIDENCE that the guesses give; `right` of `guesses`."""

    claimed: float
    shown: float
    guesses: int
    right: int


def audit(multiplier: float, canaries: int = 2000, seed: int = 0, density: float = 1.0) -> AuditFigures:
    """Audit one version with noise of this multiplier. seed: of coins and signs, not of the noise, which is as secret as ever."""
    rng = np.random.default_rng(seed)
    layout = layout_of({"canaries": (canaries, ENTRIES)})
    inside, signs = rng.random(canaries) < 0.5, rng.choice([-1, 1], (canaries, ENTRIES))
    updates = [_canary(layout, number, signs[number], there) for number, there in enumerate(inside.tolist())]
    mean = private_mean(updates, [1.0] * canaries, Noise(CLIP, multiplier, rng.bytes(32)))
    step = densify(compress(layout, mean, Compression(density, "norm")))
    scores = (step.reshape(canaries, ENTRIES) * signs).sum(1)
    middle = CLIP / ENTRIES**0.5 * ENTRIES / canaries / 2
    return max(
        (_figures(scores - middle, inside, part, multiplier) for part in (0.02, 0.05, 0.1, 0.3, 1.0)), key=lambda f: f.shown
    )


def _canary(layout: Layout, number: int, signs: np.ndarray, there: bool):
    vector = np.zeros(layout.size, np.float32)
    if there:
        vector[ENTRIES * number : ENTRIES * (number + 1)] = signs * np.float32(CLIP / ENTRIES**0.5)
    return encoding_of(compress(layout, vector, Compression(ENTRIES / layout.size)))


def _figures(scores: np.ndarray, inside: np.ndarray, part: float, multiplier: float) -> AuditFigures:
    chosen = np.argsort(-np.abs(scores), kind="stable")[: int(part * scores.size)]
    right = int(((scores[chosen] > 0) == inside[chosen]).sum())
    claimed = epsilon_of([NoisyRelease(multiplier)], DELTA)
    return AuditFigures(claimed, lower_bound(scores.size, chosen.size, right), chosen.size, right)


def lower_bound(canaries: int, guesses: int, right: int) -> float:
    """The largest epsilon that this number of right guesses refutes at CONFIDENCE; 0 if it refutes no epsilon."""
    low, high = 0.0, 20.0
    if _p_value(canaries, guesses, right, low) > 1 - CONFIDENCE:
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _p_value(canaries, guesses, right, middle) <= 1 - CONFIDENCE else (low, middle)
    return low


def _p_value(canaries: int, guesses: int, right: int, epsilon: float) -> float:
    """An upper bound of the probability of so large a number of right guesses if the mechanism is (epsilon, DELTA)-private: theorem 5.2."""
    q = 1 / (1 + np.exp(-epsilon))
    tails = np.cumsum(binom.pmf(right - np.arange(1, right + 1), guesses, q))
    alpha = float((tails / np.arange(1, right + 1)).max(initial=0.0))
    return float(min(1.0, binom.sf(right - 1, guesses, q) + 2 * canaries * DELTA * alpha))


__all__ = ["AuditFigures", "audit", "lower_bound"]
