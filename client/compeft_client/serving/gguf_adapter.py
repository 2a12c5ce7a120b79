"""A PEFT LoRA as the GGUF file that llama.cpp and Ollama load with a base model (`--lora`, `ADAPTER`).

The same names, shapes and values as llama.cpp's convert_lora_to_gguf.py writes: `blk.0.attn_q.weight.lora_a` (rank, columns) and
`.lora_b` (rows, rank), float32, and one `adapter.lora.alpha`. llama.cpp multiplies a product by alpha / rank; where the adapter means
another factor (rsLoRA, alpha_pattern) B is multiplied by the quotient of the two, which that converter leaves out.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFType, GGUFWriter, get_tensor_name_map
from numpy.typing import NDArray

from compeft_client.checkpoints.lora_modules import PREFIX, modules_of, scaling_of
from compeft_client.checkpoints.peft_fields import check_fields
from compeft_client.checkpoints.safetensors_file import read_values
from compeft_client.checkpoints.source import Source, read_source
from compeft_client.durable_files import write_durably
from compeft_client.serving.gguf_base import GgufBase
from compeft_core.errors import InputError
from compeft_proto.expert_manifest import ADAPTER
from compeft_proto.lora_modules import LoraModule

Array = NDArray[np.float32]
MERGE = "merge it into its base model and convert that"
QUANTIZATION_VERSION = 2
"""What llama.cpp's converter states; no tensor of the file is quantised."""
LEFT_OUT = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "layer_replication",
)
"""Options that llama.cpp's adapters cannot express."""
INVERSE = {MODEL_ARCH_NAMES[number]: number for number in MODEL_ARCH}


@dataclass(frozen=True, slots=True)
class GgufWritten:
    """Products written, and the bytes of the file."""

    modules: int
    total_bytes: int


def write_gguf(directory: Path, file: Path, base: GgufBase) -> GgufWritten:
    """Write the LoRA of a PEFT directory as GGUF for `base`. An interrupted call leaves no file.

    Errors: InputError for what llama.cpp cannot load, naming it, or a module that the base does not have; NotFiniteError; FormatError.
    """
    source = read_source(directory)
    modules = _modules(source)
    alpha = _alpha(source)
    tensors: dict[str, Array] = {}
    for module in modules:
        name = _gguf_name(module, base)
        a, b = (_values(source, one) for one in (module.a, module.b))
        _check_shape(module, name, base)
        scaling = scaling_of(source.fields, module.name.removeprefix(PREFIX), module.rank)
        factor = np.float32(scaling * module.rank / alpha)
        tensors[f"{name}.lora_a"] = a
        tensors[f"{name}.lora_b"] = _rotated(b if factor == 1 else b * factor, module, base)
    return GgufWritten(len(modules), _write(file, tensors, alpha, source, base))


def _modules(source: Source) -> list[LoraModule]:
    """Errors: InputError if anything in the directory would be lost."""
    if not source.is_adapter or not source.fields:
        raise InputError(f"{source.path} is not a PEFT LoRA with adapter_config.json: only those become a GGUF adapter")
    if source.fields.get("peft_type", "LORA") != "LORA":
        raise InputError(f"{source.path} is of type {source.fields['peft_type']}, llama.cpp loads LoRA: {MERGE}")
    for name in LEFT_OUT:
        if source.fields.get(name):
            raise InputError(f"{source.path} has {name} {source.fields[name]!r}, which llama.cpp does not load: {MERGE}")
    check_fields(source.fields, "factors", str(source.path))
    if others := [name for name in source.files if name != ADAPTER]:
        raise InputError(f"{source.path} has {', '.join(others)}, which llama.cpp does not load: {MERGE}")
    shapes = {name: stored.shape for name, stored in source.files[ADAPTER].tensors.items()}
    modules = modules_of(shapes, source.fields)
    taken = {name for module in modules for name in (module.a, module.b)}
    linear = all(len(module.a_shape) == len(module.b_shape) == 2 and module.a.endswith(".lora_A.weight") for module in modules)
    if not linear or (others := sorted(set(shapes) - taken)):
        name = others[0] if linear else next(m.a for m in modules if len(m.a_shape) != 2 or not m.a.endswith(".lora_A.weight"))
        raise InputError(f"{source.path} has {name!r}, llama.cpp loads LoRA of linear layers only: {MERGE}")
    return modules


def _alpha(source: Source) -> float:
    alpha = source.fields.get("lora_alpha", 8)
    if not isinstance(alpha, int | float) or not alpha:
        raise InputError(f"{source.path} has lora_alpha {alpha!r}, expected a number other than 0")
    return float(alpha)


def _gguf_name(module: LoraModule, base: GgufBase) -> str:
    names = get_tensor_name_map(INVERSE[base.architecture.name], base.layers)
    plain = module.name.removeprefix(PREFIX)
    found: str | None = names.get_name(f"{plain}.weight", try_suffixes=(".weight",))
    if found is None:
        raise InputError(
            f"{plain!r} is not a module of a {base.architecture.name} model of {base.layers} layers: give its own --base"
        )
    return found


def _check_shape(module: LoraModule, name: str, base: GgufBase) -> None:
    if base.shapes and base.shapes.get(name) != module.sides:
        there = base.shapes.get(name)
        raise InputError(
            f"{module.name.removeprefix(PREFIX)!r} is {module.sides}, {base.name} has {there} as {name}: another base"
        )


def _values(source: Source, name: str) -> Array:
    stored = source.files[ADAPTER].tensors[name]
    return np.concatenate(list(read_values(stored))).reshape(stored.shape)


def _rotated(b: Array, module: LoraModule, base: GgufBase) -> Array:
    """B with its rows in llama.cpp's order: of each head, row i of the first half beside row i of the second.

    Example: one head of four rows 0 1 2 3 becomes 0 2 1 3.
    """
    kind = module.name.rpartition(".")[2]
    if not base.architecture.rotated or kind not in ("q_proj", "k_proj"):
        return b
    heads = base.heads if kind == "q_proj" else base.key_value_heads
    if b.shape[0] % (2 * heads):
        raise InputError(f"{module.name!r} has {b.shape[0]} rows, which {heads} heads of {base.name} do not divide: another base")
    return np.ascontiguousarray(b.reshape(heads, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape))


def _write(file: Path, tensors: Mapping[str, Array], alpha: float, source: Source, base: GgufBase) -> int:
    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / "adapter.gguf"
        writer = GGUFWriter(made, base.architecture.name)
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string("adapter.type", "lora")
        writer.add_name(file.stem)
        if source.base_model:
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, source.base_model)
        writer.add_float32("adapter.lora.alpha", alpha)
        writer.add_quantization_version(QUANTIZATION_VERSION)
        for name, values in tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        data = made.read_bytes()
    write_durably(file, data)
    return len(data)
