"""The border to torch and PEFT: named float32 arrays out of a LoRA model and into one, and experts saved as PEFT directories.

Names are those of PEFT's state dict without the adapter's name, as in an adapter_model.safetensors. Values leave as float32,
which is exact for float32, bfloat16 and float16 parameters, and enter rounded to the parameter's own type (nearest, ties to
even). What cannot make that trip unharmed is refused here: nothing is skipped, broadcast or guessed. No training, no network.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import file_digest, sha256
from math import prod, sqrt
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import save_file

from compeft_core.errors import InputError, LayoutMismatchError, NotFiniteError
from compeft_core.layout import Layout
from compeft_proto.task import canonical_json

Arrays = Mapping[str, NDArray[np.float32]]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
CONFIG_FIELDS = (
    "peft_type",
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "fan_in_fan_out",
)
"""What decides the function an adapter computes from its arrays: not dropout and initialisation (training only), nor paths."""
PLAIN_FIELDS = {
    "bias": ("none",),
    "use_dora": (False,),
    "use_qalora": (False,),
    "lora_bias": (False,),
    "modules_to_save": (None,),
    "target_parameters": (None,),
    "trainable_token_indices": (None,),
    "layer_replication": (None,),
    "megatron_config": (None,),
    "init_lora_weights": (True, False, "gaussian"),
}
"""Values that keep an adapter to LoRA's A and B over an unchanged base; any other is refused."""


@dataclass(frozen=True, slots=True)
class Expert:
    """An expert ready to save.

    `base_model` is the name others find the base model by: a hub name, never a local path. `arrays` are the adapter's, by PEFT's
    names; `head` its `weight` (classes, hidden) and `bias` (classes); `labels` the classes' names in order.
    """

    config: LoraConfig
    base_model: str
    arrays: Arrays
    head: Arrays
    labels: Sequence[str]


def adapter_arrays(model: PeftModel, adapter: str = "default") -> dict[str, NDArray[np.float32]]:
    """The adapter's parameters by name: float32 copies on the CPU.

    Errors: InputError for an adapter that is not plain LoRA (see `check_plain`) or a parameter of another type;
    NotFiniteError for NaN or infinity.
    """
    return {name: _array(name, tensor) for name, tensor in _parameters(model, adapter).items()}


