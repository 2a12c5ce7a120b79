"""What the live page says, over real HTTP."""

import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from compeft_server.data_directory import open_ledger
from compeft_server.ledger import schema
from compeft_server.ledger.database import read
from compeft_server.ledger.lookups import reader
from compeft_server.ledger.lookups.moved import CURVE_POINTS
from compeft_server.ledger.lookups.pages import PAGE, Listings
from compeft_server.ledger.lookups.totals import Summaries
from tests.server.dashboard.conftest import Served
from tests.server.dashboard.ledgers import LAYOUT, Story, tell

ALL = (
    "/",
    "/experts",
    "/expert?name=sentiment",
    "/version?expert=sentiment&number=3",
    "/rounds",
    "/round?expert=sentiment&run=run-1&number=3",
    "/clients",
    "/refused",
    "/audit",
    "/search?q=s",
)


def words(page: str) -> str:
    """Its text without tags and spaces in a row."""
    found: list[str] = []

    class Text(HTMLParser):
        def handle_data(self, data: str) -> None:
            found.append(data)

    Text().feed(page)
    return " ".join(" ".join(found).split())


def text_of(site: Served, path: str) -> str:
    answer = httpx.get(site.url + path)
    assert answer.status_code == 200, answer.text
    return words(answer.text)


@pytest.mark.parametrize("path", [*ALL, "/login", "/health", "/metrics", "/events", "/static/page.css"])
def test_a_probe_that_asks_for_the_head_gets_the_status_of_the_page(told: Served, path: str) -> None:
    answer = httpx.head(told.url + path)
    assert answer.status_code == 200
    assert answer.content == b""
    assert answer.headers["content-security-policy"]


# Figures


def test_the_overview_has_bytes_time_money_and_the_quality_of_all_three_arms(told: Served) -> None:
    text = text_of(told, "/")
    moved = 100  # 13 syncs and 12 uploads of 4 clients
    dense_bf16 = moved * 2 * LAYOUT.size
    wire = 4 * (12 * (700 + 1200) + 12 * (1900 + 1400) + 1400)
    assert f"{(dense_bf16 - wire) / 1e6:.2f} MB" in text
    assert f"{dense_bf16 / wire:.1f}×" in text
    assert all(words in text for words in ("base only 80.3 %", "uncompressed 85.5 %", "85.2 %"))
    assert all(link in text for link in ("10 Mbit/s", "100 Mbit/s", "4G", "measured rate"))
    assert "0.0800 EUR a GB" in text


def test_an_expert_of_unknown_quality_has_bytes_but_no_saving(told: Served) -> None:
    text = text_of(told, "/expert?name=topic/news")
    assert "quality unknown" in text
    assert "No quality was reported" in text
    assert "68.0 kB on the wire" in text
    assert "×" not in text
    assert "No saving is stated for topic/news" in text_of(told, "/")


def test_without_a_price_there_is_no_money(tmp_path: Path, serving: Callable[..., Served]) -> None:
    tell(tmp_path / "data", Story(rounds=1)).close()
    assert "No price given" in text_of(serving(tmp_path / "data"), "/")


def test_a_version_shows_its_lineage_only_as_it_was_signed(told: Served) -> None:
    text = text_of(told, "/version?expert=sentiment&number=3")
    assert "merge, average, coefficient 1" in text
    assert "density 20 %, scale norm × 1 a vector, codec context; 3,200 of 16,000 parameters kept" in text
    assert text.count("edge-") == 4
    assert f"{20_800 / 1e9 * 0.08:.9f}".rstrip("0")[:8] in text
    with told.ledger._engine.begin() as connection:
        where = (schema.versions.c.expert == "sentiment", schema.versions.c.version == 3)
        envelope = connection.execute(sa.select(schema.versions.c.envelope).where(*where)).scalar_one()
        connection.execute(sa.update(schema.versions).where(*where), {"envelope": envelope[:-1] + bytes([envelope[-1] ^ 1])})
    forged = text_of(told, "/version?expert=sentiment&number=3")
    assert "cannot be trusted" in forged
    assert "density" not in forged


def test_what_comes_from_outside_is_text_and_nothing_else(told: Served) -> None:
    page = httpx.get(told.url + "/refused").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_times_are_utc_and_readable_by_programs(told: Served) -> None:
    page = httpx.get(told.url + "/rounds").text
    stamps = re.findall(r'<time datetime="(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)">([^<]*)</time>', page)
    assert len(stamps) > 20
    assert all(shown.endswith(" UTC") for _, shown in stamps)


# Empty, wrong and broken


