"""LoRA's modules in a file of tensors: which two tensors are a product B A, and their factors as plain matrices.

Example: `lora_A.weight` of shape (r, in) and `lora_B.weight` (out, r) are one product. A convolution's (r, in, kh, kw) and (out, r, 1, 1)
are flattened. With PEFT's `target_parameters` a parameter of E experts has A of shape (E r, in) and B (out, r E): E products, A's rows
expert by expert, B's columns with the expert as the fastest index (PEFT: `einsum("o r e, e r i -> e o i")`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAIRS = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
"""Endings of A and of B; the product is B A for both."""
LOHA_PAIRS = {".hada_w1_b": ".hada_w1_a", ".hada_w2_b": ".hada_w2_a"}
LOKR_PAIRS = {".lokr_w1_b": ".lokr_w1_a", ".lokr_w2_b": ".lokr_w2_a"}
"""The same for the two products of a LoHa module, multiplied entry by entry, and for those of a LoKr module, of which it is the Kronecker
product.
"""
ALL_PAIRS = {**PAIRS, **LOHA_PAIRS, **LOKR_PAIRS}
"""All pairs that a product part may hold."""
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


def pairs_of(shapes: Mapping[str, Shape], pairs: Mapping[str, str] = PAIRS) -> list[LoraModule]:
    """All pairs of two matching factors, each taken as one product, in the order of A's names by UTF-8 bytes.

    A module of LoRA is named without its ending, a product of LoHa or LoKr by what both its names begin with, such as `x.hada_w1`.
    """
    found = []
    for a in sorted(shapes, key=str.encode):
        ending = next((e for e in pairs if a.endswith(e)), None)
        if ending is None:
            continue
        stem = a.removesuffix(ending)
        b = stem + pairs[ending]
        if b in shapes and _fit(shapes[a], shapes[b]):
            found.append(LoraModule(stem if ending in PAIRS else a[:-2], a, b, shapes[a], shapes[b]))
    return found


def _fit(a: Shape, b: Shape) -> bool:
    """Whether A (k, ...) and B (m, k, 1 ...) are factors of one product."""
    return len(a) >= 2 and len(b) >= 2 and 0 not in (*a, *b) and b[1] == a[0] and math.prod(b[1:]) == a[0]


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
