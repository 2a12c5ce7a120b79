"""Which average of LoRA updates trains best in few rounds: `python -m benchmarks.lora_averaging [--quick]`.

Four clients, one domain of sentiment each, most of a client's rows with one label (two clients lean either way), fine-tune a LoRA of a
real encoder; both links are compressed with residuals, as in the exchange. B's learning rate is 5 times A's (LoRA+, LoRA-A2) but in the
first row. factors: mean of A and of B (FedIT). frozen a: only B trains (FFA-LoRA). alternating: B and A in turn (RoLoRA, LoRA-A2). product:
the mean of BA by thin QR and a small SVD at the same rank (as FlexLoRA), sent back dense, because it changes both factors everywhere.
A second table merges once, after longer local training, without compression, and says how far mean(B) mean(A) is from mean(BA).
Prints accuracy on the four domains' test rows together, payload bytes of an update, and on the last line one JSON object. Ten minutes on
one idle core, `--quick` two. Rows are those of examples/sentiment.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.codec import Figures
from compeft_client.models.adapter import rest
from compeft_client.models.fine_tune import Classifier, Examples, TuningSettings, evaluate, fine_tune
from compeft_core import Compression, Layout, Vector, compress, densify, encode, flatten, shapes_of, unflatten
from compeft_core.frozen_tensors import active_places, resting_in_round, share_of_active
from compeft_core.merging.lora_averages import ScaledFactors, average_product, product_gap, stack

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "sentiment"))
from sentiment import expert, task  # found through the line above

RANK, ROWS, LEANING, CLIENTS = 8, 120, 0.85, 4
SCALING = float(expert.ALPHA)
UP, DOWN = Compression(0.05, "norm"), Compression(0.2, "norm")
ONE_SHOT_EPOCHS = 2


@dataclass(frozen=True, slots=True)
class Method:
    name: str
    averaging: str
    b_ratio: float = 5.0
    product: bool = False


METHODS = (
    Method("factors, one rate", "factors", 1.0),
    Method("factors", "factors"),
    Method("frozen a", "frozen_a"),
    Method("alternating", "alternating"),
    Method("product", "factors", product=True),
)


@dataclass(frozen=True, slots=True)
class Federation:
    """A model to train with, each client's rows, and the test rows of all."""

    classifier: Classifier
    layout: Layout
    train: list[Examples]
    test: Examples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of each client to train on")
    parser.add_argument("--test-rows", type=int, help="rows of each domain to test on; all by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: Figures = {}
    for seed in range(1 if options.quick else 3):
        federation = federation_of(seed, options.rows, options.test_rows)
        for method in METHODS:
            accuracy, octets = rounds(federation, method, seed, options.rounds)
            figures |= {f"{method.name}: seed {seed}": accuracy, f"{method.name}: bytes": octets}
            print(f"seed {seed}  {method.name:20} {100 * accuracy:5.1f} %  {octets:10,.0f} bytes an update", flush=True)
        figures |= one_shot(federation, seed)
    for name in dict.fromkeys(name.split(": seed")[0] for name in figures if ": seed" in name):
        values = [value for key, value in figures.items() if key.startswith(f"{name}: seed")]
        print(f"{name:32} mean {np.mean(values):.4f}  from {min(values):.4f} to {max(values):.4f}")
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def federation_of(seed: int, rows: int, test_rows: int | None) -> Federation:
    domains = [task.load_domain(number) for number in range(CLIENTS)]
    train = [leaning(domain.train, rows, number % 2, seed) for number, domain in enumerate(domains)]
    tokens = [row for d in domains for row in d.test.tokens[:test_rows]]
    test = Examples(tokens, [label for d in domains for label in d.test.labels[:test_rows]])
    return Federation(task.load_classifier(RANK, torch.device("cpu")), expert.layout(RANK), train, test)


def leaning(examples: Examples, rows: int, label: int, seed: int) -> Examples:
    """Draw `rows` examples, the share LEANING of them with this label."""
    order = np.random.default_rng(seed).permutation(len(examples))
    many = [row for row in order if examples.labels[row] == label][: round(LEANING * rows)]
    few = [row for row in order if examples.labels[row] != label][: rows - len(many)]
    return Examples([examples.tokens[row] for row in many + few], [examples.labels[row] for row in many + few])


def rounds(federation: Federation, method: Method, seed: int, count: int) -> tuple[float, float]:
    """Accuracy after the last round, and the mean payload bytes of an update."""
    layout = federation.layout
    state = flatten(layout, expert.initial_arrays(RANK, seed))
    left_up, left_down, octets = np.zeros((CLIENTS, layout.size), np.float32), np.zeros(layout.size, np.float32), []
    for number in range(1, count + 1):
        resting, sent = resting_in_round(method.averaging, number), []
        active = active_places(layout, resting)
        for client in range(CLIENTS):
            tuned = tuned_by(federation, client, state, resting, settings(seed, number, client, 1, method.b_ratio))
            target = left_up[client] + np.where(active, tuned - state, 0)
            update = compress(layout, np.where(active, target, np.float32(0)), share_of_active(layout, UP, resting))
            sent.append(densify(update))
            left_up[client] = target - sent[-1]
            octets.append(len(encode(update, codec="context", shapes=shapes_of(layout))))
        if method.product:
            state = mean_product(layout, state, sent)
            continue
        target = np.mean(sent, axis=0, dtype=np.float64).astype(np.float32) + left_down
        step = densify(compress(layout, target, share_of_active(layout, DOWN, resting)))
        state, left_down = state + step, target - step
    return accuracy_of(federation, unflatten(layout, state)), float(np.mean(octets))


def one_shot(federation: Federation, seed: int) -> Figures:
    """Merge once, uncompressed: accuracy by each average, and the median over modules of the gap between the two."""
    layout = federation.layout
    state = flatten(layout, expert.initial_arrays(RANK, seed))
    local = settings(seed, 0, 0, ONE_SHOT_EPOCHS, 5.0)
    sent = [
        tuned_by(federation, client, state, (), replace(local, seed=local.seed + client)) - state for client in range(CLIENTS)
    ]
    by_module = [factors_of(unflatten(layout, state + vector)) for vector in sent]
    gap = float(np.median([product_gap([c[m] for c in by_module], [1.0] * CLIENTS) for m in by_module[0]]))
    averaged = unflatten(layout, state + np.mean(sent, axis=0).astype(np.float32))
    product = unflatten(layout, mean_product(layout, state, sent))
    figures = {
        "one shot, factors": accuracy_of(federation, averaged),
        "one shot, product": accuracy_of(federation, product),
        "one shot, gap": gap,
        "one shot, product of the rank lost": float(np.median([lost([c[m] for c in by_module]) for m in by_module[0]])),
    }
    for name, value in figures.items():
        print(f"seed {seed}  {name:34} {value:.4f}", flush=True)
    return {f"{name}: seed {seed}": value for name, value in figures.items()}


def lost(updates: Sequence[ScaledFactors]) -> float:
    """The part of the mean update's norm that does not fit into its rank."""
    exact, fitted = stack(updates, [1.0] * len(updates)), average_product(updates, [1.0] * len(updates), RANK)
    whole = np.linalg.norm(exact.b @ exact.a)
    return float(np.linalg.norm(exact.b @ exact.a - fitted.b @ fitted.a) / whole) if whole > 0 else 0.0


def mean_product(layout: Layout, state: Vector, sent: Sequence[Vector]) -> Vector:
    """The state whose updates are the nearest of rank RANK to the mean of the clients' updates; the head is averaged."""
    arrays = {name: array.copy() for name, array in unflatten(layout, state + np.mean(sent, axis=0).astype(np.float32)).items()}
    by_module = [factors_of(unflatten(layout, state + vector)) for vector in sent]
    for module in by_module[0]:
        merged = average_product([client[module] for client in by_module], [1.0] * len(sent), RANK)
        arrays[f"{module}.lora_A.weight"] = (merged.a / np.sqrt(SCALING)).astype(np.float32)
        arrays[f"{module}.lora_B.weight"] = (merged.b / np.sqrt(SCALING)).astype(np.float32)
    return flatten(layout, arrays)


def factors_of(arrays: dict[str, Vector]) -> dict[str, ScaledFactors]:
    """Each module's factors."""
    modules = [name.removesuffix(".lora_A.weight") for name in arrays if name.endswith(".lora_A.weight")]
    return {
        m: ScaledFactors(arrays[f"{m}.lora_B.weight"].astype(float), arrays[f"{m}.lora_A.weight"].astype(float), SCALING)
        for m in modules
    }


def tuned_by(federation: Federation, client: int, state: Vector, resting: Sequence[str], how: TuningSettings) -> Vector:
    """The state after one client's training."""
    task.load_arrays(federation.classifier, unflatten(federation.layout, state))
    rest(task.adapter_of(federation.classifier), resting)
    fine_tune(federation.classifier, federation.train[client], how)
    return flatten(federation.layout, task.arrays_of(federation.classifier))


def settings(seed: int, number: int, client: int, epochs: int, b_ratio: float) -> TuningSettings:
    return TuningSettings(1_000_000 * seed + 1000 * number + client, epochs, batch_size=8, b_ratio=b_ratio)


def accuracy_of(federation: Federation, arrays: dict[str, Vector]) -> float:
    task.load_arrays(federation.classifier, arrays)
    return evaluate(federation.classifier, federation.test).accuracy


if __name__ == "__main__":
    main()
