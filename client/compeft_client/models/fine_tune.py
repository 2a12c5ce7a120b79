"""Fine-tunes a LoRA encoder and its classification head on one device, and measures them; the same code on a GPU and on a CPU.

It knows nothing of federations, files or compression: tokens in, numbers out, the model changed in place. On CUDA the forward
pass runs under bfloat16 autocast; on a CPU everything is float32 and, with one thread and one seed, the same bits come out each
time. Rows are batched by length, so little is spent on padding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compeft_core.errors import InputError, LayoutMismatchError, NotFiniteError

LENGTH_STEP = 4
"""Rows whose token counts differ by less than this may share a batch in any order: speed of sorting, variety of shuffling."""
EVALUATION_BATCH = 32
PROBE_STEPS = 100
PROBE_PENALTY = 2.0
"""The best of 0.1 to 30 on held-out rows, for a few hundred sentence embeddings: a weaker probe would flatter an expert."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Tokenised rows. `tokens[i]` are the ids of row i, special ones included, at least one; `labels[i]` its class, from 0."""

    tokens: Sequence[Sequence[int]]
    labels: Sequence[int]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.labels):
            raise LayoutMismatchError(f"{len(self.tokens)} rows of tokens, {len(self.labels)} labels")
        if not self.tokens:
            raise InputError("no examples: at least one row is needed")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """How to fine-tune. `lr` is for the adapter, `head_lr` for the head; AdamW, no weight decay, a constant rate.

    b_ratio: LoRA's B learns this many times faster than A (LoRA+, arXiv 2402.12354; 5 in LoRA-A2, where they take turns).
    """

    seed: int = 0
    epochs: int = 1
    batch_size: int = 16
    lr: float = 1e-3
    head_lr: float = 2e-2
    b_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise InputError(f"epochs {self.epochs} and batch size {self.batch_size} must be at least 1")
        if not (self.lr > 0 and self.head_lr > 0 and self.b_ratio > 0):
            raise InputError(f"learning rates {self.lr}, {self.head_lr} and the ratio {self.b_ratio} must be above 0")


@dataclass(frozen=True, slots=True)
class EvalScore:
    """`accuracy` in [0, 1] and mean cross-entropy `loss` in nats over `count` rows."""

    accuracy: float
    loss: float
    count: int


class Classifier(nn.Module):
    """Encoder, mean over the real tokens, linear head.

    `encoder(input_ids=, attention_mask=)` returns an object with `last_hidden_state` (rows, tokens, hidden); `pad_id` fills
    short rows and is masked out.
    """

    def __init__(self, encoder: nn.Module, head: nn.Linear, pad_id: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.pad_id = pad_id

    def pooled(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Rows of token ids -> float32 features (rows, hidden)."""
        device = self.head.weight.device
        ids, mask = (tensor.to(device) for tensor in padded(rows, self.pad_id))
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).float()
        mean: Tensor = (hidden.float() * weight).sum(1) / weight.sum(1)
        return mean

    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Rows of token ids -> float32 logits (rows, classes)."""
        logits: Tensor = self.head(self.pooled(rows))
        return logits


def prepare_device(threads: int) -> torch.device:
    """Give torch this many CPU threads and choose CUDA where there is one, the CPU elsewhere."""
    torch.set_num_threads(threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fine_tune(classifier: Classifier, examples: Examples, settings: TuningSettings) -> float:
    """Train what requires a gradient, in place; return the mean training loss (nats).

    The global random state is left as it was. Errors: NotFiniteError if the loss diverged (the model is then useless).
    """
    optimizer = _optimizer(classifier, settings)
    losses = []
    classifier.train()
    with _seeded(settings.seed, classifier.head.weight.device):
        for rows in training_batches(examples, settings):
            loss = _loss(classifier, examples, rows)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation for it
            optimizer.step()
            losses.append(loss.detach())
    classifier.eval()
    mean = float(torch.stack(losses).mean())
    if not np.isfinite(mean):
        raise NotFiniteError(f"training loss is {mean}: lower the learning rates {settings.lr} and {settings.head_lr}")
    return mean


def training_batches(examples: Examples, settings: TuningSettings) -> Iterator[NDArray[np.int64]]:
    """Row numbers of each batch: every row once an epoch, rows of like length together, the batches in random order."""
    random = np.random.default_rng(settings.seed)
    steps = np.array([len(row) // LENGTH_STEP for row in examples.tokens])
    for _ in range(settings.epochs):
        shuffled = random.permutation(len(examples))
        by_length = shuffled[np.argsort(steps[shuffled], kind="stable")]
        batches = [by_length[start : start + settings.batch_size] for start in range(0, len(examples), settings.batch_size)]
        for number in random.permutation(len(batches)):
            yield batches[number]


@torch.inference_mode()
def features(classifier: Classifier, examples: Examples) -> Tensor:
    """Pooled features of all rows, float32 (rows, hidden) on the model's device, in row order."""
    classifier.eval()
    order = np.argsort([len(row) for row in examples.tokens], kind="stable")
    parts = [
        classifier.pooled([examples.tokens[row] for row in order[start : start + EVALUATION_BATCH]])
        for start in range(0, len(order), EVALUATION_BATCH)
    ]
    return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(parts[0].device)]


def evaluate(classifier: Classifier, examples: Examples) -> EvalScore:
    """How well the classifier does on these rows."""
    return score(classifier.head, features(classifier, examples), examples.labels)


@torch.inference_mode()
def score(head: nn.Linear, pooled: Tensor, labels: Sequence[int]) -> EvalScore:
    """How well a head does on features (rows, hidden) already computed."""
    target = torch.tensor(labels, device=pooled.device)
    logits = head(pooled)
    loss = nn.functional.cross_entropy(logits, target)
    return EvalScore(float((logits.argmax(1) == target).float().mean()), float(loss), len(target))


def fit_probe(pooled: Tensor, labels: Sequence[int], classes: int, penalty: float = PROBE_PENALTY) -> nn.Linear:
    """Multinomial logistic regression on fixed features (rows, hidden), by L-BFGS from zero: no random numbers.

    Minimises mean cross-entropy + penalty / 2 * ||W||^2 over standardised features; the head returned takes them unstandardised.
    """
    x = pooled.detach().clone()
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp_min(1e-6)
    x = (x - mean) / deviation
    weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    target = torch.tensor(labels, device=x.device)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=PROBE_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(x @ weight.T + bias, target) + penalty / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation for it
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]  # torch ships no annotation for it
    return linear(weight.detach() / deviation, bias.detach() - weight.detach() @ (mean / deviation))


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with this weight (classes, hidden) and bias (classes), on their device; no random number is drawn."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(bias)
    return layer


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of token ids -> ids and mask, int64 (rows, longest), short rows filled with `pad_id` and masked 0."""
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), pad_id, np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _loss(classifier: Classifier, examples: Examples, rows: NDArray[np.int64]) -> Tensor:
    target = torch.tensor([examples.labels[row] for row in rows], device=classifier.head.weight.device)
    return nn.functional.cross_entropy(classifier([examples.tokens[row] for row in rows]), target)


def _optimizer(classifier: Classifier, settings: TuningSettings) -> torch.optim.Optimizer:
    named = [(name, p) for name, p in classifier.encoder.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if ".lora_B." not in name], "lr": settings.lr},
        {"params": [p for name, p in named if ".lora_B." in name], "lr": settings.lr * settings.b_ratio},
        {"params": list(classifier.head.parameters()), "lr": settings.head_lr},
    ]
    return torch.optim.AdamW(groups, weight_decay=0.0, fused=True)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout, where a model has any, draws from `seed`; torch's own random state comes back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
