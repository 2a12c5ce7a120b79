"""The encoder: singular components, one step size for all of them, a trellis, a search of the step for a budget; and decoding.

Per module dW = U diag(s) V^T, weighted by w. The step d is the same for all modules (reverse water-filling: what is below the step
in its own singular basis is not sent). A component is kept if w s_j > KEEP d; its left part w U_j s_j is quantised with step d, then
the right part, the least-squares one for that left part, with step d over the left part's length. The scale code carries all
factors of a component: steps, weights and the gains that restore its projection.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import InputError, LimitError
from compeft_core.parallel import shares, spread
from compeft_core.product.blob import (
    DEFAULT_LIMITS,
    Part,
    assemble,
    is_plausible,
    parse_product,
    segments_of,
    symbols_of,
    write_stream,
)
from compeft_core.product.low_rank import LowRank, Matrix, Spectrum, spectrum_of
from compeft_core.product.quantise import quantise
from compeft_core.product.symbols import (
    MAX_ENTRY,
    MAX_SCALE,
    MIN_SCALE,
    SCALE_STEPS,
    Factors,
    ProductLimits,
    ProductSymbols,
    Shape,
    check_shapes,
    factors_of,
)

STEPS = (2.0**-24, 2.0)
"""Relative steps between which the search goes."""
FIRST_STEP = 0.003
SLOPE = 1.45
TRIES = 14
CLOSE = 0.005
"""The search ends when the logarithm of bytes or distortion is less than this below what was asked for."""


@dataclass(frozen=True, slots=True)
class ProductSettings:
    """Exactly one of: budget in bytes (never exceeded), a distortion in (0, 1) (1 - cos^2 of the weighted dW, not exceeded), or a step
    (relative to the norm of the weighted dW). max_rank: components of one module at most.
    """

    budget: int = 0
    distortion: float = 0.0
    step: float = 0.0
    max_rank: int = 256


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """How one module fared. norm: of dW; components: kept; cos2: of dW and what is decoded; projection: <dW, decoded> / ||dW||^2."""

    norm: float
    components: int
    cos2: float
    projection: float


@dataclass(frozen=True, slots=True, eq=False)
class ProductEncoded:
    """An encoding and how it compares to what was given. cos2, projection: of all modules together; step: relative, as in the settings."""

    blob: bytes
    symbols: ProductSymbols
    step: float
    cos2: float
    projection: float
    modules: tuple[ModuleFacts, ...]


@dataclass(frozen=True, slots=True)
class Tuning:
    """Constants of the encoder, chosen in docs/decisions/0015-product-space.md."""

    keep: float = 9.0
    price: float = 0.8
    rounds: int = 2
    weight_power: float = 0.25
    left_gain: float = 2.0
    right_gain: float = 5.0
    module_gain: float = 1.0
    whole_gain: float = 1.5


@dataclass(slots=True, eq=False)
class _Module:
    """One module at work: float64 `parts`, the weighted left parts of its strongest components."""

    low_rank: LowRank
    spectrum: Spectrum
    weight: float
    parts: Matrix = field(default_factory=lambda: np.zeros((0, 0)))

    def left_parts(self, count: int) -> Matrix:
        """Weighted U s of the first `count` components."""
        if self.parts.shape[1] < count:
            self.parts = self.low_rank.left @ (self.weight * self.spectrum.to_left[:, :count])
        return self.parts[:, :count]


@dataclass(frozen=True, slots=True, eq=False)
class _Coded:
    """A module's choice: int16 entries (left and right of each component), float64 scales in terms of the unweighted left @ right, and
    <dW, decoded>, ||decoded||^2 of the weighted dW.
    """

    entries: NDArray[np.int16]
    scales: Matrix
    inner: float
    square: float


def encode_product(
    modules: Sequence[LowRank],
    settings: ProductSettings,
    weights: Sequence[float] | None = None,
    *,
    workers: int = 1,
    tuning: Tuning | None = None,
) -> ProductEncoded:
    """Encode modules, in the order given. weights: how much an error in each module matters, relative to the others (1 unless given).

    Errors: InputError on shapes, weights or settings; NotFiniteError; LimitError if the budget is below what nothing at all costs.
    """
    if sum(x > 0 for x in (settings.budget, settings.distortion, settings.step)) != 1 or settings.distortion >= 1:
        raise InputError("exactly one of budget, distortion (below 1) and step must be set, and be above 0")
    if weights is not None and (len(weights) != len(modules) or not all(math.isfinite(w) and w > 0 for w in weights)):
        raise InputError(f"weights must be {len(modules)} finite numbers above 0")
    chosen = tuning or Tuning()
    return _Encoder(modules, weights, settings, chosen, workers).run()


def decode_product(
    blob: bytes | memoryview, shapes: Sequence[Shape], limits: ProductLimits = DEFAULT_LIMITS, *, workers: int = 1
) -> list[Factors]:
    """The factors of each module: left (m x r'), right (r' x n), float32, whose product stands for left @ right of the input.

    Errors: as `parse_product`.
    """
    return factors_of(parse_product(blob, shapes, limits, workers=workers))


class Rate:
    """The bytes that theory expects: a vector of n normal entries of deviation x steps takes n / 2 log2(1 + x**2 / 2) bits."""

    def __init__(self, modules: Sequence[_Module], shapes: Sequence[Shape], norm: float, keep: float) -> None:
        self.values = np.concatenate([m.weight * m.spectrum.values for m in modules]) / norm
        sides = [np.tile(shape, (m.spectrum.values.size, 1)) for m, shape in zip(modules, shapes, strict=True)]
        self.sides, self.keep = np.concatenate(sides).astype(np.float64), keep

    def place(self, step: float) -> float:
        """The logarithm of the bytes, at least one thousandth of one: falls as the step grows."""
        x = self.values[self.values > self.keep * step, None] / step
        sides = self.sides[self.values > self.keep * step]
        return math.log(float((sides * np.log2(1 + x * x / sides / 2)).sum()) / 16 + 1e-3 / (1 + step))

    def step_at(self, place: float) -> float:
        """The step of that place, by bisection."""
        low, high = STEPS
        for _ in range(50):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.place(middle) > place else (low, middle)
        return math.sqrt(low * high)


class _Encoder:
    """The search for a step."""

    def __init__(
        self,
        modules: Sequence[LowRank],
        weights: Sequence[float] | None,
        settings: ProductSettings,
        tuning: Tuning,
        workers: int,
    ) -> None:
        self.settings, self.tuning, self.workers = settings, tuning, workers
        self.shapes = check_shapes([(x.left.shape[0], x.right.shape[-1]) for x in modules])
        self.segments = segments_of(self.shapes)
        parts = (
            spread(lambda a, b: [spectrum_of(modules[i]) for i in range(a, b)], shares(len(modules), workers)) if modules else []
        )
        spectra = sum(parts, list[Spectrum]())
        self.modules = []
        for i, (module, spectrum) in enumerate(zip(modules, spectra, strict=True)):
            own = weights[i] if weights is not None else 1.0
            norm = own * _norm(spectrum)
            weight = own * norm**-tuning.weight_power if norm > 0 else 1.0
            self.modules.append(_Module(module, spectrum, weight))
        self.norm = math.sqrt(sum((m.weight * _norm(m.spectrum)) ** 2 for m in self.modules))

    def run(self) -> ProductEncoded:
        """The encoding that the settings ask for."""
        s = self.settings
        if self.norm == 0:
            step, coded = 0.0, [_nothing() for _ in self.modules]
        elif s.step:
            step, coded = s.step, self.quantise(s.step)
        elif s.distortion:
            step, coded = self.for_distortion(s.distortion)
        else:
            step, coded = self.for_budget(s.budget)
        blob, symbols = self.write(coded)
        if s.budget and len(blob) > s.budget:
            raise LimitError(f"the budget is {s.budget} bytes, an encoding of nothing takes {len(blob)}")
        return self.facts(step, coded, blob, symbols)

    def search(
        self,
        first: float,
        place: Callable[[float], float],
        step_at: Callable[[float], float],
        excess: Callable[[Sequence[_Coded]], float],
    ) -> tuple[float, list[_Coded]]:
        """The step where `excess` (a logarithm) is just below 0. place(step) and its inverse step_at choose a scale on which `excess` is
        nearly a straight line: the search goes by the slope seen last, inside the bracket known so far, and ends within CLOSE of the goal
        or after TRIES steps with the best that fits.
        """
        edges = sorted(place(step) for step in STEPS)
        low, high, slope = edges[0], edges[1], SLOPE
        at, last, best = min(max(place(first), low), high), None, None
        for _ in range(TRIES):
            coded = self.quantise(step_at(at))
            value = excess(coded)
            if value <= 0 and (best is None or value > best[0]):
                best = (value, at, coded)
            if -CLOSE <= value <= 0:
                break
            low, high = (low, at) if value > 0 else (at, high)
            if last is not None and last[0] != at and (value - last[1]) / (at - last[0]) > 0.1:
                slope = (value - last[1]) / (at - last[0])
            last = (at, value)
            aim = at - (value + CLOSE / 2) / slope
            at = aim if low < aim < high else (low + high) / 2
        if best is None:
            return step_at(edges[0]), self.quantise(step_at(edges[0]))
        return step_at(best[1]), best[2]

    def for_budget(self, budget: int) -> tuple[float, list[_Coded]]:
        """The finest step found whose encoding fits. On the scale of the rate that theory expects, bytes are nearly a power."""
        rate = Rate(self.modules, self.shapes, self.norm, self.tuning.keep)
        first = rate.step_at((math.log(budget) - math.log(0.015)) / SLOPE)
        return self.search(first, rate.place, rate.step_at, lambda coded: math.log(len(self.write(coded)[0]) / budget))

    def for_distortion(self, distortion: float) -> tuple[float, list[_Coded]]:
        """The coarsest step found whose distortion is small enough."""
        return self.search(
            FIRST_STEP, math.log, math.exp, lambda coded: math.log(max(self.distortion(coded), 1e-12) / distortion)
        )

    def quantise(self, step: float) -> list[_Coded]:
        """All modules at one step."""
        size = step * self.norm

        def some(first: int, last: int) -> list[_Coded]:
            return [_quantise(self.modules[i], size, self.tuning, self.settings.max_rank) for i in range(first, last)]

        return sum(spread(some, shares(len(self.modules), self.workers)), list[_Coded]())

    def distortion(self, coded: Sequence[_Coded]) -> float:
        """1 - cos^2 of the weighted dW, the modules' own scales left free."""
        kept = sum(c.inner**2 / c.square for c in coded if c.square > 0)
        return 1 - kept / self.norm**2

    def write(self, coded: Sequence[_Coded]) -> tuple[bytes, ProductSymbols]:
        """Scale codes, segments and streams."""
        inner = sum(c.inner for c in coded)
        gain = min(self.tuning.whole_gain, self.norm**2 / inner) if inner > 0 else 1.0
        codes = [_codes(c.scales * gain) for c in coded]

        def some(first: int, last: int) -> list[tuple[Part, bytes]]:
            made = []
            for s in self.segments[first:last]:
                own = range(s.first, s.stop)
                entries = np.concatenate([np.zeros(0, np.int16), *(coded[i].entries.ravel() for i in own)])
                scales = np.concatenate([np.zeros(0, np.int64), *(codes[i] for i in own)])
                part = Part(np.array([codes[i].size for i in own], np.int64), scales, entries)
                stream = write_stream(s, part)
                if not is_plausible(entries.size, len(stream)):  # almost nothing in almost endless vectors
                    part = Part(np.zeros(len(own), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int16))
                    stream = write_stream(s, part)
                made.append((part, stream))
            return made

        parts = sum(spread(some, shares(len(self.segments), self.workers)), list[tuple[Part, bytes]]()) if self.segments else []
        blob = assemble(len(self.shapes), [stream for _, stream in parts])
        return blob, symbols_of(self.shapes, [part for part, _ in parts])

    def facts(self, step: float, coded: Sequence[_Coded], blob: bytes, symbols: ProductSymbols) -> ProductEncoded:
        """Compare what is decoded with what was given."""
        facts, sums = [], np.zeros(3)
        for i, (module, rank) in enumerate(zip(self.modules, symbols.ranks.tolist(), strict=True)):
            inner = square = 0.0
            norm = _norm(module.spectrum)
            if rank:
                (left, right), x = factors_of(symbols, i, i + 1)[0], module.low_rank
                inner = x.scale**2 * float(np.sum((x.left.T @ left).astype(np.float64) * (x.right @ right.T)))
                square = x.scale**2 * float(np.sum((left.T @ left).astype(np.float64) * (right @ right.T)))
            facts.append(ModuleFacts(norm, rank, _cos2(inner, square, norm**2), inner / norm**2 if norm else 0.0))
            sums += (inner, square, norm**2)
        inner, square, norm2 = sums.tolist()
        return ProductEncoded(blob, symbols, step, _cos2(inner, square, norm2), inner / norm2 if norm2 else 0.0, tuple(facts))


