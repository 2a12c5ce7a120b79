"""Folds an expert's differences into a base model's weights, W + dW, and takes them out again: as fast to run as the base alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float32]
PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class LowRank:
    """scale * left @ right, left (out, rank) and right (rank, in): LoRA's B, A and alpha / r."""

    left: Floats
    right: Floats
    scale: float = 1.0

    def dense(self) -> Tensor:
        """(out, in), float32."""
        return self.scale * (torch.from_numpy(self.left) @ torch.from_numpy(self.right))


Difference = LowRank | Floats
Differences = Mapping[str, Difference]
"""By the module's name in the base model, such as `model.layers.0.self_attn.q_proj`; modules left out are the base's own."""


class Folding:
    """The linear layers of one model, each with the base's weight or the base's plus a difference."""

    def __init__(self, model: nn.Module) -> None:
        self._linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        self._original: dict[str, Tensor] = {}

    def load(self, differences: Differences) -> None:
        """Make the model the base plus these. Errors: KeyError for a name that is not a linear layer of the base."""
        for name, weight in self._original.items():
            self._linear[name].weight.data = weight
        self._original = {name: self._linear[name].weight.data for name in differences}
        for name, difference in differences.items():
            dense = difference.dense() if isinstance(difference, LowRank) else torch.from_numpy(difference)
            weight = self._original[name]
            self._linear[name].weight.data = (weight.float() + dense).to(weight.dtype)


def differences_of(state: Mapping[str, Floats], scale: float) -> dict[str, Difference]:
    """The low-rank pairs of a PEFT state dict of plain LoRA; `scale` is lora_alpha / r. Errors: KeyError for an A without its B."""
    modules = sorted({name.rsplit(".lora_", 1)[0] for name in state})
    return {
        module.removeprefix(PREFIX): LowRank(state[f"{module}.lora_B.weight"], state[f"{module}.lora_A.weight"], scale)
        for module in modules
    }
