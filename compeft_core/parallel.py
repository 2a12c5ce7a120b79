"""How hot loops run: without the interpreter lock, over contiguous shares of blocks; and the names of `compeft_core.kernels`.

Nothing here changes a result. A kernel gets a range of blocks and writes only what belongs to them, so any number of workers
gives the same bytes.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar

from compeft_core.errors import InputError
from compeft_core.kernels import COMPILED, int64, kernel, load_word, magnitude_mask, ones, trailing_zeros, true_mask, uint64
from compeft_core.kernels.interpreted import CHUNK, MAGNITUDE

__all__ = [
    "CHUNK",
    "COMPILED",
    "MAGNITUDE",
    "int64",
    "kernel",
    "load_word",
    "magnitude_mask",
    "ones",
    "shares",
    "spread",
    "trailing_zeros",
    "true_mask",
    "uint64",
    "workers_for",
]

T = TypeVar("T")


def workers_for(size: int, most: int) -> int:
    """Threads worth starting for a vector of `size` entries: one, and one more for each 2**20 entries; at most `most`."""
    return min(most, 1 + (size >> 20))


def shares(count: int, workers: int) -> list[tuple[int, int]]:
    """`range(count)` cut into at most `workers` contiguous, non-empty (first, last) ranges. Errors: InputError."""
    if workers < 1:
        raise InputError(f"invalid workers {workers}: expected 1 or more")
    edges = [count * i // workers for i in range(workers + 1)]
    return [(first, last) for first, last in pairwise(edges) if first < last]


def spread(task: Callable[..., T], arguments: list[tuple[Any, ...]]) -> list[T]:
    """`[task(*a) for a in arguments]`, each on its own thread when there is more than one."""
    if len(arguments) <= 1:
        return [task(*a) for a in arguments]
    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(lambda a: task(*a), arguments))
