"""Train the language model's experts that are not in the cache: `python -m benchmarks.language_model --tasks language sentiment`.

Prints one line an expert. About five minutes an expert on one core.
"""

import argparse
import json
from pathlib import Path

import torch

from benchmarks.language_model.experts import made_expert
from benchmarks.language_model.tasks import TASKS
from benchmarks.language_model.training import Recipe


def main() -> None:
    """Train what is missing, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["language", "sentiment"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the tasks `intent` and `scenario`")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in given.seeds:
        for task in given.tasks:
            folder = made_expert(task, seed, given.data, Recipe(steps=given.steps))
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            shown = "  ".join(f"{k} {metrics['base'][k]:.3f} -> {metrics['tuned'][k]:.3f}" for k in ("accuracy", "soft", "loss"))
            print(f"{task}-{seed}  {shown}  {metrics['train_cpu_seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
