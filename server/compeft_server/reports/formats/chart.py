"""The picture of a task metric against wire bytes, as geometry: curves in, places of points, ticks and labels out.

It knows neither ledger nor template: the report's page and the live page draw the same chart from it. Every point and tick lies in
the frame; of a long curve at most MAX_POINTS points are drawn, the first and the last among them.
"""

import math
from dataclasses import dataclass, replace

from compeft_server.reports.figures.report import Report
from compeft_server.reports.formats import text
from compeft_server.reports.formats.language import ENGLISH, Say

Curve = tuple[tuple[int, int, float], ...]
"""(version or round, wire bytes so far, metric) of what was measured, in order."""
TICK_GAP = 52.0
"""Least distance between two sizes on the axis."""
MAX_POINTS = 200
"""Most points of one curve: more of them are a thick line."""
LABEL_GAP = 26.0
"""Least distance between two labelled points, in units of the drawing."""


@dataclass(frozen=True, slots=True)
class Curves:
    """What is drawn. base: the metric of the base model alone, None if nobody measured it."""

    metric: str
    base: float | None
    synced: Curve
    dense: Curve


@dataclass(frozen=True, slots=True)
class Frame:
    """Size and margins of a drawing. `zero` is the width of the strip left of the log axis that stands for zero bytes."""

    name: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    zero: float

    @property
    def x0(self) -> float:
        """Where the log axis starts."""
        return self.left + self.zero

    @property
    def x1(self) -> float:
        """Where it ends."""
        return self.width - self.right

    @property
    def y0(self) -> float:
        """The bottom of the plot."""
        return self.height - self.bottom


WIDE = Frame("wide", 960, 430, left=76, right=30, top=22, bottom=62, zero=84)
NARROW = Frame("narrow", 380, 380, left=66, right=28, top=20, bottom=60, zero=52)


@dataclass(frozen=True, slots=True)
class ChartPoint:
    """A point of a curve in drawing units; an empty label is not drawn."""

    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis and its text."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything the template draws in one frame."""

    frame: Frame
    synced: tuple[ChartPoint, ...]
    dense: tuple[ChartPoint, ...]
    base: float | None
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def draw(curves: Curves, frame: Frame) -> Chart | None:
    """The picture in this frame; None while no version has both a metric and counted bytes."""
    synced, dense = _thin(curves.synced), _thin(curves.dense)
    if not synced:
        return None
    sizes = [size for _, size, _ in (*synced, *dense) if size > 0]
    values = [value for _, _, value in (*synced, *dense)] + ([] if curves.base is None else [curves.base])
    low_x, high_x = _below(min(sizes, default=1)), _above(max(sizes, default=10))
    y_values = metric_steps(min(values), max(values))

    def x(size: float) -> float:
        if size <= 0:
            return frame.left + frame.zero / 2
        return frame.x0 + (frame.x1 - frame.x0) * math.log(size / low_x) / math.log(high_x / low_x)

    def y(value: float) -> float:
        return frame.y0 - (frame.y0 - frame.top) * (value - y_values[0]) / (y_values[-1] - y_values[0])

    def place(curve: Curve, letter: str) -> tuple[ChartPoint, ...]:
        return _thin_labels([ChartPoint(x(size), y(value), f"{letter}{number}") for number, size, value in curve])

    return Chart(
        frame=frame,
        synced=place(synced, "v"),
        dense=place(dense, "r"),
        base=None if curves.base is None else y(curves.base),
        x_ticks=_thin_ticks([Tick(x(size), tick_bytes(size)) for size in _sizes(low_x, high_x)]),
        y_ticks=tuple(Tick(y(value), tick_metric(curves.metric, value, y_values)) for value in y_values),
    )


