"""What composing other tasks' experts is worth to a task with few labelled rows: `python -m benchmarks.blending [--quick]`.

Each of four domains of sentiment in turn is the new task: 32 of its rows are known, and the experts of the five other tasks (three domains,
two of intents). Blending finds the weights of a composition on those rows, once with the experts packed at 5 % and once as they were
trained. The head is the mean of the three domains' heads, whatever the composition. Beside them: no expert, the single expert that is best
on the 32 rows, the mean of all, a probe fitted to the base model's features of the 32 rows, and the task's own expert, which saw 1,600 rows
or more. Prints accuracy on the task's 250 test rows, mean and spread over tasks and draws of rows, and on the last line one JSON object.
Without `<data>/experts` it says so and measures nothing. A quarter of an hour on one idle core, `--quick` two minutes.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from benchmarks.codec import Figures
from benchmarks.experts import FILE
from compeft_client.models.adapter import load_adapter
from compeft_client.models.expert_pool import ExpertPool
from compeft_client.models.fine_tune import Classifier, Examples, evaluate, features, fit_probe, linear, score
from compeft_client.packing.pack import PackSettings, save_compressed
from compeft_client.search.blend import Blend, BlendSettings, Weights, blend, search

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "sentiment"))
from sentiment import task  # found through the line above

DOMAINS = ("tweets", "products", "editorials", "movies")
OTHERS = ("banking77", "hwu64")
RANK, ROWS, DENSITY = 16, 32, 0.05
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class World:
    """The encoder with a LoRA, where all experts started, the experts by name, and their packed files."""

    classifier: Classifier
    start: Arrays
    experts: Mapping[str, Arrays]
    heads: Mapping[str, torch.nn.Linear]
    files: Mapping[str, Path]
    initial: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one task and one draw of rows")
    parser.add_argument("--steps", type=int, default=40, help="compositions that the optimiser tries")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the tasks and of experts/")
    options = parser.parse_args()
    if not (options.data / "experts" / "initial_r16").is_dir():
        print(f"skipped: no experts/initial_r16 below {options.data}")
        return
    torch.set_num_threads(1)
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        world = world_of(options.data / "experts", Path(folder))
        for seed in range(1 if options.quick else 2):
            for domain in DOMAINS[:1] if options.quick else DOMAINS:
                figures |= measured(world, domain, options.data, BlendSettings(options.steps, seed=seed))
    for arm in dict.fromkeys(name.split(": ")[1] for name in figures):
        values = [value for name, value in figures.items() if name.endswith(f": {arm}")]
        print(f"{arm:34} mean {100 * np.mean(values):5.1f} %  from {100 * min(values):5.1f} to {100 * max(values):5.1f}")
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def world_of(folder: Path, packed: Path) -> World:
    names = [*(f"sentiment_{domain}" for domain in DOMAINS), *OTHERS]
    initial, files = folder / "initial_r16", {}
    for name in names:
        (packed / name).mkdir()
        for file in (FILE, "adapter_config.json"):
            (packed / name / file).write_bytes((folder / name / file).read_bytes())
        files[name] = packed / f"{name}.expert"
        save_compressed(packed / name, files[name], PackSettings(DENSITY, init=str(initial)))
    return World(
        task.load_classifier(RANK, torch.device("cpu")),
        load_file(initial / FILE),
        {name: load_file(folder / name / FILE) for name in names},
        {name: head_of(folder / name) for name in names if name not in OTHERS},
        files,
        initial,
    )


def head_of(folder: Path) -> torch.nn.Linear:
    tensors = load_file(folder / "head.safetensors")
    return linear(torch.from_numpy(tensors["weight"]), torch.from_numpy(tensors["bias"]))


def measured(world: World, domain: str, data: Path, settings: BlendSettings) -> Figures:
    """Accuracy on the test rows of every way, and a line of them."""
    own = f"sentiment_{domain}"
    names = [name for name in world.experts if name != own]
    few = rows_of(data / "sentiment" / domain / "train.tsv", np.random.default_rng(settings.seed))
    test = rows_of(data / "sentiment" / domain / "test.tsv")
    use_head(world.classifier, [head for name, head in world.heads.items() if name != own])
    with ExpertPool(task.adapter_of(world.classifier), init=str(world.initial)) as pool:
        for name in names:
            pool.add(name, world.files[name])

        def packed(weights: Weights) -> float:
            with pool.using(weights):
                return evaluate(world.classifier, test).accuracy

        found = blend(pool, names, lambda: evaluate(world.classifier, few).loss, settings)
        accuracies = arms("packed", found, names, packed)
        probe = fit_probe(features(world.classifier, few), few.labels, 2)
        accuracies["base model and a probe"] = score(probe, features(world.classifier, test), test.labels).accuracy

    task.adapter_of(world.classifier).base_model.enable_adapter_layers()

    def exact(examples: Examples, field: str) -> Callable[[Weights], float]:
        def value(weights: Weights) -> float:
            load_adapter(task.adapter_of(world.classifier), composed(world, weights))
            return float(getattr(evaluate(world.classifier, examples), field))

        return value

    whole = search(names, exact(few, "loss"), settings)
    accuracies |= arms("unpacked", whole, names, exact(test, "accuracy"))
    use_head(world.classifier, [world.heads[own]])
    accuracies["the task's own expert"] = exact(test, "accuracy")({own: 1.0})
    print(f"{domain}, seed {settings.seed}: " + ", ".join(f"{arm} {100 * value:.1f}" for arm, value in accuracies.items()))
    print(f"    packed {dict(found.weights)} loss {found.loss:.3f}", flush=True)
    return {f"{domain} {settings.seed}: {arm}": value for arm, value in accuracies.items()}


def arms(label: str, found: Blend, names: Sequence[str], accuracy: Callable[[Weights], float]) -> Figures:
    """Accuracy of the plain compositions and of the one found; the single expert is the best by the few rows' loss."""
    nothing, *alone = found.history[: len(names) + 1]
    return {
        f"no expert, {label}": accuracy(nothing.weights),
        f"best single, {label}": accuracy(min(alone, key=lambda trial: trial.loss).weights),
        f"mean of all, {label}": accuracy(found.history[len(names) + 1].weights),
        f"blend, {label}": accuracy(found.weights),
    }


