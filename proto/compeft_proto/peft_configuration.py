"""What two sites must have in common to train one adapter: its PEFT configuration as canonical JSON, and the base model's tensors.

Nothing here imports torch or PEFT: a model is read by its own methods.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from compeft_proto.round_task import canonical_json
from compeft_proto.weights_digest import type_of

NOT_IN_CONFIG = ("auto_mapping", "inference_mode", "peft_version", "revision")
"""Fields of a PEFT configuration that differ between machines, or have a place of their own in an `Origin`."""
BASE_NAME = "base_model_name_or_path"
WRAPPED = re.compile(r"\.token_adapter(?=\.)|\.original_module(?=\.)|\.base_layer(?=\.)")
"""What PEFT puts into the name of a base model's tensor: the wrappers of adapted layers, token rows and layers saved whole."""


def configuration_json(config: Any, base_name: str) -> bytes:
    """A configuration (an object with `to_dict`, as PEFT's) as canonical JSON, with `base_name` as its base model's name.

    base_name: the name by which every site knows the base model, such as org/name; "" where the model was loaded from a folder, whose path
    is each site's own.
    """
    fields = {name: plain(value) for name, value in config.to_dict().items() if name not in NOT_IN_CONFIG}
    return canonical_json({**fields, BASE_NAME: base_name or None})


def plain(value: object) -> object:
    """A configuration's value as JSON has it: sets sorted, enumerations by their value."""
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def base_tensors(model: Any, state: Mapping[str, Any]) -> Iterator[tuple[str, str, tuple[int, ...], list[bytes]]]:
    """The frozen base model's tensors (name, type, shape, bytes) under the names they had before PEFT wrapped them, for `digest_of`; a tied
    one once, under its first name. state: the model's state dict.
    """
    first = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - first
    kind = str(getattr(getattr(model, "base_model", None), "prefix", "lora_")).split("_")[0]
    added = re.compile(rf"\.({re.escape(kind)}_|lora_|modules_to_save\.|trainable_tokens_)")
    torch: Any = sys.modules["torch"]  # the model is a torch module, so torch is loaded
    for name, tensor in state.items():
        if name in tied or added.search(name):
            continue
        octets = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        before = WRAPPED.sub("", name.removeprefix("base_model.model."))
        yield before, type_of(name, str(tensor.dtype)), tuple(tensor.shape), [octets]
