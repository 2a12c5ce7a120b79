"""What a LoRA in GGUF must know of its base model: llama.cpp's architecture, the number of layers, and the heads of attention.

Read from a transformers folder (config.json) or from the base's own GGUF file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFReader

from compeft_client.durable_files import read_file
from compeft_core.errors import FormatError, InputError


@dataclass(frozen=True, slots=True)
class Architecture:
    """`rotated`: llama.cpp's converter reorders the rows of q_proj and k_proj, from two halves of a head to pairs."""

    name: str
    rotated: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": Architecture("llama", rotated=True),
    "MistralForCausalLM": Architecture("llama", rotated=True),
    "Qwen2ForCausalLM": Architecture("qwen2"),
    "Qwen3ForCausalLM": Architecture("qwen3"),
    "GemmaForCausalLM": Architecture("gemma"),
    "Gemma2ForCausalLM": Architecture("gemma2"),
    "Gemma3ForCausalLM": Architecture("gemma3"),
    "Phi3ForCausalLM": Architecture("phi3"),
}
"""Architecture in config.json -> what llama.cpp's `convert_hf_to_gguf.py` makes of it."""


@dataclass(frozen=True, slots=True)
class GgufBase:
    """heads, key_value_heads: of attention.   shapes: (rows, columns) by GGUF name; empty if only a configuration was read."""

    name: str
    architecture: Architecture
    layers: int
    heads: int
    key_value_heads: int
    shapes: Mapping[str, tuple[int, int]]


def read_base(path: Path) -> GgufBase:
    """The base model at `path`, a folder with config.json or a GGUF file. Errors: InputError, FormatError."""
    if path.is_dir():
        return _from_config(path)
    if path.is_file():
        return _from_gguf(path)
    raise InputError(f"{path} does not exist: --base takes the base model's folder (with config.json) or its GGUF file")


def _from_config(folder: Path) -> GgufBase:
    file = folder / "config.json"
    try:
        fields = json.loads(read_file(file))
        kind = str(fields["architectures"][0])
        heads = int(fields["num_attention_heads"])
        layers, shared = int(fields["num_hidden_layers"]), int(fields.get("num_key_value_heads") or heads)
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise FormatError(
            f"{file} names no architectures, num_hidden_layers and num_attention_heads ({error!r}): give the base model's own folder"
        ) from error
    if kind not in ARCHITECTURES:
        raise InputError(_unknown(kind, sorted(ARCHITECTURES)))
    return GgufBase(folder.resolve().name, ARCHITECTURES[kind], layers, heads, shared, {})


def _from_gguf(file: Path) -> GgufBase:
    try:
        reader = GGUFReader(file)
    except (ValueError, IndexError, OSError) as error:
        raise FormatError(f"{file} cannot be read as GGUF: {error}") from error
    known = {architecture.name: architecture for architecture in ARCHITECTURES.values()}
    name = str(_field(reader, file, "general.architecture"))
    if name not in known:
        raise InputError(_unknown(name, sorted(known)))
    heads = int(_field(reader, file, f"{name}.attention.head_count"))
    shared = int(_field(reader, file, f"{name}.attention.head_count_kv", heads))
    shapes = {t.name: (int(t.shape[1]), int(t.shape[0])) for t in reader.tensors if len(t.shape) == 2}
    layers = int(_field(reader, file, f"{name}.block_count"))
    return GgufBase(file.stem, known[name], layers, heads, shared, shapes)


def _field(reader: GGUFReader, file: Path, key: str, default: object = None) -> "str | int":
    field = reader.get_field(key)
    value = field.contents() if field else default
    if not isinstance(value, str | int):
        raise FormatError(f"{file} has {value!r} as {key}: give the GGUF file of a whole base model")
    return value


def _unknown(name: str, known: list[str]) -> str:
    return (
        f"base model of architecture {name!r}, supported: {', '.join(known)}: unpack the expert as a PEFT directory and run llama.cpp's "
        "convert_lora_to_gguf.py"
    )
