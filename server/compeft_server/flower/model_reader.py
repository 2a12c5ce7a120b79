"""Reads from a model what a plan needs: which arrays travel dense, how they were initialised, what the adapter is trained with.

The model may be a torch module, a PEFT model, an ArrayRecord or a mapping of names to arrays. Nothing here imports torch or PEFT: a model
is read by its own methods, or by those of its loaded library.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import InputError
from compeft_proto.peft_configuration import BASE_NAME, base_tensors, configuration_json
from compeft_proto.round_task import Origin, numpy_of
from compeft_proto.weights_digest import digest_of

HEADS = ("classifier", "classification_head", "score", "qa_outputs", "head")
"""Parts of names by which models know their task's last layer."""
LARGEST_HEAD = 2**16
"""Entries of the largest head that travels dense without being in `modules_to_save`."""
LARGEST_SAVED = 2**20
"""Entries of the largest layer in `modules_to_save` that travels dense; of a larger one only changed entries do."""
TINY = 1024
"""Entries below which a matrix is not worth compressing, unless it is a LoRA factor."""
FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model's arrays by name, the names of those that travel dense, and its origin."""

    arrays: Mapping[str, Any]
    dense: frozenset[str]
    origin: Origin

    def bounds(self) -> dict[str, float]:
        """The bound of the uniform distribution that each array was drawn from, 0 for zeros, by name.

        As PyTorch draws linear and convolutional layers and PEFT draws LoRA's A: kaiming_uniform(a=sqrt(5)), which is 1 / sqrt(fan_in).
        Errors: InputError for an array whose values are not such a draw.
        """
        arrays = {name: numpy_of(array).astype(np.float32) for name, array in self.arrays.items()}
        return {name: _bound(name, array, arrays) for name, array in arrays.items()}


def read_model(model: object) -> ModelFacts:
    """What a model says of itself. Errors: InputError if it has neither arrays nor `state_dict`."""
    if isinstance(model, Mapping):
        return ModelFacts(model, _dense(model, frozenset(), frozenset()), Origin())
    if not hasattr(model, "state_dict"):
        raise InputError(
            f"invalid model {type(model).__name__}: expected a torch module, a PEFT model, an ArrayRecord or a mapping"
        )
    state: Mapping[str, Any] = model.state_dict()
    buffers = frozenset(name for name, _ in model.named_buffers()) if hasattr(model, "named_buffers") else frozenset()
    config = getattr(model, "peft_config", None)
    if config is None:
        return ModelFacts(state, _dense(state, buffers, frozenset()), Origin())
    adapter = next(iter(config))
    peft: Any = sys.modules["peft"]  # the model is PEFT's, so PEFT is loaded
    sent: Mapping[str, Any] = peft.get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    mark = f".modules_to_save.{adapter}."
    small = (n for n, tensor in state.items() if mark in n and math.prod(tensor.shape) <= LARGEST_SAVED)
    saved = frozenset(n.replace(mark, ".") for n in small)
    return ModelFacts(sent, _dense(sent, buffers, saved), _origin(model, config[adapter], state))


def _dense(arrays: Mapping[str, Any], buffers: frozenset[str], saved: frozenset[str]) -> frozenset[str]:
    return frozenset(n for n, a in arrays.items() if n in buffers | saved or _is_head_or_tiny(n, math.prod(a.shape)))


def _is_head_or_tiny(name: str, size: int) -> bool:
    words = set(name.split("."))
    if words & set(FACTORS):
        return False
    return size < TINY or (bool(words & set(HEADS)) and size <= LARGEST_HEAD)


def _origin(model: Any, config: Any, state: Mapping[str, Any]) -> Origin:
    """The base model's weights digest and name, and the adapter's configuration as canonical JSON."""
    name = str(config.to_dict().get(BASE_NAME) or "")
    if name and Path(name).exists():
        name = ""  # a folder's path is this machine's own
    digest = digest_of(base_tensors(model, state))
    return Origin(digest, configuration_json(config, name), name, str(getattr(config, "revision", None) or ""))


def _bound(name: str, array: NDArray[np.float32], arrays: Mapping[str, NDArray[np.float32]]) -> float:
    if not array.any():
        return 0.0
    weight = arrays.get(name.removesuffix("bias") + "weight", array) if name.endswith("bias") else array
    fan_in = math.prod(weight.shape[1:])
    bound = 1 / math.sqrt(fan_in) if weight.ndim > 1 and fan_in else 0.0
    spread = float(np.abs(array).mean()) / bound if bound else math.inf
    if np.abs(array).max() > bound * (1 + 1e-6) or abs(spread - 0.5) > 2 / math.sqrt(array.size):
        raise InputError(
            f"array {name!r} is not a fresh uniform draw within 1 / sqrt(fan_in), so no seed can give it: leave seed out of "
            "Plan.for_model, and the initial arrays travel once"
        )
    return bound
