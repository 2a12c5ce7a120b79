"""LoRA's modules: which two tensors are a product B A, of which rank and scaling, and their factors as plain matrices.

Example: `lora_A.weight` of shape (r, in) and `lora_B.weight` (out, r) are one product. A convolution's (r, in, kh, kw) and (out, r, 1, 1)
are flattened. With `target_parameters` a parameter of E experts has A of shape (E r, in) and B (out, r E): E products, A's rows expert
by expert, B's columns with the expert as the fastest index (PEFT: `einsum("o r e, e r i -> e o i")`).
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import InputError

PAIRS = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
"""Endings of A and of B; the product is B A for both."""
PREFIX = "base_model.model."
MAX_PATTERN = 200
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One module: the names and shapes of its factors, and how many products lie in them."""

    name: str
    a: str
    b: str
    a_shape: Shape
    b_shape: Shape
    slices: int = 1

    @property
    def rank(self) -> int:
        """Of one product."""
        return self.a_shape[0] // self.slices

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of one product."""
        return self.b_shape[0], math.prod(self.a_shape[1:])


def modules_of(shapes: Mapping[str, Shape], fields: Mapping[str, object]) -> list[LoraModule]:
    """The modules of an adapter, by its tensors' shapes and its configuration, in the order of A's names by UTF-8 bytes.

    Tensors that are not two matching factors are left out. Errors: InputError if a pattern of the configuration is invalid.
    """
    found = []
    for a in sorted(shapes, key=str.encode):
        ending = next((e for e in PAIRS if a.endswith(e)), None)
        b = a.removesuffix(ending) + PAIRS[ending] if ending else ""
        if ending and b in shapes:
            module = _module(a.removesuffix(ending), a, b, shapes, fields)
            found += [module] if module else []
    return found


def _module(name: str, a: str, b: str, shapes: Mapping[str, Shape], fields: Mapping[str, object]) -> LoraModule | None:
    a_shape, b_shape = shapes[a], shapes[b]
    inner = math.prod(b_shape[1:])
    if len(a_shape) < 2 or len(b_shape) < 2 or inner != a_shape[0] or 0 in (*a_shape, *b_shape) or inner != b_shape[1]:
        return None
    slices = 1
    if fields.get("target_parameters") and len(a_shape) == 2:
        rank = rank_of(fields, name.removeprefix(PREFIX))
        slices = a_shape[0] // rank if rank and a_shape[0] % rank == 0 else 1
    return LoraModule(name, a, b, a_shape, b_shape, slices)


def factors_of(
    module: LoraModule, a: NDArray[np.generic], b: NDArray[np.generic]
) -> list[tuple[NDArray[np.generic], NDArray[np.generic]]]:
    """(left (m, r), right (r, n)) of each product of a module, from its two tensors."""
    rows, columns = module.sides
    right = a.reshape(module.slices, module.rank, columns)
    left = b.reshape(rows, module.rank, module.slices)
    return [(left[:, :, e], right[e]) for e in range(module.slices)]


def tensors_of_factors(
    slices: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]], rank: int, module: LoraModule
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A and B as PEFT stores them, float32, of products of ranks up to `rank`, which zeros fill up. The inverse of `factors_of`."""
    rows, columns = module.sides
    a = np.zeros((len(slices), rank, columns), np.float32)
    b = np.zeros((rows, rank, len(slices)), np.float32)
    for e, (left, right) in enumerate(slices):
        a[e, : right.shape[0]], b[:, : left.shape[1], e] = right, left
    count = len(slices) * rank
    return a.reshape(count, *module.a_shape[1:]), b.reshape(rows, count, *module.b_shape[2:])


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
