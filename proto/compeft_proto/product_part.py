"""A part of an expert file whose payload codes products of LoRA's factors: its modules, its checks, and its tensors.

The layout has nothing but pairs of factors; modules are in the order of A's names by UTF-8 bytes, the products of a module follow one
another. docs/expert-file.md, section 4, is normative.
"""

from collections.abc import Sequence
from dataclasses import replace

from compeft_core import Layout
from compeft_core.errors import FormatError
from compeft_core.product import Factors, ProductLimits, ProductSymbols, check_product, parse_product
from compeft_proto.lora_modules import ALL_PAIRS, LoraModule, pairs_of

LIMITS = ProductLimits(rank=4096, entries=1 << 31)
MAX_PRODUCTS = 1 << 18
"""Most products in one part: three in each of 58 layers of 256 experts are 44,544."""


def modules_in(layout: Layout, slices: Sequence[int]) -> list[LoraModule]:
    """The modules of a layout. Errors: FormatError if a tensor is not half of a pair, or the slices do not fit."""
    modules = pairs_of({t.name: t.shape for t in layout.tensors}, ALL_PAIRS)
    if 2 * len(modules) != len(layout.tensors):
        raise FormatError(f"a product part has {len(layout.tensors)} tensors, {2 * len(modules)} of them are pairs of factors")
    if slices and (len(slices) != len(modules) or all(s == 1 for s in slices)):
        raise FormatError(f"a product part says slices of {len(slices)} modules, it has {len(modules)}; all 1 is not written")
    if sum(slices) > MAX_PRODUCTS or any(s < 1 for s in slices):
        raise FormatError(f"a product part has {sum(slices)} products, expected 1 to {MAX_PRODUCTS}")
    sliced = [replace(m, slices=s) for m, s in zip(modules, slices or [1] * len(modules), strict=True)]
    for module in sliced:
        if module.a_shape[0] % module.slices or (module.slices > 1 and (len(module.a_shape), len(module.b_shape)) != (2, 2)):
            raise FormatError(f"{module.name!r} of rank {module.a_shape[0]} does not hold {module.slices} products")
    return sliced


def sides_of(modules: Sequence[LoraModule]) -> list[tuple[int, int]]:
    """Rows and columns of every product, in the order of the payload."""
    return [module.sides for module in modules for _ in range(module.slices)]


def check(payload: bytes, modules: Sequence[LoraModule]) -> int:
    """Check every byte of a payload; the number of components. Errors: FormatError, LimitError."""
    return check_product(payload, sides_of(modules), LIMITS)


def symbols_of(payload: bytes, modules: Sequence[LoraModule], workers: int = 1) -> ProductSymbols:
    """The symbols of a payload. Errors: FormatError, also if a product has more components than its module's rank; LimitError."""
    symbols = parse_product(payload, sides_of(modules), LIMITS, workers=workers)
    ranks = [module.rank for module in modules for _ in range(module.slices)]
    for i, (found, most) in enumerate(zip(symbols.ranks.tolist(), ranks, strict=True)):
        if found > most:
            raise FormatError(f"product {i} has {found} components, its module has rank {most}")
    return symbols


def by_module(factors: Sequence[Factors], modules: Sequence[LoraModule]) -> list[list[Factors]]:
    """The factors of all products, a list for each module."""
    made, at = [], 0
    for module in modules:
        made.append(list(factors[at : at + module.slices]))
        at += module.slices
    return made
