"""Small pictures beside each expert's name: its task metric over its life as a line, and its bytes on the wire as bars below."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compeft_server.dashboard.figures import Card
from compeft_server.ledger.lookups.moved import Moved
from compeft_server.ledger.lookups.totals import Summaries
from compeft_server.reports.formats.text import human_bytes, human_metric

MAX_EXPERTS = 24
"""Experts that have a picture; the page says nothing of the others' course."""
SLOTS = 24
WIDTH, LINE, BARS = 120.0, 24.0, 12.0


@dataclass(frozen=True, slots=True)
class Sparkline:
    """Geometry in drawing units: points of the line, tops of the bars (None: no bytes); the picture in words."""

    points: tuple[tuple[float, float], ...]
    bars: tuple[float | None, ...]
    words: str


def sparklines(summaries: Summaries, cards: Sequence[Card], now_ms: int) -> Mapping[str, Sparkline]:
    """By name, for the first MAX_EXPERTS experts that moved anything."""
    shown = [card for card in cards if card.moved.both.wire_bytes][:MAX_EXPERTS]
    return {card.expert.name: _of(summaries, card, now_ms) for card in shown}


def _of(summaries: Summaries, card: Card, now_ms: int) -> Sparkline:
    name, first = card.expert.name, card.expert.created_at_ms
    length = max(1, -(-(now_ms + 1 - first) // SLOTS))
    moved = summaries.moved_over_time([name], first, length)
    sizes = [moved.get(slot, Moved()).both.wire_bytes for slot in range(SLOTS)]
    most = max(1, *sizes)
    metric = card.standing.metric if card.standing else ""
    measured = summaries.measured_over_time(name, metric, first, length) if metric else []
    low, high = min((v for _, v in measured), default=0.0), max((v for _, v in measured), default=0.0)
    points = tuple(
        (WIDTH * (at - first) / (SLOTS * length), 2 + (LINE - 4) * (0.5 if high == low else (high - value) / (high - low)))
        for at, value in measured
    )
    words = f"{human_bytes(sum(sizes))} on the wire since it was published"
    words += (
        f"; {metric} from {human_metric(metric, measured[0][1])} to {human_metric(metric, measured[-1][1])}" if measured else ""
    )
    return Sparkline(points, tuple(None if not size else LINE + BARS * (1 - size / most) for size in sizes), words)
