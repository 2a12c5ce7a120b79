"""Fine-tunes LoRA experts on SmolLM2: r = 8, alpha 16, all linear layers (2,442,240 parameters), loss on the answer only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from benchmarks.language_model.scoring import answer_logits
from benchmarks.language_model.tasks import Row

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Recipe:
    """`steps` of `batch` rows by AdamW without weight decay; the rate rises over WARMUP steps and falls linearly to a tenth."""

    steps: int = 80
    batch: int = 8
    lr: float = 5e-4
    rank: int = 8
    rows: int = 640


WARMUP = 10


def lora_model(base: LlamaForCausalLM, recipe: Recipe, seed: int) -> PeftModel:
    """The base with a fresh adapter: PEFT's own initial values (B = 0), drawn from `seed`."""
    torch.manual_seed(seed)
    config = LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    return get_peft_model(base, config)


def train(model: PeftModel, rows: Sequence[Row], recipe: Recipe, seed: int) -> float:
    """Train in place; return the mean loss in nats of the last ten steps. Deterministic for one number of threads."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe.steps))
    losses = []
    model.train()
    for chosen in islice(batches(rows, recipe.batch, seed), recipe.steps):
        logits, targets, _ = answer_logits(model.get_base_model(), [rows[number] for number in chosen])
        loss = nn.functional.cross_entropy(logits.float(), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation for it
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return float(np.mean(losses[-10:]))


def batches(rows: Sequence[Row], size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers of batch after batch, without end: every row once an epoch, rows of like length together, little padding."""
    random = np.random.default_rng(seed)
    lengths = np.array([len(row.ids) for row in rows])
    while True:
        shuffled = random.permutation(len(rows))
        ordered = shuffled[np.argsort(lengths[shuffled], kind="stable")]
        cut = np.array_split(ordered, max(1, len(rows) // size))
        for number in random.permutation(len(cut)):
            yield cut[number]


def _rate(step: int, steps: int) -> float:
    return min((step + 1) / WARMUP, 1 - 0.9 * step / steps)
