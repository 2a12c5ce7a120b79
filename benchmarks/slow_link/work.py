"""What travels: task vectors of LoRA shape. Made up, with rows of unequal size, as trained ones have; the same for every arm."""

import numpy as np

from compeft_core import Layout, Vector, layout_of

RANK, WIDTH = 16, 4096


def lora_layout(size: int) -> Layout:
    """Pairs of A (16, w) and B (w, 16) with about `size` parameters; w = 4096, or less if one such pair is too large."""
    width = min(WIDTH, size // (2 * RANK))
    pairs = max(1, round(size / (2 * RANK * width)))
    return layout_of({f"{i:03d}.lora_{ab}": (RANK, width) if ab == "A" else (width, RANK) for i in range(pairs) for ab in "AB"})


def task_vector(layout: Layout, client: int, round_number: int) -> Vector:
    """What this client might have trained in this round; all share where the large entries are."""
    rows = np.exp(np.random.default_rng(0).normal(0, 0.8, -(-layout.size // RANK))).astype(np.float32)
    values = np.random.default_rng([client, round_number]).standard_normal(layout.size, np.float32)
    return values * np.float32(1e-3) * rows.repeat(RANK)[: layout.size]
