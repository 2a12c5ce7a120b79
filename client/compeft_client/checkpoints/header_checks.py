"""Checks of an adapter by the headers of its files alone: empty tensors, and shards."""

from collections.abc import Mapping
from pathlib import Path

from compeft_client.checkpoints.safetensors_file import Header
from compeft_core.errors import InputError
from compeft_proto.expert_manifest import ADAPTER

FACTOR_MARKS = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_embedding_B")
GATHER = (
    "gather the shards before saving (DeepSpeed ZeRO-3: deepspeed.zero.GatheredParameters; FSDP: summon_full_params), and save it "
    "again"
)


def check_headers(path: Path, files: Mapping[str, Header]) -> None:
    """Errors: InputError if an adapter's tensors are empty or are shards."""
    if ADAPTER not in files:
        return
    for header in files.values():
        for tensor in header.tensors.values():
            if tensor.size == 0:
                raise InputError(f"{path}: tensor {tensor.name!r} is empty (shape {list(tensor.shape)}, size 0): {GATHER}")
            if len(tensor.shape) < 2 and any(mark in tensor.name for mark in FACTOR_MARKS):
                raise InputError(
                    f"{path}: tensor {tensor.name!r} has shape {list(tensor.shape)}, a factor of LoRA is a matrix: {GATHER}"
                )