def composed(world: World, weights: Weights) -> Arrays:
    """Start + sum of weight times task vector."""
    return {
        name: start + sum((np.float32(w) * (world.experts[expert][name] - start) for expert, w in weights.items()), 0 * start)
        for name, start in world.start.items()
    }


def use_head(classifier: Classifier, heads: Sequence[torch.nn.Linear]) -> None:
    with torch.no_grad():
        classifier.head.weight.copy_(torch.stack([head.weight for head in heads]).mean(0))
        classifier.head.bias.copy_(torch.stack([head.bias for head in heads]).mean(0))


def rows_of(file: Path, random: np.random.Generator | None = None) -> Examples:
    """All rows of a file, or ROWS of them, as many of either label."""
    lines = [line.split("\t", 1) for line in file.read_text(encoding="utf-8").split("\n")[1:] if line]
    labels = [("neg", "pos").index(label) for label, _ in lines]
    chosen = list(range(len(lines)))
    if random is not None:
        chosen = [
            int(row) for label in (0, 1) for row in random.permutation(np.flatnonzero(np.array(labels) == label))[: ROWS // 2]
        ]
    tokenizer = Tokenizer.from_file(str(task.model_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(task.MOST_TOKENS)
    tokens = [row.ids for row in tokenizer.encode_batch_fast([lines[row][1] for row in chosen])]
    return Examples(tokens, [labels[row] for row in chosen])


if __name__ == "__main__":
    main()
