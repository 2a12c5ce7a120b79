"""Speed, size and memory of compressing and adding: `python -m benchmarks.codec [--quick]`.

Every speed is a ratio against a named peer, timed in the same process on the same vector, best of several runs, one thread unless
it says otherwise. Prints tables, and on the last line one JSON object of the same figures. Without `--quick`, draws two pictures.
"""

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks import experts, formats, pictures
from compeft_core import (
    Compression,
    Layout,
    add_to,
    compress,
    decode,
    encode,
    layout_of,
    merge,
    parse,
    shapes_of,
)

Figures = dict[str, float]
DENSITY = 0.05
DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
PICTURES = Path("docs/benchmarks")
TITLES = f"{'format':42} {'k %':>5} {'bytes':>12} {'over entropy':>12} {'encode ms':>10} {'decode ms':>10}"
START = """
import time
begin = time.perf_counter()
import compeft_core as core
imported = time.perf_counter()
import numpy as np
layout = core.layout_of({"a": (300_000,)})
vector = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
encoded = core.parse(core.encode(core.compress(layout, vector, core.Compression())))
core.decode(encoded)
core.add_to(encoded, vector)
core.merge("average", [encoded], [1.0])
print(imported - begin, time.perf_counter() - begin)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two million parameters instead of twenty, no pictures")
    parser.add_argument("--size", type=int, help="another number of parameters, no pictures")
    parser.add_argument("--experts", type=Path, default=experts.FOLDER, help="folder of PEFT experts and an initial one")
    arguments = parser.parse_args()
    layout = adapter_layout(arguments.size or (2_000_000 if arguments.quick else 20_000_000))
    vector = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    figures = {
        "parameters": float(layout.size),
        **sizes(),
        **speeds(layout, vector),
        **peers(vector),
        **memory(vector),
        **start(),
    }
    add_ratios(figures)
    for name, value in figures.items():
        print(f"{name:40} {value:14.4f}")
    figures |= compare_formats("Gaussian", [(layout, vector)], (DENSITY,), 1, None)
    picture = None if arguments.quick or arguments.size or not importlib.util.find_spec("matplotlib") else PICTURES / "sizes.svg"
    if arguments.experts.is_dir():
        figures |= compare_experts(arguments.experts, (0.05, 0.1, 0.2) if arguments.quick else DENSITIES, picture)
    else:
        print(f"no experts at {arguments.experts}: skipped")
    if picture:
        draw_speeds(figures, layout.size)
    print(json.dumps({name: round(value, 5) for name, value in figures.items()}))


def adapter_layout(size: int) -> Layout:
    """Pairs of low-rank factors, 16 x 4096 and 4096 x 16, about `size` parameters."""
    pairs = size // (2 * 16 * 4096)
    return layout_of({f"{i:04}.{side}": (16, 4096) if side == "A" else (4096, 16) for i in range(pairs) for side in "AB"})


def compare_experts(folder: Path, densities: tuple[float, ...], picture: Path | None) -> Figures:
    """Each expert by itself, then the means of all formats."""
    found = experts.load(folder)
    figures: Figures = {}
    print(f"\n{'expert, context':42} {'k %':>5} {'bytes':>12} {'over entropy':>12} {'over rice':>10}")
    for name, (layout, vector) in found.items():
        for density in densities:
            update = compress(layout, vector, Compression(density))
            blob = encode(update, codec="context", shapes=shapes_of(layout))
            ratio = 8 * len(blob) / (entropy_bits(density) * layout.size)
            print(f"{name:42} {100 * density:5g} {len(blob):12} {ratio:12.4f} {len(blob) / len(encode(update)):10.4f}")
            figures[f"{name}_context_over_entropy_{100 * density:g}pct"] = ratio
    return figures | compare_formats("experts", list(found.values()), densities, 2, picture)


def compare_formats(
    subject: str, vectors: list[tuple[Layout, np.ndarray]], densities: tuple[float, ...], repeats: int, picture: Path | None
) -> Figures:
    """Mean bytes and seconds of every format, at each density; and a picture of the sizes."""
    figures: Figures = {}
    size = vectors[0][0].size
    bits: dict[str, list[float]] = {"bound for independent entries": [entropy_bits(k) for k in densities]}
    print(f"\n{subject}: {len(vectors)} of {size} parameters\n{TITLES}")
    for density in densities:
        problems = [formats.problem_of(layout, compress(layout, v, Compression(density))) for layout, v in vectors]
        for name, form in formats.installed().items():
            rows = [formats.measure(form, problem, repeats) for problem in problems]
            mean = [
                float(np.mean(column)) for column in zip(*((r.size_bytes, r.encode_s, r.decode_s) for r in rows), strict=True)
            ]
            ratio = 8 * mean[0] / (entropy_bits(density) * size)
            print(f"{name:42} {100 * density:5g} {mean[0]:12.0f} {ratio:12.4f} {1e3 * mean[1]:10.2f} {1e3 * mean[2]:10.2f}")
            bits.setdefault(name, []).append(8 * mean[0] / size)
            for unit, value in zip(("bytes", "encode_s", "decode_s"), mean, strict=True):
                figures[f"{subject}_{name}_{100 * density:g}pct_{unit}"] = value
            figures[f"{subject}_{name}_{100 * density:g}pct_over_entropy"] = ratio
    if picture:
        pictures.draw_sizes(picture, densities, bits, f"{len(vectors)} LoRA experts of {size:,} parameters, headers included")
    return figures


def draw_speeds(figures: Figures, size: int) -> None:
    steps = ("compress_and_encode", "parse_and_add_to", "encode_context", "parse_context")
    lines = {step: [size / 1e6 / figures[f"{step}_{w}_workers_s"] for w in worker_counts()] for step in steps}
    pictures.draw_speeds(PICTURES / "speeds.svg", worker_counts(), lines, f"{size:,} Gaussian parameters, k = 5 %")


def worker_counts() -> list[int]:
    """1, 2, 4 ... up to the cores there are, and 2 at least."""
    cores = max(2, os.cpu_count() or 1)
    return [1 << i for i in range(cores.bit_length())]


def best_s(run: Callable[[], object], repeats: int = 9) -> float:
    """Seconds of the fastest of several runs."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def entropy_bits(density: float) -> float:
    """Bits an entry of independent ternary entries with uniform signs (arXiv 2311.13171, section on entropy)."""
    return -(1 - density) * math.log2(1 - density) - density * math.log2(density / 2)


