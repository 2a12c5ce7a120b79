"""The factors of all experts of a batch, side by side, and what they add to a module's output.

Of one module, the right vectors of all experts' components lie in R (components, n), the left ones in L (components, m). For inputs X
(rows, tokens, n) the batch adds (X R^T, with 0 where a component is not of the row's expert) L: two products for all experts at once,
instead of two for each. With many components that wastes more than it saves; then each expert's rows are taken by themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compeft_client.models.thin_expert import ThinExpert

MOST_TOGETHER = 256
"""Components of a module up to which all rows are multiplied by all of them."""
Sides = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True, eq=False)
class ModuleFactors:
    """left (components, m), right (components, n); mine (rows, components): 1.0 where a component is of the row's expert, else 0.0."""

    left: Tensor
    right: Tensor
    mine: Tensor

    def added(self, inputs: Tensor) -> Tensor:
        """What is added to the module's output: (rows, ..., m), of inputs (rows, ..., n)."""
        if self.left.shape[0] > MOST_TOGETHER:
            return self._by_expert(inputs)
        inner = torch.nn.functional.linear(inputs, self.right)
        inner = inner * self.mine.reshape(self.mine.shape[0], *[1] * (inputs.dim() - 2), -1)
        return torch.nn.functional.linear(inner, self.left.T)

    def _by_expert(self, inputs: Tensor) -> Tensor:
        out = inputs.new_zeros(*inputs.shape[:-1], self.left.shape[1])
        patterns, number = torch.unique(self.mine, dim=0, return_inverse=True)
        for at, pattern in enumerate(patterns):
            used = pattern.nonzero()[:, 0]
            rows = (number == at).nonzero()[:, 0]
            if used.numel():
                out[rows] = inputs[rows] @ self.right[used].T @ self.left[used]
        return out


def batch_factors(rows: Sequence[int], experts: Sequence[ThinExpert], sides: Sides, like: Tensor) -> list[ModuleFactors | None]:
    """A module each, in the pool's order; None where no expert has a component. rows: for each row the number of its expert, -1: none.

    sides: (m, n) of the pool's modules.   like: a tensor of the dtype and on the device of the model's.
    """
    tables: list[list[NDArray[np.float32]]] = [[] for _ in sides]
    owners: list[list[int]] = [[] for _ in sides]
    for number, expert in enumerate(experts):
        values, at = expert.components([sides[place] for place in expert.places_in]), 0
        for place, rank in zip(expert.places_in, expert.ranks.tolist(), strict=True):
            if rank:
                length = sum(sides[place])
                tables[place].append(values[at : at + rank * length].reshape(rank, length))
                owners[place] += [number] * rank
                at += rank * length
    chosen = np.array(rows)[:, None]
    return [
        _on_device(np.concatenate(found), m, (chosen == np.array(owner)).astype(np.float32), like) if found else None
        for found, owner, (m, _) in zip(tables, owners, sides, strict=True)
    ]


def _on_device(table: NDArray[np.float32], m: int, mine: NDArray[np.float32], like: Tensor) -> ModuleFactors:
    left, right = np.ascontiguousarray(table[:, :m]), np.ascontiguousarray(table[:, m:])
    return ModuleFactors(*(torch.from_numpy(array).to(like.device, like.dtype) for array in (left, right, mine)))
