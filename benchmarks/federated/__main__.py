"""Accuracy against bytes, all arms with the same model, rows, seeds, rounds and learning rates; what is finished is not run again.

    python -m benchmarks.federated                          everything: hours on two cores
    python -m benchmarks.federated --tasks hwu64 --seeds 1  one task, one seed
    python -m benchmarks.federated --tasks lm-language --arms "dense fp32" "ours 5 % / 5 %" --seeds 1 --rounds 3
    python -m benchmarks.federated --report                 the table and the pictures of what was run

Each finished run is one line of JSON in --results. Needs ../shared/data for every task but `sentiment` and those of the family `lm`, which
fine-tune a language model (SmolLM2-135M) and are run when named. All arms have the same server rate and epochs, but those that say so.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.federated.arms import ARMS
from benchmarks.federated.language import NAMES, Effort, base_row, run_language
from benchmarks.federated.report import draw, outcomes_of, table
from benchmarks.federated.run import as_row, base_accuracy, run
from benchmarks.federated.tasks import TASKS, load

RESULTS = Path("docs/benchmarks/federated.jsonl")
BASE = "base"
EFFORT = Effort()


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS, *NAMES], default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="run nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.report:
        for seed in range(given.seeds):
            for task in given.tasks:
                _run_missing(given, task, seed)
    found = outcomes_of(given.results)
    print(table(found))
    draw(found, given.results.parent)


def _run_missing(given: argparse.Namespace, name: str, seed: int) -> None:
    if name in NAMES:
        _run_language(given, name, seed)
        return
    task = load(name, seed)
    done = {(o["task"], o["arm"], o["seed"]) for o in outcomes_of(given.results)}
    for arm in [BASE, *given.arms]:
        if (task.name, arm, seed) in done:
            continue
        row = (
            {"task": task.name, "arm": BASE, "seed": seed, "accuracy": [base_accuracy(task)], "sent_up": [0], "sent_down": [0]}
            if arm == BASE
            else as_row(run(task, arm, seed, given.rounds))
        )
        _keep(given.results, row)


def _run_language(given: argparse.Namespace, name: str, seed: int) -> None:
    done = {(o["task"], o["arm"], o["seed"]) for o in outcomes_of(given.results)}
    for arm in [BASE, *given.arms]:
        if (name, arm, seed) not in done:
            _keep(
                given.results,
                base_row(name, seed, EFFORT) if arm == BASE else run_language(name, arm, seed, given.rounds, EFFORT),
            )


def _keep(results: Path, row: Mapping[str, Any]) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    print(f"{row['task']:<24} seed {row['seed']}  {row['arm']:<24} {100 * row['accuracy'][-1]:.1f} %{_seconds(row)}", flush=True)


def _seconds(row: Mapping[str, Any]) -> str:
    if "link_seconds" not in row:
        return ""
    return f"  {row['train_seconds']:.0f} s of training and measuring, {row['link_seconds']:.0f} s of compressing, sending and merging"


if __name__ == "__main__":
    main()
