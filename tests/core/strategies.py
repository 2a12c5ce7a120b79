"""Layouts, vectors and settings for property tests: small, with ties, zeros, subnormal and huge values."""

import numpy as np
from hypothesis import strategies as st

from compeft_core import SCALE_RULES, Compression, Layout, Update, compress, layout_of, shapes_of

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
    shapes = draw(st.lists(st.tuples(st.integers(0, 60)) | st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=4))
    names = [f"t{i}" for i in range(len(shapes))]
    dense = draw(st.sets(st.sampled_from(names))) if names else set()
    return layout_of(dict(zip(names, shapes, strict=True)), dense)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Layout, np.ndarray, Compression]:
    layout = draw(layouts())
    values = draw(st.lists(VALUES, min_size=layout.size, max_size=layout.size))
    return layout, np.array(values, np.float32), draw(settings)


@st.composite
def updates(draw: st.DrawFn) -> Update:
    return compress(*draw(problems()))


@st.composite
def codings(draw: st.DrawFn) -> tuple[Update, dict[str, object]]:
    """An update, and how `encode` is to write it; most that are to be written by `context` are regular enough for it."""
    layout, vector, chosen = draw(problems())
    if draw(st.booleans()):
        return compress(layout, vector, chosen), {"codec": draw(st.sampled_from(("rice", "rice4")))}
    if draw(st.integers(0, 3)):
        layout, vector = draw(low_rank())
    return compress(layout, vector, chosen), {"codec": "context", "shapes": shapes_of(layout)}


@st.composite
def low_rank(draw: st.DrawFn) -> tuple[Layout, np.ndarray]:
    """Two matrices and a dense value: products of a column and a row, but for a few entries."""
    rows, columns, seed = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(0, 2**32 - 1))
    layout = layout_of({"a": (rows, columns), "b": (columns, rows), "h": (1,)}, dense=["h"])
    return layout, rank_one(layout, seed)


def rank_one(layout: Layout, seed: int, noise: float = 0.02) -> np.ndarray:
    """Each tensor an outer product of random signs and sizes, with a fraction of its entries drawn anew."""
    rng = np.random.default_rng(seed)
    parts = []
    for t in layout.tensors:
        rows = t.shape[0]
        part = np.outer(rng.standard_normal(rows), rng.standard_normal(t.size // rows)).reshape(-1)
        anew = rng.random(t.size) < noise
        part[anew] = rng.standard_normal(int(anew.sum()))
        parts.append(part)
    return np.concatenate(parts).astype(np.float32)


def gaussian(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def gaussian_update(size: int, density: float, seed: int = 0, dense: int = 0) -> Update:
    layout = layout_of({"a": (size,), "head": (dense,)}, dense=["head"])
    return compress(layout, gaussian(layout.size, seed), Compression(density=density))
