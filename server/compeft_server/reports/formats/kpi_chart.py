"""The picture of one business metric over time, as geometry: values, goal and baseline, and versions as marks on the time axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from compeft_server.domain.kpi import KpiSeries
from compeft_server.reports.formats.chart import Tick, metric_steps

DAY_MS = 24 * 3600 * 1000
MAX_MARKS = 60
"""Versions that are marked on the axis; of more, the newest."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960.0, 220.0, 74.0, 16.0, 14.0, 40.0


@dataclass(frozen=True, slots=True)
class KpiChart:
    """Everything that the template draws: lines and marks in drawing units, and the words of the axes."""

    points: tuple[tuple[float, float], ...]
    goal: float | None
    baseline: float | None
    value_ticks: tuple[Tick, ...]
    time_ticks: tuple[Tick, ...]
    versions: tuple[Tick, ...]


def human_value(value: float | None, unit: str) -> str:
    """A value with its unit, a dash for none."""
    return "–" if value is None else f"{value:g}{' ' if unit else ''}{unit}"


def draw_kpi(series: KpiSeries, versions: Sequence[tuple[int, int]]) -> KpiChart | None:
    """The picture; `versions` are (number, publication in ms). None for a series without a value."""
    if not series.values:
        return None
    kpi, times = series.kpi, [v.at_ms for v in series.values] + [at for _, at in versions]
    first, last = min(times), max(max(times), min(times) + 1)
    stated = [v.value for v in series.values] + [v for v in (kpi.goal, kpi.baseline) if v is not None]
    steps = metric_steps(min(stated), max(stated))

    def x(at_ms: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (at_ms - first) / (last - first)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - steps[0]) / (steps[-1] - steps[0])

    places = [first + (last - first) * (2 * i + 1) // 10 for i in range(5)]
    return KpiChart(
        points=tuple((x(v.at_ms), y(v.value)) for v in series.values),
        goal=None if kpi.goal is None else y(kpi.goal),
        baseline=None if kpi.baseline is None else y(kpi.baseline),
        value_ticks=tuple(Tick(y(s), f"{s:g}") for s in steps),
        time_ticks=tuple(
            Tick(x(at), datetime.fromtimestamp(at / 1000, UTC).strftime("%H:%M" if last - first < 2 * DAY_MS else "%Y-%m-%d"))
            for at in places
        ),
        versions=tuple(Tick(x(at), f"v{number}") for number, at in versions[-MAX_MARKS:]),
    )
