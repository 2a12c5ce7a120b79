"""Parts of products: the factors of an adapter -> the payload of its product part, and back to tensors."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compeft_client.checkpoints.safetensors_file import Stored, read_values
from compeft_client.packing.plan import PlannedPart
from compeft_client.workers import WORKERS
from compeft_core import Tensor, Vector
from compeft_core.product import LowRank, ProductEncoded, ProductSettings, encode_product, factors_of
from compeft_proto.expert_manifest import FilePart
from compeft_proto.lora_modules import LoraModule, tensors_of_factors
from compeft_proto.lora_modules import factors_of as module_factors
from compeft_proto.product_part import sides_of, symbols_of
from compeft_proto.quantised_part import MAX_ENTRY

STEPS_PER_DEVIATION = 40.0
"""A quantised tensor's step is the median over its columns of a column's root mean square, divided by this: about 7.4 bits an entry. The
median, and one step for all entries, so that columns of large weights (features of tiny variance) cost bytes and no accuracy."""

NOTHING = ProductSettings(step=1.0)
"""For modules of zeros."""


def products_of(planned: PlannedPart, progress: Callable[[int], None]) -> list[LowRank]:
    """Every product of a part, in the order of the payload. Errors: NotFiniteError; those of reading."""
    tensors = {t.name: t for t in planned.tensors}
    made = []
    for module, scaling in planned.modules:
        a, b = read_whole(tensors[module.a]), read_whole(tensors[module.b])
        made += [LowRank(left, right, scaling) for left, right in module_factors(module, a, b)]  # type: ignore[arg-type]  # float32
        progress(a.size + b.size)
    return made


def encode(products: Sequence[LowRank], settings: ProductSettings, weights: Sequence[float] | None = None) -> ProductEncoded:
    """The products, coded on all cores. weights: how much an error in each matters. Errors: LimitError if a budget is below what nothing
    takes.
    """
    return encode_product(products, settings, weights, workers=WORKERS)


def sides(planned: PlannedPart) -> list[tuple[int, int]]:
    """Rows and columns of every product of a planned part."""
    return sides_of([module for module, _ in planned.modules])


def slices_of(modules: Sequence[LoraModule]) -> tuple[int, ...]:
    """As a manifest says them: none if every module is one product."""
    return tuple(m.slices for m in modules) if any(m.slices > 1 for m in modules) else ()


def product_tensors(
    part: FilePart, payload: bytes, ranks: Mapping[str, int] | None = None
) -> Iterator[tuple[Tensor, str, Vector]]:
    """(tensor, dtype, flat float32 values) of a product part, a module at a time, at the ranks of the file that was packed, or at
    `ranks` by module, which zeros fill up.

    Errors: FormatError, LimitError.
    """
    modules = part.modules
    symbols = symbols_of(payload, modules, WORKERS)
    dtypes = dict(zip((t.name for t in part.layout.tensors), part.dtypes, strict=True))
    at = 0
    for module in modules:
        rank = module.rank if ranks is None else ranks[module.name]
        a, b = tensors_of_factors(factors_of(symbols, at, at + module.slices), rank, module)
        at += module.slices
        yield Tensor(module.a, a.shape), dtypes[module.a], a.reshape(-1)
        yield Tensor(module.b, b.shape), dtypes[module.b], b.reshape(-1)


def quantise(values: NDArray[np.float32]) -> tuple[NDArray[np.int32], float]:
    """A tensor as integers (flat) and their step, by STEPS_PER_DEVIATION."""
    columns = np.sqrt(np.mean(np.square(values.reshape(values.shape[0], -1), dtype=np.float64), axis=0))
    middle = float(np.median(columns)) or float(columns.mean())
    largest = float(np.abs(values).max()) if values.size else 0.0
    step = float(np.float32(max(middle / STEPS_PER_DEVIATION, largest / (MAX_ENTRY - 1))))
    if step == 0 or not math.isfinite(step):
        return np.zeros(values.size, np.int32), 0.0
    return np.rint(values.reshape(-1).astype(np.float64) / step).astype(np.int32), step


def read_whole(tensor: Stored) -> NDArray[np.float32]:
    """A float tensor in its shape. Errors: NotFiniteError; those of reading."""
    return np.concatenate([np.zeros(0, np.float32), *read_values(tensor)]).reshape(tensor.shape)
