"""The page of one round: every client that took part, in order, with its times and what became of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_proto.keys import new_key
from compeft_server.dashboard.charts.waterfall import NARROW_ROWS, WIDE_ROWS, draw_waterfall
from compeft_server.dashboard.round_page import PAGE_CLIENTS, state_of
from compeft_server.data_directory import open_ledger
from compeft_server.domain.records import Refusal, Round, Transfer
from compeft_server.ledger.ledger import Ledger
from compeft_server.ledger.lookups.round_steps import CallTimes, ClientSteps, RoundSteps
from compeft_server.reports.figures.provenance import Contributor
from tests.server.dashboard.conftest import Served
from tests.server.dashboard.test_pages import words
from tests.server.facts import CLOSED, EXPERT, OPEN, submission, version

START = 1_790_000_000_000
OPENED = Round("sentiment", "run-1", 1, b"nonce", 0, START + 60_000, START)
ADDRESS = "/round?expert=sentiment&run=run-1&number=1"


def call(keyid: str, direction: str, at_s: float, seconds: float, number: int = 1) -> Transfer:
    way: dict[str, int] = {"wire_received_bytes": 700, "wire_sent_bytes": 300}
    at_ms, version = START + round(1000 * at_s), number if direction == "up" else number - 1
    return Transfer(at_ms, direction, keyid, "sentiment", "run-1", 1, version, seconds=seconds, **way)  # type: ignore[arg-type]


def told(data: Path) -> Ledger:
    """A round in which `quick` and `slow` sent an update, `silent` only fetched, `refused` was refused, `idle` did nothing."""
    ledger = open_ledger(data)
    ledger.create(EXPERT, replace(version(0), created_at_ms=START - 1000))
    ledger.open_round(OPENED)
    keys = {}
    for name in ("slow", "quick", "silent", "refused", "idle"):
        keys[name] = new_key().public
        ledger.enrol(name, keys[name], "edge", START - 2000)
    for name, fetched, sent in (("slow", 1, 31), ("quick", 2, 12), ("refused", 3, 20)):
        ledger.record_transfer(call(keys[name].keyid, "down", fetched, 0.5))
        ledger.record_transfer(call(keys[name].keyid, "up", sent, 0.25))
    ledger.record_transfer(call(keys["silent"].keyid, "down", 2, 0.5))
    ledger.record_refusal(Refusal(START + 20_000, "ipv4:192.0.2.1:5", "sentiment", 1, "not_finite", "its update has NaN"))
    ledger.record_refusal(Refusal(START - 20_000, "ipv4:192.0.2.1:5", "sentiment", 1, "replay", "of another run, earlier"))
    for name, at_s in (("slow", 31.2), ("quick", 12.2)):
        ledger.accept(replace(submission(keys[name], name), accepted_at_ms=START + round(1000 * at_s)))
    return ledger


def test_clients_stand_in_the_order_of_their_updates_with_their_times(tmp_path: Path) -> None:
    ledger = told(tmp_path)
    steps = RoundSteps(ledger).steps(OPENED)
    assert [s.name for s in steps] == ["quick", "slow", "refused", "silent"]
    assert [s.trained_s for s in steps] == [9.5, 29.5, 16.5, None]
    assert steps[0].fetched == CallTimes(START + 2000, START + 2500, 1000)
    assert [r.code for r in RoundSteps(ledger).refusals(OPENED)] == ["not_finite"]
    ledger.close()


def test_the_page_says_what_became_of_each_client(tmp_path: Path, serving: Callable[..., Served]) -> None:
    ledger = told(tmp_path / "data")
    ledger.close_round(
        replace(OPENED, closed_at_ms=START + 60_100, version=1),
        replace(version(1), created_at_ms=START + 60_100),
        [s.update_digest for s in ledger.submissions("sentiment", "run-1", 1)],
    )
    ledger.close()
    answer = httpx.get(serving(tmp_path / "data").url + ADDRESS)
    said = words(answer.text)
    assert answer.status_code == 200
    assert "2 merged; 1 not accepted; 1 sent nothing before the round was closed" in said
    assert "7.00 kB of the calls below" in said
    assert "60.1 s after it was opened" in said
    assert "its update has NaN" in said
    assert "of another run" not in said
    assert answer.text.count('class="piece sent"') == 3 * 2 + 1
    assert "idle" not in said


def test_a_round_that_is_not_there_is_said_so(tmp_path: Path, serving: Callable[..., Served]) -> None:
    told(tmp_path / "data").close()
    answer = httpx.get(serving(tmp_path / "data").url + ADDRESS.replace("number=1", "number=7"))
    assert answer.status_code == 404
    assert "no round 7 of run" in words(answer.text)


def test_a_large_round_comes_in_pages(tmp_path: Path, serving: Callable[..., Served]) -> None:
    ledger = told(tmp_path / "data")
    for number in range(PAGE_CLIENTS):
        key = new_key().public
        ledger.enrol(f"more-{number:03}", key, "edge", START)
        ledger.record_transfer(call(key.keyid, "down", 5, 0.1))
    ledger.close()
    site = serving(tmp_path / "data")
    first, second = (words(httpx.get(f"{site.url}{ADDRESS}&page={page}").text) for page in (1, 2))
    assert "page 1 of 2" in first
    assert "quick" in first
    assert "silent" in second
    assert "quick" not in second
    assert "51 sent nothing before the deadline" in first


@pytest.mark.parametrize(
    ("step", "found", "signed", "now_ms", "said"),
    [
        (ClientSteps("k", "n", fetched=CallTimes(1, 2, 3)), OPEN, None, 500, "has fetched, nothing sent yet"),
        (ClientSteps("k", "n", fetched=CallTimes(1, 2, 3)), OPEN, None, 5000, "sent nothing before the deadline"),
        (ClientSteps("k", "n", fetched=CallTimes(1, 2, 3)), CLOSED, None, 500, "sent nothing before the round was closed"),
        (ClientSteps("k", "n", delivered=CallTimes(1, 2, 3)), CLOSED, None, 500, "fetched the new version only"),
        (ClientSteps("k", "n", accepted_at_ms=3), OPEN, None, 500, "accepted"),
        (ClientSteps("k", "n", accepted_at_ms=3, merged_in=1), CLOSED, Contributor("n", "k", "d", 1, 1.0), 500, "merged"),
        (
            ClientSteps("k", "n", accepted_at_ms=3, merged_in=1),
            CLOSED,
            Contributor("n", "k", "d", 1, 1.0, staleness=2),
            500,
            "late: merged, its base is 2 versions older",
        ),
        (
            ClientSteps("k", "n", accepted_at_ms=3, merged_in=1),
            CLOSED,
            Contributor("n", "k", "d", 1, 1.0, left_out=True),
            500,
            "accepted: left out by the merge method",
        ),
    ],
)
def test_a_state_is_that_of_the_ledger(
    step: ClientSteps, found: Round, signed: Contributor | None, now_ms: int, said: str
) -> None:
    state = state_of(step, found, signed, now_ms)
    assert state.words == said
    assert state.alarm == said.startswith(("sent nothing", "late"))


SPANS = st.none() | st.builds(lambda a, n: CallTimes(a, a + n, 1), st.integers(0, 2**41), st.integers(0, 10**9))


@given(
    st.lists(st.builds(ClientSteps, st.just("k"), st.text(max_size=40), SPANS, SPANS, SPANS), max_size=5), st.integers(0, 2**41)
)
def test_every_bar_lies_in_the_picture(steps: list[ClientSteps], opened_ms: int) -> None:
    found = replace(OPENED, opened_at_ms=opened_ms, deadline_ms=opened_ms + 5)
    for frame in (WIDE_ROWS, NARROW_ROWS):
        drawn = draw_waterfall(found, steps, frame)
        assert (drawn is None) == all(span is None for s in steps for span in (s.fetched, s.sent, s.delivered))
        if drawn is not None:
            assert all(frame.left <= p.x and p.x + p.width <= frame.width for p in drawn.pieces)
            assert all(0 <= p.y <= drawn.height for p in drawn.pieces)
            assert all(frame.left <= mark.at <= frame.width for mark in drawn.marks)
            assert all(len(name.label) <= frame.letters for name in drawn.names)
