"""The encoder: singular components, one step size for all of them, a trellis, a search of the step for a budget; and decoding.

Per module dW = U diag(s) V^T, weighted by w. The step d is the same for all modules (reverse water-filling: what is below the step
in its own singular basis is not sent). A component is kept if w s_j > KEEP d; its left part w U_j s_j is quantised with step d, then
the right part, the least-squares one for that left part, with step d over the left part's length. The scale code carries all
factors of a component: steps, weights and the gains that restore its projection.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import InputError, LimitError
from compeft_core.parallel import shares, spread
from compeft_core.product.blob import (
    Part,
    assemble,
    is_plausible,
    segments_of,
    symbols_of,
    write_stream,
)
from compeft_core.product.low_rank import LowRank, Matrix, Spectrum, spectrum_of
from compeft_core.product.module_quantiser import CodedModule, Tuning, WeightedModule, nothing_coded, quantise_module
from compeft_core.product.step_search import FIRST_STEP, SLOPE, Rate, search_step
from compeft_core.product.symbols import (
    MAX_SCALE,
    MIN_SCALE,
    SCALE_STEPS,
    ProductSymbols,
    check_shapes,
    factors_of,
)


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
    """An encoding and how it compares to what was given. cos2, projection: of all modules together; step: relative, as in the settings.

    quality: cos2 of the weighted dW with each module's own scale left free, 1 less the distortion of the settings.
    """

    blob: bytes
    symbols: ProductSymbols
    step: float
    cos2: float
    projection: float
    quality: float
    modules: tuple[ModuleFacts, ...]


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
            made = WeightedModule(module, spectrum, weights[i] if weights is not None else 1.0)
            made.weight *= (made.weight * made.norm) ** -tuning.weight_power if made.norm > 0 else 1.0
            self.modules.append(made)
        self.norm = math.sqrt(sum((m.weight * m.norm) ** 2 for m in self.modules))

    def run(self) -> ProductEncoded:
        """The encoding that the settings ask for."""
        s = self.settings
        if self.norm == 0:
            step, coded = 0.0, [nothing_coded() for _ in self.modules]
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

    def for_budget(self, budget: int) -> tuple[float, list[CodedModule]]:
        """The finest step found whose encoding fits. On the scale of the rate that theory expects, bytes are nearly a power."""
        rate = Rate(self.modules, self.shapes, self.norm, self.tuning.keep)
        first = rate.step_at((math.log(budget) - math.log(0.015)) / SLOPE)
        return search_step(
            first, rate.place, rate.step_at, self.quantise, lambda coded: math.log(len(self.write(coded)[0]) / budget)
        )

    def for_distortion(self, distortion: float) -> tuple[float, list[CodedModule]]:
        """The coarsest step found whose distortion is small enough."""
        goal = _log_odds(distortion)
        return search_step(FIRST_STEP, math.log, math.exp, self.quantise, lambda coded: _log_odds(self.distortion(coded)) - goal)

    def quantise(self, step: float) -> list[CodedModule]:
        """All modules at one step."""
        size = step * self.norm

        def some(first: int, last: int) -> list[CodedModule]:
            return [quantise_module(self.modules[i], size, self.tuning, self.settings.max_rank) for i in range(first, last)]

        return sum(spread(some, shares(len(self.modules), self.workers)), list[CodedModule]())

    def distortion(self, coded: Sequence[CodedModule]) -> float:
        """1 - cos^2 of the weighted dW, the modules' own scales left free."""
        kept = sum(c.inner**2 / c.square for c in coded if c.square > 0)
        return 1 - kept / self.norm**2

    def write(self, coded: Sequence[CodedModule]) -> tuple[bytes, ProductSymbols]:
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

    def facts(self, step: float, coded: Sequence[CodedModule], blob: bytes, symbols: ProductSymbols) -> ProductEncoded:
        """Compare what is decoded with what was given."""
        facts, sums = [], np.zeros(3)
        for i, (module, rank) in enumerate(zip(self.modules, symbols.ranks.tolist(), strict=True)):
            inner = square = 0.0
            norm = module.norm
            if rank:
                (left, right), x = factors_of(symbols, i, i + 1)[0], module.low_rank
                inner = x.scale**2 * float(np.sum((x.left.T @ left).astype(np.float64) * (x.right @ right.T)))
                square = x.scale**2 * float(np.sum((left.T @ left).astype(np.float64) * (right @ right.T)))
            facts.append(ModuleFacts(norm, rank, _cos2(inner, square, norm**2), inner / norm**2 if norm else 0.0))
            sums += (inner, square, norm**2)
        inner, square, norm2 = sums.tolist()
        quality = 1 - self.distortion(coded) if norm2 else 0.0
        return ProductEncoded(
            blob, symbols, step, _cos2(inner, square, norm2), inner / norm2 if norm2 else 0.0, quality, tuple(facts)
        )


def _log_odds(distortion: float) -> float:
    """log(d / (1 - d)): unlike the logarithm of d, it goes on rising where nearly nothing is kept, so a search finds its way back."""
    held = min(max(distortion, 1e-12), 1 - 1e-12)
    return math.log(held / (1 - held))


def _cos2(inner: float, square: float, norm2: float) -> float:
    return inner**2 / (square * norm2) if square > 0 and norm2 > 0 else 0.0


def _codes(scales: Matrix) -> NDArray[np.int64]:
    """Scale codes nearest to scales, in the logarithm."""
    return np.clip(np.round(SCALE_STEPS * np.log2(scales)), MIN_SCALE, MAX_SCALE).astype(np.int64)
