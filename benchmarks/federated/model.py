"""The model of the benchmark: all-MiniLM-L6-v2 with a LoRA and a head of zeros, as one flat vector in layout order."""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from compeft_client.models.adapter import load_adapter
from compeft_client.models.fine_tune import Classifier, linear
from compeft_core import Layout, Vector, flatten, layout_of, unflatten

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "sentiment"))
from sentiment import expert, task  # the example is an app of its own, on no path

DOMAINS, domain_rows, model_folder = task.DOMAINS, task.load_domain, task.model_folder
HEAD = ("head.bias", "head.weight")


class Expert:
    """A classifier whose trainable arrays go in and out as one float32 vector of shape (layout.size,)."""

    def __init__(self, classes: int, rank: int) -> None:
        lora = LoraConfig(r=rank, lora_alpha=expert.ALPHA * rank, target_modules=list(expert.TARGETS))
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
            )  # peft asks transformers
            encoder = get_peft_model(task.load_base(), lora)
        head = linear(torch.zeros(classes, expert.HIDDEN), torch.zeros(classes))
        self.classifier = Classifier(encoder, head, task.PAD_ID).eval()
        self.rank = rank
        shapes = {name: array.shape for name, array in self._arrays().items()}
        self.layout: Layout = layout_of(shapes)
        bounds = expert.initial_bounds(rank)
        self.bounds = [bounds.get(t.name, 0.0) for t in self.layout.tensors]

    def vector(self) -> Vector:
        """What it is now."""
        return flatten(self.layout, self._arrays())

    def load(self, vector: Vector) -> None:
        """Become this."""
        arrays = unflatten(self.layout, vector)
        load_adapter(task.adapter_of(self.classifier), {n: a for n, a in arrays.items() if n not in HEAD})
        with torch.no_grad():
            for name, parameter in self.classifier.head.named_parameters():
                parameter.copy_(torch.from_numpy(arrays[f"head.{name}"]))

    def train_only(self, factors: str) -> None:
        """Freeze every LoRA factor but these: "A", "B" or "AB". The head always trains."""
        for name, parameter in self.classifier.encoder.named_parameters():
            parameter.requires_grad_(any(f"lora_{factor}" in name for factor in factors))

    def _arrays(self) -> Mapping[str, Vector]:
        return task.arrays_of(self.classifier)