def test_an_empty_ledger_says_what_to_do(tmp_path: Path, serving: Callable[..., Served]) -> None:
    open_ledger(tmp_path / "data").close()
    site = serving(tmp_path / "data")
    for path, said in {"/": "no expert yet", "/clients": "Nobody is enrolled", "/refused": "Nothing was refused"}.items():
        assert said in text_of(site, path)
    assert "No round was opened" in text_of(site, "/rounds")
    assert "audit log is empty" in text_of(site, "/audit")


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/nothing", 404, "This page does not exist"),
        ("/expert?name=none", 404, "no expert 'none'"),
        ("/version?expert=sentiment&number=99", 404, "versions 0 to 12, not 99"),
        ("/rounds?page=x", 400, "does not understand: page"),
        ("/version?expert=sentiment&number=99999999999", 400, "number"),
    ],
)
def test_a_wrong_address_has_a_page_of_its_own(told: Served, path: str, status: int, said: str) -> None:
    answer = httpx.get(told.url + path)
    assert answer.status_code == status
    assert said in words(answer.text)
    assert "Go to the overview" in answer.text


def test_a_ledger_that_cannot_be_read_is_said_so(told: Served) -> None:
    with told.ledger._engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE refusals"))
    answer = httpx.get(told.url + "/refused")
    assert answer.status_code == 503
    assert "cannot be read" in answer.text


def test_a_fault_of_our_own_has_a_page_too(told: Served) -> None:
    with told.ledger._engine.begin() as connection:
        connection.execute(sa.update(schema.experts), {"layout": b"\xff"})
    answer = httpx.get(told.url + "/")
    assert answer.status_code == 500
    assert "This page broke" in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


# Filters and pages


def test_lists_come_a_page_at_a_time(told: Served) -> None:
    first, second = httpx.get(told.url + "/refused").text, httpx.get(told.url + "/refused?page=2").text
    assert first.count('class="peer"') == PAGE
    assert second.count('class="peer"') == 12
    assert "page 1 of 2" in first
    assert 'rel="next" href="?page=2"' in first


def test_filters_narrow_a_list(told: Served) -> None:
    assert "2 refused" in text_of(told, "/refused?code=replay")
    assert "1 round " in text_of(told, "/rounds?expert=topic/news&state=open")
    assert "5 entries" in text_of(told, "/audit?action=enrol")
    assert "4 entries" in text_of(told, "/audit?action=enrol&subject=edge")
    assert "Nothing of this kind" in text_of(told, "/refused?code=none")


# One member


def test_a_members_page_says_where_it_is_behind(told: Served) -> None:
    ledger = open_ledger(told.data)
    member = next(m for m in ledger.members() if m.name == "edge-0")
    page = f"/client?keyid={member.public.keyid}"
    assert text_of(told, page).count("up to date") == 2
    assert "certificate ends none was issued here" in text_of(told, page)
    with ledger.engine.begin() as connection:
        newest = (
            schema.transfers.c.keyid == member.public.keyid,
            schema.transfers.c.version > 9,
            schema.transfers.c.direction == "down",
        )
        connection.execute(sa.delete(schema.transfers).where(*newest))
    text = text_of(told, page)
    assert "sentiment 9 12 3 behind" in text
    assert text.count("up to date") == 1
    ledger.close()
    assert httpx.get(told.url + "/client?keyid=nobody").status_code == 404
    assert f'href="{page}"' in httpx.get(told.url + "/clients").text


# Ten thousand rounds


class Counted:
    """Reads as `database.read` does, and counts queries and rows."""

    queries = rows = 0

    def __call__(self, engine: sa.Engine, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        found = read(engine, query)
        self.queries, self.rows = self.queries + 1, self.rows + len(found)
        return found


@pytest.mark.parametrize("rounds", [30, 1000])
def test_what_a_page_reads_does_not_grow_with_the_ledger(tmp_path: Path, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, counted = tell(tmp_path, Story(rounds=rounds, clients=2)), Counted()
    monkeypatch.setattr(reader, "read", counted)
    summaries, lists = Summaries(ledger), Listings(ledger)
    summaries.moved(), summaries.metrics(), summaries.newest_quality("sentiment", "accuracy"), summaries.experts()
    summaries.clients(), summaries.client_scores(), summaries.round_counts(), summaries.merged_in(), summaries.accepted()
    lists.rounds(), lists.audit(), lists.refusals(), lists.versions("sentiment")
    curve = summaries.wire_curve("sentiment", rounds)
    scores = summaries.scores("sentiment", "accuracy", "synced", [number for number, _ in curve])
    assert len(curve) <= CURVE_POINTS + 1
    assert curve[-1][0] == rounds
    assert set(scores) == {number for number, _ in curve}
    assert 10 < counted.queries <= 30
    assert counted.rows <= 5 * PAGE + 3 * CURVE_POINTS
    ledger.close()


def test_the_curve_adds_up_to_all_bytes(tmp_path: Path) -> None:
    ledger = tell(tmp_path, Story(rounds=500, clients=2))
    summaries = Summaries(ledger)
    assert summaries.wire_curve("sentiment", 500)[-1][1] == summaries.moved()["sentiment"].both.wire_bytes
    ledger.close()
