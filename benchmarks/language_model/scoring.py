"""Scores of the language model on rows whose answers are known. Logits are computed at the answers' positions only.

A batch runs as one sequence: what all its rows begin with (the system turn) once, then the rows' rests one after the other, each
seeing the beginning and itself. The same result as a padded batch, for a third fewer tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from benchmarks.folding import Differences, Folding
from benchmarks.language_model.tasks import Row

BATCH = 12
SHARED = -1
"""The owner of the tokens that all rows of a batch begin with."""


@dataclass(frozen=True, slots=True)
class Score:
    """Over the rows: share answered exactly by greedy decoding, mean probability of the whole true answer, its mean loss in nats."""

    accuracy: float
    soft: float
    loss: float


class Scorer:
    """One base model held in memory and scored with any number of differences, one after the other."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self._folding = Folding(model)

    def score(self, rows: Sequence[Row], differences: Differences) -> Score:
        """How the base plus the differences answers these rows; an empty mapping is the base alone."""
        self._folding.load(differences)
        return score(self.model, rows)


@torch.inference_mode()
def score(model: nn.Module, rows: Sequence[Row]) -> Score:
    """How the model answers these rows, in any order."""
    parts = [answers(model, rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
    exact, logs = (torch.cat(part).double() for part in zip(*parts, strict=True))
    return Score(float(exact.mean()), float(logs.exp().mean()), float(-logs.mean()))


def answers(model: nn.Module, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """For each row: whether greedy decoding gives its answer, and the log of its probability."""
    logits, targets, owner = answer_logits(model, rows)
    logs = torch.log_softmax(logits.float(), -1).gather(1, targets[:, None])[:, 0]
    wrong = (logits.argmax(1) != targets).float()
    zeros = torch.zeros(len(rows))
    return zeros.index_add(0, owner, wrong) == 0, zeros.index_add(0, owner, logs)


def answer_logits(model: nn.Module, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that predict each answer token (tokens, vocabulary), those tokens, and the number of the row each belongs to."""
    shared = _shared_start(rows)
    ids, owner, place = list(rows[0].ids[:shared]), [SHARED] * shared, list(range(shared))
    predicting: list[int] = []
    for number, row in enumerate(rows):
        predicting += range(len(ids) + len(row.ids) - shared - row.answer - 1, len(ids) + len(row.ids) - shared - 1)
        ids += row.ids[shared:]
        owner += [number] * (len(row.ids) - shared)
        place += range(shared, len(row.ids))
    owners = torch.tensor(owner)
    sees = torch.ones(len(ids), len(ids), dtype=torch.bool).tril() & ((owners == SHARED) | (owners == owners[:, None]))
    tokens, at = torch.tensor(ids), torch.tensor(predicting)
    hidden = model.model(
        input_ids=tokens[None], attention_mask=sees[None, None], position_ids=torch.tensor(place)[None], use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden[0, at]), tokens[at + 1], owners[at + 1]


def _shared_start(rows: Sequence[Row]) -> int:
    """How many tokens all rows begin with, leaving each at least one before its answer."""
    most = min(len(row.ids) - row.answer - 1 for row in rows)
    return next((at for at in range(most) if len({row.ids[at] for row in rows}) > 1), most)
