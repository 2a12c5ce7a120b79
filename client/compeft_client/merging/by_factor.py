"""LoRA adapters merged as products of their factors: any ranks, alphas and scalings in, one plain LoRA of scaling 1 out."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compeft_client.checkpoints.lora_modules import (
    PREFIX,
    LoraModule,
    factors_of,
    is_factor_name,
    modules_of,
    patterns_for,
    scaling_of,
    tensors_of_factors,
)
from compeft_client.merging.inputs import (
    Candidate,
    MergedAdapter,
    Reading,
    merged_beside,
    notes_by_path,
    read_candidates,
    tensors_of,
)
from compeft_client.merging.token_rows import ENDING, FIELD, indices_of, merge_rows, merged_field
from compeft_client.workers import Tell
from compeft_core import METHODS
from compeft_core.errors import InputError
from compeft_core.merging.lora_factors import FACTOR_METHODS, FactorSettings, LoraFactors, merge_factors
from compeft_proto.expert_manifest import ADAPTER

Tensors = Mapping[str, Mapping[str, NDArray[np.generic]]]
Files = dict[str, dict[str, NDArray[np.generic]]]


def merge_as_factors(
    paths: Sequence[Path], method: str, settings: FactorSettings, weights: Sequence[float], reading: Reading
) -> MergedAdapter:
    """The merged adapter. `weights` apply to tensors other than factors: their weighted mean.

    Errors: InputError that names the tensor or the field that stands in the way; those of reading.
    """
    candidates = read_candidates(paths, "factors", same_base=reading.same_base)
    if candidates[0].fields.get("peft_type") != "LORA":
        raise InputError(
            f"{paths[0]} is not a LoRA: merge the directories that were packed, not files of products, by average, ties "
            "or another method for entries"
        )
    read = []
    for number, candidate in enumerate(candidates, 1):
        read.append(tensors_of(candidate, reading.init))
        reading.tell(f"read {number} of {len(candidates)} experts")
    _check_names(paths, read)
    merged: Files = {file: {} for file in read[0]}
    merge_one = partial(_merged, method, settings=settings, weights=weights)
    groups = _products(candidates, read, merge_one, reading.tell)
    padded = max((max(f.a.shape[0] for f in found) for _, found in groups), default=1) if _has_slices(groups) else 0
    ranks: dict[str, int] = {}
    for module, found in groups:
        rank = padded or found[0].a.shape[0]
        a, b = tensors_of_factors([(f.b, f.a) for f in found], rank, module)
        merged[ADAPTER] |= {module.a: a, module.b: b}
        ranks[module.name.removeprefix(PREFIX)] = rank
    tokens: dict[str, list[int]] = {}
    for file, name in ((file, name) for file, tensors in read[0].items() for name in tensors if name not in merged[file]):
        if name.endswith(ENDING):
            rows = [
                (indices_of(c.fields, name, t[file][name].shape[0], c.path), t[file][name]) for c, t in _pairs(candidates, read)
            ]
            tokens[name], merged[file][name] = merge_rows(rows, weights)  # type: ignore[arg-type]  # rows of floats
        else:
            merged[file][name] = merged_beside(paths, name, [tensors[file][name] for tensors in read], weights)
    return MergedAdapter(merged, _config(candidates[0], ranks, tokens), None, notes_by_path(candidates))


def _products(
    candidates: Sequence[Candidate],
    read: Sequence[Tensors],
    merge_one: Callable[[Sequence[LoraFactors]], LoraFactors],
    tell: Tell,
) -> list[tuple[LoraModule, list[LoraFactors]]]:
    """Each module of the first expert, and the merged factors of each of its products."""
    modules = [_modules(candidate, tensors) for candidate, tensors in _pairs(candidates, read)]
    groups = []
    for name, first in modules[0].items():
        own = [one[name] for one in modules]
        if any((m.slices, m.sides) != (first.slices, first.sides) for m in own):
            raise InputError(
                f"{name} has products of different sizes in {candidates[0].path} and the others: not of one base model"
            )
        slices = [_scaled(c, m, t[ADAPTER]) for c, m, t in zip(candidates, own, read, strict=True)]
        groups.append((first, [merge_one(list(alike)) for alike in zip(*slices, strict=True)]))
        tell(f"merged {len(groups)} of {len(modules[0])} modules")
    return groups


def _merged(method: str, factors: Sequence[LoraFactors], settings: FactorSettings, weights: Sequence[float]) -> LoraFactors:
    """One product out of several: by a method for factors, or by a linear one (`average`, `task_arithmetic`), exactly."""
    if method in FACTOR_METHODS:
        return merge_factors(method, factors, settings)
    total = math.fsum(weights) if METHODS[method].normalised else 1.0
    shares = [settings.coefficient * w / total for w in weights]
    return shortened(
        np.hstack([w * f.b for w, f in zip(shares, factors, strict=True)]), np.vstack([f.a for f in factors]), settings.rank
    )


def shortened(b: NDArray[np.float64], a: NDArray[np.float64], rank: int | None = None) -> LoraFactors:
    """The product b @ a with a column for each singular value above 2^-40 of the largest, at most `rank`; thin QR, small SVD."""
    (qb, rb), (qa, ra) = np.linalg.qr(b), np.linalg.qr(a.T)
    u, values, vt = np.linalg.svd(rb @ ra.T)
    count = max(1, int((values > values[0] * 2.0**-40).sum()))
    root = np.sqrt(values[: min(count, rank or count)])
    return LoraFactors(qb @ u[:, : root.size] * root, (root[:, None] * vt[: root.size]) @ qa.T)


def _modules(candidate: Candidate, tensors: Tensors) -> dict[str, LoraModule]:
    """Errors: InputError if one of the adapter's factors is not half of a product."""
    shapes = {name: value.shape for name, value in tensors[ADAPTER].items()}
    modules = {module.name: module for module in modules_of(shapes, candidate.fields)}
    known = {name for module in modules.values() for name in (module.a, module.b)}
    for name in shapes:
        if is_factor_name(name) and name not in known:
            raise InputError(
                f"{name} in {candidate.path} of shape {list(shapes[name])} is not a factor of a product: it cannot be merged"
            )
    return modules