def sizes(size: int = 500_000) -> Figures:
    """Encoded bytes over the entropy bound, at the size where headers weigh most."""
    vector = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    figures: Figures = {}
    for percent in (1, 5, 10, 20, 50):
        payload = len(encode(compress(layout_of({"a": (size,)}), vector, Compression(percent / 100))))
        figures[f"size_over_entropy_{percent}pct"] = 8 * payload / (entropy_bits(percent / 100) * size)
        figures[f"bf16_over_size_{percent}pct"] = 2 * size / payload
    return figures


def speeds(layout: Layout, vector: np.ndarray) -> Figures:
    """Seconds of each step by number of workers."""
    settings, state, shapes = Compression(DENSITY), np.ones_like(vector), shapes_of(layout)
    update = compress(layout, vector, settings)
    encoded = parse(encode(update))
    structured = compress(layout, with_structure(layout, vector), settings)
    context = encode(structured, codec="context", shapes=shapes)
    figures: Figures = {"context_over_rice_structured": len(context) / len(encode(structured))}
    for workers in worker_counts():
        steps: dict[str, Callable[[int], object]] = {
            "compress": lambda w: compress(layout, vector, settings, workers=w),
            "encode": lambda w: encode(update, workers=w),
            "compress_and_encode": lambda w: encode(compress(layout, vector, settings, workers=w), workers=w),
            "parse": lambda w: parse(encoded.blob, workers=w),
            "decode": lambda w: decode(encoded, workers=w),
            "add_to": lambda w: add_to(encoded, state, workers=w),
            "parse_and_add_to": lambda w: add_to(parse(encoded.blob, workers=w), state, workers=w),
            "encode_context": lambda w: encode(structured, codec="context", shapes=shapes, workers=w),
            "parse_context": lambda w: parse(context, workers=w),
        }
        for name, step in steps.items():
            repeats = 2 if "context" in name else 9
            figures[f"{name}_{workers}_workers_s"] = best_s(lambda step=step, w=workers: step(w), repeats)
    figures["merge_8_average_s"] = best_s(lambda: merge("average", [encoded] * 8, [1.0] * 8), 1)
    figures["merge_8_ties_s"] = best_s(lambda: merge("ties", [encoded] * 8, [1.0] * 8), 1)
    return figures


