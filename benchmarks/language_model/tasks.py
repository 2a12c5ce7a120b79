"""Tasks a language model answers by one generated word, and their rows as token ids.

`language` and `sentiment` need only PyPI packages (chatterbot-corpus, BSD; the rated sentences in vaderSentiment's source
distribution, MIT: the rows of examples/sentiment). `intent` and `scenario` read `<data>/<folder>/{train,test}.tsv` (header
`label<TAB>text`): SNIPS (CC0) and HWU64 (CC BY 4.0). Every draw is seeded; no test text occurs in training.
"""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from benchmarks.cache import downloaded

MOST_TEXT_TOKENS = 24
TEST_ROWS = 150
SENTIMENT = Path(__file__).parents[2] / "examples" / "sentiment" / "sentiment" / "data"
CORPUS_REQUIREMENT, CORPUS_WHEEL = "chatterbot-corpus==1.3.3", "chatterbot_corpus-1.3.3-*.whl"
LANGUAGES = ("dutch", "english", "french", "german", "indonesian", "italian", "portuguese", "spanish", "swedish", "turkish")
SHORTEST_LINE, LONGEST_LINE, MOST_LINES = 12, 90, 260
INTENTS = {
    "AddToPlaylist": "playlist",
    "BookRestaurant": "restaurant",
    "GetWeather": "weather",
    "PlayMusic": "music",
    "RateBook": "rating",
    "SearchCreativeWork": "search",
    "SearchScreeningEvent": "cinema",
}
Rows = Sequence[tuple[str, str]]
"""(answer, text)."""


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one conversation; the last `answer` of them are the model's turn: the word and the end of the turn."""

    ids: tuple[int, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked, and (training rows, test rows) read from a data folder, which may be unused."""

    question: str
    read: Callable[[Path], tuple[Rows, Rows]]


def rows_of(task: Task, data: Path, tokenizer: PreTrainedTokenizerBase, seed: int, count: int) -> tuple[list[Row], list[Row]]:
    """`count` training rows drawn with `seed` (answers as balanced as the data allow), and the same TEST_ROWS test rows for every seed."""
    train, test = task.read(data)
    seen = {text for _, text in test}
    train = [row for row in train if row[1] not in seen]
    chosen = _balanced(train, np.random.default_rng(seed), count)
    tested = _balanced(test, np.random.default_rng(2026), TEST_ROWS)
    encode = partial(_encoded, tokenizer, task.question)
    return [encode(*row) for row in chosen], [encode(*row) for row in tested]


def save_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON, [ids, answer] each."""
    path.write_text(json.dumps([[row.ids, row.answer] for row in rows]) + "\n", encoding="utf-8")


def load_rows(path: Path) -> list[Row]:
    """Read what `save_rows` wrote."""
    return [Row(tuple(ids), answer) for ids, answer in json.loads(path.read_text(encoding="utf-8"))]


def _encoded(tokenizer: PreTrainedTokenizerBase, question: str, answer: str, text: str) -> Row:
    short = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:MOST_TEXT_TOKENS])
    turns = [{"role": "system", "content": question}, {"role": "user", "content": short}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tail = tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
    return Row((*head, *tail), len(tail))


def _balanced(rows: Rows, random: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Rows in a random order, each answer in turn; the larger ones go on when the smaller ones are used up."""
    pools: dict[str, list[tuple[str, str]]] = {}
    for number in random.permutation(len(rows)):
        pools.setdefault(rows[number][0], []).append(rows[number])
    turn = [(place, name, row) for name, pool in pools.items() for place, row in enumerate(pool)]
    picked = [row for _, _, row in sorted(turn, key=lambda item: item[:2])][:count]
    return [picked[number] for number in random.permutation(len(picked))]


def _tabbed(folder: str, word: Callable[[str], str], data: Path) -> tuple[Rows, Rows]:
    def read(split: str) -> Rows:
        lines = (data / folder / f"{split}.tsv").read_text(encoding="utf-8").split("\n")[1:]
        return [(word(label), text) for label, text in (line.split("\t", 1) for line in lines if line)]

    return read("train"), read("test")


def _sentiment(_data: Path) -> tuple[Rows, Rows]:
    words = {"neg": "negative", "pos": "positive"}

    def read(split: str) -> Rows:
        lines = [line for path in sorted(SENTIMENT.glob(f"*/{split}.jsonl")) for line in path.read_text("utf-8").splitlines()]
        return [(words[row["label"]], row["text"]) for row in map(json.loads, lines)]

    return read("train"), read("test")


def _languages(_data: Path) -> tuple[Rows, Rows]:
    """Lines of dialogue by language; every fourth is for testing. A line that two languages share is left out."""
    found: dict[str, set[str]] = {}
    with zipfile.ZipFile(downloaded(CORPUS_REQUIREMENT, CORPUS_WHEEL)) as wheel:
        for name in sorted(wheel.namelist()):
            parts = name.split("/")
            if name.endswith(".yml") and parts[-2] in LANGUAGES:
                for line in dialogue_lines(wheel.read(name).decode("utf-8")):
                    found.setdefault(line, set()).add(parts[-2])
    by_language: Mapping[str, list[str]] = {
        language: [line for line, owners in found.items() if owners == {language}] for language in LANGUAGES
    }
    random = np.random.default_rng(2026)
    train, test = [], []
    for language, lines in by_language.items():
        for place, number in enumerate(random.permutation(len(lines))[:MOST_LINES]):
            (train if place % 4 else test).append((language.capitalize(), lines[number]))
    return train, test


def dialogue_lines(text: str) -> list[str]:
    """The utterances of one corpus file, of SHORTEST_LINE to LONGEST_LINE characters, in its order."""
    lines = (line.strip().lstrip("- ").strip().strip("'\"") for line in text.splitlines() if line.strip().startswith("-"))
    return [line for line in lines if SHORTEST_LINE <= len(line) <= LONGEST_LINE]


TASKS = {
    "language": Task("Name the language.", _languages),
    "sentiment": Task("Is this negative or positive?", _sentiment),
    "intent": Task("Name the intent.", partial(_tabbed, "snips", INTENTS.__getitem__)),
    "scenario": Task("Name the topic.", partial(_tabbed, "hwu64", lambda label: label.split("_")[0])),
}