def _scaled(candidate: Candidate, module: LoraModule, tensors: Mapping[str, NDArray[np.generic]]) -> list[LoraFactors]:
    scaling = scaling_of(candidate.fields, module.name.removeprefix(PREFIX), module.rank)
    a, b = tensors[module.a].astype(np.float64), tensors[module.b].astype(np.float64)
    return [LoraFactors(scaling * left.astype(np.float64), right.astype(np.float64)) for left, right in factors_of(module, a, b)]


def _has_slices(groups: Sequence[tuple[LoraModule, list[LoraFactors]]]) -> bool:
    """Whether a parameter of several experts is among them: PEFT matches no pattern of ranks to those, so all get one rank."""
    return any(module.slices > 1 for module, _ in groups)


def _pairs(candidates: Sequence[Candidate], read: Sequence[Tensors]) -> list[tuple[Candidate, Tensors]]:
    return list(zip(candidates, read, strict=True))


def _check_names(paths: Sequence[Path], read: Sequence[Tensors]) -> None:
    names = [{(file, name) for file, tensors in one.items() for name in tensors} for one in read]
    for path, found in zip(paths, names, strict=True):
        for _, name in sorted(found ^ names[0]):
            raise InputError(f"{name} is only in one of {paths[0]} and {path}: experts must adapt the same modules")


def _config(candidate: Candidate, ranks: Mapping[str, int], tokens: Mapping[str, Sequence[int]]) -> bytes:
    """The first expert's configuration with ranks as they are now and every alpha equal to its rank: scaling 1."""
    usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    others = patterns_for(ranks, usual)
    changed = {"r": usual, "lora_alpha": usual, "use_rslora": False, "rank_pattern": others, "alpha_pattern": others}
    fields = {**candidate.fields, **changed, "init_lora_weights": True, "inference_mode": True}
    if tokens:
        fields[FIELD] = merged_field(candidate.fields, tokens)
    return json.dumps(fields, indent=2).encode()
