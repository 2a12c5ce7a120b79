"""What a client that has nothing must fetch: the steps of a log, or the whole state in several exact forms; bytes as ratios to the steps.

A log of LoRA updates (r = 16, two modules of six layers of all-MiniLM-L6-v2), rows of unequal size, residual carried, as rounds make it.

Run: python -m benchmarks.catch_up [--quick]
"""

import argparse
import zlib

import numpy as np

from compeft_core import Compression, add_to, compress, densify, layout_of, parse, seeded_state
from compeft_proto.convert import payload_of
from compeft_proto.snapshot import encode_snapshot

LOGS = [(rounds, density) for density in (0.05, 0.2) for rounds in (3, 20, 60)]


def planes(values: np.ndarray) -> int:
    """Bytes of 32-bit values as four deflated planes."""
    split = np.ascontiguousarray(values.view(np.uint8).reshape(-1, 4).T)
    return sum(len(zlib.compress(plane.tobytes(), 9)) for plane in split)


def log(rounds: int, density: float) -> tuple[int, np.ndarray, np.ndarray]:
    """(bytes of all steps, the state they lead to, the state they start from)."""
    shapes = {f"{i}.{m}.lora_{ab}": (16, 384) if ab == "A" else (384, 16) for i in range(6) for m in "qv" for ab in "AB"}
    layout = layout_of(shapes)
    start = seeded_state(layout, 0, [384**-0.5 if t.name.endswith("A") else 0.0 for t in layout.tensors])
    random, state, residual, steps = np.random.default_rng(0), start.copy(), np.zeros_like(start), 0
    rows = np.exp(random.normal(0, 0.8, layout.size // 16)).repeat(16)
    for number in range(rounds):
        target = (random.standard_normal(layout.size) * 1e-3 * rows * 0.9**number).astype(np.float32) + residual
        update = compress(layout, target, Compression(density, "norm"))
        payload = payload_of(layout, update).blob
        residual, steps = target - densify(update), steps + len(payload)
        add_to(parse(payload), state)
    return steps, state, start


def main() -> None:
    """Print one line a log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the shortest logs only")
    logs = [log for log in LOGS if log[0] == min(LOGS)[0]] if parser.parse_args().quick else LOGS
    print("rounds  density      steps   float32  deflated   xor v0, deflated   chosen form   (all but steps: times the steps)")
    for rounds, density in logs:
        steps, state, start = log(rounds, density)
        sizes = [state.nbytes, planes(state), planes(state.view(np.uint32) ^ start.view(np.uint32))]
        float32, deflated, xor = (size / steps for size in sizes)
        chosen = len(encode_snapshot(state, start)) / steps
        print(f"{rounds:6d} {density:8.0%} {steps:10,d} {float32:9.2f} {deflated:9.2f} {xor:18.2f} {chosen:13.2f}")


if __name__ == "__main__":
    main()
