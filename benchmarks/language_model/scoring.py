"""Scores of the base with an expert's difference folded into its weights, on rows whose answers are known.

A difference is one module's low-rank pair or a dense matrix; folding W + dW makes an evaluation as fast as the base alone.
Logits are computed at the answers' positions only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from benchmarks.language_model.tasks import Row

Floats = NDArray[np.float32]
BATCH = 25


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


@dataclass(frozen=True, slots=True)
class Score:
    """Over the rows: share answered exactly by greedy decoding, mean probability of the whole true answer, its mean loss in nats."""

    accuracy: float
    soft: float
    loss: float


def folded(weight: Tensor, difference: Difference) -> Tensor:
    """The weight plus the difference, in the weight's type."""
    dense = difference.dense() if isinstance(difference, LowRank) else torch.from_numpy(difference)
    return (weight.float() + dense).to(weight.dtype)


class Scorer:
    """One base model held in memory and scored with any number of differences, one after the other."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self._modules: dict[str, nn.Module] = dict(model.named_modules())
        self._original: dict[str, Tensor] = {}

    def load(self, differences: Differences) -> None:
        """Make the model the base plus these. Errors: KeyError for a module that the base lacks."""
        for name, weight in self._original.items():
            self._modules[name].weight.data = weight  # type: ignore[union-attr]  # each is a linear layer
        self._original = {}
        for name, difference in differences.items():
            module = self._modules[name]
            self._original[name] = module.weight.data  # type: ignore[union-attr,assignment]  # the same
            module.weight.data = folded(module.weight.data, difference)  # type: ignore[union-attr,arg-type]  # the same

    @torch.inference_mode()
    def score(self, rows: Sequence[Row]) -> Score:
        """How the model as loaded answers these rows. Rows of like length share a batch; the order of rows does not matter."""
        ordered = sorted(rows, key=lambda row: len(row.ids))
        parts = [answers(self.model, ordered[at : at + BATCH]) for at in range(0, len(ordered), BATCH)]
        exact, logs = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        return Score(float(exact.double().mean()), float(logs.double().exp().mean()), float(-logs.double().mean()))


def answers(model: nn.Module, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """For each row: whether greedy decoding gives its answer, and the log of its probability."""
    logits, targets, owner = answer_logits(model, rows)
    logs = torch.log_softmax(logits.float(), -1).gather(1, targets[:, None])[:, 0]
    right = (logits.argmax(1) == targets).float()
    total = torch.zeros(len(rows)).index_add(0, owner, logs)
    exact = torch.zeros(len(rows)).index_add(0, owner, 1 - right) == 0
    return exact, total


def answer_logits(model: nn.Module, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that predict each answer token (tokens, vocabulary), those tokens, and the number of the row each belongs to."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    places: list[tuple[int, int]] = []
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        mask[number, : len(row.ids)] = 1
        places += [(number, place) for place in range(len(row.ids) - row.answer, len(row.ids))]
    owner, place = torch.tensor(places).T
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return model.lm_head(hidden[owner, place - 1]), ids[owner, place], owner
