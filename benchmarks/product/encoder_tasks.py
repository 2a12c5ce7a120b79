"""Tasks for the encoder's experts (all-MiniLM-L6-v2), as token ids and classes.

`sentiment` needs nothing, `sentiment_*` and `languages` only PyPI packages: the rated sentences in vaderSentiment's source
distribution (MIT; rule as in examples/sentiment/prepare_data.py) and chatterbot-corpus (BSD). `pairs_*` (are two sentences of one
intent?) read `<data>/<folder>/{train,test}.tsv` (header `label<TAB>text`). Draws are seeded; no test text is trained on.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.cache import downloaded
from benchmarks.language_model.tasks import TASKS as LANGUAGE_TASKS
from benchmarks.scale_rule import model_folder, paired
from compeft_client.models.fine_tune import Examples

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "sentiment"))
import prepare_data  # the example is an app of its own, on no path

MOST_TOKENS, TEST_ROWS = 40, 1200
LANGUAGE_TRAIN_ROWS = 900
"""Of the lines that the language model's task trains on; the others are for testing here."""
SDIST, ARCHIVE = "vaderSentiment==3.3.2", "vader*entiment-3.3.2.tar.gz"
Text = str | tuple[str, str]
Texts = Sequence[tuple[Text, int]]
"""(text or pair of texts, class)."""


def examples_of(task: str, data: Path, seed: int, counts: tuple[int, int]) -> tuple[Examples, Examples]:
    """At most the given number of training rows, drawn with `seed` (pairs: made with it), and test rows, the same for every seed."""
    train, test = TASKS[task](data, np.random.default_rng(seed), counts[0])
    return _tokenised(train[: counts[0]]), _tokenised(test[: counts[1]])


def _tokenised(rows: Texts) -> Examples:
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    return Examples([row.ids for row in tokenizer.encode_batch([text for text, _ in rows])], [label for _, label in rows])


def _sentiment(domain: str, _data: Path, random: np.random.Generator, _count: int) -> tuple[Texts, Texts]:
    rows = sorted(set(prepare_data.labelled(_ground_truth(domain))), key=prepare_data.place)
    negative, positive = ([(text, label) for name, text in rows if name == sign] for label, sign in enumerate(("neg", "pos")))
    dealt = [row for pair in zip(negative, positive, strict=False) for row in pair]
    return _shuffled(dealt[TEST_ROWS:], random), dealt[:TEST_ROWS]


def _committed(_data: Path, random: np.random.Generator, _count: int) -> tuple[Texts, Texts]:
    """The rows that examples/sentiment carries, all domains together."""
    train, test = LANGUAGE_TASKS["sentiment"].read(Path())
    rows = [[(text, int(answer == "positive")) for answer, text in part] for part in (train, test)]
    return _shuffled(rows[0], random), _shuffled(rows[1], np.random.default_rng(2026))


def _ground_truth(domain: str) -> str:
    import io
    import tarfile

    inner = prepare_data.rated_sentences(downloaded(SDIST, ARCHIVE))
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        return str(prepare_data.read(archive, f"hutto_ICWSM_2014/{prepare_data.SOURCES[domain]}_GroundTruth.txt").decode())


def _languages(data: Path, random: np.random.Generator, _count: int) -> tuple[Texts, Texts]:
    train, test = LANGUAGE_TASKS["language"].read(data)
    number = {name: at for at, name in enumerate(sorted({name for name, _ in train}))}
    rows = [[(text, number[name]) for name, text in part] for part in (train, test)]
    fixed = np.random.default_rng(2026)
    pool = _shuffled(rows[0], fixed)
    return _shuffled(pool[:LANGUAGE_TRAIN_ROWS], random), _shuffled([*rows[1], *pool[LANGUAGE_TRAIN_ROWS:]], fixed)


def _pairs(folder: str, data: Path, random: np.random.Generator, count: int) -> tuple[Texts, Texts]:
    def read(split: str, draw: np.random.Generator, most: int) -> Texts:
        lines = (data / folder / f"{split}.tsv").read_text(encoding="utf-8").split("\n")[1:]
        pairs, labels = paired([(label, text) for label, text in (line.split("\t", 1) for line in lines if line)], draw, most)
        return list(zip(pairs, labels, strict=True))

    return read("train", random, count), read("test", np.random.default_rng(2026), TEST_ROWS)


def _shuffled(rows: Texts, random: np.random.Generator) -> Texts:
    return [rows[number] for number in random.permutation(len(rows))]


TASKS: dict[str, Callable[[Path, np.random.Generator, int], tuple[Texts, Texts]]] = {
    **{f"sentiment_{domain}": partial(_sentiment, domain) for domain in prepare_data.SOURCES},
    "sentiment": _committed,
    "languages": _languages,
    "pairs_hwu64": partial(_pairs, "hwu64"),
    "pairs_clinc150": partial(_pairs, "clinc150"),
    "pairs_snips": partial(_pairs, "snips"),
}
"""By name; called with the data folder, the generator of the draw and the number of training rows wanted."""
