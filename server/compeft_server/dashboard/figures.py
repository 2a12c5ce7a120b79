"""The figures of the live page: sums of the ledger with what they would have cost, and the quality beside every saving.

Values in, values out: the ledger is read by `summaries.py` and `listings.py`, words are made by the templates. A saving is stated
only where the wire was counted and the composed expert was measured; else `silence` says why not.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from compeft_proto.convert import layout_from_proto
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.domain.traffic import LinkTime, Traffic, add, times_of, why_silent
from compeft_server.ledger.totals import ExpertSummary, Moved, Standing, Summaries

DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Card:
    """One expert: what it moved, and what it is worth. `standing` is None while nobody has measured it."""

    expert: ExpertSummary
    parameters: int
    moved: Moved
    recent: Moved
    standing: Standing | None

    @property
    def silence(self) -> str:
        """Why no saving is stated; empty when one is."""
        return silence_of(self.moved.both, self.standing is not None and self.standing.synced is not None)

    def savings(self, dense_bytes: int) -> float | None:
        """Dense / wire, None where `silence` says why."""
        return None if self.silence else dense_bytes / self.moved.both.wire_bytes


@dataclass(frozen=True, slots=True)
class Bill:
    """The same bytes as they went and as they would have gone: fp32, bf16, wire. rate: measured bit/s, waiting included."""

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
    """Everything on the first page. The bills are of the experts whose quality is known; `unknown` names the others."""

    cards: tuple[Card, ...]
    total: Bill
    day: Bill
    unknown: tuple[str, ...]
    other_wire_bytes: int


def silence_of(traffic: Traffic, measured: bool) -> str:
    """Why no saving of this traffic is stated; empty when one is."""
    counted = traffic.wire_bytes > 0 and traffic.wire_bytes >= traffic.payload_bytes
    return why_silent(traffic.dense_fp32_bytes, counted, measured)


def read_cards(summaries: Summaries, now_ms: int, only: str | None = None) -> tuple[Card, ...]:
    """All experts by name, or the one of this name."""
    moved, recent, metrics = summaries.moved(), summaries.moved(now_ms - DAY_MS), summaries.metrics()
    return tuple(
        Card(
            expert=expert,
            parameters=layout_from_proto(pb.Layout.FromString(expert.layout)).size,
            moved=moved.get(expert.name, Moved()),
            recent=recent.get(expert.name, Moved()),
            standing=summaries.standing(expert.name, metrics[expert.name]) if expert.name in metrics else None,
        )
        for expert in summaries.experts()
        if only in (None, expert.name)
    )


def overview_of(cards: tuple[Card, ...]) -> Overview:
    """The first page's figures."""
    known = [card for card in cards if not card.silence]
    unknown = [card for card in cards if card.silence]
    return Overview(
        cards=cards,
        total=bill_of(card.moved for card in known),
        day=bill_of(card.recent for card in known),
        unknown=tuple(card.expert.name for card in unknown),
        other_wire_bytes=sum(card.moved.both.wire_bytes for card in unknown),
    )


def bill_of(moved: Iterable[Moved]) -> Bill:
    """What these transfers cost, one after another."""
    pairs = list(moved)
    up, down = add(m.up for m in pairs), add(m.down for m in pairs)
    both = add((up, down))
    rate = 8 * both.wire_bytes / both.seconds if both.seconds > 0 and both.wire_bytes else None
    return Bill(up, down, tuple(times_of(up, down, 1)), rate)
