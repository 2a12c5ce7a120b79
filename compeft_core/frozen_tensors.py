"""Tensors that rest for a round: neither trained nor sent. An average of one factor while the other rests is exact, at half the bytes.

If every client holds the same A, mean(B) A is mean(B A). So FFA-LoRA (arXiv 2403.12313) rests A for good, and RoLoRA (arXiv 2502.01755)
and LoRA-A2 (arXiv 2410.22815) rest A and B in turn. A resting tensor is named by how its name ends; what an earlier round left
behind of it stays in the residual, untouched, until it is active again.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compeft_core.compress import Compression
from compeft_core.errors import InputError
from compeft_core.layout import Layout

A_ENDING, B_ENDING = ".lora_A.weight", ".lora_B.weight"


def resting_in_round(averaging: str, number: int) -> tuple[str, ...]:
    """Endings that rest in round `number` (from 1). B trains first where they take turns: beside a B of zeros A has no gradient.

    Errors: InputError for an unknown name.
    """
    if averaging not in AVERAGING:
        raise InputError(f"averaging is {averaging!r}, known are {', '.join(AVERAGING)}")
    turns = AVERAGING[averaging]
    return turns[(number - 1) % len(turns)]


AVERAGING: dict[str, tuple[tuple[str, ...], ...]] = {
    "factors": ((),),
    "frozen_a": ((A_ENDING,),),
    "alternating": ((A_ENDING,), (B_ENDING,)),
}
"""The frozen tensors of each round, repeated from the start: none (FedIT), A (FFA-LoRA), A and B in turn (RoLoRA)."""


def active_places(layout: Layout, resting: Sequence[str]) -> NDArray[np.bool_]:
    """Bool of shape (layout.size,): which parameters are active. Errors: InputError if an ending fits no tensor, or all are frozen."""
    for ending in resting:
        if not any(t.name.endswith(ending) for t in layout.tensors):
            raise InputError(f"invalid ending {ending[:60]!r}: no tensor's name ends in it")
    active = [not t.name.endswith(tuple(resting)) for t in layout.tensors]
    if resting and not any(active):
        raise InputError(f"every tensor is frozen by {', '.join(resting)[:80]}: no tensor is left to train")
    return np.repeat(np.array(active, np.bool_), [t.size for t in layout.tensors])


def share_of_active(layout: Layout, compression: Compression, resting: Sequence[str]) -> Compression:
    """The same compression with its density taken of the active ternary parameters, as a fraction of all of them."""
    if not resting or layout.ternary_size == 0:
        return compression
    active = int(np.count_nonzero(active_places(layout, resting)[: layout.ternary_size]))
    return replace(compression, density=max(compression.density * active, 0.5) / layout.ternary_size)
