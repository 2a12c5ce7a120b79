"""The picture of bytes over time, as geometry: what went over the wire against what dense bfloat16 would have moved, and below it the task
metric on the same time axis. It knows neither ledger nor template.

On a linear axis the wire is stacked by direction. On a logarithmic one a stack would show no sums, so there the wire is one bar from the
bottom of the axis.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from compeft_server.reports.formats import text
from compeft_server.reports.formats.chart import Tick, metric_steps, tick_bytes, tick_metric

SLOTS = 48
"""Bars of one picture."""
SECOND_MS = 1000
MAX_LINES = 4
"""Experts whose metric is drawn."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Wire bytes of uploads and deliveries that began in one stretch of time, and the same transfers as dense bfloat16."""

    up: int = 0
    down: int = 0
    dense_bf16: int = 0

    @property
    def wire(self) -> int:
        """Both directions."""
        return self.up + self.down


@dataclass(frozen=True, slots=True)
class MetricLine:
    """The metric of one expert: (time in ms, value) of each version that was measured."""

    name: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """What is drawn: slots of equal length from `first_ms` to `last_ms`, and lines of one metric. base: None if it was not measured."""

    first_ms: int
    last_ms: int
    slots: tuple[Slot, ...]
    metric: str = ""
    lines: tuple[MetricLine, ...] = ()
    base: float | None = None

    @property
    def rows(self) -> list[tuple[int, int, Slot]]:
        """(start, end in ms, slot) of the slots in which anything moved."""
        length = (self.last_ms - self.first_ms) // max(1, len(self.slots))
        starts = [(self.first_ms + length * i, slot) for i, slot in enumerate(self.slots)]
        return [(at, at + length, slot) for at, slot in starts if slot.dense_bf16 or slot.wire]

    @property
    def wire(self) -> int:
        """Bytes on the wire in all slots."""
        return sum(slot.wire for slot in self.slots)

    @property
    def dense_bf16(self) -> int:
        """Bytes that dense bfloat16 would have moved."""
        return sum(slot.dense_bf16 for slot in self.slots)


@dataclass(frozen=True, slots=True)
class Panels:
    """Size and margins of a drawing with two panels, in drawing units."""

    name: str
    width: float
    left: float
    right: float = 14
    top: float = 16
    bytes_height: float = 210
    gap: float = 34
    metric_height: float = 96

    @property
    def x1(self) -> float:
        """The right end of the plot."""
        return self.width - self.right

    @property
    def bytes_bottom(self) -> float:
        """The zero line of the bytes."""
        return self.top + self.bytes_height

    @property
    def metric_top(self) -> float:
        """Where the metric's panel begins."""
        return self.bytes_bottom + self.gap

    @property
    def metric_bottom(self) -> float:
        """Where it ends."""
        return self.metric_top + self.metric_height

    @property
    def height(self) -> float:
        """All of it, with room for the labels of the time axis."""
        return self.metric_bottom + 30


WIDE_PANELS = Panels("wide", 960, left=74)
NARROW_PANELS = Panels("narrow", 380, left=64, bytes_height=180, metric_height=90)


@dataclass(frozen=True, slots=True)
class Bar:
    """One rectangle; `words` say what it stands for."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    words: str = ""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Everything that the template draws in one frame."""

    panels: Panels
    bars: tuple[Bar, ...]
    byte_ticks: tuple[Tick, ...]
    time_ticks: tuple[Tick, ...]
    metric_ticks: tuple[Tick, ...]
    lines: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]
    base: float | None


