"""The rows, and how a model learns from them: one turn of chat, loss on the answer only. No Flower in here."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

SITES = ("north", "centre", "west", "east")
DATA = Path(__file__).parent / "data"
QUESTION = "Name the language."
IGNORED = -100


@dataclass(frozen=True)
class Row:
    """Token ids of one conversation; the last `answer` of them are the model's turn: the word and the end of the turn."""

    ids: list[int]
    answer: int


@dataclass(frozen=True)
class Settings:
    """How to train: rows a step, steps added up before the optimizer moves, epochs, learning rate, seed of the order."""

    batch: int
    accumulation: int
    epochs: int
    lr: float
    seed: int


def load_rows(tokenizer: PreTrainedTokenizerBase, folder: Path, split: str, most: int, tokens: int) -> list[Row]:
    """The first `most` rows of `<folder>/<split>.jsonl`, a text cut to `tokens` tokens each."""
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line][:most]
    return [encoded(tokenizer, row["text"], row["answer"], tokens) for row in rows]


def encoded(tokenizer: PreTrainedTokenizerBase, text: str, answer: str, tokens: int) -> Row:
    """One conversation as the model's own chat template writes it."""
    short = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:tokens])
    turns = [{"role": "system", "content": QUESTION}, {"role": "user", "content": short}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tail = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return Row([*head, *tail], len(tail))


def train(model: PeftModel, rows: Sequence[Row], settings: Settings) -> float:
    """AdamW on the adapter; the mean loss over all answer tokens of the last epoch, 0.0 without rows."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=0.0)
    torch.manual_seed(settings.seed)
    losses: list[float] = []
    model.train()
    for _ in range(settings.epochs):
        losses = []
        batches = list(batched(rows, settings.batch))
        for place, batch in enumerate(batches, 1):
            loss = answer_loss(model, batch)[0]
            (loss / settings.accumulation).backward()
            losses.append(loss.item())
            if place % settings.accumulation == 0 or place == len(batches):
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
    return sum(losses) / len(losses) if losses else 0.0


@torch.inference_mode()
def measure(model: PeftModel, rows: Sequence[Row], batch: int = 8) -> tuple[float, float]:
    """Mean loss of an answer token, and the part of the rows whose answer greedy decoding gives exactly."""
    model.eval()
    losses, exact = [], 0
    for start in range(0, len(rows), batch):
        loss, right = answer_loss(model, rows[start : start + batch])
        losses.append(loss.item())
        exact += int(right.sum())
    return (sum(losses) / len(losses), exact / len(rows)) if rows else (0.0, 0.0)


def answer_loss(model: PeftModel, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Cross entropy of the answers' tokens, and for each row whether every one of them is the likeliest: what greedy decoding answers.

    Rows are padded on the left, so all answers end where the batch ends, and logits are computed there only.
    """
    longest, kept = max(len(row.ids) for row in rows), max(row.answer for row in rows)
    ids = torch.tensor([[0] * (longest - len(row.ids)) + row.ids for row in rows])
    seen = torch.tensor([[0] * (longest - len(row.ids)) + [1] * len(row.ids) for row in rows])
    labels = torch.tensor([[IGNORED] * (kept - row.answer) + row.ids[-row.answer :] for row in rows])
    ids, seen, labels = (part.to(model.device) for part in (ids, seen, labels))
    places = (seen.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=seen, position_ids=places, logits_to_keep=kept + 1, use_cache=False).logits
    logits = logits[:, :-1].float()
    loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    right = (logits.argmax(-1) == labels) | (labels == IGNORED)
    return loss, right.all(1)


def batched(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    """All rows in a random order, rows of like length together, so that little is padded."""
    order = torch.randperm(len(rows)).tolist()
    order.sort(key=lambda number: len(rows[number].ids))
    starts = list(range(0, len(order), size))
    for place in torch.randperm(len(starts)).tolist():
        yield [rows[number] for number in order[starts[place] : starts[place] + size]]
