"""The border to torch and PEFT: named float32 arrays out of a LoRA model and into one, and experts saved as PEFT directories.

Names are those of PEFT's state dict without the adapter's name, as in an adapter_model.safetensors. Values leave as float32,
which is exact for float32, bfloat16 and float16 parameters, and enter rounded to the parameter's own type (nearest, ties to
even). What cannot make that trip unharmed is refused here: nothing is skipped, broadcast or guessed. No training, no network.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict

from compeft_client.checkpoints.peft_fields import check_fields
from compeft_core.errors import InputError, LayoutMismatchError, NotFiniteError

Arrays = Mapping[str, NDArray[np.float32]]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


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


def rest(model: PeftModel, endings: Sequence[str], adapter: str = "default") -> None:
    """Train every parameter of the adapter but those whose names, as in `adapter_arrays`, end in one of `endings`."""
    for name, parameter in model.named_parameters():
        if "lora_" in name and f".{adapter}." in name:
            parameter.requires_grad_(not name.replace(f".{adapter}.", ".").endswith(tuple(endings)))


def check_plain(config: object, also: Collection[str] = ()) -> None:
    """Refuse an adapter that is not LoRA, or whose options change more than A and B, by the table of `peft_fields` (purpose `arrays`).
    Errors: InputError, naming the option.

    also: options that the caller supports.
    """
    if not isinstance(config, LoraConfig):
        raise InputError(f"adapter is a {type(config).__name__}, only LoraConfig is supported")
    fields = {name: value for name, value in vars(config).items() if name not in also}
    check_fields(fields | {"peft_type": "LORA"}, "arrays", "the adapter")


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
