"""Speed of compressing and adding where tensors lie: `python -m benchmarks.device [--quick] [--size N]`.

On CUDA if there is one (device time by events, so what the host waits for counts too), else on CPU tensors, which says little about a
GPU. A bfloat16 task vector of LoRA's shapes, density 5 %, float32 state. Every figure is the best of several runs and stands beside a
named peer of the same run: torch.topk for compressing, adding a dense vector for adding. Prints a table, then one line of JSON.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch

from compeft_client.models.device_codec import apply_on_device, compress_on_device
from compeft_client.models.device_selection import magnitudes_of, select
from compeft_core import Compression, Layout, add_to, compress, encode, layout_of, parse

DENSITY = 0.05
SIZE, QUICK_SIZE = 160_000_000, 2_000_000
COLUMNS = 4096
TENSORS = 64
REPEATS = {"cuda": 20, "cpu": 3}

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SIZE} parameters instead of {SIZE}")
    parser.add_argument("--size", type=int, help="another number of parameters")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = arguments.size or (QUICK_SIZE if arguments.quick else SIZE)
    print(f"on {torch.cuda.get_device_name() if device == 'cuda' else 'CPU tensors: no CUDA device here'}")
    figures = {"parameters": float(size), **measure(layout(size), device)}
    for name, value in figures.items():
        print(f"{name:44} {value:14.4f}")
    print(json.dumps({"device": device} | {name: round(value, 5) for name, value in figures.items()}))


def layout(size: int) -> Layout:
    """Matrices of equal size, as many as LoRA has, and what is left over."""
    rows = size // (TENSORS * COLUMNS)
    matrices = {f"layer{i:02}": (rows, COLUMNS) for i in range(TENSORS)}
    return layout_of({**matrices, "rest": (size - rows * TENSORS * COLUMNS,)})


def measure(shapes: Layout, device: str) -> Figures:
    generator = torch.Generator(device).manual_seed(0)
    vector = torch.randn(shapes.size, device=device, dtype=torch.bfloat16, generator=generator)
    state, kept = torch.ones(shapes.size, device=device), round(DENSITY * shapes.size)
    ours = {
        "compress_norm": lambda: compress_on_device(shapes, vector, Compression(DENSITY)),
        "compress_norm_by_tensor": lambda: compress_on_device(shapes, vector, Compression(DENSITY, granularity="tensor")),
        "compress_mean_magnitude": lambda: compress_on_device(shapes, vector, Compression(DENSITY, "mean_magnitude")),
        "compress_alpha_sigma": lambda: compress_on_device(shapes, vector, Compression(DENSITY, "alpha_sigma")),
        "select": lambda: select(magnitudes_of(vector), kept),
    }
    figures = {f"{name}_s": best_s(run, device) for name, run in ours.items()}
    blob = compress_on_device(shapes, vector, Compression(DENSITY))
    encoded = parse(blob)
    figures["apply_s"] = best_s(lambda: apply_on_device(encoded, state), device)
    figures["topk_s"] = best_s(lambda: torch.topk(vector.abs(), kept, sorted=False), device)
    figures["dense_add_s"] = best_s(lambda: state.add_(vector), device)
    figures["parse_on_host_s"] = best_s(lambda: parse(blob), "cpu", 3)
    figures |= by_core(shapes, vector, device)
    figures["bytes_over_bus"] = float(len(blob))
    figures["bf16_over_bytes"] = 2 * shapes.size / len(blob)
    figures["times_faster_than_topk"] = figures["topk_s"] / figures["compress_norm_s"]
    figures["apply_over_dense_add"] = figures["apply_s"] / figures["dense_add_s"]
    figures["times_faster_than_core_compress"] = figures["core_compress_s"] / figures["compress_norm_s"]
    figures["times_faster_than_core_apply"] = figures["core_apply_s"] / figures["apply_s"]
    if device == "cuda":
        figures["peak_memory_over_vector"] = torch.cuda.max_memory_allocated() / (2 * shapes.size)
    return figures


def by_core(shapes: Layout, vector: torch.Tensor, device: str) -> Figures:
    """The same on the host with one worker, the dense vector and state carried there, the state also back."""
    state = torch.ones(shapes.size, device=device)
    encoded = parse(compress_on_device(shapes, vector, Compression(DENSITY)))

    def compress_on_host() -> bytes:
        return encode(compress(shapes, vector.cpu().float().numpy(), Compression(DENSITY)))

    def apply_on_host() -> None:
        carried = state.cpu().numpy()
        add_to(encoded, carried)
        state.copy_(torch.from_numpy(carried))

    return {"core_compress_s": best_s(compress_on_host, device, 2), "core_apply_s": best_s(apply_on_host, device, 2)}


def best_s(run: Callable[[], object], device: str, repeats: int | None = None) -> float:
    """Seconds of the fastest of several runs after one that does not count."""
    run()
    timer = event_s if device == "cuda" else clock_s
    return min(timer(run) for _ in range(repeats or REPEATS[device]))


def event_s(run: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def clock_s(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
