"""Merging compressed experts against FedAvg over dense float32 updates: `python -m benchmarks.merge [--quick] [--codec rice4]`.

Each arm is a process of its own and merges the same number of updates of the same size with the same weights. What is timed:

merge           `compeft_core.merging.methods("average")` of encodings that were parsed before, by 1 thread and by 2
parse_merge     the same with parsing, which checks every byte: what a server does from bytes to the merged vector
numpy           the leanest FedAvg that numpy has: tensor by tensor, a product into scratch memory that stays in cache, one addition
numpy_plain     the same as one writes it down: total += weight * update, over whole vectors
flower          Flower's own aggregation of the replies of a round (`aggregate_arrayrecords`), from the bytes of its records

Dense updates are all in memory before the clock starts (100 of 20 million parameters: 8 GB). Memory is the peak of the process less what
it had before it made or read its inputs. Prints one line a figure, and on the last line one JSON object of them.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from compeft_core import Codec, Compression, Layout, compress, encode, layout_of, merge, parse

Figures = dict[str, float]
TENSOR = (16, 4096)
DENSITY = 0.05
MEBI = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten updates of two million parameters")
    parser.add_argument("--arm", choices=ARMS, help="run one arm in this process")
    parser.add_argument("--updates", type=int, default=0)
    parser.add_argument("--parameters", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--codec", choices=("rice", "rice4"), default="rice4", help="codec of the updates")
    given = parser.parse_args()
    updates, parameters = given.updates or (10 if given.quick else 100), given.parameters or (2 if given.quick else 20) * 10**6
    layout = layout_of({f"{i:04}": TENSOR for i in range(parameters // 65536)})
    if given.arm:
        print(json.dumps(ARMS[given.arm](layout, updates, given.folder, given.codec)))
        return
    with TemporaryDirectory() as folder:
        report(compare(updates, layout, folder, given.codec))


def compare(updates: int, layout: Layout, folder: str, codec: Codec) -> Figures:
    """Figures of every arm, and the ratios that the bars are about."""
    few = max(2, updates // 10)
    run_arm("encode", updates, layout, folder, codec)
    run_arm("merge", 2, layout, folder, codec)  # compiles and caches the kernels
    figures: Figures = {"updates": updates, "parameters": layout.size}
    for name, figure in run_arm("merge", few, layout, folder, codec).items():
        figures[f"{name}_of_{few}"] = figure
    for arm in ("merge", "numpy", "flower"):
        figures |= run_arm(arm, updates, layout, folder, codec)
    for peer in ("numpy", "numpy_plain", "flower"):
        figures[f"times_less_cpu_than_{peer}"] = figures[f"{peer}_cpu_s"] / figures["merge_1_cpu_s"]
        for workers in (1, 2):
            figures[f"times_faster_than_{peer}_by_{workers}"] = figures[f"{peer}_s"] / figures[f"merge_{workers}_s"]
            figures[f"with_parsing_than_{peer}_by_{workers}"] = figures[f"{peer}_s"] / figures[f"parse_merge_{workers}_s"]
    for peer in ("numpy", "flower"):
        figures[f"times_less_memory_than_{peer}"] = figures[f"{peer}_memory_mib"] / figures["merge_memory_mib"]
    figures["working_memory_growth_mib"] = figures["merge_working_mib"] - figures[f"merge_working_mib_of_{few}"]
    return figures


def run_arm(arm: str, updates: int, layout: Layout, folder: str, codec: Codec) -> Figures:
    command = [sys.executable, "-m", "benchmarks.merge", "--arm", arm, "--updates", str(updates)]
    command += ["--parameters", str(layout.size), "--folder", folder, "--codec", codec]
    found: Figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return found


def update_of(layout: Layout, number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(layout.size, dtype=np.float32)


def encode_arm(layout: Layout, updates: int, folder: Path, codec: Codec) -> Figures:
    """Write the encodings to files, so that no arm holds what made them."""
    for i in range(updates):
        update = compress(layout, update_of(layout, i), Compression(DENSITY))
        (folder / f"{i}.update").write_bytes(encode(update, codec=codec, workers=2))
    return {}


def merge_arm(layout: Layout, updates: int, folder: Path, codec: Codec) -> Figures:
    tiny = parse(encode(compress(layout_of({"a": (9,)}), np.arange(9, dtype=np.float32), Compression()), codec=codec))
    merge("average", [tiny] * 3, [1.0] * 3)
    before, weights = resident_mib(), [1.0 + i % 3 for i in range(updates)]
    blobs = [(folder / f"{i}.update").read_bytes() for i in range(updates)]
    encodings = [parse(blob, workers=2) for blob in blobs]
    figures: Figures = {}
    for workers in (1, 2):
        figures |= best(f"merge_{workers}", lambda w=workers: merge("average", encodings, weights, workers=w))
    figures["merge_memory_mib"] = peak_mib() - before
    figures["merge_working_mib"] = figures["merge_memory_mib"] - (sum(map(len, blobs)) + 4 * layout.size) / MEBI
    for workers in (1, 2):
        figures |= best(
            f"parse_merge_{workers}",
            lambda w=workers: merge("average", [parse(blob, workers=w) for blob in blobs], weights, workers=w),
        )
    return figures


def numpy_arm(layout: Layout, updates: int, _folder: Path, _codec: Codec) -> Figures:
    before = resident_mib()
    vectors = [update_of(layout, i) for i in range(updates)]
    weights = [np.float32((1.0 + i % 3) / sum(1.0 + j % 3 for j in range(updates))) for i in range(updates)]
    step = TENSOR[0] * TENSOR[1]
    total, scratch = np.zeros(layout.size, np.float32), np.zeros(step, np.float32)

    def lean() -> None:
        total[:] = 0
        for vector, weight in zip(vectors, weights, strict=True):
            for at in range(0, layout.size, step):
                np.multiply(vector[at : at + step], weight, out=scratch)
                total[at : at + step] += scratch

    def plain() -> None:
        total[:] = 0
        for vector, weight in zip(vectors, weights, strict=True):
            np.add(total, weight * vector, out=total)

    figures = best("numpy", lean) | {"numpy_memory_mib": peak_mib() - before}
    return figures | best("numpy_plain", plain)


def flower_arm(layout: Layout, updates: int, _folder: Path, _codec: Codec) -> Figures:
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    before, records = resident_mib(), []
    for i in range(updates):
        vector, step = update_of(layout, i), TENSOR[0] * TENSOR[1]
        arrays = {t.name: Array(vector[j * step : (j + 1) * step].reshape(t.shape)) for j, t in enumerate(layout.tensors)}
        records.append(RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1.0 + i % 3})}))
    figures = best("flower", lambda: aggregate_arrayrecords(records, "num-examples"))
    return figures | {"flower_memory_mib": peak_mib() - before}


def best(name: str, run: Callable[[], object], repeats: int = 3) -> Figures:
    """Seconds of the fastest of several runs, on the clock and of processor time, which a busy machine spoils less."""
    clock, processor = [], []
    for _ in range(repeats):
        begin, used = time.perf_counter(), time.process_time()
        run()
        clock.append(time.perf_counter() - begin)
        processor.append(time.process_time() - used)
    return {f"{name}_s": min(clock), f"{name}_cpu_s": min(processor)}


def resident_mib() -> float:
    """What this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MEBI


def peak_mib() -> float:
    """The most that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(figures: Figures) -> None:
    for name, value in figures.items():
        print(f"{name:40} {value:14.3f}")
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


ARMS: dict[str, Callable[[Layout, int, Path, Codec], Figures]] = {
    "encode": encode_arm,
    "merge": merge_arm,
    "numpy": numpy_arm,
    "flower": flower_arm,
}

if __name__ == "__main__":
    main()
