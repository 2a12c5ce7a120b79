"""Measures what a pool is for: experts that fit in a gigabyte, and the time to switch, beside bfloat16 adapters on a local disk.

The model is a real BERT encoder with random weights and a LoRA of the size asked for; the experts are packed files and bfloat16
PEFT directories of the same tuned values. Nothing is fetched.
"""

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertModel

from compeft_client.exchange.pool_reports import PoolUsage
from compeft_client.models.adapter import adapter_arrays, load_adapter
from compeft_client.models.expert_pool import ExpertPool
from compeft_client.packing.pack import PackSettings, save_compressed
from compeft_client.workers import Tell, untold
from compeft_core.errors import InputError
from compeft_proto.expert_manifest import ADAPTER

SIZES: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 1000,
}
TARGETS = ("dense", "key", "query", "value")
PER_RANK = 41_472
"""LoRA parameters of that encoder for each rank."""
GB = 10**9


@dataclass(frozen=True, slots=True)
class PoolMeasures:
    """Bytes of one expert in memory, and median seconds to switch. `hotswap`: PEFT's own `hotswap_adapter` from a local disk;
    `load`: only reading those files and copying their tensors into the parameters, the least that any loader does.
    """

    device: str
    parameters: int
    density: float
    experts: int
    expert_bytes: int
    bf16_bytes: int
    switch_s: float
    switch_from_disk_s: float
    back_to_base_s: float
    bf16_hotswap_s: float
    bf16_load_s: float

    @property
    def experts_per_gb(self) -> float:
        """Packed experts that fit in 10^9 bytes."""
        return GB / self.expert_bytes

    @property
    def bf16_experts_per_gb(self) -> float:
        """The same as bfloat16."""
        return GB / self.bf16_bytes


Used = Callable[[PoolUsage], None]


def unused(_: PoolUsage) -> None:
    """Nobody asks what the pool did."""


def measure_pool(
    parameters: int, experts: int, density: float, device: str, tell: Tell = untold, used: Used = unused
) -> PoolMeasures:
    """Make the model and the experts, then switch to each of them three times in each way. Errors: InputError.

    tell: is told how far this is. used: gets the counters of the pool that holds all experts, after its switches.
    """
    if experts < 2:
        raise InputError(f"{experts} experts, at least 2 are needed to switch between")
    rank = max(1, round(parameters / PER_RANK))
    model = bert_with_lora(rank).to(device)
    with tempfile.TemporaryDirectory() as folder:
        names = _write_experts(model, Path(folder), experts, density, tell)
        tell("switching by PEFT's hotswap_adapter")
        swap = _median(names, lambda n: hotswap_adapter(model, str(Path(folder) / n), "default", torch_device=device), device)
        load = _median(names, lambda n: _load(model, Path(folder) / n), device)
        tell("switching in the pool, experts in memory")
        with ExpertPool(model, init=str(Path(folder) / "start")) as pool:
            for name in names:
                pool.add(name, Path(folder) / f"{name}.expert")
            for read in pool.prefetch(names):
                read.result()
            held = pool.held_bytes // experts
            switch = _median(names, pool.activate, device)
            back = _median(names, pool.activate, device, pool.deactivate)
            used(pool.usage())
        tell("switching in the pool, experts on disk")
        with ExpertPool(model, init=str(Path(folder) / "start"), capacity_bytes=0) as pool:
            for name in names:
                pool.add(name, Path(folder) / f"{name}.expert")
            cold = _median(names, pool.activate, device)
        bf16 = (Path(folder) / names[0] / ADAPTER).stat().st_size
    return PoolMeasures(device, PER_RANK * rank, density, experts, held, bf16, switch, cold, back, swap, load)


def bert_with_lora(rank: int) -> PeftModel:
    """An encoder of these SIZES with random weights, and a fresh LoRA on all its linear layers."""
    base = BertModel(BertConfig(**SIZES), add_pooling_layer=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft asks transformers
        return get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(TARGETS)))


def _write_experts(model: PeftModel, folder: Path, experts: int, density: float, tell: Tell) -> list[str]:
    """`start`, and each expert as a packed file and as a bfloat16 PEFT directory."""
    model.save_pretrained(str(folder / "start"), save_embedding_layers=False)
    start, names = adapter_arrays(model), [f"expert-{number}" for number in range(experts)]
    for number, name in enumerate(names):
        random = np.random.default_rng(number)
        load_adapter(model, {n: a + random.normal(0, 1e-3, a.shape).astype(np.float32) for n, a in start.items()})
        model.save_pretrained(str(folder / name), save_embedding_layers=False)
        save_compressed(folder / name, folder / f"{name}.expert", PackSettings(density, init=str(folder / "start")))
        rounded = {n: t.to(torch.bfloat16) for n, t in load_file(folder / name / ADAPTER).items()}
        save_file(rounded, folder / name / ADAPTER, {"format": "pt"})
        tell(f"packed {number + 1} of {experts} experts")
    return names


def _load(model: PeftModel, folder: Path) -> None:
    parameters = {n.replace(".default.", "."): p for n, p in model.named_parameters() if "lora_" in n}
    with torch.no_grad():
        for name, tensor in load_file(folder / ADAPTER, device=str(model.device)).items():
            parameters[name].copy_(tensor)


def _median(names: Sequence[str], switch: Callable[[str], None], device: str, timed: Callable[[], None] | None = None) -> float:
    """Median seconds of `switch`, or of `timed` after it, over all names three times."""
    seconds = []
    for name in [*names] * 3:
        if timed is not None:
            switch(name)
        _wait(device)
        began = time.perf_counter()
        if timed is None:
            switch(name)
        else:
            timed()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
