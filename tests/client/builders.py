"""Small directories as PEFT saves them, made without torch."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "org/base", "init_lora_weights": True}
PREFIX = "base_model.model.layers"
WIDTH, RANK = 64, 4


def names(layers: int = 2) -> list[str]:
    return [f"{PREFIX}.{i}.q_proj.lora_{ab}.weight" for i in range(layers) for ab in "AB"]


def initial(layers: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    bound = WIDTH**-0.5
    return {
        name: random.uniform(-bound, bound, (RANK, WIDTH)).astype(np.float32)
        if "lora_A" in name
        else np.zeros((WIDTH, RANK), np.float32)
        for name in names(layers)
    }


def tuned(start: Mapping[str, np.ndarray], seed: int = 1) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {n: (v + 0.01 * random.standard_normal(v.shape)).astype(np.float32) for n, v in start.items()}


def write_adapter(folder: Path, tensors: Mapping[str, np.ndarray], **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config, indent=2))
    return folder


def write_model(folder: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    return folder


def append_tensor(file: Path, name: str, kind: str, shape: tuple[int, ...], octets: bytes) -> None:
    """Add a tensor of any type, which numpy may not know, to a safetensors file."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [len(body), len(body) + len(octets)]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body + octets)


def raw_tensor(file: Path, name: str) -> tuple[str, list[int], bytes]:
    """Type, shape and bytes of a tensor in a safetensors file."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + length])[name]
    start, stop = entry["data_offsets"]
    return entry["dtype"], entry["shape"], data[8 + length + start : 8 + length + stop]