def stretch(first_ms: int, last_ms: int) -> tuple[int, int]:
    """(start, length of one slot) of SLOTS slots that cover these times, `last_ms` included; a slot has at least a second."""
    length = max(SECOND_MS, -(-(last_ms + 1 - first_ms) // SLOTS))
    return last_ms + 1 - SLOTS * length, length


def draw_timeline(timeline: Timeline, panels: Panels, *, log: bool) -> Drawn | None:
    """The picture in this frame; None while nothing moved."""
    most = max((max(slot.dense_bf16, slot.wire) for slot in timeline.slots), default=0)
    if not most:
        return None
    ticks = _log_ticks(timeline.slots) if log else _linear_ticks(most)
    span = panels.x1 - panels.left
    low, high = ticks[0], ticks[-1]

    def height(size: float) -> float:
        share = math.log(max(size, low) / low) / math.log(high / low) if log else size / high
        return panels.bytes_height * share

    def x(at_ms: float) -> float:
        return panels.left + span * (at_ms - timeline.first_ms) / (timeline.last_ms - timeline.first_ms)

    values = [value for line in timeline.lines for _, value in line.points] + ([] if timeline.base is None else [timeline.base])
    steps = metric_steps(min(values), max(values)) if timeline.lines else []

    def y(value: float) -> float:
        return panels.metric_bottom - panels.metric_height * (value - steps[0]) / (steps[-1] - steps[0])

    return Drawn(
        panels=panels,
        bars=tuple(bar for i in range(len(timeline.slots)) for bar in _bars(timeline, i, panels, height, log=log)),
        byte_ticks=tuple(Tick(panels.bytes_bottom - height(t), tick_bytes(t)) for t in ticks),
        time_ticks=tuple(Tick(x(at), label) for at, label in _times(timeline, 3 if panels.name == "narrow" else 7)),
        metric_ticks=tuple(Tick(y(v), tick_metric(timeline.metric, v, steps)) for v in steps),
        lines=tuple((line.name, tuple((x(at), y(v)) for at, v in line.points)) for line in timeline.lines),
        base=None if timeline.base is None or not steps else y(timeline.base),
    )


def describe_timeline(timeline: Timeline) -> str:
    """The picture in words."""
    words = (
        f"{text.human_bytes(timeline.wire)} on the wire; dense bfloat16 would have moved {text.human_bytes(timeline.dense_bf16)}."
    )
    for line in timeline.lines:
        value = text.human_metric(timeline.metric, line.points[-1][1])
        words += f" {text.printable(line.name)} has {text.printable(timeline.metric)} {value} at its newest measured version."
    return words


def _bars(timeline: Timeline, number: int, panels: Panels, height: Callable[[float], float], *, log: bool) -> list[Bar]:
    slot, pitch = timeline.slots[number], (panels.x1 - panels.left) / len(timeline.slots)
    left, width = panels.left + pitch * number + 0.12 * pitch, 0.76 * pitch
    if not max(slot.dense_bf16, slot.wire):
        return []
    words = f"{text.human_bytes(slot.wire)} on the wire, dense bf16 {text.human_bytes(slot.dense_bf16)}"

    def bar(kind: str, low: float, high: float) -> Bar:
        return Bar(kind, left, panels.bytes_bottom - height(high), width, height(high) - height(low), words)

    wire = [bar("wire", 0, slot.wire)] if log else [bar("down", 0, slot.down), bar("up", slot.down, slot.wire)]
    return [bar("dense-bar", 0, slot.dense_bf16), *(b for b in wire if b.height > 0)]


def _linear_ticks(most: float) -> list[float]:
    power = 10.0 ** math.floor(math.log10(most))
    step = next(s * power for s in (0.2, 0.25, 0.5, 1, 2, 2.5) if most / (s * power) <= 5)
    return [i * step for i in range(math.ceil(most / step - 1e-9) + 1)]


def _log_ticks(slots: Sequence[Slot]) -> list[float]:
    """Powers of ten around what is drawn."""
    sizes = [size for slot in slots for size in (slot.wire, slot.dense_bf16) if size]
    low, high = math.floor(math.log10(min(sizes))), math.ceil(math.log10(max(sizes)) + 1e-9)
    return [10.0**p for p in range(low, max(high, low + 1) + 1)]


def _times(timeline: Timeline, count: int) -> list[tuple[int, str]]:
    length = timeline.last_ms - timeline.first_ms
    places = [timeline.first_ms + length * (2 * i + 1) // (2 * count) for i in range(count)]
    form = "%H:%M:%S" if length <= 1800 * SECOND_MS else "%H:%M" if length <= 2 * 24 * 3600 * SECOND_MS else "%d %b"
    return [(at, datetime.fromtimestamp(at / 1000, UTC).strftime(form)) for at in places]
