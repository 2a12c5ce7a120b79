"""The figures of the live page: sums of the ledger with what they would have cost, and the quality beside every saving.

Values in, values out: `ledger.lookups` reads the ledger, the templates make words. A saving is stated only of the bytes
that led to a version of known quality, as in the report; otherwise `silence` says why it is missing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from compeft_proto.convert import layout_from_proto
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.domain.traffic import LinkTime, Traffic, add, times_of, why_row_silent, why_silent
from compeft_server.ledger.lookups.moved import Moved
from compeft_server.ledger.lookups.quality import ExpertQuality, NewestVersion
from compeft_server.ledger.lookups.totals import ExpertSummary, Summaries

DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Card:
    """One expert: what it moved, and its quality. standing: None while no metric is known. stated: the version whose quality stands beside
    the saving, None if absent. led: what led to that version; recent: of that, the last 24 hours.
    """

    expert: ExpertSummary
    parameters: int
    moved: Moved
    standing: ExpertQuality | None
    stated: NewestVersion | None
    led: Moved
    recent: Moved

    @property
    def silence(self) -> str:
        """Why no saving is stated; empty when one is."""
        both = self.moved.both
        counted = both.wire_bytes > 0 and both.wire_bytes >= both.payload_bytes
        why = why_silent(both.dense_fp32_bytes, counted, self.standing is not None and self.standing.synced is not None)
        if why or self.stated is not None:
            return why
        return "No client has fetched a version of known quality, so no saving is stated."

    @property
    def savings_fp32(self) -> float | None:
        """Dense float32 / wire of the bytes that led to the stated version, None where `silence` says why."""
        return None if self.silence else self.led.both.dense_fp32_bytes / self.led.both.wire_bytes

    @property
    def savings_bf16(self) -> float | None:
        """The same against bfloat16."""
        return None if self.silence else self.led.both.dense_bf16_bytes / self.led.both.wire_bytes


@dataclass(frozen=True, slots=True)
class Bill:
    """The same bytes as they went and as they would have gone: fp32, bf16, wire. rate: measured upload rate, bit/s."""

    up: Traffic
    down: Traffic
    links: tuple[LinkTime, ...]
    rate: float | None

    @property
    def both(self) -> Traffic:
        """Both directions."""
        return add((self.up, self.down))

    @property
    def saved_bytes(self) -> int:
        """bf16 - wire: the smaller of the two dense sizes, so the saving is not made larger than it is."""
        return self.both.dense_bf16_bytes - self.both.wire_bytes


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything on the first page. The bills are of the bytes that led to versions of known quality; `unknown` names the experts that have
    none, other_wire_bytes are theirs.
    """

    cards: tuple[Card, ...]
    total: Bill
    day: Bill
    unknown: tuple[str, ...]
    other_wire_bytes: int


def row_savings(kind: str, version: int, moved: Moved, measured: bool) -> float | None:
    """Dense bfloat16 / wire of one version, None where it has no quality to put beside it."""
    silent = why_row_silent(kind, version, moved.up, moved.down, measured)
    return None if silent else moved.both.dense_bf16_bytes / moved.both.wire_bytes


def read_cards(summaries: Summaries, now_ms: int, only: str | None = None) -> tuple[Card, ...]:
    """All experts by name, or the one of this name."""
    moved, metrics = summaries.moved(), summaries.metrics()
    chosen = [expert for expert in summaries.experts() if only in (None, expert.name)]
    return tuple(_card(summaries, e, moved.get(e.name, Moved()), metrics.get(e.name), now_ms) for e in chosen)


def _card(summaries: Summaries, expert: ExpertSummary, moved: Moved, metric: str | None, now_ms: int) -> Card:
    standing = summaries.newest_quality(expert.name, metric) if metric is not None else None
    stated = _stated(summaries, expert, standing)
    led = recent = Moved()
    if stated is not None:
        first = 0 if expert.kind == "composed" else stated.version
        led = summaries.moved_between(expert.name, first, stated.version)
        recent = summaries.moved_between(expert.name, first, stated.version, now_ms - DAY_MS)
    size = layout_from_proto(pb.Layout.FromString(expert.layout)).size
    return Card(expert, size, moved, standing, stated, led, recent)


def _stated(summaries: Summaries, expert: ExpertSummary, standing: ExpertQuality | None) -> NewestVersion | None:
    """The newest version with a metric; of a package, the newest that was also fetched."""
    if standing is None or expert.kind == "composed":
        return standing.synced if standing else None
    scores = summaries.scores(expert.name, standing.metric, "synced")
    moved = summaries.moved_by_version(expert.name, scores)
    fetched = [v for v in scores if v in moved and moved[v].down.payload_bytes]
    return NewestVersion(max(fetched), scores[max(fetched)]) if fetched else None


def overview_of(cards: tuple[Card, ...]) -> Overview:
    """The first page's figures."""
    known = [card for card in cards if not card.silence]
    unknown = [card for card in cards if card.silence]
    return Overview(
        cards=cards,
        total=bill_of(card.led for card in known),
        day=bill_of(card.recent for card in known),
        unknown=tuple(card.expert.name for card in unknown),
        other_wire_bytes=sum(card.moved.both.wire_bytes for card in unknown),
    )


def bill_of(moved: Iterable[Moved]) -> Bill:
    """What these transfers cost, one after another."""
    pairs = list(moved)
    up, down = add(m.up for m in pairs), add(m.down for m in pairs)
    return Bill(up, down, tuple(times_of(up, down, 1)), up.rate)
