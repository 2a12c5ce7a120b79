"""LoRA adapters merged as products of their factors: any ranks, alphas and scalings in, one plain LoRA of scaling 1 out."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compeft_client.merging.inputs import SAME_FOR_FACTORS, Candidate, merged_beside, read_candidates, tensors_of
from compeft_core.errors import InputError
from compeft_core.merging.lora_factors import Factors, FactorSettings, merge_factors
from compeft_proto.expert_manifest import ADAPTER

PAIRS = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
"""Endings of A and of B; the product is B A for both."""
PREFIX = "base_model.model."


def merge_as_factors(
    paths: Sequence[Path], method: str, settings: FactorSettings, weights: Sequence[float], init: str | None
) -> tuple[dict[str, dict[str, NDArray[np.generic]]], bytes]:
    """Tensors by file, and the configuration, of the merged adapter. `weights` are for what is no factor: its weighted mean.

    Errors: InputError that names the tensor or the field that stands in the way; those of reading.
    """
    candidates = read_candidates(paths, SAME_FOR_FACTORS)
    if candidates[0].fields.get("peft_type") != "LORA":
        raise InputError(f"{paths[0]} is no LoRA: merge it by average, ties or another method for entries")
    read = [tensors_of(candidate, init) for candidate in candidates]
    _check_names(paths, read)
    merged: dict[str, dict[str, NDArray[np.generic]]] = {file: {} for file in read[0]}
    ranks: dict[str, int] = {}
    for file, name in ((file, name) for file, tensors in read[0].items() for name in tensors):
        values = [tensors[file][name] for tensors in read]
        ending = next((e for e in PAIRS if file == ADAPTER and name.endswith(e)), None)
        if ending:
            module = name.removesuffix(ending)
            pairs = [_pair(c, module, t[file], ending) for c, t in zip(candidates, read, strict=True)]
            found = merge_factors(method, pairs, settings)
            merged[file][name] = found.a.astype(np.float32)
            merged[file][module + PAIRS[ending]] = found.b.astype(np.float32)
            ranks[module.removeprefix(PREFIX)] = found.a.shape[0]
        elif not name.endswith(tuple(PAIRS.values())):
            merged[file][name] = merged_beside(paths, name, values, weights)
    return merged, _config(candidates[0], ranks)


def scaling_of(fields: Mapping[str, object], module: str, rank: int) -> float:
    """What PEFT multiplies a module's product by: alpha over the rank, or over its root for rsLoRA; alpha by `alpha_pattern`.

    Errors: InputError if the configuration has no alpha.
    """
    patterns = fields.get("alpha_pattern") or {}
    alpha = fields.get("lora_alpha")
    if isinstance(patterns, dict):
        alpha = next((value for pattern, value in patterns.items() if _names(str(pattern), module)), alpha)
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise InputError(f"the configuration says no lora_alpha for {module}")
    return alpha / math.sqrt(rank) if fields.get("use_rslora") else alpha / rank


def _names(pattern: str, module: str) -> bool:
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error as error:
        raise InputError(f"alpha_pattern has {pattern[:40]!r}, which is no regular expression") from error


def _pair(candidate: Candidate, module: str, tensors: Mapping[str, NDArray[np.generic]], ending: str) -> Factors:
    a, b = tensors[module + ending].astype(np.float64), tensors[module + PAIRS[ending]].astype(np.float64)
    if a.ndim != 2 or b.ndim != 2:
        raise InputError(
            f"{module} in {candidate.path} has factors of {a.ndim} and {b.ndim} dimensions: only matrices can be merged"
        )
    return Factors(scaling_of(candidate.fields, module.removeprefix(PREFIX), a.shape[0]) * b, a)


def _check_names(paths: Sequence[Path], read: Sequence[Mapping[str, Mapping[str, NDArray[np.generic]]]]) -> None:
    names = [{(file, name) for file, tensors in one.items() for name in tensors} for one in read]
    for path, found in zip(paths, names, strict=True):
        for _, name in sorted(found ^ names[0]):
            raise InputError(f"{name} is only in one of {paths[0]} and {path}: experts must adapt the same modules")


def _config(candidate: Candidate, ranks: Mapping[str, int]) -> bytes:
    """The first expert's configuration with ranks as they are now and every alpha equal to its rank: scaling 1."""
    usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    others = {module: rank for module, rank in ranks.items() if rank != usual}
    changed = {"r": usual, "lora_alpha": usual, "use_rslora": False, "rank_pattern": others, "alpha_pattern": others}
    fields = {**candidate.fields, **changed, "init_lora_weights": True, "inference_mode": True}
    return json.dumps(fields, indent=2).encode()
