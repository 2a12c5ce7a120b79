"""The picture of one business metric over time, as geometry: values, goal and baseline, versions as marks on the time axis, and below it,
on the same axis, the bytes that these versions moved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from compeft_server.domain.kpi import KpiSeries
from compeft_server.reports.figures.report import Publication
from compeft_server.reports.formats.chart import Tick, metric_steps, tick_bytes

DAY_MS = 24 * 3600 * 1000
MAX_MARKS = 60
"""Versions that are marked on the axis; of more, the newest."""
MAX_POINTS = 400
"""Values that are drawn; of more, the newest."""
BARS = 48
"""Stretches of time in which the bytes of versions are summed up."""
WIDTH, LEFT, RIGHT, TOP, AXIS = 960.0, 74.0, 16.0, 14.0, 180.0
BYTES_TOP, BYTES_BOTTOM, HEIGHT = 216.0, 276.0, 308.0


@dataclass(frozen=True, slots=True)
class BytesBar:
    """The bytes of the versions that were published in one stretch of time: tops of dense bfloat16 and of the wire, in drawing units."""

    x: float
    width: float
    dense: float
    wire: float


@dataclass(frozen=True, slots=True)
class KpiChart:
    """Everything that the template draws: lines, marks and bars in drawing units, and the words of the axes."""

    points: tuple[tuple[float, float], ...]
    goal: float | None
    baseline: float | None
    value_ticks: tuple[Tick, ...]
    time_ticks: tuple[Tick, ...]
    versions: tuple[Tick, ...]
    bars: tuple[BytesBar, ...]
    most_bytes: str


def human_value(value: float | None, unit: str) -> str:
    """A value with its unit, a dash for none."""
    return "–" if value is None else f"{value:g}{' ' if unit else ''}{unit}"


def draw_kpi(series: KpiSeries, versions: Sequence[Publication]) -> KpiChart | None:
    """The picture, with the bytes of these versions. None for a series without a value."""
    if not series.values:
        return None
    kpi, shown = series.kpi, series.values[-MAX_POINTS:]
    times = [v.at_ms for v in shown] + [v.at_ms for v in versions]
    first, last = min(times), max(max(times), min(times) + 1)
    stated = [v.value for v in shown] + [v for v in (kpi.goal, kpi.baseline) if v is not None]
    steps = metric_steps(min(stated), max(stated))

    def x(at_ms: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (at_ms - first) / (last - first)

    def y(value: float) -> float:
        return AXIS - (AXIS - TOP) * (value - steps[0]) / (steps[-1] - steps[0])

    places = [first + (last - first) * (2 * i + 1) // 10 for i in range(5)]
    bars, most = _bars(versions, first, last)
    return KpiChart(
        points=tuple((x(v.at_ms), y(v.value)) for v in shown),
        goal=None if kpi.goal is None else y(kpi.goal),
        baseline=None if kpi.baseline is None else y(kpi.baseline),
        value_ticks=tuple(Tick(y(s), f"{s:g}") for s in steps),
        time_ticks=tuple(
            Tick(x(at), datetime.fromtimestamp(at / 1000, UTC).strftime("%H:%M" if last - first < 2 * DAY_MS else "%Y-%m-%d"))
            for at in places
        ),
        versions=tuple(Tick(x(v.at_ms), f"v{v.version}") for v in versions[-MAX_MARKS:]),
        bars=bars,
        most_bytes=tick_bytes(most),
    )


def _bars(versions: Sequence[Publication], first: int, last: int) -> tuple[tuple[BytesBar, ...], int]:
    """Bars of the bytes by the time of publication, and the size that the highest of them stands for."""
    sums = [[0, 0] for _ in range(BARS)]
    for v in versions:
        place = min(BARS - 1, BARS * (v.at_ms - first) // (last - first))
        sums[place][0] += v.dense_bf16_bytes
        sums[place][1] += v.wire_bytes
    most, pitch = max(max(pair) for pair in sums), (WIDTH - LEFT - RIGHT) / BARS

    def top(size: int) -> float:
        return BYTES_BOTTOM - (BYTES_BOTTOM - BYTES_TOP) * size / most

    shown = [(i, dense, wire) for i, (dense, wire) in enumerate(sums) if dense or wire]
    return tuple(BytesBar(LEFT + pitch * (i + 0.12), 0.76 * pitch, top(dense), top(wire)) for i, dense, wire in shown), most
