"""Reads what the overview's picture shows: bytes over a range of time, and the task metric over the same range."""

from collections.abc import Sequence
from dataclasses import dataclass

from compeft_server.dashboard.figures import DAY_MS, Card
from compeft_server.ledger.lookups.moved import Moved
from compeft_server.ledger.lookups.totals import Summaries
from compeft_server.reports.formats.timeline import MAX_LINES, SLOTS, MetricLine, Slot, Timeline, stretch

RANGES = (("24h", "24 hours"), ("7d", "7 days"), ("30d", "30 days"), ("all", "all"))
"""Values of the address, and their words."""
DAYS = {"24h": 1, "7d": 7, "30d": 30}


@dataclass(frozen=True, slots=True)
class TimeRange:
    """What the visitor asks to see: one of RANGES, on a linear or logarithmic axis."""

    name: str = "all"
    log: bool = False


def over_time(summaries: Summaries, cards: Sequence[Card], now_ms: int, wanted: TimeRange) -> Timeline | None:
    """The bytes of the experts whose quality is known, and the metric of the largest of them and of others with the same metric.

    None while no such expert exists. An unknown range is `all`.
    """
    known = sorted((c for c in cards if not c.silence and c.standing), key=lambda c: -c.moved.both.wire_bytes)
    names = [card.expert.name for card in known]
    span = summaries.span(names) if known else None
    if span is None:
        return None
    days = DAYS.get(wanted.name)
    first, length = stretch(span[0] if days is None else now_ms - days * DAY_MS, span[1] if days is None else now_ms)
    moved = summaries.moved_over_time(names, first, length)
    slots = tuple(_slot(moved.get(number, Moved())) for number in range(SLOTS))
    standing = known[0].standing
    metric = standing.metric if standing else ""
    same = [c.expert.name for c in known if c.standing and c.standing.metric == metric][:MAX_LINES]
    found = [MetricLine(name, tuple(summaries.measured_over_time(name, metric, first, length))) for name in same]
    base = standing.base.score.mean if standing and standing.base and len(same) == 1 else None
    lines = tuple(line for line in found if line.points)
    return Timeline(first, first + SLOTS * length, slots, metric, lines, base if lines else None)


def _slot(moved: Moved) -> Slot:
    return Slot(moved.up.wire_bytes, moved.down.wire_bytes, moved.both.dense_bf16_bytes)
