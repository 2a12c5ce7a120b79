"""`compeft pack` and `unpack` of a LoRA for a model of 7 billion parameters: `python -m benchmarks.product.seven_billion`.

The adapter has the shapes of LoRA r = 64 on all linear layers of Llama 2 7B (159,907,840 parameters, 320 MB in bfloat16), seeded normal
factors with falling spectra. Each command runs in a process of its own, so its peak memory is that of the whole program. Times are of the
wall and of the processor, imports included; kernels are compiled before. Last line: one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from compeft_client.checkpoints.safetensors_file import from_float32, header_bytes

WIDTH, INNER = 4096, 11008
MODULES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}
RANK, LAYERS = 64, 32
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "base_model_name_or_path": "meta-llama/Llama-2-7b-hf"}


def main() -> None:
    """Write the adapter, pack and unpack it, print times and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--times", type=float, nargs="+", default=[50.0, 200.0])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        run(place, "pack", str(write_adapter(place / "warm", 1)), "-o", "warm.expert")
        run(place, "unpack", "warm.expert", "-o", "warm-back")
        folder = write_adapter(place / "adapter", given.layers)
        size, figures = sum(np.prod(shape) for _, shape in tensors(given.layers)), dict[str, float]()
        for times in given.times:
            made = run(place, "pack", str(folder), "-o", "made.expert", "--force", "--times", f"{times:g}")
            back = run(place, "unpack", "made.expert", "-o", f"back-{times:g}")
            for name, (wall, cpu, memory) in (("pack", made), ("unpack", back)):
                print(
                    f"{size:,} parameters, {times:g} x: {name} {wall:.1f} s, processor {cpu:.1f} s, at most {memory:.2f} GB of memory"
                )
                figures |= {
                    f"{name} {times:g} x: {what}": round(v, 2) for what, v in (("s", wall), ("cpu_s", cpu), ("GB", memory))
                }
            figures[f"bytes {times:g} x"] = (place / "made.expert").stat().st_size
    print(json.dumps(figures))


def tensors(layers: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and shapes of A and B, module by module."""
    for layer in range(layers):
        for name, (out, into) in MODULES.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            yield f"{module}.lora_A.weight", (RANK, into)
            yield f"{module}.lora_B.weight", (out, RANK)


def write_adapter(folder: Path, layers: int) -> Path:
    """A PEFT directory in bfloat16, written tensor by tensor; component j is 0.9 ** j as strong as the first."""
    folder.mkdir()
    random, falling = np.random.default_rng(0), (0.9 ** np.arange(RANK)).astype(np.float32)
    head, starts = header_bytes([(name, "BF16", shape) for name, shape in tensors(layers)], {"format": "pt"})
    with (folder / "adapter_model.safetensors").open("wb") as stream:
        stream.write(head)
        for name, shape in tensors(layers):
            values = random.standard_normal(shape, np.float32) * np.float32(0.01)
            stream.seek(starts[name])
            stream.write(from_float32("BF16", (values * falling if "lora_B" in name else values).reshape(-1)))
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return folder


def run(place: Path, *arguments: str) -> tuple[float, float, float]:
    """Run `compeft`; seconds of the wall, seconds of the processor, gigabytes of memory at most. Errors: SystemExit if it fails."""
    began = time.monotonic()
    program = str(Path(sys.executable).with_name("compeft"))
    process = subprocess.Popen([program, *arguments], cwd=place, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"compeft {' '.join(arguments)} ended with {process.returncode}")
    return time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
