"""Merge adapters into one: as products of factors or entry by entry, into a PEFT directory or an expert file.

    from compeft_client import MergeRequest, PackSettings, merge_experts

    paths = [Path("berlin.expert"), Path("./paris-lora")]
    merge_experts(MergeRequest(paths, "core_average", [], 1.0, {}, None, PackSettings()), Path("both"))

The methods and their parameters: docs/merging.md.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from compeft_client.durable_files import write_durably
from compeft_client.merging.by_entry import EntrySettings, merge_as_entries
from compeft_client.merging.by_factor import merge_as_factors
from compeft_client.merging.inputs import MergedAdapter, Reading
from compeft_client.packing.expert_file import is_expert_file, open_expert
from compeft_client.packing.pack import PackSettings, save_compressed
from compeft_client.workers import Tell, untold
from compeft_core import METHODS, MergeParameters
from compeft_core.errors import InputError
from compeft_core.merging.inputs import COUNTS, check_weights
from compeft_core.merging.lora_factors import FACTOR_METHODS, FactorSettings
from compeft_proto.expert_manifest import ADAPTER_CONFIG

PACKED = ".expert"
LINEAR = ("average", "task_arithmetic")
"""Methods for entries that are sums, and so can merge products by stacking their factors."""


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """What to merge and how. weights: one an expert, or none for equal ones.   told: parameters of the method, by name.

    same_base: experts whose base models have different names are of one model all the same.
    """

    paths: Sequence[Path]
    method: str
    weights: Sequence[float]
    coefficient: float
    told: Mapping[str, float]
    rank: int | None
    pack: PackSettings
    same_base: bool = False


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What was written: parameters, bytes on disk, the ranks of the result's factors (empty if it was merged by entries), and notes: what
    its maker should know of the experts and the result, one line each.
    """

    output: Path
    parameters: int
    bytes: int
    ranks: Sequence[int]
    notes: Sequence[str] = ()


def merge_experts(request: MergeRequest, output: Path, *, force: bool = False, tell: Tell = untold) -> MergeResult:
    """Merge adapters into `output`: a directory, or an expert file if its name ends so. Nothing is written if an error occurs.

    tell: is told how far the merge is.

    Errors: InputError if it is there and not `force`; InputError, WrongBaseError; those of reading.
    """
    by_factors, packs = request.method in FACTOR_METHODS, output.suffix == PACKED
    if not by_factors and request.method not in METHODS:
        raise InputError(f"merge method is {request.method!r}, known are {', '.join([*FACTOR_METHODS, *METHODS])}")
    check_free(output, force)
    weights = list(request.weights) or [1.0] * len(request.paths)
    if len(weights) != len(request.paths):
        raise InputError(f"{len(weights)} weights for {len(request.paths)} experts: give one each, or none")
    check_weights(weights, by_factors or METHODS[request.method].normalised)
    linear = not by_factors and _holds_products(request)
    merged = (_merged_factors if by_factors or linear else _merged_entries)(request, weights, tell)
    files, config, notes = merged.files, merged.config, list(merged.notes)
    size = sum(v.size for tensors in files.values() for v in tensors.values())
    if packs:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), files, config)
            pack = PackSettings(key=request.pack.key) if by_factors or linear else replace(request.pack, init=merged.init)
            notes += save_compressed(folder, output, pack, force=force).notes
        return MergeResult(output, size, output.stat().st_size, (), notes)
    _write(output, files, config)
    written = sum((output / name).stat().st_size for name in [*files, ADAPTER_CONFIG])
    ranks = sorted(
        {v.shape[0] for t in files.values() for n, v in t.items() if n.endswith((".lora_A.weight", ".lora_embedding_A"))}
    )
    return MergeResult(output, size, written, ranks if by_factors else (), notes)


def _holds_products(request: MergeRequest) -> bool:
    """Whether one of the experts is a file of products, which have no entries to merge. Errors: InputError for a method that needs them."""
    files = [path for path in request.paths if is_expert_file(path)]
    held = next((path for path in files if any(part.slices is not None for part in open_expert(path).manifest.parts)), None)
    if held is not None and request.method not in LINEAR:
        raise InputError(
            f"{held} holds products B A, and {request.method} merges entries of factors that started alike: use "
            f"{', '.join(FACTOR_METHODS)}, "
            f"{' or '.join(LINEAR)}, or pack all experts with --density and --init"
        )
    return held is not None


def check_free(output: Path, force: bool) -> None:
    """Errors: InputError if a merge would replace what is at `output`, and not `force`."""
    if (output if output.suffix == PACKED else output / ADAPTER_CONFIG).exists() and not force:
        raise InputError(f"{output} exists already: give --force to replace it, or -o for another name")


Files = dict[str, dict[str, NDArray[np.generic]]]


def _merged_factors(request: MergeRequest, weights: Sequence[float], tell: Tell) -> MergedAdapter:
    takes = {"keep"} if request.method in FACTOR_METHODS else set[str]()
    if extra := set(request.told) - takes:
        raise InputError(f"merge method {request.method} takes {', '.join(takes) or 'no parameters'}, not {sorted(extra)[0]}")
    positive = weights if request.method in FACTOR_METHODS else None
    settings = FactorSettings(positive, request.coefficient, request.told.get("keep", 0.2), request.rank)
    reading = Reading(request.pack.init, request.same_base, tell)
    return merge_as_factors(request.paths, request.method, settings, weights, reading)


def _merged_entries(request: MergeRequest, weights: Sequence[float], tell: Tell) -> MergedAdapter:
    if request.rank is not None:
        raise InputError(f"{request.method} keeps the ranks as they are: --rank is for {', '.join(FACTOR_METHODS)}")
    taken = METHODS[request.method].takes
    if unknown := set(request.told) - taken:
        takes = ", ".join(sorted(taken)) or "no parameters"
        raise InputError(f"merge method {request.method} takes {takes}, not {sorted(unknown)[0]}")
    if broken := [name for name in COUNTS if request.told.get(name, 0) % 1]:
        raise InputError(f"{broken[0]} is {request.told[broken[0]]:g}, it must be a whole number")
    told = {name: int(value) if name in COUNTS else value for name, value in request.told.items()}
    parameters = MergeParameters(**told)  # type: ignore[arg-type]  # counts are whole, as was just made sure
    settings = EntrySettings(request.method, weights, request.coefficient, parameters, request.pack, request.same_base, tell)
    return merge_as_entries(request.paths, settings)


def _write(folder: Path, files: Files, config: bytes) -> None:
    """Tensors first, the configuration last: half a directory does not load."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, tensors in files.items():
            write_durably(folder / name, save({n: np.ascontiguousarray(v) for n, v in tensors.items()}, {"format": "pt"}))
        write_durably(folder / ADAPTER_CONFIG, config)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from error