def load_adapter(model: PeftModel, arrays: Arrays, adapter: str = "default") -> None:
    """Put arrays into the adapter, all or none of them.

    Errors: InputError as in `adapter_arrays`; LayoutMismatchError if a name is missing, unknown, or has another shape or dtype;
    NotFiniteError if a value is not finite, or does not fit the parameter's type.
    """
    parameters = _parameters(model, adapter)
    for name in sorted(set(parameters) ^ set(arrays)):
        raise LayoutMismatchError(f"array {name!r} is {'missing' if name in parameters else 'not in the adapter'}")
    tensors = {name: _tensor(name, arrays[name], parameter) for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def initial_bounds(layout: Layout) -> list[float]:
    """Bounds of the uniform initial state, a tensor of the layout each: PEFT's own start for LoRA, and zero for the head.

    lora_A gets 1 / sqrt(inputs), which is what `kaiming_uniform_(a=sqrt(5))` comes to; lora_B and every dense tensor 0.
    Errors: InputError for a ternary tensor that is neither.
    """
    return [0.0 if t.kind == "dense" else _bound(t.name, t.shape) for t in layout.tensors]


def check_plain(config: object) -> None:
    """Refuse an adapter that is not LoRA, or whose options change more than A and B. Errors: InputError, naming the option."""
    if not isinstance(config, LoraConfig):
        raise InputError(f"adapter is a {type(config).__name__}, only LoraConfig is supported")
    for field, plain in PLAIN_FIELDS.items():
        value = getattr(config, field, plain[0]) or plain[0]
        if value not in plain:
            raise InputError(f"LoRA option {field} is {value!r}, supported: {', '.join(map(repr, plain))}")


def canonical_config(config: LoraConfig) -> bytes:
    """The fields in CONFIG_FIELDS as canonical JSON, sets sorted: an adapter_config.json that PEFT loads. Errors: InputError."""
    check_plain(config)
    return canonical_json({field: _plain_json(getattr(config, field)) for field in CONFIG_FIELDS})


def config_digest(config: LoraConfig) -> bytes:
    """SHA-256 (32 bytes) of `canonical_config`. Errors: InputError.

    Two adapters with equal arrays and equal digests compute the same function on the same base model.
    """
    return sha256(canonical_config(config)).digest()


def base_model_digest(weights: Path) -> bytes:
    """SHA-256 (32 bytes) of a weights file, read once as long as it stays unchanged. Errors: InputError if it cannot be read."""
    try:
        status = weights.stat()
        return _digest(weights, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise InputError(f"base model {weights.name} cannot be read: {error.strerror}") from error


def save_expert(folder: Path, expert: Expert) -> None:
    """Write `expert` as a PEFT directory: adapter_config.json, adapter_model.safetensors, and head.safetensors beside them.

    `PeftModel.from_pretrained(base, folder)` loads the adapter. Errors: InputError for an adapter that is not plain LoRA.
    """
    check_plain(expert.config)
    folder.mkdir(parents=True, exist_ok=True)
    config = expert.config.to_dict()  # type: ignore[no-untyped-call]  # peft ships no annotation for it
    fields = config | {"base_model_name_or_path": expert.base_model, "inference_mode": True}
    text = json.dumps({name: _plain_json(value) for name, value in fields.items()}, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    save_file(_owned(expert.arrays), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    save_file(_owned(expert.head), folder / "head.safetensors", metadata={"labels": json.dumps(list(expert.labels))})


def _parameters(model: PeftModel, adapter: str) -> dict[str, torch.Tensor]:
    if adapter not in model.peft_config:
        raise InputError(f"model has no adapter {adapter!r}, it has {sorted(model.peft_config)}")
    check_plain(model.peft_config[adapter])
    named: dict[str, torch.Tensor] = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    for name, tensor in named.items():
        if tensor.dtype not in FLOATS:
            raise InputError(f"parameter {name!r} is {tensor.dtype}, supported: {', '.join(map(str, FLOATS))}")
    return named


def _array(name: str, tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous().numpy()
    if not np.isfinite(array).all():
        raise NotFiniteError(f"parameter {name!r} holds NaN or infinity")
    return array


def _tensor(name: str, array: NDArray[np.float32], parameter: torch.Tensor) -> torch.Tensor:
    if array.shape != tuple(parameter.shape) or array.dtype != np.float32:
        raise LayoutMismatchError(
            f"array {name!r} is {array.dtype} {array.shape}, the adapter has float32 {tuple(parameter.shape)}"
        )
    tensor = torch.tensor(array).to(parameter.dtype)
    if not torch.isfinite(tensor).all():
        raise NotFiniteError(f"array {name!r} holds a value that is not finite as {parameter.dtype}")
    return tensor


def _bound(name: str, shape: tuple[int, ...]) -> float:
    if name.endswith(".lora_A.weight"):
        return 1 / sqrt(prod(shape[1:]))
    if name.endswith(".lora_B.weight"):
        return 0.0
    raise InputError(f"tensor {name!r} is neither lora_A nor lora_B: its initial state is unknown")


@lru_cache(maxsize=16)
def _digest(weights: Path, size: int, changed_ns: int) -> bytes:
    """`size` and `changed_ns` are part of the cache's key: a file that changed is read again."""
    with weights.open("rb") as file:
        return file_digest(file, "sha256").digest()


def _plain_json(value: object) -> object:
    """JSON has no sets and no enums: sets as sorted lists, enums as their values."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", value)


def _owned(arrays: Arrays) -> dict[str, NDArray[np.float32]]:
    """Contiguous float32, as the writer needs: it would save a view's whole memory in the wrong order."""
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
