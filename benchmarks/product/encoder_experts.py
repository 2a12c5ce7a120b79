"""Experts of all-MiniLM-L6-v2 (LoRA r = 16, alpha 32, all linear layers of the six blocks) as folders in the benchmarks' cache.

`<cache>/minilm/<name>-<seed>/` holds the PEFT files, the trained head and the frozen base's probe (head.safetensors), the unseen rows
(tests.json) and metrics.json. `mild` experts see each row a few times at the usual rate, `over` ones are trained well past that.
"""

import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from benchmarks.cache import cache_folder
from benchmarks.folding import Differences, Folding
from benchmarks.language_model.scoring import Score
from benchmarks.product.encoder_tasks import TEST_ROWS, examples_of
from benchmarks.scale_rule import HIDDEN, PAD_ID, load_base
from compeft_client.models.adapter import adapter_arrays
from compeft_client.models.fine_tune import Classifier, Examples, TuningSettings, features, fine_tune, fit_probe, linear

FOLDER, WEIGHTS, TESTS, HEAD = "minilm", "adapter_model.safetensors", "tests.json", "head.safetensors"
RANK, ALPHA = 16, 32


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one expert is made; `name` is that of its folder, less the seed."""

    name: str
    task: str
    rows: int
    epochs: int
    lr: float = 1e-3
    test_rows: int = TEST_ROWS


RECIPES = (
    Recipe("pairs_hwu64-mild", "pairs_hwu64", 1000, 2),
    Recipe("languages-mild", "languages", 600, 3),
    Recipe("tweets-mild", "sentiment_tweets", 600, 3),
    Recipe("tweets-over", "sentiment_tweets", 300, 10, 2e-3),
    Recipe("pairs_snips-over", "pairs_snips", 600, 8, 2e-3),
    Recipe("pairs_clinc150-over", "pairs_clinc150", 1000, 5),
    Recipe("editorials-mild", "sentiment_editorials", 600, 3),
    Recipe("movies-mild", "sentiment_movies", 1200, 3),
    Recipe("languages-over", "languages", 300, 10, 2e-3),
    Recipe("editorials-over", "sentiment_editorials", 300, 10, 2e-3),
    Recipe("products-mild", "sentiment_products", 600, 3),
)


def made_expert(recipe: Recipe, seed: int, data: Path, root: Path | None = None) -> Path:
    """Train an expert unless its folder below `root` (the cache) is complete; one to three minutes on one core."""
    folder = (root or cache_folder()) / FOLDER / f"{recipe.name}-{seed}"
    if (folder / "metrics.json").exists():
        return folder
    train, tests = examples_of(recipe.task, data, seed, (recipe.rows, recipe.test_rows))
    classes = max(train.labels) + 1
    frozen = Classifier(load_base(), linear(torch.zeros(classes, HIDDEN), torch.zeros(classes)), PAD_ID)
    probe = fit_probe(features(frozen, train), train.labels, classes)
    began = time.process_time()
    tuned = _fine_tuned(train, classes, recipe, seed, folder)
    metrics: dict[str, object] = {"recipe": asdict(recipe), "seed": seed, "train_rows": len(train), "test_rows": len(tests)}
    metrics |= {"train_cpu_seconds": round(time.process_time() - began, 1)}
    metrics |= {"base": asdict(score(probe, features(frozen, tests), tests.labels))}
    metrics |= {"tuned": asdict(score(tuned.head, features(tuned, tests), tests.labels))}
    heads = {"weight": tuned.head.weight, "bias": tuned.head.bias, "lp_weight": probe.weight, "lp_bias": probe.bias}
    save_file({name: tensor.detach().numpy() for name, tensor in heads.items()}, folder / HEAD)
    (folder / TESTS).write_text(json.dumps([list(tests.tokens), list(tests.labels)]) + "\n", encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    return folder


def _fine_tuned(train: Examples, classes: int, recipe: Recipe, seed: int, folder: Path) -> Classifier:
    """The trained classifier; its adapter and the initial one are saved."""
    torch.manual_seed(seed)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["dense", "key", "query", "value"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft asks transformers
        model = get_peft_model(load_base(), lora)
    initial = adapter_arrays(model)
    classifier = Classifier(model, linear(torch.zeros(classes, HIDDEN), torch.zeros(classes)), PAD_ID)
    fine_tune(classifier, train, TuningSettings(seed=seed, epochs=recipe.epochs, lr=recipe.lr, batch_size=32))
    model.peft_config["default"].base_model_name_or_path = "sentence-transformers/all-MiniLM-L6-v2"
    model.save_pretrained(folder, save_embedding_layers=False)
    save_file(initial, folder / "initial.safetensors")
    return classifier


class Scorer:
    """The frozen encoder held in memory, and scored with one expert's head and any number of differences."""

    def __init__(self) -> None:
        self._encoder = load_base()
        self._folding = Folding(self._encoder)

    def score(self, folder: Path, differences: Differences) -> Score:
        """How the base plus the differences, under the expert's own head, does on the expert's unseen rows."""
        heads = load_file(folder / HEAD)
        tokens, labels = json.loads((folder / TESTS).read_text(encoding="utf-8"))
        head = linear(torch.from_numpy(heads["weight"]), torch.from_numpy(heads["bias"]))
        self._folding.load(differences)
        return score(head, features(Classifier(self._encoder, head, PAD_ID), Examples(tokens, labels)), labels)


@torch.inference_mode()
def score(head: nn.Linear, pooled: Tensor, labels: Sequence[int]) -> Score:
    """Accuracy, mean probability of the true class and mean loss of a head on features (rows, hidden)."""
    logs = torch.log_softmax(head(pooled).double(), 1)
    true = logs.gather(1, torch.tensor(labels)[:, None])[:, 0]
    right = (logs.argmax(1) == torch.tensor(labels)).double()
    return Score(float(right.mean()), float(true.exp().mean()), float(-true.mean()))
