"""Processor time of the product-space codec, and whether it decodes the same bits elsewhere: `python -m benchmarks.product.machine`.

The adapter has the shapes of SmolLM2-135M with LoRA r = 8 on all linear layers, and falling spectra; times are the least of three
after a first run that compiles. The bits are compared between the native processor and numba's generic one (no AVX, no FMA), each
by one and by two threads, in processes of their own. Last line: one JSON object.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from compeft_core.product import LowRank, ProductSettings, decode_product, encode_product

LAYERS, RANK, REPEATS = 30, 8, 3
SHAPES = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
TIMES = 200
Result = TypeVar("Result")


def adapter(layers: int = LAYERS) -> list[LowRank]:
    """Modules of seeded normal factors; component j is 0.7 ** j as strong as the first, modules differ up to threefold."""
    random = np.random.default_rng(0)
    falling = (0.7 ** np.arange(RANK)).astype(np.float32)
    made = []
    for out, into in SHAPES * layers:
        strength = np.float32(1e-3 * 3 ** random.random())
        left = random.standard_normal((out, RANK), np.float32) * falling * strength
        made.append(LowRank(left, random.standard_normal((RANK, into), np.float32), 2.0))
    return made


def main() -> None:
    """Print the times, then the digests."""
    if len(sys.argv) > 1:
        print(digest(bytes.fromhex(sys.stdin.read()), int(sys.argv[1])))
        return
    modules = adapter()
    size = sum(m.left.size + m.right.size for m in modules)
    packed, pack_s = least(lambda: encode_product(modules, ProductSettings(budget=2 * size // TIMES)))
    shapes = shapes_of(modules)
    _, unpack_s = least(lambda: decode_product(packed.blob, shapes))
    print(f"{size:,} parameters, {len(packed.blob):,} bytes: pack {pack_s:.2f} s, unpack {unpack_s:.3f} s of processor time")
    found = {
        f"{cpu}, {workers} threads": elsewhere(packed.blob, cpu, workers) for cpu in ("native", "generic") for workers in (1, 2)
    }
    for name, value in found.items():
        print(f"{name:20} {value}")
    same = len(set(found.values())) == 1
    print(json.dumps({"pack_s": round(pack_s, 3), "unpack_s": round(unpack_s, 4), "bytes": len(packed.blob), "same_bits": same}))
    if not same:
        raise SystemExit("the decoded bits differ")


def shapes_of(modules: Sequence[LowRank]) -> list[tuple[int, int]]:
    """Rows and columns of each module."""
    return [(m.left.shape[0], m.right.shape[1]) for m in modules]


def least(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result, and the least processor time of REPEATS after one that is not counted."""
    made, times = work(), list[float]()
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return made, min(times)


def elsewhere(blob: bytes, cpu: str, workers: int) -> str:
    """The digest of what a process of its own decodes, its kernels compiled for this processor."""
    settings = (
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_DISABLE_INTEL_SVML": "1"} if cpu == "generic" else {}
    )
    with_cache = (
        os.environ | settings | {"NUMBA_CACHE_DIR": os.path.join(os.environ.get("TMPDIR", "/tmp"), f"compeft-numba-{cpu}")}
    )
    command = [sys.executable, "-m", "benchmarks.product.machine", str(workers)]
    ran = subprocess.run(command, env=with_cache, input=blob.hex(), capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def digest(blob: bytes, workers: int) -> str:
    """SHA-256 over the float32 bytes of all decoded factors, in order."""
    state = hashlib.sha256()
    for left, right in decode_product(blob, shapes_of(adapter()), workers=workers):
        state.update(np.ascontiguousarray(left).tobytes() + np.ascontiguousarray(right).tobytes())
    return state.hexdigest()


if __name__ == "__main__":
    main()
