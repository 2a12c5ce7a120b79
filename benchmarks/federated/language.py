"""The family `lm`: SmolLM2-135M learns a task by generating one word, LoRA r = 8 on all linear layers (2,442,240 parameters).

Same interface to the arms as the encoder's `Expert`: one float32 vector of all that trains. Rows are dealt to clients by a Dirichlet draw
over answers. Base model and rows come from PyPI packages and from this repository (`benchmarks.language_model`).
"""

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import sqrt
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.language_model.base import load_base, load_tokenizer
from benchmarks.language_model.scoring import answer_logits, score
from benchmarks.language_model.tasks import TASKS, Row, rows_of
from benchmarks.language_model.training import Recipe, batches, lora_model
from compeft_client.models.adapter import adapter_arrays, load_adapter
from compeft_core import Layout, Vector, flatten, layout_of, unflatten
from compeft_core.seeded_state import seeded_state

PREFIX = "lm-"
NAMES = {f"{PREFIX}{name}": name for name in ("language", "sentiment")}
"""Tasks of this family; both need only PyPI and this repository."""
CLIENTS, ALPHA = 4, 0.5
FEWEST_ROWS = 4


@dataclass(frozen=True, slots=True)
class Effort:
    """Rows of all clients together, test rows, local epochs, rows a step, learning rate."""

    rows: int = 96
    test_rows: int = 60
    epochs: int = 3
    batch: int = 8
    lr: float = 1e-3


class Clock:
    """Adds up the seconds and the processor's seconds (of all threads) that its blocks take."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self._began: tuple[float, float] = (0.0, 0.0)

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began[0]
        self.cpu_seconds += time.process_time() - self._began[1]


class LanguageExpert:
    """A language model whose adapter goes in and out as one float32 vector of shape (layout.size,)."""

    def __init__(self, rank: int = 8) -> None:
        self.model = lora_model(load_base(), Recipe(rank=rank), 0)
        self.layout: Layout = layout_of({name: array.shape for name, array in adapter_arrays(self.model).items()})
        self.bounds = [1 / sqrt(t.shape[1]) if "lora_A" in t.name else 0.0 for t in self.layout.tensors]

    def vector(self) -> Vector:
        """What the adapter is now."""
        return flatten(self.layout, adapter_arrays(self.model))

    def load(self, vector: Vector) -> None:
        """Become this."""
        load_adapter(self.model, unflatten(self.layout, vector))

    def train_only(self, factors: str) -> None:
        """Freeze every LoRA factor but these: "A", "B" or "AB"."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(any(f"lora_{factor}" in name for factor in factors))

    def train(self, rows: Sequence[Row], effort: Effort, seed: int) -> None:
        """AdamW over all rows, `epochs` times."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=effort.lr, weight_decay=0.0)
        steps = effort.epochs * max(1, len(rows) // effort.batch)
        for chosen in islice(batches(rows, effort.batch, seed), steps):
            logits, targets, _ = answer_logits(self.model.get_base_model(), [rows[number] for number in chosen])
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits.float(), targets).backward()  # type: ignore[no-untyped-call]  # not annotated in torch
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()


def dealt(rows: Sequence[Row], seed: int) -> list[list[Row]]:
    """The rows dealt to CLIENTS clients: each answer's by a draw from Dirichlet(ALPHA). A client with too few gets the first ones."""
    random = np.random.default_rng(seed)
    by_answer: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        by_answer.setdefault(row.ids[-row.answer :], []).append(row)
    parts: list[list[Row]] = [[] for _ in range(CLIENTS)]
    for own in by_answer.values():
        cuts = np.floor(np.cumsum(random.dirichlet([ALPHA] * CLIENTS))[:-1] * len(own) + 0.5).astype(int)
        for part, piece in zip(parts, np.split(np.arange(len(own)), cuts), strict=True):
            part += [own[place] for place in piece]
    return [part if len(part) >= FEWEST_ROWS else list(rows[:FEWEST_ROWS]) for part in parts]


def run_language(name: str, arm_name: str, seed: int, rounds: int, effort: Effort) -> dict[str, object]:
    """One run, as one line of JSON. Deterministic but for the times."""
    from benchmarks.federated.arms import ARMS

    rows, tests = task_rows(name, seed, effort)
    clients, expert = dealt(rows, seed), LanguageExpert()
    start = seeded_state(expert.layout, seed, expert.bounds)
    arm = ARMS[arm_name](expert, start, seed, CLIENTS)
    found: dict[str, list[float]] = {"accuracy": [], "loss": [], "sent_up": [], "sent_down": []}
    training, link = Clock(), Clock()
    for number in range(1, rounds + 1):
        for client, own in enumerate(clients):
            with link:
                base = arm.fetch(client)
            with training:
                expert.load(base)
                expert.train_only(arm.factors(number))
                expert.train(own, effort, 1_000_000 * seed + 1000 * number + client)
                moved = expert.vector() - base
            with link:
                arm.send(number, client, moved, len(own))
        with link:
            state = arm.close(number)
        with training:
            expert.load(state)
            measured = score(expert.model.get_base_model(), tests)
        now = {"accuracy": measured.accuracy, "loss": measured.loss, "sent_up": arm.sent_up, "sent_down": arm.sent_down}
        for key, value in now.items():
            found[key].append(value)
    arm.finish()
    return {
        "task": name,
        "arm": arm_name,
        "seed": seed,
        "clients": CLIENTS,
        "parameters": expert.layout.size,
        **found,
        "train_seconds": training.seconds,
        "link_seconds": link.seconds,
        "train_cpu_seconds": training.cpu_seconds,
        "link_cpu_seconds": link.cpu_seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def base_row(name: str, seed: int, effort: Effort) -> dict[str, object]:
    """The base model without any adapter: zero bytes."""
    _, tests = task_rows(name, seed, effort)
    measured = score(load_base(), tests)
    zero = {"sent_up": [0], "sent_down": [0]}
    return {"task": name, "arm": "base", "seed": seed, "accuracy": [measured.accuracy], "loss": [measured.loss], **zero}


def task_rows(name: str, seed: int, effort: Effort) -> tuple[list[Row], list[Row]]:
    """Rows to train on, drawn with the seed, and the same test rows for every seed."""
    rows, tests = rows_of(TASKS[NAMES[name]], Path(), load_tokenizer(), seed, effort.rows)
    return rows, tests[: effort.test_rows]
