"""Runs every kernel once on small arrays, so that the first use does not wait for their compilation.

numba compiles a kernel for the processor that runs it, and keeps the result below NUMBA_CACHE_DIR, or beside the sources where that is
not set. A machine of another processor, or another version of numba, compiles again.
"""

from collections.abc import Callable
from typing import get_args

import numpy as np
from numba.core.event import Event, Listener, register, unregister

from compeft_core.compress import SCALE_RULES, Compression, Granularity, compress, densify
from compeft_core.format.encoding import Codec, add_to, decode, encode, encoding_of, parse
from compeft_core.format.matrix_shapes import shapes_of
from compeft_core.layout import Vector, layout_of
from compeft_core.merging.methods import METHODS, merge
from compeft_core.product import LowRank, ProductSettings, decode_product, encode_product

LAYOUT = layout_of({"a": (256, 128), "b": (128, 256), "c": (64,)}, dense=["c"])


def warm_readers() -> None:
    """Run the kernels that check, read and add ternary updates: those of an aggregator."""
    update = compress(LAYOUT, _values(1), Compression(0.1))
    for codec in get_args(Codec):
        encoded = parse(encode(update, codec=codec, shapes=shapes_of(LAYOUT) if codec == "context" else ()))
        densify(decode(encoded))
        add_to(encoded, np.zeros(LAYOUT.size, np.float32), 0.5)


def warm() -> None:
    """Run all kernels: compression by each scale rule, each codec, each merge method, the product-space codec."""
    warm_readers()
    for rule in SCALE_RULES:
        for granularity in get_args(Granularity):
            compress(LAYOUT, _values(2), Compression(0.1, rule, granularity=granularity))
    updates = [encoding_of(compress(LAYOUT, _values(seed), Compression(0.1))) for seed in range(5)]
    for method in METHODS:
        merge(method, updates, [1.0] * len(updates))
    b, a = _values(3)[:256].reshape(64, 4), _values(4)[:160].reshape(4, 40)
    for settings in (ProductSettings(step=0.3), ProductSettings(budget=400), ProductSettings(distortion=0.2)):
        decode_product(encode_product([LowRank(b, a, 1.0)] * 3, settings).blob, [(64, 40)] * 3)


def say_when_compiling(say: Callable[[], None]) -> None:
    """Call `say` once in this process, before the first kernel that is not on disk yet is compiled."""

    class Once(Listener):
        def on_start(self, event: Event) -> None:
            unregister("numba:compile", self)  # type: ignore[no-untyped-call]  # numba ships no types
            say()

        def on_end(self, event: Event) -> None:
            """Nothing: `say` was told at the start."""

    register("numba:compile", Once())  # type: ignore[no-untyped-call]  # numba ships no types


def _values(seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(LAYOUT.size).astype(np.float32)
