"""Draws what `benchmarks.codec` measured: bytes against density, and speed against workers. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

BOUND = {"color": "black", "linestyle": ":", "linewidth": 1.2, "zorder": 9}
LINES = {"context": {"color": "#b3362b", "linewidth": 2.5}, "rice": {"color": "#1f4e79", "linewidth": 2.5}}


def draw_sizes(path: Path, densities: Sequence[float], bits: Mapping[str, Sequence[float]], subject: str) -> None:
    """Bits a parameter, on logarithmic axes, one line a format."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for name, values in bits.items():
        style = BOUND if name.startswith("bound") else LINES.get(name, {"linestyle": "--", "linewidth": 1.2})
        axes.plot([100 * k for k in densities], values, marker="o", markersize=3, label=name, **style)
    axes.set(xscale="log", yscale="log", xlabel="density k, %", ylabel="bits a parameter", title=f"Size of an update: {subject}")
    axes.set_xticks([100 * k for k in densities], [f"{100 * k:g}" for k in densities])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))
    _save(figure, path)


def draw_speeds(path: Path, workers: Sequence[int], speeds: Mapping[str, Sequence[float]], subject: str) -> None:
    """Million parameters a second, one line a step."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for name, values in speeds.items():
        axes.plot(workers, values, marker="o", label=name)
    axes.set(yscale="log", xlabel="workers", ylabel="million parameters / s", title=f"Speed: {subject}")
    axes.set_xticks(list(workers))
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    _save(figure, path)


def _save(figure: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})  # type: ignore[attr-defined]
