"""Measure privacy: `python -m benchmarks.privacy sums`, `... table` (goes on where it stopped), `... audit`.

`table` writes a line of JSON a run to --results, and prints the mean and the standard deviation over the seeds.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from statistics import mean, pstdev

from benchmarks.privacy.audit import audit
from benchmarks.privacy.secure_sums import flower_bytes_up, measured_sum
from benchmarks.privacy.training import ARMS, TrainingPlan, train

EPSILONS = (None, 8.0, 3.0, 1.0)


def sums(given: argparse.Namespace) -> None:
    """Secure sums beside Flower's SecAgg+."""
    flower = flower_bytes_up(given.clients, given.size)
    print(f"Flower SecAgg+ {given.clients} clients, d = {given.size:,}: {flower:,} bytes up a client", flush=True)
    for gone in (0, 3 * given.clients // 10):
        found = measured_sum(given.clients, gone, given.size, given.density, given.value_bits)
        print(
            f"{found.clients} clients, {found.gone} gone: support {found.support:,}, {found.word_bits} bits, {found.bytes_up:,} bytes up "
            f"(1/{flower / found.bytes_up:.1f}), aggregator {found.aggregator_s:.1f} s, a client {found.client_s:.2f} s, "
            f"sum {'exact' if found.exact else 'WRONG'}",
            flush=True,
        )


def audits(_: argparse.Namespace) -> None:
    """Lower bounds of epsilon from canaries, with noise and without it."""
    for multiplier in (0.5, 1.0, 2.0, 4.0):
        found = audit(multiplier)
        shown = f"shown {found.shown:.3f} by {found.right} of {found.guesses} guesses"
        print(f"noise multiplier {multiplier:g}: claimed {found.claimed:.3f}, {shown}")


def table(given: argparse.Namespace) -> None:
    """Metric at equal epsilon."""
    done = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    plans = [
        TrainingPlan(task, arm.name, epsilon, seed, given.rounds)
        for seed in range(given.seeds)
        for task in given.tasks
        for epsilon in EPSILONS
        for arm in ARMS
    ]
    ended = time.monotonic() + given.seconds
    for plan in plans:
        if any(row["plan"] == asdict(plan) for row in done) or time.monotonic() > ended:
            continue
        done.append({"plan": asdict(plan), "result": asdict(train(plan))})
        with given.results.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
    for task in given.tasks:
        for arm in ARMS:
            _line(task, arm.name, given.rounds, done)


def _line(task: str, arm: str, rounds: int, done: list) -> None:
    cells, size = [], 0
    for epsilon in EPSILONS:
        rows = [
            row["result"]
            for row in done
            if (row["plan"]["task"], row["plan"]["arm"], row["plan"]["epsilon"]) == (task, arm, epsilon)
            and row["plan"]["rounds"] == rounds
        ]
        found = [row["accuracy"] for row in rows]
        cells.append(f"{mean(found):.1f} +- {pstdev(found):.1f}" if found else "-")
        size = rows[0]["bytes_up"] + rows[0]["bytes_down"] if rows else size
    print(f"| {task} | {arm} | {' | '.join(cells)} | {size / 1000:,.1f} |")


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    of_sums = commands.add_parser("sums")
    of_sums.add_argument("--clients", type=int, default=100)
    of_sums.add_argument("--size", type=int, default=2_400_000)
    of_sums.add_argument("--density", type=float, default=0.05)
    of_sums.add_argument("--value-bits", type=int, default=12)
    of_sums.set_defaults(run=sums)
    commands.add_parser("audit").set_defaults(run=audits)
    of_table = commands.add_parser("table")
    of_table.add_argument("--tasks", nargs="+", default=["digits", "mixture"])
    of_table.add_argument("--seeds", type=int, default=3)
    of_table.add_argument("--rounds", type=int, default=20)
    of_table.add_argument("--seconds", type=float, default=420.0, help="begin no further run after this time")
    of_table.add_argument("--results", type=Path, default=Path("build/privacy.jsonl"))
    of_table.set_defaults(run=table)
    given = parser.parse_args()
    if "results" in given:
        given.results.parent.mkdir(parents=True, exist_ok=True)
    given.run(given)


if __name__ == "__main__":
    main()
