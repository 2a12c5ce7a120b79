"""A synced expert as a PEFT directory that PEFT and serving stacks load: no torch needed to write it.

Ternary tensors are the adapter's and go to adapter_model.safetensors; dense ones, such as a head, to head.safetensors.
"""

from pathlib import Path

from safetensors.numpy import save

from compeft_client.durable_files import write_durably
from compeft_client.exchange.edge_client import Synced
from compeft_core import unflatten


def write_peft_directory(folder: Path, synced: Synced) -> None:
    """Write adapter_config.json, adapter_model.safetensors and, if there are dense tensors, head.safetensors; float32."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = unflatten(synced.layout, synced.vector)
    for kind, name in (("ternary", "adapter_model.safetensors"), ("dense", "head.safetensors")):
        tensors = {t.name: arrays[t.name] for t in synced.layout.tensors if t.kind == kind}
        if tensors:
            write_durably(folder / name, save(tensors, {"format": "pt"}))
    if synced.adapter_config:
        write_durably(folder / "adapter_config.json", synced.adapter_config)
