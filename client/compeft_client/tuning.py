"""How far one expert can be compressed before its task metric says stop: `compeft tune`.

The metric is measured for the base model (zero bytes) and for the expert as it is, then packed at lower and lower densities until the
retained gain falls below the floor, and twice in between. What was measured is kept in a file, so that an interrupted search goes on.
"""

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from compeft_client.checkpoint import read_values
from compeft_client.files import write_durably
from compeft_client.packing import PackSettings, save_compressed, unpack
from compeft_client.source import read_source
from compeft_client.treatment import ZERO_FACTORS
from compeft_core.errors import FormatError, InputError, NotFiniteError
from compeft_proto.expert_manifest import ADAPTER

Measure = Callable[[Path], float]
Report = Callable[["Point"], None]
Tensors = dict[str, NDArray[np.float32]]
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
REFINEMENTS = 2
BASE, ORIGINAL = "base only", "uncompressed"


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: of the base model, of the expert as it is, or packed at a density. `bytes` are those of the file."""

    arm: str
    density: float
    bytes: int
    metric: float


@dataclass(frozen=True, slots=True)
class Curve:
    """All measurements, densities descending, and the one chosen: the fewest bytes that retain `floor` of the gain, or None."""

    base: Point
    original: Point
    packed: Sequence[Point]
    floor: float

    @property
    def chosen(self) -> Point | None:
        """The point with the fewest bytes that is good enough, and so is every point with more."""
        good = [p for p in self.packed if all(self.retained(q) >= self.floor for q in self.packed if q.density >= p.density)]
        return min(good, key=lambda p: p.bytes, default=None)

    def retained(self, point: Point) -> float:
        """(compressed - base) / (uncompressed - base)."""
        return (point.metric - self.base.metric) / (self.original.metric - self.base.metric)


@dataclass(frozen=True, slots=True)
class Search:
    """What to search: a PEFT directory, how to pack it, the gain to retain, how to measure a directory, and where to remember it.

    `question` names what `measure` asks: another question has other answers in the journal.
    """

    directory: Path
    settings: PackSettings
    floor: float
    measure: Measure
    journal: Path
    question: str


def tune(search: Search, report: Report = lambda _: None) -> Curve:
    """Measure until the curve is known. Errors: InputError if the expert is no better than its base; those of packing."""
    base = _reported(report, Point(BASE, 0.0, 0, _remembered(search, [BASE], lambda: _measure_base(search))))
    stored = sum(t.bytes for header in read_source(search.directory).files.values() for t in header.tensors.values())
    whole = _remembered(search, [ORIGINAL], lambda: search.measure(search.directory))
    original = _reported(report, Point(ORIGINAL, 1.0, stored, whole))
    if original.metric <= base.metric:
        raise InputError(
            f"the expert measures {original.metric:g} and its base model {base.metric:g}: there is no gain that could be retained"
        )
    curve = Curve(base, original, [], search.floor)
    for density in DENSITIES:
        curve = _extended(search, curve, density, report)
        if curve.retained(curve.packed[-1]) < search.floor:
            return _refined(search, curve, report)
    return curve


def _refined(search: Search, curve: Curve, report: Report) -> Curve:
    """Between the last density that was good enough and the first that was not."""
    for _ in range(REFINEMENTS):
        good = [p.density for p in curve.packed if curve.retained(p) >= search.floor]
        bad = [p.density for p in curve.packed if curve.retained(p) < search.floor]
        if not good:
            return curve
        curve = _extended(search, curve, math.sqrt(min(good) * max(b for b in bad if b < min(good))), report)
    return curve


def _extended(search: Search, curve: Curve, density: float, report: Report) -> Curve:
    point = _reported(report, _packed(search, density))
    return replace(curve, packed=sorted([*curve.packed, point], key=lambda p: -p.density))


def _packed(search: Search, density: float) -> Point:
    with tempfile.TemporaryDirectory() as folder:
        file, directory = Path(folder) / "packed.expert", Path(folder) / "expert"
        settings = replace(search.settings, density=density)
        total = save_compressed(search.directory, file, settings).total_bytes
        unpack(file, directory, init=settings.init)
        _copy_rest(search.directory, directory)
        metric = _remembered(search, [density, settings.scale, settings.factor, settings.init], lambda: search.measure(directory))
    return Point(f"{100 * density:.3g} %", density, total, metric)


def _measure_base(search: Search) -> float:
    """The base model: an adapter with LoRA's B at zero, its head as it is; for a full checkpoint, the model it was tuned from."""
    if not read_source(search.directory).is_adapter:
        return search.measure(Path(str(search.settings.init)))
    tensors = _float32(search.directory)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(search.directory, folder, dirs_exist_ok=True)
        start = {n: np.zeros_like(t) if n.endswith(ZERO_FACTORS) else t for n, t in tensors.items()}
        save_file(start, Path(folder) / ADAPTER, {"format": "pt"})
        return search.measure(Path(folder))


def _float32(directory: Path) -> Tensors:
    """The tensors of an adapter, by name. Errors: InputError if it is none; those of reading."""
    source = read_source(directory)
    if not source.is_adapter:
        raise InputError(f"{directory} is a full checkpoint, needed is an adapter")
    return {n: np.concatenate([*read_values(t)]).reshape(t.shape) for n, t in source.files[ADAPTER].tensors.items() if t.size}


def _copy_rest(source: Path, target: Path) -> None:
    """What lies beside the weights, such as a tokenizer: the command that measures may want it."""
    for file in source.iterdir() if source.is_dir() else ():
        if file.is_file() and file.suffix != ".safetensors" and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)


def _remembered(search: Search, key: Sequence[object], measure: Callable[[], float]) -> float:
    """The answer in the journal, or a new one that is in it when this returns. Errors: FormatError; those of measuring."""
    name = hashlib.sha256(json.dumps([search.question, _digest(search.directory), *key]).encode()).hexdigest()
    try:
        known: dict[str, float] = json.loads(search.journal.read_text()) if search.journal.exists() else {}
    except ValueError as error:
        raise FormatError(f"{search.journal} is no journal of measurements: remove it to begin again") from error
    if name not in known:
        known[name] = measure()
        if not math.isfinite(known[name]):
            raise NotFiniteError(f"the measuring command answered {known[name]}")
        write_durably(search.journal, json.dumps(known, indent=1).encode())
    return known[name]


def _digest(directory: Path) -> str:
    """Of the weights, so that another expert in the same place is measured again."""
    digest = hashlib.sha256()
    for file in sorted(directory.glob("*.safetensors")) if directory.is_dir() else [directory]:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _reported(report: Report, point: Point) -> Point:
    report(point)
    return point
