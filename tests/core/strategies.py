"""Layouts, vectors and settings for property tests: small, with ties, zeros, subnormal and huge values."""

import numpy as np
from hypothesis import strategies as st

from compeft_core import SCALE_RULES, Compression, Layout, Update, compress, layout_of

VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, -1e-40, 3e4]) | st.floats(-100, 100, width=32)

settings = st.builds(
    Compression,
    density=st.floats(0.001, 1.0),
    scale=st.sampled_from(list(SCALE_RULES)),
    factor=st.sampled_from([1.0, 1.75, 0.1]),
    granularity=st.sampled_from(["vector", "tensor"]),
)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    sizes = draw(st.lists(st.integers(0, 60), min_size=0, max_size=4))
    names = [f"t{i}" for i in range(len(sizes))]
    dense = draw(st.sets(st.sampled_from(names))) if names else set()
    return layout_of({name: (size,) for name, size in zip(names, sizes, strict=True)}, dense)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Layout, np.ndarray, Compression]:
    layout = draw(layouts())
    values = draw(st.lists(VALUES, min_size=layout.size, max_size=layout.size))
    return layout, np.array(values, np.float32), draw(settings)


@st.composite
def updates(draw: st.DrawFn) -> Update:
    return compress(*draw(problems()))


def gaussian(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def gaussian_update(size: int, density: float, seed: int = 0, dense: int = 0) -> Update:
    layout = layout_of({"a": (size,), "head": (dense,)}, dense=["head"])
    return compress(layout, gaussian(layout.size, seed), Compression(density=density))
