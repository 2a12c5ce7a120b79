"""What the kernels must compute, the slow way: sorting, Python loops and dense vectors."""

import hashlib
import math

import numpy as np

from compeft_core import Compression, Encoded, Layout, Update, decode, densify


def kept_positions(front: np.ndarray, density: float) -> np.ndarray:
    """Largest magnitudes, lowest positions first among equals, never a zero."""
    wanted = min(front.size, max(1, math.floor(density * front.size + 0.5)))
    order = np.argsort(-np.abs(front.astype(np.float64)), kind="stable")[:wanted]
    return np.sort(order[front[order] != 0])


def fixed_sum(values: np.ndarray) -> float:
    """The sum of docs/format.md, one addition at a time."""
    total = 0.0
    for start in range(0, len(values), 65536):
        lanes = [0.0] * 256
        for i, value in enumerate(values[start : start + 65536].tolist()):
            lanes[i % 256] += value
        width = 128
        while width:
            for j in range(width):
                lanes[j] += lanes[j + width]
            width //= 2
        total += lanes[0]
    return total


def scale_of(group: np.ndarray, kept: np.ndarray, settings: Compression) -> np.float32:
    """Scale of one group from its values and its kept values."""
    if not len(kept):
        return np.float32(0)
    wide = group.astype(np.float64)
    n, squares = len(group), fixed_sum(wide * wide)
    norm, mean = math.sqrt(squares / len(kept)), fixed_sum(np.abs(kept).astype(np.float64)) / len(kept)
    if settings.scale == "norm":
        exact = norm
    elif settings.scale == "mean_magnitude":
        exact = mean
    elif settings.scale == "bounded_norm":
        exact = min(norm, 1.5 * mean)
    else:
        total = fixed_sum(wide)
        exact = math.sqrt(max(0.0, (squares - total * total / n) / (n - 1))) if n > 1 else 0.0
    return np.float32(settings.factor * exact)


def compressed(layout: Layout, vector: np.ndarray, settings: Compression) -> np.ndarray:
    """The dense vector that a compressed one stands for (scales neither tiny nor huge)."""
    front = vector[: layout.ternary_size]
    positions = kept_positions(front, settings.density)
    sizes = [t.size for t in layout.tensors if t.kind == "ternary" and t.size]
    sizes = [sum(sizes)] if settings.granularity == "vector" else sizes
    result, start = np.zeros(layout.size, np.float32), 0
    for size in sizes:
        group = positions[(positions >= start) & (positions < start + size)]
        result[group] = np.sign(front[group]) * scale_of(front[start : start + size], front[group], settings)
        start += size
    result[layout.ternary_size :] = [to_bf16(x) for x in vector[layout.ternary_size :].tolist()]
    return result


def to_bf16(value: float) -> float:
    """Nearest number with 8 significant bits, ties to even: Python's `round` on the scaled significand."""
    if value == 0:
        return 0.0
    exponent = max(math.frexp(value)[1], -125) - 8
    return math.ldexp(round(math.ldexp(value, -exponent)), exponent) + 0.0


def merged(method: str, updates: list[Encoded], weights: list[float], coefficient: float = 1.0) -> np.ndarray:
    """The merge of docs/format.md on dense float64 vectors."""
    pairs = [(e, w) for e, w in zip(updates, weights, strict=True) if w]
    pairs.sort(key=lambda pair: (hashlib.sha256(pair[0].blob).digest(), pair[1]))
    items = [(w, densify(decode(e)).astype(np.float64)) for e, w in pairs]
    share = 1.0 if method == "task_arithmetic" else math.fsum(w for w, _ in items)
    terms = [(w / share, x) for w, x in items]
    plus, minus, more, less = (np.zeros(updates[0].size) for _ in range(4))
    for w, x in terms:
        plus[x > 0] += w * x[x > 0]
        minus[x < 0] += w * -x[x < 0]
        more[x > 0] += w
        less[x < 0] += w
    values = plus - minus
    if method == "ties":
        front = slice(0, updates[0].ternary_size)
        majority = np.sign(plus[front] - minus[front]).sum() > 0
        elected = (plus > minus) | ((plus == minus) & majority)
        with np.errstate(invalid="ignore"):
            values = np.nan_to_num(np.where(elected, plus / more, -minus / less))
    dense = slice(updates[0].ternary_size, None)
    values[dense] = sum((w * x[dense] for w, x in terms), np.zeros(updates[0].dense_size))
    return (coefficient * values).astype(np.float32)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the last bit, signs of zeros included."""
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def dense_of(update: Update) -> np.ndarray:
    """`densify`, one entry at a time."""
    t = update.ternary
    vector = np.zeros(t.size + len(update.dense), np.float32)
    for position, negative in zip(t.positions.tolist(), t.negative.tolist(), strict=True):
        scale = t.scales[np.searchsorted(t.group_ends, position, side="right")]
        vector[position] = -scale if negative else scale
    vector[t.size :] = update.dense
    return vector
