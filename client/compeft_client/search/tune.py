"""How far one expert can be compressed before its task metric says stop: `compeft tune`.

The metric is measured for the base model (zero bytes) and for the expert as it is, then packed in fewer and fewer bytes until the
retained gain falls below the floor, and twice in between: by a ladder of qualities where LoRA's products can be coded, else of densities.
What was measured is kept in a file by the digest of what was packed, so that an interrupted search goes on.
"""

import hashlib
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from compeft_client.checkpoints.source import read_source
from compeft_client.packing.pack import PackSettings, save_compressed, unpack
from compeft_client.packing.plan import product_modules
from compeft_client.search.measure import Journal, Measure, digest_of_weights, write_untrained
from compeft_core.errors import InputError

Report = Callable[["Point"], None]
Ladder = Literal["quality", "density"]
"""What falls from one point to the next: the quality of LoRA's products, or the density of ternary changes, as `PackSettings` has them."""
STEPS: dict[Ladder, tuple[float, ...]] = {
    "quality": (0.9, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05),
    "density": (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005),
}
REFINEMENTS = 2
BASE, ORIGINAL = "base only", "uncompressed"


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: of the base model, of the expert as it is, or packed at a step of the ladder. `bytes` are those of the file.

    kept: cos^2 of what was packed and what there was, of LoRA's products or of the ternary changes; 0 for the base model.
    """

    arm: str
    step: float
    bytes: int
    metric: float
    kept: float


@dataclass(frozen=True, slots=True)
class Curve:
    """All measurements, bytes descending, and the one chosen: the fewest bytes that retain `floor` of the gain, or None."""

    base: Point
    original: Point
    packed: Sequence[Point]
    floor: float

    @property
    def chosen(self) -> Point | None:
        """The point with the fewest bytes that is good enough, and so is every point with more."""
        good = [p for p in self.packed if all(self.retained(q) >= self.floor for q in self.packed if q.bytes >= p.bytes)]
        return min(good, key=lambda p: p.bytes, default=None)

    def retained(self, point: Point) -> float:
        """(compressed - base) / (uncompressed - base)."""
        return (point.metric - self.base.metric) / (self.original.metric - self.base.metric)


@dataclass(frozen=True, slots=True)
class Search:
    """What to search: a PEFT directory, how to pack it, the gain to retain, how to measure a directory, and where to remember it.

    init: where it started, as `PackSettings` has it.   question: what `measure` asks: another question has other answers in the journal.
    """

    directory: Path
    init: str | None
    ladder: Ladder
    floor: float
    measure: Measure
    journal: Path
    question: str

    def settings(self, step: float) -> PackSettings:
        """How to pack at a step of the ladder."""
        if self.ladder == "density":
            return PackSettings(density=step, init=self.init)
        return PackSettings(quality=step, init=self.init)


def ladder_of(directory: Path) -> Ladder:
    """`quality` where the products of LoRA's factors can be coded, else `density`. Errors: those of reading the directory."""
    return "quality" if product_modules(read_source(directory)) else "density"


def tune(search: Search, report: Report = lambda _: None) -> Curve:
    """Measure until the curve is known. Errors: InputError if the expert is not better than its base; those of packing."""
    base = _reported(report, Point(BASE, 0.0, 0, _remembered(search, [BASE], lambda: _measure_base(search)), 0.0))
    stored = sum(t.bytes for header in read_source(search.directory).files.values() for t in header.tensors.values())
    whole = _remembered(search, [ORIGINAL], lambda: search.measure(search.directory))
    original = _reported(report, Point(ORIGINAL, 1.0, stored, whole, 1.0))
    if original.metric <= base.metric:
        raise InputError(
            f"the expert measures {original.metric:g} and its base model {base.metric:g}: no gain exists that could be retained"
        )
    curve = Curve(base, original, [], search.floor)
    for step in STEPS[search.ladder]:
        curve = _extended(search, curve, step, report)
        if curve.retained(curve.packed[-1]) < search.floor:
            return _refined(search, curve, report)
    return curve


def _refined(search: Search, curve: Curve, report: Report) -> Curve:
    """Between the smallest file that was good enough and the largest smaller one that was not."""
    for _ in range(REFINEMENTS):
        good = [p for p in curve.packed if curve.retained(p) >= search.floor]
        if not good:
            return curve
        least = min(good, key=lambda p: p.bytes)
        worse = max((p for p in curve.packed if p.bytes < least.bytes), key=lambda p: p.bytes)
        curve = _extended(search, curve, math.sqrt(least.step * worse.step), report)
    return curve


def _extended(search: Search, curve: Curve, step: float, report: Report) -> Curve:
    point = _reported(report, _packed(search, step))
    return replace(curve, packed=sorted([*curve.packed, point], key=lambda p: -p.bytes))


def _packed(search: Search, step: float) -> Point:
    with tempfile.TemporaryDirectory() as folder:
        file, directory = Path(folder) / "packed.expert", Path(folder) / "expert"
        made = save_compressed(search.directory, file, search.settings(step))
        unpack(file, directory, init=search.init)
        _copy_rest(search.directory, directory)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        metric = _remembered(search, [digest, search.init], lambda: search.measure(directory))
    arm = f"quality {step:.3g}" if search.ladder == "quality" else f"{100 * step:.3g} %"
    return Point(arm, step, made.total_bytes, metric, made.cosine**2)


def _measure_base(search: Search) -> float:
    """The base model: the adapter untrained, its head as it is; for a full checkpoint, the model it was tuned from."""
    if not read_source(search.directory).is_adapter:
        return search.measure(Path(str(search.init)))
    with tempfile.TemporaryDirectory() as folder:
        write_untrained(search.directory, Path(folder))
        return search.measure(Path(folder))


def _copy_rest(source: Path, target: Path) -> None:
    """What lies beside the weights, such as a tokenizer: the command that measures may want it."""
    for file in source.iterdir() if source.is_dir() else ():
        if file.is_file() and file.suffix != ".safetensors" and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)


def _remembered(search: Search, key: Sequence[object], measure: Callable[[], float]) -> float:
    return Journal(search.journal, [search.question, digest_of_weights(search.directory)]).remembered(key, measure)


def _reported(report: Report, point: Point) -> Point:
    report(point)
    return point
