"""The picture of bytes over time: sums that fit the ledger, geometry that stays in its frame."""

from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_proto.clock import now_ms
from compeft_server.dashboard.charts.over_time import TimeRange, over_time
from compeft_server.dashboard.figures import read_cards
from compeft_server.ledger.lookups.totals import Summaries
from compeft_server.reports.formats.text import human_change
from compeft_server.reports.formats.timeline import (
    NARROW_PANELS,
    SLOTS,
    WIDE_PANELS,
    MetricLine,
    Panels,
    Slot,
    Timeline,
    describe_timeline,
    draw_timeline,
    stretch,
)
from tests.server.dashboard.ledgers import Story, tell

SIZES = st.integers(0, 2**50)


@given(st.integers(0, 2**42), st.integers(0, 2**40))
def test_the_slots_cover_the_first_and_the_last_moment(first: int, length: int) -> None:
    start, slot = stretch(first, first + length)
    assert start <= first
    assert start + SLOTS * slot == first + length + 1


@given(
    st.lists(st.tuples(SIZES, SIZES, SIZES), min_size=1, max_size=SLOTS),
    st.lists(st.floats(-1e6, 1e6), max_size=5),
    st.sampled_from([WIDE_PANELS, NARROW_PANELS]),
    st.booleans(),
)
def test_every_bar_and_point_lies_in_its_panel(
    sizes: list[tuple[int, int, int]], values: list[float], frame: Panels, log: bool
) -> None:
    lines = (MetricLine("sentiment", tuple((i + 1, v) for i, v in enumerate(values))),) if values else ()
    timeline = Timeline(0, 1000, tuple(Slot(*size) for size in sizes), "score", lines, 0.5 if values else None)
    drawn = draw_timeline(timeline, frame, log=log)
    assert (drawn is None) == (not any(max(s.wire, s.dense_bf16) for s in timeline.slots))
    if drawn is None:
        return
    for bar in drawn.bars:
        assert frame.left <= bar.x <= bar.x + bar.width <= frame.x1
        assert frame.top - 1e-6 <= bar.y <= bar.y + bar.height <= frame.bytes_bottom + 1e-6
    for _, points in drawn.lines:
        assert all(frame.metric_top - 1e-3 <= y <= frame.metric_bottom + 1e-3 for _, y in points)


def test_the_slots_add_up_to_what_moved_and_version_0_is_not_drawn(tmp_path: Path) -> None:
    now = now_ms()
    ledger = tell(
        tmp_path, Story(now_ms=now), Story("other", rounds=5, clients=2, now_ms=now), Story("silent", measured=False, now_ms=now)
    )
    summaries = Summaries(ledger)
    cards = read_cards(summaries, now)
    shown = over_time(summaries, cards, now, TimeRange())
    assert shown is not None
    known = [card.moved.both for card in cards if card.expert.name != "silent"]
    assert shown.wire == sum(t.wire_bytes for t in known)
    assert shown.dense_bf16 == sum(t.dense_bf16_bytes for t in known)
    assert [(line.name, len(line.points)) for line in shown.lines] == [("sentiment", 12), ("other", 5)]
    assert "on the wire; dense bfloat16 would have moved" in describe_timeline(shown)
    day = over_time(summaries, cards, now, TimeRange("24h"))
    assert day is not None
    assert day.wire == sum(card.recent.both.wire_bytes for card in cards)
    ledger.close()


@pytest.mark.parametrize(
    ("query", "words"), [("", "uploads on the wire"), ("?axis=log", "both directions"), ("?range=7d", "Accuracy")]
)
def test_the_overview_draws_it_linear_and_logarithmic(tmp_path: Path, serving: object, query: str, words: str) -> None:
    tell(tmp_path, Story(now_ms=now_ms())).close()
    page = httpx.get(serving(tmp_path).url + "/" + query).text  # type: ignore[operator]
    assert words in page
    assert page.count('class="bar dense-bar"') > 2


def test_a_change_is_stated_with_its_sign() -> None:
    assert [human_change("accuracy", 0.845, b) for b in (0.797, 0.849)] == ["+4.8 points", "\u22120.4 points"]
    assert human_change("loss", 1.25, 1.5) == "\u22120.25"
