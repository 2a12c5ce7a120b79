"""What every merge method must give, from dense float64 matrices and the definitions of docs/format.md; slow on purpose."""

import hashlib
import math

import numpy as np

from compeft_core import Encoded, MergeParameters, decode, densify
from compeft_core.merging.inputs import USUAL
from tests.core import oracle

ALONE = {
    "dare": MergeParameters(drop=0.0),
    "dare_ties": MergeParameters(drop=0.0),
    "krum": MergeParameters(byzantine=0),
    "multi_krum": MergeParameters(byzantine=0),
}
"""Parameters under which a method works for a single update, where its own would not."""


def merged(
    method: str,
    updates: list[Encoded],
    weights: list[float],
    coefficient: float = 1.0,
    parameters: MergeParameters = USUAL,
) -> np.ndarray:
    """Float32, to the last bit."""
    if method in ("average", "task_arithmetic", "ties"):
        return oracle.merged(method, updates, weights, coefficient)
    pairs = [(e, w) for e, w in zip(updates, weights, strict=True) if w]
    pairs.sort(key=lambda pair: (hashlib.sha256(pair[0].blob).digest(), pair[1]))
    share = 1.0 if method == "consensus" else math.fsum(w for _, w in pairs)
    rows = np.stack([densify(decode(e)).astype(np.float64) for e, _ in pairs])
    shares = [w / share for _, w in pairs]
    front = pairs[0][0].ternary_size
    ternary = ORACLES[method]([e for e, _ in pairs], rows[:, :front], shares, parameters)
    dense = (DENSE.get(method) or weighted)(rows[:, front:], shares, parameters)
    return (coefficient * np.concatenate([ternary, dense])).astype(np.float32)


def weighted(rows: np.ndarray, shares: list[float], _parameters: object = None) -> np.ndarray:
    return sum((w * row for w, row in zip(shares, rows, strict=True)), np.zeros(rows.shape[1]))


def tallies(magnitudes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(2, d): over rows that are + and - at a position, the sum of what they weigh there."""
    result = np.zeros((2, rows.shape[1]))
    for magnitude, row in zip(magnitudes, rows, strict=True):
        result[0] += np.where(row > 0, magnitude, 0.0)
        result[1] += np.where(row < 0, magnitude, 0.0)
    return result


def thinned(encodings: list[Encoded], rows: np.ndarray, parameters: MergeParameters) -> np.ndarray:
    """Rows without the entries that DARE drops, not yet rescaled."""
    left = np.zeros_like(rows)
    for i, (e, row) in enumerate(zip(encodings, rows, strict=True)):
        for block in range(0, row.size, 65536):
            at = block + np.flatnonzero(row[block : block + 65536])
            seed = b"compeft.dare.v1\0" + parameters.seed.to_bytes(8, "little") + hashlib.sha256(e.blob).digest()
            stream = hashlib.shake_256(seed + (block // 65536).to_bytes(4, "little")).digest(4 * at.size)
            words = [int.from_bytes(stream[4 * j : 4 * j + 4], "little") for j in range(at.size)]
            kept = at[[word / 2**32 >= parameters.drop for word in words]]
            left[i, kept] = row[kept]
    return left


def dare(encodings: list[Encoded], rows: np.ndarray, shares: list[float], parameters: MergeParameters) -> np.ndarray:
    left = thinned(encodings, rows, parameters)
    plus, minus = tallies(column(shares) * np.abs(left) / (1 - parameters.drop), left)
    return plus - minus


def dare_ties(encodings: list[Encoded], rows: np.ndarray, shares: list[float], parameters: MergeParameters) -> np.ndarray:
    left = thinned(encodings, rows, parameters)
    plus, minus = tallies(column(shares) * np.abs(left) / (1 - parameters.drop), left)
    more, less = tallies(column(shares) * np.ones_like(left), left)
    majority = np.sign(plus - minus).sum() > 0
    elected = (plus > minus) | ((plus == minus) & majority)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.where(elected, plus / more, -minus / less), posinf=0, neginf=0)


def consensus(_encodings: object, rows: np.ndarray, shares: list[float], parameters: MergeParameters) -> np.ndarray:
    own = column(shares) * rows
    plus, minus = tallies(column(shares) * np.abs(rows), rows)
    total = plus - minus
    masks = (own != 0) & (np.abs(own) >= parameters.threshold * np.abs(total - own))
    return np.where(masks.sum(axis=0) >= min(parameters.agreement, len(rows)), total, 0.0)


def emr(_encodings: object, rows: np.ndarray, shares: list[float], _parameters: object) -> np.ndarray:
    plus, minus = tallies(column(shares) * np.abs(rows), rows)
    return np.where(plus > minus, np.maximum(rows, 0).max(axis=0), np.minimum(rows, 0).min(axis=0))


def sign_majority(encodings: list[Encoded], rows: np.ndarray, shares: list[float], parameters: MergeParameters) -> np.ndarray:
    scales = np.stack([np.repeat(e.scales, np.diff(e.group_ends, prepend=0)).astype(np.float64) for e in encodings])
    plus, minus = tallies(column(shares) * np.ones_like(rows), rows)
    votes = np.where(plus - minus > parameters.quorum, 1.0, np.where(minus - plus > parameters.quorum, -1.0, 0.0))
    return votes * np.median(scales, axis=0)


def middle(rows: np.ndarray, left_out: int) -> np.ndarray:
    """The mean of what is left of each sorted column without `left_out` values at either end."""
    kept = np.sort(rows, axis=0)[left_out : len(rows) - left_out]
    return weighted(kept, [1.0] * len(kept)) / len(kept)


def trimmed_mean(_encodings: object, rows: np.ndarray, _shares: object, parameters: MergeParameters) -> np.ndarray:
    return middle(rows, math.floor(parameters.trim * len(rows)))


def median(_encodings: object, rows: np.ndarray, _shares: object, _parameters: object) -> np.ndarray:
    return middle(rows, (len(rows) - 1) // 2)


def column(shares: list[float]) -> np.ndarray:
    return np.array(shares)[:, None]


ORACLES = {
    "dare": dare,
    "dare_ties": dare_ties,
    "consensus": consensus,
    "emr": emr,
    "sign_majority": sign_majority,
    "trimmed_mean": trimmed_mean,
    "median": median,
}
"""Krum is not here: it chooses by sums of distances, whose last bits are nobody's business; see test_merge_robust.py."""
DENSE = {
    "sign_majority": lambda rows, _shares, parameters: median(None, rows, None, parameters),
    "trimmed_mean": lambda rows, _shares, parameters: trimmed_mean(None, rows, None, parameters),
    "median": lambda rows, _shares, parameters: median(None, rows, None, parameters),
}