def describe(curves: Curves, say: Say = ENGLISH) -> str:
    """The picture in words, for those who do not see it."""
    if not curves.synced:
        return ""
    _, sent, final = curves.synced[-1]
    wire, value = text.human_bytes(sent), _value(curves, final)
    words = [
        say(
            "The composed expert reaches {metric} {value} after {wire} on the wire.", metric=curves.metric, value=value, wire=wire
        )
    ]
    if curves.base is not None:
        words.append(say("The base model alone, with zero bytes, has {value}.", value=_value(curves, curves.base)))
    if curves.dense:
        _, sent, final = curves.dense[-1]
        words.append(say("The dense run reaches {value} after {wire}.", value=_value(curves, final), wire=text.human_bytes(sent)))
    return " ".join(words)


def curves_of(report: Report) -> Curves:
    """The curves of a report; no composed expert's while the wire was not counted. The dense run's start is left out, for its
    bytes were not counted apart.
    """
    rows = report.versions if report.wire_counted else ()
    synced = [(row.version, row.cumulative_wire_bytes, row.score.mean) for row in rows if row.score is not None]
    dense = list(enumerate(report.dense.metrics))[1:] if report.dense else []
    return Curves(
        metric=report.metric,
        base=report.base.mean if report.base else None,
        synced=without_start(tuple(synced), report.kind),
        dense=tuple((n, report.dense.wire_bytes_after(n), v) for n, v in dense if v is not None and report.dense),
    )


def without_start(curve: Curve, kind: str) -> Curve:
    """The curve of a composed expert without version 0, once it has another: a start with a random head would stretch the axis."""
    return curve[1:] if kind == "composed" and len(curve) > 1 and curve[0][0] == 0 else curve


def _value(curves: Curves, value: float) -> str:
    return text.human_metric(curves.metric, value)


def _thin(curve: Curve) -> Curve:
    step = -(-len(curve) // MAX_POINTS) or 1
    return tuple(point for at, point in enumerate(curve) if at % step == 0 or at == len(curve) - 1)


def _thin_labels(points: list[ChartPoint]) -> tuple[ChartPoint, ...]:
    """Labels only where there is room: the last point's is kept, then from right to left."""
    kept: list[ChartPoint] = []
    free = math.inf
    for point in reversed(points):
        room = free - point.x >= LABEL_GAP
        kept.append(point if room else replace(point, label=""))
        free = point.x if room else free
    return tuple(reversed(kept))


def _thin_ticks(ticks: list[Tick]) -> tuple[Tick, ...]:
    """The first tick, and each later one that has room beside the one before it."""
    kept: list[Tick] = []
    for tick in ticks:
        if not kept or tick.at - kept[-1].at >= TICK_GAP:
            kept.append(tick)
    return tuple(kept)


def _below(size: float) -> float:
    """The largest 1, 2 or 5 times a power of ten under `size`."""
    power = 10.0 ** math.floor(math.log10(size))
    return max((step * power for step in (1, 2, 5) if step * power < size), default=power / 2)


def _above(size: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten over `size`."""
    power = 10.0 ** math.floor(math.log10(size))
    return min(step * power for step in (1, 2, 5, 10) if step * power > size)


def _sizes(low: float, high: float) -> list[float]:
    """Tick places between two sizes: powers of ten, with 2 and 5 between them where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(tens) > 2:
        return tens
    return [step * 10.0**p for p in powers for step in (1, 2, 5) if low <= step * 10.0**p <= high]


def metric_steps(low: float, high: float) -> list[float]:
    """Round values that enclose both, four to seven of them."""
    span = max(high - low, 0.02 * abs(high), 1e-6)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if span / (s * power) <= 5)
    first = math.floor(low / step + 1e-9)
    count = max(1, math.ceil(high / step - 1e-9) - first)
    return [(first + i) * step for i in range(count + 1)]


def tick_bytes(size: float) -> str:
    """A size as the label of an axis."""
    return text.human_bytes(size).replace(".00", "").replace(".0", "")


def tick_metric(metric: str, value: float, values: list[float]) -> str:
    """A metric as the label of an axis with these values."""
    if metric != "accuracy":
        return f"{value:.4g}"
    decimals = 0 if all(abs(100 * v - round(100 * v)) < 1e-6 for v in values) else 1
    return f"{100 * value:.{decimals}f} %"
