"""compress = sparsify + ternarize: keep the largest magnitudes of a task vector, replace each by its sign times one scale.

The ternary tensors of the layout are compressed together; the dense ones are kept as bfloat16. The result is a value;
`format.encoding` turns it into bytes. Same vector and settings, same result, on every machine and with any number of workers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from compeft_core import bf16
from compeft_core.errors import InputError, LayoutMismatchError, NotFiniteError
from compeft_core.kernels.selection_kernels import sum_spans
from compeft_core.layout import Layout, Vector
from compeft_core.selection import select, spans_of, survey

ScaleRule = Literal["alpha_sigma", "bounded_norm", "mean_magnitude", "norm"]
Granularity = Literal["vector", "tensor"]
Scalar = TypeVar("Scalar", bound=np.generic)

BOUND = 1.5
"""Most that `bounded_norm` is, in means of the kept magnitudes."""
LEAST_SCALE = 2.0**-126
"""The smallest normal float32. A scale is this or more, or zero: hardware may flush what lies between."""


@dataclass(frozen=True, slots=True)
class Compression:
    """How to compress.

    density: fraction of the ternary parameters kept, 0 < density <= 1.
    scale: the rule, a key of `SCALE_RULES`; the result is multiplied by `factor` (finite, > 0), which for `alpha_sigma` is alpha.
    granularity: one scale for the whole ternary part, or one for each of its tensors. What is kept does not depend on it.
    """

    density: float = 0.05
    scale: ScaleRule = "bounded_norm"
    factor: float = 1.0
    granularity: Granularity = "vector"

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise InputError(f"density is {self.density}, it must be above 0 and at most 1")
        if self.scale not in SCALE_RULES:
            raise InputError(f"invalid scale rule {self.scale!r}: expected one of {', '.join(SCALE_RULES)}")
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise InputError(f"factor is {self.factor}, it must be finite and above 0")
        if self.granularity not in get_args(Granularity):
            raise InputError(f"granularity is {self.granularity!r}, known are {', '.join(get_args(Granularity))}")


@dataclass(frozen=True, slots=True, eq=False)
class Ternary:
    """A vector of `size` entries in {-scale, 0, +scale}, by its kept entries. The constructor refuses anything else.

    positions: uint32, strictly increasing, below size.   negative: bool, one for each position.
    group_ends: int64, the end of each scale group, strictly increasing, the last is `size` (none if size is 0).
    scales: float32, one for each group: zero for a group that keeps nothing, else finite and at least 2**-126.
    """

    size: int
    positions: NDArray[np.uint32]
    negative: NDArray[np.bool_]
    group_ends: NDArray[np.int64]
    scales: Vector

    def __post_init__(self) -> None:
        _expect("positions", self.positions, np.uint32)
        _expect("negative", self.negative, np.bool_, self.positions.size)
        _expect("group_ends", self.group_ends, np.int64)
        _expect("scales", self.scales, np.float32, self.group_ends.size)
        if not _increases(self.positions, self.size):
            raise InputError(f"positions must increase strictly and stay below {self.size}")
        if not _divides(self.group_ends, self.size):
            raise InputError(f"group ends must increase strictly up to {self.size}")
        if not scales_fit(self.scales, self.group_counts > 0):
            raise InputError("a scale must be zero for a group that keeps nothing, else finite and at least 2**-126")
        for name in ("positions", "negative", "group_ends", "scales"):
            object.__setattr__(self, name, read_only(getattr(self, name)))

    @property
    def count(self) -> int:
        """Entries kept."""
        return self.positions.size

    @property
    def group_counts(self) -> NDArray[np.int64]:
        """Entries kept in each scale group."""
        bounds = np.searchsorted(self.positions, self.group_ends.astype(np.uint32))
        return np.diff(bounds, prepend=0)


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """A compressed task vector: the ternary front of the flat vector, and its dense back as float32 that bfloat16 can hold."""

    ternary: Ternary
    dense: Vector

    def __post_init__(self) -> None:
        _expect("dense", self.dense, np.float32)
        if not np.array_equal(bf16.unpack(bf16.pack(self.dense)).view(np.uint32), self.dense.view(np.uint32)):
            raise InputError("a dense parameter is not a bfloat16 value, or is -0.0")
        object.__setattr__(self, "dense", read_only(self.dense))

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return self.ternary.size + self.dense.size


@dataclass(frozen=True, slots=True)
class Group:
    """The inputs of a scale rule, for one group: its size, the sums over it, and the count and sum of what is kept of it."""

    size: int
    total: float
    squares: float
    kept: int
    kept_magnitudes: float


def _alpha_sigma(g: Group) -> float:
    """Standard deviation before sparsifying, unbiased, mean subtracted (ComPEFT, arXiv 2311.13171; torch's `.std()`)."""
    return math.sqrt(max(0.0, (g.squares - g.total * g.total / g.size) / (g.size - 1))) if g.size > 1 else 0.0


def _mean_magnitude(g: Group) -> float:
    """Mean of the kept magnitudes: the least-squares choice (Sattler et al., arXiv 1903.02891)."""
    return g.kept_magnitudes / g.kept


def _norm(g: Group) -> float:
    """Keeps the L2 norm of the group: ||tau|| / sqrt(nnz) (T-Switch, arXiv 2412.00054)."""
    return math.sqrt(g.squares / g.kept)


def _bounded_norm(g: Group) -> float:
    """The norm's, at most 1.5 times the mean's: what is left behind then stays smaller than what there was, which error feedback needs
    (a contraction: Stich et al., arXiv 1809.07599). With a scale of s and a mean of m, compressing takes kept * s * (2 m - s) off the
    squared norm: at least three quarters of the most that it can.
    """
    return min(_norm(g), BOUND * _mean_magnitude(g))


SCALE_RULES: dict[ScaleRule, Callable[[Group], float]] = {
    "alpha_sigma": _alpha_sigma,
    "bounded_norm": _bounded_norm,
    "mean_magnitude": _mean_magnitude,
    "norm": _norm,
}
BY_MAGNITUDES: tuple[ScaleRule, ...] = ("bounded_norm", "mean_magnitude")
"""The rules that use the kept magnitudes."""


def compress(layout: Layout, vector: Vector, settings: Compression, *, workers: int = 1) -> Update:
    """Compress a task vector: float32, length `layout.size`, in layout order.

    Keeps min(d, max(1, floor(density * d + 0.5))) of the d ternary entries, the largest magnitudes, the lowest positions among
    those that tie for the last places. An exact zero is never kept, so fewer are kept if too few are not zero. A group whose scale would be
    below 2**-126 keeps nothing. Scales are one rounding to float32 of a float64 in the fixed order of docs/format.md.

    Errors: LayoutMismatchError on another length; InputError on another dtype; NotFiniteError if the vector, a scale, or a
    dense parameter rounded to bfloat16 is NaN or infinite.
    """
    if vector.shape != (layout.size,):
        raise LayoutMismatchError(f"vector has shape {vector.shape}, the layout says ({layout.size},)")
    if vector.dtype != np.float32:
        raise InputError(f"vector is {vector.dtype}, it must be float32")
    vector = np.ascontiguousarray(vector)
    front = vector[: layout.ternary_size]
    ternary = _ternarize(front, group_ends_of(layout, settings.granularity), settings, workers)
    return Update(ternary, bf16.unpack(bf16.pack(vector[layout.ternary_size :])))


def densify(update: Update) -> Vector:
    """The flat float32 vector that an update stands for."""
    ternary = update.ternary
    vector = np.zeros(update.size, np.float32)
    values = np.repeat(ternary.scales, ternary.group_counts)
    vector[ternary.positions] = np.where(ternary.negative, -values, values)
    vector[ternary.size :] = update.dense
    return vector


def read_only(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """A view of `array` that cannot be written through."""
    view = array.view()
    view.flags.writeable = False
    return view


def scales_fit(scales: Vector, kept: NDArray[np.bool_]) -> bool:
    """Whether each scale is +0.0 where a group keeps nothing, else finite and at least 2**-126."""
    least = np.where(kept, np.float32(LEAST_SCALE), np.float32(0))
    most = np.where(kept, np.finfo(np.float32).max, np.float32(0))
    return bool(((scales >= least) & (scales <= most) & ~np.signbit(scales)).all())


def _expect(name: str, array: NDArray[np.generic], dtype: type[np.generic], size: int | None = None) -> None:
    if array.dtype != dtype or array.ndim != 1 or not array.flags.c_contiguous or (size is not None and array.size != size):
        raise InputError(f"{name} is {array.dtype} of shape {array.shape}, it must be {dtype.__name__}, flat and of one length")


def _increases(positions: NDArray[np.uint32], size: int) -> bool:
    return positions.size == 0 or (int(positions[-1]) < size and bool((positions[1:] > positions[:-1]).all()))


def _divides(ends: NDArray[np.int64], size: int) -> bool:
    if size == 0 or ends.size == 0:
        return size == 0 and ends.size == 0
    return int(ends[-1]) == size and bool((np.diff(ends, prepend=0) > 0).all())


def group_ends_of(layout: Layout, granularity: Granularity) -> NDArray[np.int64]:
    """Where each scale group of the ternary part ends: int64, one for the whole or one for each tensor that is not empty."""
    sizes = [t.size for t in layout.tensors if t.kind == "ternary" and t.size > 0]
    ends = list(accumulate(sizes))
    return np.array(ends[-1:] if granularity == "vector" else ends, np.int64)


def _ternarize(front: Vector, ends: NDArray[np.int64], settings: Compression, workers: int) -> Ternary:
    if front.size == 0:
        return Ternary(0, np.empty(0, np.uint32), np.empty(0, np.bool_), ends, np.empty(0, np.float32))
    bits, spans = read_only(front.view(np.uint32)), spans_of(ends)
    wanted = min(front.size, max(1, math.floor(settings.density * front.size + 0.5)))
    seen = survey(bits, spans, wanted, workers)
    if not np.isfinite(seen.squares).all():
        raise NotFiniteError("the task vector holds NaN or infinity")
    positions, negative = select(bits, seen.parts, wanted, workers)
    bounds = np.searchsorted(positions, ends.astype(np.uint32))
    kept = np.diff(bounds, prepend=0)
    magnitudes = _kept_magnitudes(front[positions], bounds) if settings.scale in BY_MAGNITUDES else np.zeros(ends.size)
    columns = (
        np.diff(ends, prepend=0),
        spans.total(seen.sums, ends.size),
        spans.total(seen.squares, ends.size),
        kept,
        magnitudes,
    )
    scales = scales_of([Group(*row) for row in zip(*(c.tolist() for c in columns), strict=True)], settings)
    if (scales[kept > 0] == 0).any():
        keep = np.repeat(scales > 0, kept)
        positions, negative = positions[keep], negative[keep]
    return Ternary(front.size, positions, negative, ends, scales)


def _kept_magnitudes(kept: Vector, bounds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of the magnitudes of the kept values of each group; group g holds kept[bounds[g - 1]:bounds[g]]."""
    full = np.diff(bounds, prepend=0) > 0
    spans = spans_of(bounds[full])
    sums = np.zeros(spans.group.size, np.float64)
    sum_spans(read_only(np.abs(kept)), spans.starts, spans.stops, sums)
    totals = np.zeros(bounds.size, np.float64)
    totals[full] = spans.total(sums, int(full.sum()))
    return totals


def scales_of(groups: list[Group], settings: Compression) -> Vector:
    """The scale of each group by the settings' rule, rounded once to float32; zero where it would be below LEAST_SCALE.

    Errors: NotFiniteError if one is beyond float32.
    """
    rule = SCALE_RULES[settings.scale]
    exact = np.array([settings.factor * rule(g) if g.kept else 0.0 for g in groups], np.float64)
    with np.errstate(over="ignore"):
        scales = exact.astype(np.float32)
    if not np.isfinite(scales).all():
        raise NotFiniteError(f"scale {exact.max():g} is beyond float32: the factor {settings.factor:g} is too large")
    scales[scales < LEAST_SCALE] = 0
    return scales
