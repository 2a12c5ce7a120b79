"""Draws where the time of each arm goes: one bar an arm, one panel a link, logarithmic total beside it. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.slow_link.stages import STAGES

if TYPE_CHECKING:
    from benchmarks.slow_link.__main__ import Row

COLOURS = dict(zip(STAGES, ("#6b4c9a", "#b3362b", "#d9a441", "#4c7a3f", "#1f4e79", "#7fa8c9"), strict=True))


def draw(path: Path, rows: Sequence["Row"], size: int, machine: str) -> None:
    """One panel a link; a dense bar that would dwarf ours is cut and says how long it is."""
    import matplotlib.pyplot as plt

    links = list(dict.fromkeys(row.link for row in rows))
    figure, panels = plt.subplots(1, len(links), figsize=(4.6 * len(links), 3.4), squeeze=False)
    for axes, link in zip(panels[0], links, strict=True):
        mine = [row for row in rows if row.link == link]
        limit = 2.2 * max(row.outcome.seconds for row in mine if row.arm.startswith("ours"))
        for place, row in enumerate(mine):
            left = 0.0
            for stage in STAGES:
                axes.barh(place, row.outcome.stages[stage], left=left, color=COLOURS[stage], label=stage if not place else None)
                left += row.outcome.stages[stage]
            mark = "~" if row.extrapolated else ""
            axes.text(
                min(left, 0.8 * limit) + 0.01 * limit,
                place,
                f"{mark}{_seconds(left)} s",
                va="center",
                fontsize=8,
                bbox=_label(left, limit),
            )
        axes.set(xlim=(0, limit), xlabel="seconds", title=link)
        axes.set_yticks(range(len(mine)), [row.arm for row in mine] if axes is panels[0][0] else [""] * len(mine))
        axes.invert_yaxis()
    panels[0][-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.suptitle(f"From trained to applied everywhere, {size / 1e6:g} million parameters, {machine}", fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _label(left: float, limit: float) -> dict[str, object] | None:
    return {"facecolor": "white", "edgecolor": "none", "pad": 1} if left > 0.8 * limit else None


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
