"""Ways of writing one LoRA expert down: each gives its bytes and what comes back, as differences of the base's modules.

Bytes are those of the numbers with all side information; names, shapes and signatures are left out for every way alike (`pack` adds
them). None reads data, except the base-aware ones, whose module weights come from one pass of the base over generic text.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.folding import Differences, LowRank, differences_of
from benchmarks.product.evidence import WEIGHTS, Expert
from compeft_client.packing.base_statistics import BaseStatistics, product_weights
from compeft_client.packing.pack import PackSettings, load_compressed, save_compressed
from compeft_core import product
from compeft_core.product.encode import Tuning
from compeft_proto.lora_modules import LoraModule

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Coded:
    """size_bytes: of all numbers. differences: what is decoded. quality: of product space, what its encoder says was kept."""

    size_bytes: int
    differences: Differences
    quality: float | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """An expert with its adapter read: modules in the order of their names; `weights`: one a module, from the base's statistics."""

    expert: Expert
    state: Mapping[str, Floats]
    modules: Mapping[str, LowRank]
    weights: Sequence[float] | None = None

    @property
    def bf16_bytes(self) -> int:
        """Two bytes a parameter."""
        return 2 * sum(array.size for array in self.state.values())


def problem_of(expert: Expert, base: BaseStatistics | None = None) -> Problem:
    """Read an expert. base: what weighs its modules."""
    state = expert.state()
    modules = {name: pair for name, pair in sorted(differences_of(state, expert.scale).items()) if isinstance(pair, LowRank)}
    known = [LoraModule(name, "", "", pair.right.shape, pair.left.shape) for name, pair in modules.items()]
    return Problem(expert, state, modules, None if base is None else product_weights(base, known))


def product_space(times: float, problem: Problem) -> Coded:
    """This project's codec at a budget of bf16 / times."""
    return _product(problem, times, None, Tuning())


def product_space_base_aware(times: float, most: float, problem: Problem) -> Coded:
    """The same, with a weight for each module by how much the base's output minds an error there.

    most: how far the last factor may restore the projection, in the weighted space.
    """
    if problem.weights is None:
        raise ValueError(f"{problem.expert.name} was read without the base's statistics")
    return _product(problem, times, problem.weights, Tuning(whole_gain=most))


def _product(problem: Problem, times: float, weights: Sequence[float] | None, tuning: Tuning) -> Coded:
    pairs = list(problem.modules.values())
    given = [product.LowRank(pair.left, pair.right, pair.scale) for pair in pairs]
    encoded = product.encode_product(
        given, product.ProductSettings(budget=int(problem.bf16_bytes / times)), weights, tuning=tuning
    )
    factors = product.decode_product(encoded.blob, [(pair.left.shape[0], pair.right.shape[1]) for pair in pairs])
    names = zip(problem.modules, pairs, factors, strict=True)
    differences = {name: LowRank(f.left, f.right, pair.scale) for name, pair, f in names if f.left.shape[1]}
    return Coded(len(encoded.blob), differences, encoded.quality)


def ternary(density: float, start_known: bool, problem: Problem) -> Coded:
    """ComPEFT's way as `compeft pack --density` writes it: top-k signs and one scale a tensor kind, entropy coded by context."""
    folder = problem.expert.folder
    with tempfile.TemporaryDirectory() as scratch:
        initial, file = Path(scratch) / "initial", Path(scratch) / "expert"
        initial.mkdir()
        shutil.copy(folder / "initial.safetensors", initial / WEIGHTS)
        shutil.copy(folder / "adapter_config.json", initial)
        init = str(initial) if start_known else None
        packed = save_compressed(folder, file, PackSettings(density=density, codec="context", init=init))
        loaded = load_compressed(file, init=init)
    state = {name: np.asarray(array, np.float32) for name, array in loaded.tensors[WEIGHTS].items()}
    return Coded(sum(len(part.payload) for part in packed.parts), differences_of(state, problem.expert.scale))


