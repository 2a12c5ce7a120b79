"""Reads from a model what a plan needs: which arrays travel dense, how they were initialised, what the adapter is trained with.

The model may be a torch module, a PEFT model, an ArrayRecord or a mapping of names to arrays. Nothing here imports torch or PEFT: a torch
module is read by its own methods.
"""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import InputError
from compeft_proto.round_task import Origin, canonical_json, numpy_of
from compeft_proto.weights_digest import digest_of, type_of

HEADS = ("classifier", "classification_head", "score", "qa_outputs", "head")
"""Parts of names by which models know their task's last layer."""
LARGEST_HEAD = 2**16
"""Entries of the largest head that travels dense without being in `modules_to_save`."""
TINY = 1024
"""Entries below which a matrix is not worth compressing, unless it is a LoRA factor."""
FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
NOT_IN_CONFIG = ("auto_mapping", "inference_mode", "peft_version", "revision")
"""Fields of a PEFT configuration that differ between machines, or have a place of their own in an `Origin`."""


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
    adapter, chosen = next(iter(config.items()))
    sent = {short: array for name, array in state.items() if (short := _adapter_name(name, adapter))}
    saved = frozenset(_adapter_name(name, adapter) for name in state if f".modules_to_save.{adapter}." in name)
    return ModelFacts(sent, _dense(sent, buffers, saved), _origin(model, chosen, state))


def _dense(arrays: Mapping[str, Any], buffers: frozenset[str], saved: frozenset[str]) -> frozenset[str]:
    return frozenset(n for n, a in arrays.items() if n in buffers | saved or _is_head_or_tiny(n, math.prod(a.shape)))


def _is_head_or_tiny(name: str, size: int) -> bool:
    words = set(name.split("."))
    if words & set(FACTORS):
        return False
    return size < TINY or (bool(words & set(HEADS)) and size <= LARGEST_HEAD)


def _adapter_name(name: str, adapter: str) -> str:
    """The name by which PEFT saves an adapter's parameter, as `get_peft_model_state_dict`; empty for one of the base model.

    "m.q.lora_A.default.weight" -> "m.q.lora_A.weight", "m.score.modules_to_save.default.bias" -> "m.score.bias".
    """
    if f".modules_to_save.{adapter}." in name:
        return name.replace(f".modules_to_save.{adapter}.", ".")
    if ".lora_magnitude_vector." in name:
        return name.removesuffix(".weight").removesuffix(f".{adapter}")
    return name.replace(f".{adapter}", "") if ".lora_" in name else ""


def _origin(model: Any, config: Any, state: Mapping[str, Any]) -> Origin:
    """The base model's weights digest and name, and the adapter's configuration as canonical JSON."""
    fields = {name: _plain(value) for name, value in config.to_dict().items() if name not in NOT_IN_CONFIG}
    name, revision = fields.get("base_model_name_or_path"), getattr(config, "revision", None)
    digest = digest_of(_base_tensors(model, state))
    return Origin(digest, canonical_json(fields), str(name or ""), str(revision or ""))


def _base_tensors(model: Any, state: Mapping[str, Any]) -> Iterator[tuple[str, str, tuple[int, ...], list[bytes]]]:
    """The frozen base model's tensors under the names they had before PEFT wrapped them; a tied one once, under its first name."""
    first = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - first
    torch: Any = sys.modules["torch"]  # the model is a torch module, so torch is loaded
    for name, tensor in state.items():
        if name in tied or ".lora_" in name or ".modules_to_save." in name:
            continue
        before = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")
        octets = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        yield before, type_of(name, str(tensor.dtype)), tuple(tensor.shape), [octets]


def _plain(value: object) -> object:
    """A configuration's value as JSON has it: sets sorted, enumerations by their value."""
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


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