def with_structure(layout: Layout, vector: np.ndarray) -> np.ndarray:
    """The same noise, with rows and columns of different sizes: without any, `context` gives up in favour of `rice`."""
    rng, parts, start = np.random.default_rng(1), [], 0
    for t in layout.tensors:
        rows, columns = (np.exp(0.5 * rng.standard_normal(n)) for n in t.shape)
        parts.append(vector[start : start + t.size] * np.outer(rows, columns).reshape(-1))
        start += t.size
    return np.concatenate(parts).astype(np.float32)


def peers(vector: np.ndarray) -> Figures:
    """Seconds of other ways to do the same on one thread; torch and zstandard only if installed."""
    kept = round(DENSITY * vector.size)
    state = np.ones_like(vector)

    def partition() -> np.ndarray:
        return np.argpartition(np.abs(vector), vector.size - kept)[vector.size - kept :]

    def dense_add() -> None:
        np.add(state, vector, out=state)

    figures = {
        "argpartition_and_numpy_encode_s": best_s(lambda: numpy_encode(vector, partition()), 5),
        "dense_add_s": best_s(dense_add),
    }
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        tensor = torch.from_numpy(vector)
        figures["topk_and_numpy_encode_s"] = best_s(
            lambda: numpy_encode(vector, torch.topk(tensor.abs(), kept, sorted=False).indices.numpy()), 3
        )
    return figures


def numpy_encode(vector: np.ndarray, chosen: np.ndarray) -> bytes:
    """Golomb-Rice gaps and signs by whole-array numpy: what one writes without a compiler."""
    positions = np.sort(chosen)
    gaps = np.diff(positions, prepend=-1) - 1
    low = max(0, math.floor(math.log2(math.log(2) / DENSITY)))
    ends = np.cumsum((gaps >> low) + 1 + low)
    bits = np.zeros(int(ends[-1]), np.uint8)
    bits[ends - low - 1] = 1
    for j in range(low):
        bits[ends - low + j] = gaps >> j & 1
    return np.packbits(bits).tobytes() + np.packbits(vector[positions] < 0).tobytes()


def memory(vector: np.ndarray) -> Figures:
    """Most bytes that compress and encode hold beside the input, plus the input, over the input."""
    layout = layout_of({"a": vector.shape})
    tracemalloc.start()
    encode(compress(layout, vector, Compression(DENSITY)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"peak_memory_over_input": 1 + peak / vector.nbytes}


def start() -> Figures:
    """Seconds to import the core and use all of it once, in new processes: with no compiled kernels on disk, then with them."""
    figures: Figures = {}
    with TemporaryDirectory() as cache:
        for name in ("cold", "warm"):
            command = [sys.executable, "-c", START]
            out = subprocess.run(command, env={"NUMBA_CACHE_DIR": cache}, check=True, capture_output=True, text=True).stdout
            figures[f"{name}_import_s"], figures[f"{name}_import_and_use_s"] = map(float, out.split())
    return figures


def add_ratios(figures: Figures) -> None:
    """The figures that the bars are about."""
    ours = figures["compress_and_encode_1_workers_s"]
    for peer in ("topk", "argpartition"):
        if f"{peer}_and_numpy_encode_s" in figures:
            figures[f"times_faster_than_{peer}"] = figures[f"{peer}_and_numpy_encode_s"] / ours
    figures["add_to_over_dense_add"] = figures["add_to_1_workers_s"] / figures["dense_add_s"]
    figures["two_workers_compress_and_encode"] = ours / figures["compress_and_encode_2_workers_s"]
    for step in ("encode_context", "parse_context"):
        figures[f"{step}_million_per_s"] = figures["parameters"] / 1e6 / figures[f"{step}_1_workers_s"]
        figures[f"two_workers_{step}"] = figures[f"{step}_1_workers_s"] / figures[f"{step}_2_workers_s"]
    figures["two_workers_parse_and_add_to"] = figures["parse_and_add_to_1_workers_s"] / figures["parse_and_add_to_2_workers_s"]


if __name__ == "__main__":
    main()