def _cos2(inner: float, square: float, norm2: float) -> float:
    return inner**2 / (square * norm2) if square > 0 and norm2 > 0 else 0.0


def _norm(spectrum: Spectrum) -> float:
    return float(np.sqrt((spectrum.values**2).sum()))


def _nothing() -> _Coded:
    return _Coded(np.zeros((0, 0), np.int16), np.zeros(0), 0.0, 0.0)


def _codes(scales: Matrix) -> NDArray[np.int64]:
    """Scale codes nearest to scales, in the logarithm."""
    return np.clip(np.round(SCALE_STEPS * np.log2(scales)), MIN_SCALE, MAX_SCALE).astype(np.int64)


def _quantise(module: _Module, step: float, tuning: Tuning, max_rank: int) -> _Coded:
    """One module at one step (of the weighted dW, absolute)."""
    x, w = module.low_rank, module.weight
    (m, _), (_, n) = x.left.shape, x.right.shape
    step = max(step, float(w * module.spectrum.values[0]) / (MAX_ENTRY - 5))  # finer, entries would be clipped
    kept = int((w * module.spectrum.values > tuning.keep * step).sum())
    kept = min(kept, max_rank, m, n)
    if kept == 0:
        return _nothing()
    parts = module.left_parts(kept)
    left = _rounded(parts / step, tuning)
    chosen = np.abs(left).sum(0) > 0
    left, parts = left[:, chosen], parts[:, chosen]
    if left.shape[1] == 0:
        return _nothing()
    gram = left.T.astype(np.float64) @ left * step**2
    length = np.sqrt(np.diag(gram))
    pulled = w * x.scale * (x.left.T @ left * step)  # dW^T left = right^T (left^T left')
    fitted = (x.right.T @ pulled @ _inverse(gram)) * length
    right = _rounded(fitted / step, tuning)
    chosen = np.abs(right).sum(0) > 0
    if not chosen.any():
        return _nothing()
    left, right, parts, fitted, length = left[:, chosen], right[:, chosen], parts[:, chosen], fitted[:, chosen], length[chosen]
    gains = _gains(fitted, right * step, tuning.right_gain) * _gains(parts, left * step, tuning.left_gain)
    scales = step * step * gains / length  # of the weighted dW
    pulled = w * x.scale * (x.left.T @ left)
    inner = float((pulled * (x.right @ right) * scales).sum())
    across = (left.T.astype(np.float64) @ left) * (right.T.astype(np.float64) @ right)
    square = float(scales @ across @ scales)
    norm2 = (w * _norm(module.spectrum)) ** 2
    gain = min(max(norm2 / max(inner, 1e-300), 1.0), tuning.module_gain)
    scales, inner, square = scales * gain, inner * gain, square * gain**2
    entries = np.ascontiguousarray(np.concatenate([left, right]).T)
    return _Coded(entries, scales / (w * abs(x.scale)), inner, square)


def _rounded(vectors: Matrix, tuning: Tuning) -> NDArray[np.int16]:
    entries = np.zeros(vectors.shape[::-1], np.int16)
    columns = np.ascontiguousarray(vectors.T, np.float64)
    np.nan_to_num(columns, copy=False)
    np.clip(columns, 5 - MAX_ENTRY, MAX_ENTRY - 5, out=columns)  # so that the level above is one too
    for j in range(len(columns)):
        if not quantise(columns[j], tuning.price, tuning.rounds, entries[j]):
            entries[j] = 0
    return entries.T


def _gains(wanted: Any, given: Any, most: float) -> Any:
    """What restores the projection of each column: ||x||^2 / <x, x'>, at least 1 and at most `most`."""
    inner = (wanted * given).sum(0)
    return np.clip((wanted * wanted).sum(0) / np.maximum(inner, 1e-300), 1.0, most)


def _inverse(gram: Matrix) -> Matrix:
    small = 1e-9 * np.trace(gram) / len(gram) + 1e-300
    return np.asarray(np.linalg.inv(gram + small * np.eye(len(gram))), np.float64)
