"""Low-rank experts as training makes them: spectra that fall, directions that are not sparse."""

from collections.abc import Sequence

import numpy as np

from compeft_core.product import LowRank

SHAPES = ((96, 40), (96, 96), (24, 96), (96, 160), (160, 96), (96, 40))


def expert(seed: int = 0, shapes: Sequence[tuple[int, int]] = SHAPES, rank: int = 8, decay: float = 1.0) -> list[LowRank]:
    """One module for each shape; singular values fall like (1 + j)**-decay."""
    random = np.random.default_rng(seed)
    modules = []
    for m, n in shapes:
        r = min(rank, m, n)
        values = (1.0 + np.arange(r)) ** -decay * random.lognormal(0, 0.5)
        left = random.normal(size=(m, r)) * values / np.sqrt(m)
        modules.append(LowRank(left.astype(np.float32), random.normal(size=(r, n)).astype(np.float32) / np.float32(n**0.5), 2.0))
    return modules


def shapes_of(modules: Sequence[LowRank]) -> list[tuple[int, int]]:
    """Rows and columns of the modules."""
    return [(x.left.shape[0], x.right.shape[1]) for x in modules]
