"""The factors of the rows of a batch, and what they add to a module's output.

Row i of a module's inputs X (rows, tokens, n) is multiplied by the right vectors of its own expert's components, R[i] (components, n),
each by its factor, and by the left ones, L[i] (components, m): two batched products for all rows at once, whatever experts they want.
Experts of fewer components than the batch's largest have zeros there, which add nothing. No row's sums depend on another row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compeft_client.models.thin_expert import ThinExpert

Sides = Sequence[tuple[int, int]]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ModuleFactors:
    """left (rows, components, m), right (rows, components, n), factors (rows, 1, components), of each row's own expert."""

    left: Tensor
    right: Tensor
    factors: Tensor

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return self.left.shape[0]

    def added_to(self, output: Tensor, inputs: Tensor) -> Tensor:
        """The module's output (rows, ..., m), of inputs (rows, ..., n), with what the experts add."""
        flat = inputs.reshape(self.rows, -1, inputs.shape[-1])
        inner = torch.bmm(flat, self.right.mT) * self.factors
        return torch.baddbmm(output.reshape(self.rows, -1, output.shape[-1]), inner, self.left).view_as(output)


def batch_factors(rows: Sequence[int], experts: Sequence[ThinExpert], sides: Sides, like: Tensor) -> list[ModuleFactors | None]:
    """A module each, in the pool's order; None where no expert has a component. rows: for each row the number of its expert, -1: none.

    sides: (m, n) of the pool's modules.   like: a tensor of the dtype and on the device of the model's.
    """
    found: list[list[tuple[int, Floats, Floats]]] = [[] for _ in sides]
    for number, expert in enumerate(experts):
        entries, at, component = expert.entries, 0, 0
        for place, rank in zip(expert.places_in, expert.ranks.tolist(), strict=True):
            if rank:
                size = rank * sum(sides[place])
                table = entries[at : at + size].reshape(rank, -1)
                found[place].append((number, table, expert.factors[component : component + rank]))
                at, component = at + size, component + rank
    chosen = np.array(rows)
    return [_of_module(held, chosen, len(experts), m, like) if held else None for held, (m, _) in zip(found, sides, strict=True)]


def _of_module(
    held: Sequence[tuple[int, Floats, Floats]], chosen: NDArray[np.int64], experts: int, m: int, like: Tensor
) -> ModuleFactors:
    """Tables of all experts of the batch, zeros for those without a component and, as the last, for rows without an expert."""
    most = max(table.shape[0] for _, table, _ in held)
    tables = np.zeros((experts + 1, most, held[0][1].shape[1]), np.float32)
    factors = np.zeros((experts + 1, 1, most), np.float32)
    for number, table, factor in held:
        tables[number, : table.shape[0]] = table
        factors[number, 0, : table.shape[0]] = factor
    arrays = (tables[chosen, :, :m], tables[chosen, :, m:], factors[chosen])
    return ModuleFactors(*(torch.from_numpy(np.ascontiguousarray(array)).to(like.device, like.dtype) for array in arrays))
