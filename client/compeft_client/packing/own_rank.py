"""LoRA's factors at the ranks that were kept: `compeft unpack --rank own`, and the configuration by which PEFT loads them.

A product that was packed at rank 16 may be coded by 3 components. Its own rank is then 3, so its A and B take 3/16 of the bytes and of the
time to compute with. PEFT multiplies a product by alpha / rank (rsLoRA: alpha / sqrt(rank)), so each module's alpha changes with its rank.

Loaders that read only `r` and `lora_alpha`, such as vLLM's, get the right scaling too where all modules have one scaling: `r` is the
largest own rank, and `lora_alpha` that scaling times `r`.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from compeft_client.checkpoints.lora_modules import PREFIX, LoraModule, modules_of, scaling_of
from compeft_client.checkpoints.source import fields_of
from compeft_client.packing.expert_file import ExpertFile, read_payload_of
from compeft_client.workers import WORKERS
from compeft_core.errors import InputError
from compeft_proto.expert_manifest import ADAPTER
from compeft_proto.product_part import symbols_of

Rank = Literal["keep", "own"]
"""`keep`: the ranks of the adapter that was packed, filled up with zeros; `own`: those that were kept."""
NESTED = ".base_layer"
"""In the names of modules with two parameters of several experts each: PEFT gives both one rank."""


@dataclass(frozen=True, slots=True)
class OwnRanks:
    """ranks: by module of a product part, at least 1.   shapes: of their factors, by tensor.   config: adapter_config.json that says so."""

    ranks: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    config: bytes


def own_ranks(opened: ExpertFile) -> OwnRanks:
    """The ranks that an expert file kept. Errors: InputError if it holds no products or no configuration; FormatError, LimitError."""
    numbers = [n for n, part in enumerate(opened.manifest.parts) if part.slices is not None]
    fields = fields_of(opened.manifest.config, opened.path) if opened.manifest.config else {}
    if not numbers or fields.get("peft_type") != "LORA":
        what = "configuration of a LoRA that ranks could be written to" if numbers else "products of LoRA's factors"
        raise InputError(f"{opened.path} holds no {what}: unpack it with --rank keep")
    kept: dict[str, int] = {}
    modules: list[LoraModule] = []
    for n in numbers:
        part = opened.manifest.parts[n]
        kept |= _kept(part.modules, symbols_of(read_payload_of(opened, n), part.modules, WORKERS).ranks.tolist())
        modules += part.modules
    shared = _shared(kept, bool(fields.get("target_parameters")))
    shapes = {name: shape for m in modules for name, shape in _shapes(m, shared[m.name]).items()}
    return OwnRanks(shared, shapes, _config(opened, fields, shared))


def _kept(modules: Sequence[LoraModule], ranks: Sequence[int]) -> dict[str, int]:
    """The most components that a product of a module has; 1 if none has any, as PEFT knows no rank of 0."""
    kept, at = {}, 0
    for module in modules:
        kept[module.name] = max(1, *ranks[at : at + module.slices])
        at += module.slices
    return kept


def _shared(kept: Mapping[str, int], several_experts: bool) -> dict[str, int]:
    """Ranks where modules that PEFT knows by one name have one rank, the largest."""
    if not several_experts:
        return dict(kept)
    most: Counter[str] = Counter()
    for name, rank in kept.items():
        most[name.replace(NESTED, "")] = max(rank, most[name.replace(NESTED, "")])
    return {name: most[name.replace(NESTED, "")] for name in kept}


def _shapes(module: LoraModule, rank: int) -> dict[str, tuple[int, ...]]:
    count = rank * module.slices
    return {module.a: (count, *module.a_shape[1:]), module.b: (module.b_shape[0], count, *module.b_shape[2:])}


def _config(opened: ExpertFile, fields: Mapping[str, object], own: Mapping[str, int]) -> bytes:
    """The configuration with `r`, `lora_alpha` and both patterns for the modules' ranks and unchanged scalings."""
    shapes = {t.name: t.shape for p in opened.manifest.parts if p.file == ADAPTER for t in p.layout.tensors}
    ranks: dict[str, int] = {}
    scalings: dict[str, float] = {}
    for module in modules_of(shapes, fields):
        name = module.name.removeprefix(PREFIX)
        rank, plain = own.get(module.name, module.rank), name.replace(NESTED, "")
        ranks[plain], scalings[plain] = rank, scaling_of(fields, name, module.rank)
    usual_rank, usual = max(ranks.values()), Counter(scalings.values()).most_common(1)[0][0]
    alphas = {name: _alpha(scalings[name], rank, fields) for name, rank in ranks.items()}
    changed = {
        "r": usual_rank,
        "lora_alpha": _alpha(usual, usual_rank, fields),
        "rank_pattern": _pattern(ranks, usual_rank),
        "alpha_pattern": _pattern(alphas, _alpha(usual, usual_rank, fields)),
    }
    return json.dumps(dict(fields) | changed, indent=2).encode()


def _alpha(scaling: float, rank: int, fields: Mapping[str, object]) -> float:
    """What makes PEFT multiply by `scaling` at a rank; an int where it is whole."""
    alpha = scaling * (math.sqrt(rank) if fields.get("use_rslora") else rank)
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha


def _pattern(values: Mapping[str, float], usual: float) -> dict[str, float]:
    """By module, those that are not usual. PEFT takes the first pattern that a name ends with, so longer names come first, and names
    that another one ends with are listed, usual or not.
    """
    ends = {name for name in values if any(other.endswith(f".{name}") for other in values)}
    listed = {name: value for name, value in values.items() if value != usual}
    longer = {n: v for n, v in values.items() if n not in listed and any(n.endswith(f".{end}") for end in ends & set(listed))}
    chosen = listed | longer
    return {re.escape(name): chosen[name] for name in sorted(chosen, key=lambda n: (-len(n), n))}