def loraquant(ratio: float, bits: int, problem: Problem) -> Coded:
    """LoRAQuant's way (arXiv 2510.26690): the leading singular components that hold `ratio` of the energy at `bits` bits, the others at 1.

    As its code has it: s split evenly between both sides, groups of 128 along each vector, round to nearest between a group's least
    and largest value (scale of 16 bits, zero of `bits`), 1 bit as sign times mean magnitude (16 bits). Its search by gradient steps
    is replaced by the best of 32 ranges a group of each.
    """
    size, differences = 0, dict[str, LowRank]()
    for name, pair in problem.modules.items():
        left, right = _even_components(pair)
        energy = (left**2).sum(0) ** 2
        high = int((np.cumsum(energy) < ratio * energy.sum()).sum()) + 1
        sides, costs = zip(*(_mixed(side, high, bits) for side in (left, right)), strict=True)
        differences[name] = LowRank(_float32(sides[0]), _float32(sides[1].T))
        size += sum(costs)
    return Coded((size + 7) // 8, differences)


def int4(problem: Problem) -> Coded:
    """A and B at 4 bits, round to nearest, the best range of 32 for each block of 64 along the longer side; scale of 16 bits."""
    return _by_factor(partial(_uniform, bits=4, group=64), problem)


def nf4(problem: Problem) -> Coded:
    """A and B at the 16 levels of NF4 (Dettmers et al., 2023), blocks of 64 along the longer side; largest magnitude in 16 bits."""
    return _by_factor(_normal_float, problem)


def truncated_svd(times: float, problem: Problem) -> Coded:
    """Singular components of all modules in bfloat16, the largest first, as many as bf16 / times bytes hold; 2 bytes a vector entry."""
    parts = {name: _even_components(pair) for name, pair in problem.modules.items()}
    ranked = sorted((-float((left[:, j] ** 2).sum()), name, j) for name, (left, _) in parts.items() for j in range(left.shape[1]))
    room, kept = int(problem.bf16_bytes / times), dict[str, list[int]]()
    size = 0
    for _, name, number in ranked:
        cost = 2 * sum(side.shape[0] for side in parts[name])
        if size + cost <= room:
            size += cost
            kept.setdefault(name, []).append(number)
    chosen = {name: [_bfloat16(side[:, numbers]) for side in parts[name]] for name, numbers in kept.items()}
    return Coded(size, {name: LowRank(left, np.ascontiguousarray(right.T)) for name, (left, right) in chosen.items()})


def bitdelta(problem: Problem) -> Coded:
    """BitDelta's way (arXiv 2402.10193) on the dense dW: its sign, and its mean magnitude in 16 bits; no distillation."""
    size, differences = 0, dict[str, Floats]()
    for name, pair in problem.modules.items():
        dense = pair.dense().numpy()
        differences[name] = np.where(dense > 0, 1, -1).astype(np.float32) * np.float16(np.abs(dense).mean()).astype(np.float32)
        size += (dense.size + 7) // 8 + 2
    return Coded(size, differences)


def _even_components(pair: LowRank) -> tuple[Doubles, Doubles]:
    """U sqrt(s) (out, rank) and V sqrt(s) (in, rank) of scale * left @ right, float64, s falling."""
    q_left, r_left = np.linalg.qr(pair.left.astype(np.float64))
    q_right, r_right = np.linalg.qr(pair.right.T.astype(np.float64))
    u, s, vt = np.linalg.svd(pair.scale * r_left @ r_right.T)
    return q_left @ u * np.sqrt(s), q_right @ vt.T * np.sqrt(s)


def _mixed(side: Doubles, high: int, bits: int) -> tuple[Doubles, int]:
    """Columns before `high` at `bits` bits, the others at 1; and the bits that takes."""
    columns, cost = [], 0
    for number in range(side.shape[1]):
        column, spent = _uniform(side[:, number], bits, 128) if number < high else _signs(side[:, number], 128)
        columns.append(column)
        cost += spent
    return np.stack(columns, 1), cost


def _signs(vector: Doubles, group: int) -> tuple[Doubles, int]:
    blocks = _blocks(vector, group)
    sums = np.abs(blocks).sum(1)
    means = np.float16(sums / _sizes(vector, group)).astype(np.float64)
    return np.where(blocks > 0, means[:, None], -means[:, None]).ravel()[: vector.size], vector.size + 16 * len(blocks)


def _uniform(vector: Doubles, bits: int, group: int) -> tuple[Doubles, int]:
    """Asymmetric round to nearest: of 32 shrunken ranges of each block the one with the least squared error."""
    blocks, levels = _blocks(vector, group), 2**bits - 1
    least, most = np.minimum(blocks.min(1), 0.0), np.maximum(blocks.max(1), 0.0)
    best, error = np.zeros_like(blocks), np.full(len(blocks), np.inf)
    for shrink in np.linspace(1, 0.3, 32):
        steps = np.float16(shrink * (most - least) / levels).astype(np.float64)
        steps = np.where(steps > 0, steps, 1.0)[:, None]
        zeros = np.clip(np.round(-shrink * least[:, None] / steps), 0, levels)
        values = (np.clip(np.round(blocks / steps) + zeros, 0, levels) - zeros) * steps
        errors = ((values - blocks) ** 2).sum(1)
        better = errors < error
        best[better], error[better] = values[better], errors[better]
    return best.ravel()[: vector.size], vector.size * bits + (16 + bits) * len(blocks)


NF4_LEVELS = """-1 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334
-0.09105003625154495 0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224 0.44070982933044434
0.5626170039176941 0.7229568362236023 1"""
NF4 = np.array(NF4_LEVELS.split(), np.float64)


def _normal_float(vector: Doubles) -> tuple[Doubles, int]:
    blocks = _blocks(vector, 64)
    largest = np.float16(np.abs(blocks).max(1)).astype(np.float64)
    largest = np.where(largest > 0, largest, 1.0)[:, None]
    halves = (NF4[1:] + NF4[:-1]) / 2
    return (NF4[np.searchsorted(halves, blocks / largest)] * largest).ravel()[: vector.size], 4 * vector.size + 16 * len(blocks)


def _by_factor(code: Callable[[Doubles], tuple[Doubles, int]], problem: Problem) -> Coded:
    """A and B each coded as one vector: B's columns and A's rows one after the other."""
    size, differences = 0, dict[str, LowRank]()
    for name, pair in problem.modules.items():
        left, left_bits = code(pair.left.T.ravel().astype(np.float64))
        right, right_bits = code(pair.right.ravel().astype(np.float64))
        rank = pair.right.shape[0]
        differences[name] = LowRank(_float32(left.reshape(rank, -1).T), _float32(right.reshape(rank, -1)), pair.scale)
        size += left_bits + right_bits
    return Coded((size + 7) // 8, differences)


def _blocks(vector: Doubles, size: int) -> Doubles:
    """(blocks, size), the last one filled with zeros."""
    return np.pad(vector, (0, -vector.size % size)).reshape(-1, size)


def _sizes(vector: Doubles, size: int) -> NDArray[np.int64]:
    """How many of each block's entries are the vector's."""
    return np.clip(vector.size - size * np.arange(-(-vector.size // size)), 0, size)


def _bfloat16(values: Doubles) -> Floats:
    """Rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) & np.uint64(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)


def _float32(values: Doubles) -> Floats:
    return np.ascontiguousarray(values, np.float32)


WAYS: dict[str, Callable[[Problem], Coded]] = {
    **{f"product space {times} x": partial(product_space, times) for times in (50, 100, 200, 400)},
    **{f"product space, base-aware, {times} x": partial(product_space_base_aware, times, 1.5) for times in (200, 400)},
    **{f"product space, base-aware, {times} x, cap 3": partial(product_space_base_aware, times, 3.0) for times in (200, 400)},
    "ternary 5 %, start known": partial(ternary, 0.05, True),
    "ternary 2 %, start known": partial(ternary, 0.02, True),
    "ternary 5 %, start unknown": partial(ternary, 0.05, False),
    "LoRAQuant 2 bit @ 0.9": partial(loraquant, 0.9, 2),
    "int4 of A and B": int4,
    "nf4 of A and B": nf4,
    "SVD in bf16, 200 x": partial(truncated_svd, 200),
    "SVD in bf16, 100 x": partial(truncated_svd, 100),
    "SVD in bf16, 8 x": partial(truncated_svd, 8),
    "BitDelta of dW": bitdelta,
}
AWARE = tuple(way for way in WAYS if "base-aware" in way)
"""The ways that want the base's statistics."""
