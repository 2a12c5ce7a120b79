"""The trained experts in the benchmarks' cache, and what of their gain a changed adapter keeps.

    from benchmarks.product.evidence import Evaluator, experts, gain_kept
    expert = experts()[0]
    kept = gain_kept(expert, Evaluator().score(expert, expert.state()))      # {"accuracy": 1.0, "soft": 1.0}

Gain kept = (score - base) / (tuned - base), in accuracy, in the mean probability of the true answer ("soft": smoother), and in loss.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.cache import cache_folder
from benchmarks.folding import Differences, differences_of
from benchmarks.language_model.scoring import Score

KINDS = ("smollm2", "minilm")
WEIGHTS = "adapter_model.safetensors"
LEAST_GAIN = 0.04
"""An expert whose accuracy gained less says nothing: on 1,200 rows a point is noise."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Expert:
    """A PEFT folder with its scores; `kind` is the base model's, one of KINDS; scale = lora_alpha / r."""

    name: str
    kind: str
    folder: Path
    base: Score
    tuned: Score
    scale: float

    def state(self) -> dict[str, Floats]:
        """The adapter's tensors by PEFT's names, float32."""
        from safetensors.numpy import load_file

        return {name: array.astype(np.float32) for name, array in load_file(self.folder / WEIGHTS).items()}

    @property
    def digest(self) -> str:
        """The first 12 hexadecimal digits of the adapter file's SHA-256: a measurement belongs to these weights."""
        return hashlib.sha256((self.folder / WEIGHTS).read_bytes()).hexdigest()[:12]

    @property
    def bf16_bytes(self) -> int:
        """2 bytes a parameter: what all ratios are below."""
        return 2 * sum(array.size for array in self.state().values())


def experts(kinds: tuple[str, ...] = KINDS, root: Path | None = None) -> list[Expert]:
    """All finished experts that gained at least LEAST_GAIN, by kind and name."""
    root = root or cache_folder()
    found = [read_expert(path.parent, kind) for kind in kinds for path in sorted((root / kind).glob("*/metrics.json"))]
    return [expert for expert in found if expert.tuned.accuracy - expert.base.accuracy >= LEAST_GAIN]


def gain_kept(expert: Expert, score: Score) -> dict[str, float]:
    """By measure (accuracy, soft, loss): 1 is the expert as trained, 0 the base."""
    base, tuned, now = asdict(expert.base), asdict(expert.tuned), asdict(score)
    return {name: (now[name] - base[name]) / (tuned[name] - base[name]) for name in now}


class Evaluator:
    """Scores any expert of any kind; each base model is loaded once, when first needed."""

    def __init__(self) -> None:
        self._scorers: dict[str, object] = {}

    def score(self, expert: Expert, adapter: Mapping[str, Floats] | Differences) -> Score:
        """The expert's score with this in place of its adapter, on the rows that its metrics were measured on.

        adapter: a PEFT state dict (names with `.lora_A.weight`), or differences by the base's module names; {} is the bare base
        (of the encoder: under the trained head, not the probe).
        """
        stated = any(".lora_A." in name for name in adapter)
        differences = differences_of(adapter, expert.scale) if stated else adapter  # type: ignore[arg-type]  # told by the names
        return self._encoder(expert, differences) if expert.kind == "minilm" else self._language(expert, differences)

    def _encoder(self, expert: Expert, differences: Differences) -> Score:
        from benchmarks.product.encoder_experts import Scorer

        scorer = self._scorers.setdefault("minilm", None) or Scorer()
        self._scorers["minilm"] = scorer
        assert isinstance(scorer, Scorer)
        return scorer.score(expert.folder, differences)

    def _language(self, expert: Expert, differences: Differences) -> Score:
        from benchmarks.language_model.base import load_base
        from benchmarks.language_model.scoring import Scorer
        from benchmarks.language_model.tasks import load_rows

        scorer = self._scorers.setdefault("smollm2", None) or Scorer(load_base())
        self._scorers["smollm2"] = scorer
        assert isinstance(scorer, Scorer)
        return scorer.score(load_rows(expert.folder / "tests.json"), differences)


def read_expert(folder: Path, kind: str) -> Expert:
    """One finished expert, whatever it gained."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    scale = float(config["lora_alpha"] / config["r"])
    return Expert(folder.name, kind, folder, Score(**metrics["base"]), Score(**metrics["tuned"]), scale)
