"""Tasks and who has which rows: sentiment by domain (committed), and few-shot intent tasks split by a Dirichlet draw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.federated.model import DOMAINS, domain_rows, model_folder
from compeft_client.models.fine_tune import Examples
from compeft_core.errors import InputError

SHARED = Path("../shared/data")
MOST_TOKENS = 48
TEST_ROWS = 500
FEWEST_ROWS = 4


@dataclass(frozen=True, slots=True)
class Task:
    """Rows of each client, the pooled test rows, and the number of classes."""

    name: str
    clients: tuple[Examples, ...]
    test: Examples
    classes: int


def sentiment(_seed: int) -> Task:
    """Four clients, one domain each, 300 rows each; 2 classes."""
    domains = [domain_rows(number) for number in range(len(DOMAINS))]
    test = Examples([t for d in domains for t in d.test.tokens], [label for d in domains for label in d.test.labels])
    return Task("sentiment", tuple(d.train for d in domains), test, 2)


def intents(name: str, clients: int, alpha: float, per_class: int) -> Callable[[int], Task]:
    """`per_class` rows of each class, dealt to `clients` clients: each class by a draw from Dirichlet(alpha)."""

    def load(seed: int) -> Task:
        labels = (SHARED / name / "labels.txt").read_text(encoding="utf-8").split("\n")
        number = {label: at for at, label in enumerate(filter(None, labels))}
        random = np.random.default_rng(seed)
        train, test = (_rows(SHARED / name / f"{split}.tsv", number) for split in ("train", "test"))
        few = np.concatenate([random.permutation(np.flatnonzero(train[1] == c))[:per_class] for c in range(len(number))])
        parts = _dirichlet(train[1][few], clients, alpha, random)
        picked = random.permutation(len(test[1]))[:TEST_ROWS]
        return Task(
            f"{name}-dir{alpha:g}-{clients}",
            tuple(_take(train, few[part]) for part in parts if len(part) >= FEWEST_ROWS),
            _take(test, picked),
            len(number),
        )

    return load


TASKS: dict[str, Callable[[int], Task]] = {
    "sentiment": sentiment,
    "hwu64": intents("hwu64", 10, 0.5, 5),
    "banking77": intents("banking77", 10, 0.1, 10),
    "clinc150": intents("clinc150", 30, 0.01, 6),
}
"""By name; called with the seed that picks and deals the rows."""


def load(name: str, seed: int) -> Task:
    """One task. Errors: InputError if its data is not there."""
    try:
        return TASKS[name](seed)
    except FileNotFoundError as error:
        raise InputError(f"task {name} needs {error.filename}, which is not part of this repository") from error


def _rows(path: Path, number: dict[str, int]) -> tuple[Sequence[Sequence[int]], np.ndarray]:
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[1:] if line]
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    tokens = [row.ids for row in tokenizer.encode_batch_fast([text for _, text in lines])]
    return tokens, np.array([number[label] for label, _ in lines])


def _take(rows: tuple[Sequence[Sequence[int]], np.ndarray], picked: np.ndarray) -> Examples:
    return Examples([rows[0][at] for at in picked], [int(rows[1][at]) for at in picked])


def _dirichlet(labels: np.ndarray, clients: int, alpha: float, random: np.random.Generator) -> list[np.ndarray]:
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        cuts = np.floor(np.cumsum(random.dirichlet([alpha] * clients))[:-1] * len(rows) + 0.5).astype(int)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]
