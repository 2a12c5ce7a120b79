"""From measurements to the table: by base model and way the bytes, and the gain kept on the mean and by the worst expert."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.product.evidence import Expert

MEASURES = ("accuracy", "soft")
GOALS = (
    ("200 x, without the base", "product space 200 x", None, 0.95, 0.75, 12),
    ("100 x, without the base", "product space 100 x", None, 0.99, 0.85, 12),
    ("200 x, with the base", "product space, base-aware, 200 x", None, 0.97, 0.85, 12),
    ("400 x, with the base", "product space, base-aware, 400 x", None, 0.93, 0.75, 12),
    ("200 x, without the base, language model", "product space 200 x", "smollm2", 0.93, 0.0, 6),
)
"""Name, way, base model (None: all), least mean and least worst share of the gain in accuracy, and of how many experts."""


@dataclass(frozen=True, slots=True)
class Row:
    """One expert by one way. digest: of the adapter measured. seconds: of processor time to code and decode. kept: by measure.
    quality: what the encoder of products says was kept.
    """

    expert: str
    kind: str
    digest: str
    way: str
    bf16_bytes: int
    size_bytes: int
    seconds: float
    kept: Mapping[str, float]
    quality: float | None = None


def rows_of(path: Path, experts: Sequence[Expert]) -> list[Row]:
    """The last measurement of each way for each of these experts as they are now."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    known = {(expert.name, expert.digest) for expert in experts}
    rows = [Row(**json.loads(line)) for line in lines]
    return list({(row.expert, row.way): row for row in rows if (row.expert, row.digest) in known}.values())


def table(rows: Sequence[Row]) -> str:
    """One block a base model and one of all together, a line a way."""
    blocks = [(kind, [row for row in rows if row.kind == kind]) for kind in sorted({row.kind for row in rows})]
    return "\n".join(_block(name, own) for name, own in [*blocks, *([("all", list(rows))] if len(blocks) > 1 else [])])


def goals(rows: Sequence[Row]) -> str:
    """A line a goal: the figure, the goal, and how many experts of how many tasks and base models it is of."""
    lines = []
    for name, way, kind, mean, worst, enough in GOALS:
        own = [row for row in rows if row.way == way and kind in (None, row.kind)]
        if own:
            kept = [row.kept["accuracy"] for row in own]
            tasks = {row.expert.rsplit("-", 2 if row.kind == "minilm" else 1)[0] for row in own}
            reached = "reached" if statistics.fmean(kept) >= mean and min(kept) >= worst else "missed"
            reached += "" if len(own) >= enough else f", by fewer than {enough} experts"
            lines.append(
                f"{name:<40} mean {statistics.fmean(kept):.3f} (goal {mean:.2f}), worst {min(kept):.3f} (goal {worst:.2f}): {reached}; "
                f"{len(own)} experts, {len(tasks)} tasks, {len({row.kind for row in own})} base models"
            )
    return "\n".join(["", "goals, share of the gain in accuracy", *lines])


def means(rows: Sequence[Row]) -> dict[str, float]:
    """`kind: way: mean accuracy` and so on, for the last line."""
    found = {}
    for kind in sorted({row.kind for row in rows}):
        for way, own in _by_way([row for row in rows if row.kind == kind]).items():
            for measure in MEASURES:
                kept = [row.kept[measure] for row in own]
                found[f"{kind}: {way}: mean {measure}"] = round(statistics.fmean(kept), 4)
                found[f"{kind}: {way}: worst {measure}"] = round(min(kept), 4)
            found[f"{kind}: {way}: bytes"] = round(statistics.fmean(row.size_bytes for row in own))
    return found


def _block(name: str, rows: Sequence[Row]) -> str:
    head = (
        f"{'way':<36} {'experts':>7} {'bytes':>12} {'below bf16':>10}   {'accuracy: mean, worst':>22}   {'soft: mean, worst':>18}"
    )
    return "\n".join(["", name, head, *(_line(way, own) for way, own in _by_way(rows).items())])


def _line(way: str, rows: Sequence[Row]) -> str:
    size, times = statistics.fmean(r.size_bytes for r in rows), statistics.fmean(r.bf16_bytes / r.size_bytes for r in rows)
    (accuracy, least), (soft, softest) = (
        (statistics.fmean(kept), min(kept)) for kept in ([r.kept[m] for r in rows] for m in MEASURES)
    )
    return f"{way:<36} {len(rows):>7} {size:>12,.0f} {times:>8.1f} x   {accuracy:>14.3f} {least:>7.3f}   {soft:>10.3f} {softest:>7.3f}"


def _by_way(rows: Sequence[Row]) -> dict[str, list[Row]]:
    from benchmarks.product.ways import WAYS

    return {way: own for way in WAYS if (own := [row for row in rows if row.way == way])}
