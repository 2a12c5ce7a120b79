"""Adapters merged entry by entry, on their compressed task vectors: for experts that started from the same values, as in a federation.

Each part is merged by `compeft_core.merging.methods` without making an update dense, and added to where all of them started. A directory is
compressed as `compeft pack` would first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compeft_client.checkpoints.initial_values import Start, digest_of, initial_vector, read_start
from compeft_client.checkpoints.safetensors_file import NUMPY, to_float32
from compeft_client.merging.inputs import Candidate, MergedAdapter, merged_beside, notes_by_path, read_candidates
from compeft_client.packing.expert_file import read_payload_of
from compeft_client.packing.pack import PackSettings, code_parts
from compeft_client.packing.part_codec import exact_tensors
from compeft_client.packing.tensor_rules import FACTORS, ZERO_FACTORS
from compeft_client.workers import WORKERS, Tell, untold
from compeft_core import METHODS, MergeParameters, merge, unflatten
from compeft_core.errors import InputError
from compeft_proto.convert import read_payload
from compeft_proto.errors import WrongBaseError
from compeft_proto.expert_manifest import FLOATS, FilePart

Files = dict[str, dict[str, NDArray[np.generic]]]


@dataclass(frozen=True, slots=True)
class EntrySettings:
    """How to merge entries; `pack` says how directories are compressed first, and where experts started.

    weights: as they are given; only `task_arithmetic` and `consensus` do not divide them by their sum.
    """

    method: str
    weights: Sequence[float]
    coefficient: float
    parameters: MergeParameters
    pack: PackSettings
    same_base: bool = False
    tell: Tell = untold

    @property
    def is_mean(self) -> bool:
        """Whether values, and not only changes, may be merged: the result of equal values is that value."""
        return METHODS[self.method].normalised and self.coefficient == 1.0


def merge_as_entries(paths: Sequence[Path], settings: EntrySettings) -> MergedAdapter:
    """The merged adapter, with `--init`'s value for packing it again.

    Errors: InputError that names the tensor or field that stands in the way; WrongBaseError if `init` is not the start; those of reading.
    """
    candidates = read_candidates(paths, "entries", same_base=settings.same_base)
    parts = []
    for number, candidate in enumerate(candidates, 1):
        parts.append(_parts(candidate, settings.pack))
        settings.tell(f"read {number} of {len(candidates)} experts")
    start, files = read_start(settings.pack.init), Files()
    for path, found in zip(paths, parts, strict=True):
        if [_identity(p) for p, _ in found] != [_identity(p) for p, _ in parts[0]]:
            raise InputError(_difference(paths[0], path, [p for p, _ in parts[0]], [p for p, _ in found]))
    for number, alike in enumerate(zip(*parts, strict=True), 1):
        part = alike[0][0]
        _check_start(part, settings, start)
        payloads = [payload for _, payload in alike]
        merged = (
            _coded(part, [p for p, _ in alike], payloads, settings, start)
            if part.coding
            else _exact(paths, part, payloads, settings)
        )
        files.setdefault(part.file, {}).update(merged)
        settings.tell(f"merged {number} of {len(parts[0])} parts")
    seed = next((f"seed:{p.seed}" for p, _ in parts[0] if p.seed is not None), None)
    return MergedAdapter(files, candidates[0].config, seed or settings.pack.init, notes_by_path(candidates))


def _parts(candidate: Candidate, settings: PackSettings) -> list[tuple[FilePart, bytes]]:
    if candidate.opened:
        return [(part, read_payload_of(candidate.opened, n)) for n, part in enumerate(candidate.opened.manifest.parts)]
    if candidate.source is None:
        return []
    return [(coded.part, coded.payload) for coded in code_parts(candidate.source, settings)]


def _identity(part: FilePart) -> tuple[object, ...]:
    return part.file, part.layout.digest, part.coding is None, part.seed, part.initial_digest


def _difference(first: Path, other: Path, ours: Sequence[FilePart], theirs: Sequence[FilePart]) -> str:
    starts = [{(p.seed, p.initial_digest) for p in parts} for parts in (ours, theirs)]
    if starts[0] != starts[1]:
        return (
            f"{first} and {other} do not start from the same values: pack both with the same --init, or merge products by core_average, "
            "core_ties, knots_ties, tsv_m or iso_c"
        )
    return f"{first} and {other} do not have the same tensors: experts must adapt the same modules, with the same ranks"


def _check_start(part: FilePart, settings: EntrySettings, start: Start) -> None:
    if part.initial_digest and start.directory is None:
        raise InputError("these experts were packed against a directory of initial values: give the same one, --init DIR")
    for tensor in part.layout.tensors:
        if tensor.name.endswith(ZERO_FACTORS) or (part.initial_digest and start.knows(part.file, tensor.name, tensor.shape)):
            continue
        if tensor.name.endswith(FACTORS):
            if part.seed is None:
                raise InputError(
                    f"the start of {tensor.name} is unknown, so its changes cannot be merged: pack with --init, or merge products by "
                    "core_average, core_ties, knots_ties, tsv_m or iso_c"
                )
        elif not settings.is_mean:
            raise InputError(
                f"the start of {tensor.name} is unknown: {settings.method} with coefficient {settings.coefficient:g} would sum "
                "values, not changes; use average, or pack with --init"
            )


def _coded(
    part: FilePart, parts: Sequence[FilePart], payloads: Sequence[bytes], settings: EntrySettings, start: Start
) -> dict[str, NDArray[np.generic]]:
    encodings = [read_payload(p.coding, payload, p.layout) for p, payload in zip(parts, payloads, strict=True) if p.coding]
    merged = merge(
        settings.method,
        encodings,
        settings.weights,
        coefficient=settings.coefficient,
        parameters=settings.parameters,
        workers=WORKERS,
    )
    begun = Start(seed=part.seed) if part.seed is not None else start if part.initial_digest else Start()
    return dict(unflatten(part.layout, begun_at(part, begun) + merged))


def begun_at(part: FilePart, start: Start) -> NDArray[np.float32]:
    """Where a part started, held against the digest of it. Errors: WrongBaseError."""
    vector = initial_vector(part.file, part.layout, start)
    if part.initial_digest and digest_of(part.layout, vector) != part.initial_digest:
        raise WrongBaseError(f"--init is not what these experts were packed against: {part.initial_digest.hex()[:16]} is needed")
    return vector


def _exact(
    paths: Sequence[Path], part: FilePart, payloads: Sequence[bytes], settings: EntrySettings
) -> dict[str, NDArray[np.generic]]:
    rows = [list(exact_tensors(part, payload)) for payload in payloads]
    merged = {}
    for same in zip(*rows, strict=True):
        tensor, dtype, _ = same[0]
        values = [_array(dtype, octets).reshape(tensor.shape) for _, _, octets in same]
        if settings.method != "average" and any(not np.array_equal(v, values[0]) for v in values):
            raise InputError(f"{tensor.name} differs between experts and was kept as it is: only average can merge it")
        merged[tensor.name] = merged_beside(paths, tensor.name, values, settings.weights)
    return merged


def _array(dtype: str, octets: bytes) -> NDArray[np.generic]:
    raw = np.frombuffer(octets, NUMPY[dtype])
    if dtype in FLOATS:
        return to_float32(dtype, raw)
    return raw.astype(np.bool_) if dtype == "BOOL" else raw
