"""Speed, size and memory of compressing and adding: `python -m benchmarks.codec [--quick]`.

Every speed is a ratio against a named peer, timed in the same process on the same vector, best of several runs, one thread unless
it says otherwise. Prints a table, and on the last line one JSON object of the same figures.
"""

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from tempfile import TemporaryDirectory

import numpy as np

from compeft_core import Compression, add_to, compress, decode, encode, layout_of, merge, parse

Figures = dict[str, float]
DENSITY = 0.05
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
    parser.add_argument("--quick", action="store_true", help="two million parameters instead of twenty")
    size = 2_000_000 if parser.parse_args().quick else 20_000_000
    vector = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    figures = {"parameters": float(size), **sizes(), **speeds(vector), **peers(vector), **memory(vector), **start()}
    add_ratios(figures)
    for name, value in figures.items():
        print(f"{name:40} {value:14.4f}")
    print(json.dumps({name: round(value, 5) for name, value in figures.items()}))


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
        figures[f"two_bitmasks_over_size_{percent}pct"] = size / 4 / payload
    return figures


def speeds(vector: np.ndarray) -> Figures:
    """Seconds of each step, with one worker and with two."""
    layout, settings, state = layout_of({"a": vector.shape}), Compression(DENSITY), np.ones_like(vector)
    encoded = parse(encode(compress(layout, vector, settings)))
    update = decode(encoded)
    figures: Figures = {}
    for workers in (1, 2):
        steps: dict[str, Callable[[int], object]] = {
            "compress": lambda w: compress(layout, vector, settings, workers=w),
            "encode": lambda w: encode(update, workers=w),
            "compress_and_encode": lambda w: encode(compress(layout, vector, settings, workers=w), workers=w),
            "parse": lambda w: parse(encoded.blob, workers=w),
            "decode": lambda w: decode(encoded, workers=w),
            "add_to": lambda w: add_to(encoded, state, workers=w),
            "parse_and_add_to": lambda w: add_to(parse(encoded.blob, workers=w), state, workers=w),
        }
        for name, step in steps.items():
            figures[f"{name}_{workers}_workers_s"] = best_s(lambda step=step, w=workers: step(w))
    figures["merge_8_average_s"] = best_s(lambda: merge("average", [encoded] * 8, [1.0] * 8), 1)
    figures["merge_8_ties_s"] = best_s(lambda: merge("ties", [encoded] * 8, [1.0] * 8), 1)
    return figures


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
    if importlib.util.find_spec("zstandard"):
        import zstandard

        masks = two_bitmasks(vector, partition())
        figures["zstd_of_two_bitmasks_bytes"] = float(len(zstandard.ZstdCompressor(level=19).compress(masks)))
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


def two_bitmasks(vector: np.ndarray, chosen: np.ndarray) -> bytes:
    """A bit for each + and a bit for each -."""
    plus, minus = np.zeros((2, vector.size), np.bool_)
    plus[chosen], minus[chosen] = vector[chosen] > 0, vector[chosen] < 0
    return np.packbits(plus).tobytes() + np.packbits(minus).tobytes()


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
    figures["two_workers_parse_and_add_to"] = figures["parse_and_add_to_1_workers_s"] / figures["parse_and_add_to_2_workers_s"]


if __name__ == "__main__":
    main()
