"""From finished runs to the table and one picture a task: accuracy against bytes, both directions, all clients together."""

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.federated.arms import DENSE

Outcome = Mapping[str, Any]
BF16 = "dense bf16"
BUDGET = 200_000 * 2**20
"""FlowerTune's budget of communication for one run, in bytes: 200,000 MB by its tracker, which counts 2^20 bytes a MB."""
MARGIN = 0.005
"""Half a point below the dense arm's final accuracy counts as reaching it."""


def outcomes_of(path: Path) -> list[Outcome]:
    """The rows of a file of results; an empty list without the file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(outcomes: Sequence[Outcome]) -> str:
    """One block a task: final accuracy with its spread, bytes of the whole run, bytes to reach dense minus half a point, and the seconds
    of all that is not training or measuring (compress, seal, send, receive, open, merge, apply) as a part of those that are. Last, the
    part of FlowerTune's budget that the run takes.
    """
    lines = []
    for task, arms in _by_task(outcomes).items():
        goals = {o["seed"]: o["accuracy"][-1] - MARGIN for o in arms.get(DENSE, [])}
        lines += [
            "",
            f"{task}",
            f"{'arm':<34} {'seeds':>5} {'accuracy':>15} {'bytes':>12} {'to reach':>12} {'vs fp32':>9} {'vs bf16':>9}"
            f" {'link/train':>10} {'of 200 GB':>10}",
        ]
        dense, half = (_reached(arms.get(name, []), goals) for name in (DENSE, BF16))
        for arm, runs in arms.items():
            lines.append(_row(arm, runs, _reached(runs, goals), dense, half))
    return "\n".join(lines)


def draw(outcomes: Sequence[Outcome], folder: Path) -> None:
    """`federated-<task>.svg` for each task: the mean over seeds after each round. Needs matplotlib."""
    import matplotlib.pyplot as plt

    for task, arms in _by_task(outcomes).items():
        figure, axes = plt.subplots(figsize=(8, 5))
        axes.set_prop_cycle(color=[color for name in ("tab20", "tab20b") for color in plt.get_cmap(name).colors])
        for arm, runs in arms.items():
            if not runs[0]["sent_up"][-1]:
                axes.axhline(100 * _mean(r["accuracy"][-1] for r in runs), color="grey", linestyle=":", label=f"{arm} (no bytes)")
                continue
            rounds = range(min(len(r["accuracy"]) for r in runs))
            octets = [_mean(_sent(r, at) for r in runs) / 1e6 for at in rounds]
            accuracy = [100 * _mean(r["accuracy"][at] for r in runs) for at in rounds]
            ours = arm.startswith("ours")
            axes.plot(
                octets,
                accuracy,
                marker="o",
                markersize=3,
                linewidth=2.5 if ours else 1.2,
                linestyle="-" if ours else "--",
                label=arm,
            )
        axes.set(xscale="log", xlabel="MB, both directions, all clients", ylabel="accuracy, %", title=task)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))
        figure.savefig(folder / f"federated-{task}.svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)


def _row(arm: str, runs: Sequence[Outcome], reached: Sequence[float | None], dense: object, half: object) -> str:
    final = [100 * r["accuracy"][-1] for r in runs]
    spread = f" ±{statistics.stdev(final):4.1f}" if len(final) > 1 else ""
    total, to_reach = _mean(_sent(r, -1) for r in runs), _all(reached)
    missed = f"{sum(r is None for r in reached)} of {len(reached)} no" if reached else "-"
    ratios = ["-" if not to_reach or _all(peer) is None else f"{_all(peer) / to_reach:.1f}x" for peer in (dense, half)]
    shown = missed if to_reach is None else _size(to_reach)
    measured = f"{arm:<34} {len(runs):>5} {statistics.mean(final):8.1f}{spread:<7} {_size(total):>12}"
    return f"{measured} {shown:>12} {ratios[0]:>9} {ratios[1]:>9} {_link_share(runs):>10} {total / BUDGET:>10.5%}"


def _link_share(runs: Sequence[Outcome]) -> str:
    training = sum(r.get("train_seconds", 0.0) for r in runs)
    return f"{100 * sum(r['link_seconds'] for r in runs) / training:.0f} %" if training else "-"


def _reached(runs: Sequence[Outcome], goals: Mapping[int, float]) -> list[float | None]:
    """Bytes of each run up to the first round at its seed's goal; None for a run that never gets there."""
    rounds = [
        (r, next((at for at, a in enumerate(r["accuracy"]) if a >= goals[r["seed"]]), None)) for r in runs if r["seed"] in goals
    ]
    return [None if at is None else _sent(r, at) for r, at in rounds]


def _all(reached: Any) -> float | None:
    return _mean(reached) if reached and None not in reached else None


def _sent(outcome: Outcome, at: int) -> float:
    return float(outcome["sent_up"][at] + outcome["sent_down"][at])


def _mean(values: Any) -> float:
    return statistics.fmean(values)


def _size(octets: float) -> str:
    return f"{octets / 1e6:,.2f} MB" if octets else "0 B"


def _by_task(outcomes: Sequence[Outcome]) -> dict[str, dict[str, list[Outcome]]]:
    tasks: dict[str, dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for outcome in outcomes:
        tasks[outcome["task"]][outcome["arm"]].append(outcome)
    return tasks
