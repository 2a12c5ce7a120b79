"""Makes an unpacked expert one that an engine loads and computes rightly, or says why it cannot.

SGLang and older versions of vLLM read one `r` and one `lora_alpha` for all modules: an adapter with `rank_pattern` or `alpha_pattern`
would be computed wrongly, without a word. Such an adapter, and one whose rank is above the engine's while few of its
components are not zero (files of products have 2 to 8), is written again with one rank: components that are zero are left out, each
module's own factor is multiplied into B, and alpha is the rank. The products are the same up to one rounding of B.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from compeft_client.checkpoints.lora_modules import PREFIX, modules_of, scaling_of
from compeft_client.checkpoints.peft_fields import check_fields
from compeft_client.checkpoints.safetensors_file import read_values
from compeft_client.checkpoints.source import Source, read_source
from compeft_client.durable_files import write_durably
from compeft_core.errors import InputError
from compeft_proto.expert_manifest import ADAPTER, ADAPTER_CONFIG
from compeft_proto.lora_modules import LoraModule

Array = NDArray[np.float32]
REFUSED_FIELDS = {
    "use_dora": "DoRA: its norms lie outside LoRA: merge it into the base model, or train without use_dora",
    "lora_bias": "a bias beside B: train without lora_bias",
    "modules_to_save": "layers saved whole: merge them into the base model, or train without modules_to_save",
    "trainable_token_indices": "trained tokens: merge them into the base model",
    "target_parameters": "LoRA on parameters of several experts: merge it into the base model",
    "layer_replication": "replicated layers: merge it into the base model",
    "alora_invocation_tokens": "activated LoRA: serve it with an engine that supports it",
    "use_qalora": "QALoRA's pooled inputs: merge it into the base model",
}
"""Option -> what it is and the way out."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine takes. max_rank: 0 if it has no bound (vLLM: --max-lora-rank)."""

    engine: str = "vLLM"
    max_rank: int = 0


def fit(directory: Path, limits: EngineLimits, what: str) -> None:
    """Leave the directory as it is if the engine computes it rightly; else write it anew with one rank. `what` names the expert.

    Errors: InputError that names what the engine does not load, with the way out.
    """
    source = read_source(directory)
    _check(source, limits, what)
    shapes = {name: stored.shape for name, stored in source.files[ADAPTER].tensors.items()}
    modules = modules_of(shapes, source.fields)
    others = set(shapes) - {name for module in modules for name in (module.a, module.b)}
    if others or not modules:
        name = min(others) if others else "no LoRA factors"
        raise InputError(f"{what} has {name!r}, which {limits.engine} does not load as LoRA: merge it into the base model")
    rank = source.fields.get("r", 8)
    alike = {module.rank for module in modules} == {rank} and not source.fields.get("alpha_pattern")
    if alike and (not limits.max_rank or int(str(rank)) <= limits.max_rank):
        return
    _write_with_one_rank(source, modules, limits, what)


def _check(source: Source, limits: EngineLimits, what: str) -> None:
    if not source.is_adapter or not source.fields:
        raise InputError(f"{what} lacks LoRA factors or adapter_config.json: {limits.engine} serves LoRA beside a base model")
    kind = source.fields.get("peft_type", "LORA")
    if kind != "LORA":
        raise InputError(f"{what} is of type {kind}, {limits.engine} serves LORA: merge it into the base model")
    for name, why in REFUSED_FIELDS.items():
        if source.fields.get(name):
            raise InputError(f"{what} has {name} {source.fields[name]!r}, which {limits.engine} does not serve; {why}")
    check_fields(source.fields, "factors", what)
    if beside := [name for name in source.files if name != ADAPTER]:
        raise InputError(f"{what} has {', '.join(beside)}, which {limits.engine} does not load: merge it into the base model")


def _write_with_one_rank(source: Source, modules: list[LoraModule], limits: EngineLimits, what: str) -> None:
    kept = {module.name: _components(source, module) for module in modules}
    rank = max(1, *(a.shape[0] for a, _ in kept.values()))
    if limits.max_rank and rank > limits.max_rank:
        raise InputError(
            f"{what} has rank {rank}, {limits.engine} serves ranks to {limits.max_rank}: start it with a higher --max-lora-rank, or pack "
            f"the expert as products of at most {limits.max_rank} components (compeft merge --rank {limits.max_rank})"
        )
    tensors: dict[str, Array] = {}
    for module in modules:
        a, b = kept[module.name]
        tensors[module.a], tensors[module.b] = np.zeros((rank, a.shape[1]), np.float32), np.zeros((b.shape[0], rank), np.float32)
        tensors[module.a][: a.shape[0]], tensors[module.b][:, : b.shape[1]] = a, b
    fields = dict(source.fields) | {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
    write_durably(source.path / ADAPTER, save(tensors, {"format": "pt"}))
    write_durably(source.path / ADAPTER_CONFIG, json.dumps(fields, indent=1).encode())


def _components(source: Source, module: LoraModule) -> tuple[Array, Array]:
    """A's rows and B's columns whose product is not zero, B times the module's factor."""
    if len(module.a_shape) != 2 or len(module.b_shape) != 2:
        raise InputError(f"{module.name!r} is a convolution, whose rank cannot be changed here: give every module the rank r")
    a, b = _values(source, module.a), _values(source, module.b)
    used = np.flatnonzero(a.any(axis=1) & b.any(axis=0))
    factor = np.float32(scaling_of(source.fields, module.name.removeprefix(PREFIX), module.rank))
    return a[used], b[:, used] * factor


def _values(source: Source, name: str) -> Array:
    stored = source.files[ADAPTER].tensors[name]
    return np.concatenate(list(read_values(stored))).reshape(stored.shape)
