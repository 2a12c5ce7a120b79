"""LoRA's modules by an adapter's configuration: ranks, scalings, and how many products lie in a parameter of several experts."""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from compeft_core.errors import InputError
from compeft_proto.lora_modules import LOHA_PAIRS, LOKR_PAIRS, PAIRS, LoraModule, Shape, factors_of, pairs_of, tensors_of_factors

__all__ = [
    "PAIRS",
    "LoraModule",
    "factors_of",
    "is_factor_name",
    "modules_of",
    "patterns_for",
    "products_in",
    "rank_of",
    "scaling_of",
    "tensors_of_factors",
]

PREFIX = "base_model.model."
MAX_PATTERN = 200


def products_in(shapes: Mapping[str, Shape], fields: Mapping[str, object]) -> list[LoraModule]:
    """The products that an adapter's tensors hold: LoRA's modules, or the pairs of a LoHa's or LoKr's modules, but for those whose
    convolutions have a core tensor between the factors; none of other methods.

    Errors: InputError if a pattern of the configuration is invalid.
    """
    kind = fields.get("peft_type")
    if kind == "LORA":
        return modules_of(shapes, fields)
    pairs = {"LOHA": LOHA_PAIRS, "LOKR": LOKR_PAIRS}.get(str(kind), {})
    cores = {name.rpartition(".")[0] for name in shapes if name.endswith((".hada_t1", ".lokr_t2"))}
    return [module for module in pairs_of(shapes, pairs) if module.name.rpartition(".")[0] not in cores]


def modules_of(shapes: Mapping[str, Shape], fields: Mapping[str, object]) -> list[LoraModule]:
    """The modules of an adapter, by its tensors' shapes and its configuration, in the order of A's names by UTF-8 bytes.

    Tensors that are not two matching factors are left out. Errors: InputError if a pattern of the configuration is invalid.
    """
    return [replace(module, slices=_slices(module, fields)) for module in pairs_of(shapes)]


def _slices(module: LoraModule, fields: Mapping[str, object]) -> int:
    if not fields.get("target_parameters") or len(module.a_shape) != 2:
        return 1
    rank = rank_of(fields, module.name.removeprefix(PREFIX))
    return module.a_shape[0] // rank if rank and module.a_shape[0] % rank == 0 else 1


def rank_of(fields: Mapping[str, object], module: str) -> int:
    """The rank that the configuration gives a module, named without PREFIX; 0 if it says none."""
    found = matching(fields.get("rank_pattern"), module, fields.get("r", 8))
    return found if isinstance(found, int) and found > 0 else 0


def scaling_of(fields: Mapping[str, object], module: str, rank: int) -> float:
    """What PEFT multiplies a module's product by: alpha over the rank, or over its root for rsLoRA; alpha by `alpha_pattern`.

    Errors: InputError if the configuration has no alpha.
    """
    alpha = matching(fields.get("alpha_pattern"), module, fields.get("lora_alpha"))
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise InputError(f"the configuration says no lora_alpha for {module}")
    return alpha / math.sqrt(rank) if fields.get("use_rslora") else alpha / rank


def matching(patterns: object, module: str, otherwise: object) -> object:
    """The value of the first pattern that a module's name matches, as PEFT matches them. Errors: InputError for an invalid pattern."""
    if not isinstance(patterns, dict):
        return otherwise
    return next((value for pattern, value in patterns.items() if _matches(str(pattern), module)), otherwise)


def _matches(pattern: str, module: str) -> bool:
    if module == pattern or module.endswith(f".{pattern}"):
        return True
    try:
        return len(pattern) <= MAX_PATTERN and re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error as error:
        raise InputError(f"the configuration has the pattern {pattern[:40]!r}, which is not a regular expression") from error


def patterns_for(values: Mapping[str, int], usual: int) -> dict[str, int]:
    """`rank_pattern` or `alpha_pattern` for modules (named without PREFIX) whose value is not the usual one."""
    return {module: value for module, value in values.items() if value != usual}


def is_factor_name(name: str, pairs: Collection[str] = (*PAIRS, *PAIRS.values())) -> bool:
    """Whether a tensor's name is that of a factor."""
    return name.endswith(tuple(pairs))
