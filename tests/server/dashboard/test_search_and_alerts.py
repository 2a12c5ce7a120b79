"""LedgerSearch, alerts and the audit log in sentences: what an operator looks for, found and said in words."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from compeft_proto.clock import now_ms
from compeft_proto.keys import new_key
from compeft_server.dashboard.audit_words import SENTENCES, said
from compeft_server.dashboard.kept import KeptFigures
from compeft_server.data_directory import open_ledger
from compeft_server.domain.records import Certified, Invited, Refusal, Round
from compeft_server.ledger import schema
from compeft_server.ledger.lookups.behind import Behind
from compeft_server.ledger.lookups.pages import AuditLine
from compeft_server.ledger.lookups.search import MOST, LedgerSearch
from compeft_server.ledger.lookups.totals import Summaries
from tests.server.dashboard.conftest import Served
from tests.server.dashboard.ledgers import Story, tell
from tests.server.dashboard.test_pages import text_of


def test_search_finds_experts_members_rounds_and_versions(told: Served) -> None:
    search = LedgerSearch(told.ledger)
    edge = next(m for m in told.ledger.members() if m.name == "edge-2")
    assert search.find("NEWS").experts == ("topic/news",)
    assert search.find("edge-2").members == ((edge.public.keyid, "edge-2", "edge"),)
    assert search.find(edge.public.keyid[:9]).members == ((edge.public.keyid, "edge-2", "edge"),)
    assert set(search.find("3").versions) == {("sentiment", 3), ("topic/news", 3)}
    assert set(search.find("3").rounds) == {("sentiment", "run-1", 3), ("topic/news", "run-1", 3)}
    assert len(search.find("run-1").rounds) == 17
    assert search.find("0c0c0c").versions == (("sentiment", 12),)
    assert search.find("%").empty
    assert search.find("  ").empty
    assert search.find("9" * 400).empty
    assert len(search.find("o").members) <= MOST + 1


def test_the_search_page_leads_to_what_it_found(told: Served) -> None:
    page = httpx.get(told.url + "/search?q=sentiment").text
    for href in re.findall(r'href="(/expert\?[^"]*|/round\?[^"]*|/version\?[^"]*|/client\?[^"]*)"', page):
        assert httpx.get(told.url + href.replace("&amp;", "&")).status_code == 200
    assert "Nothing has this" in text_of(told, "/search?q=zebra")
    assert "<script>" not in httpx.get(told.url + "/search", params={"q": "<script>alert(1)</script>"}).text


def test_an_overview_without_faults_says_that_nothing_needs_attention(tmp_path: Path, serving: Callable[..., Served]) -> None:
    tell(tmp_path / "data", Story(now_ms=now_ms())).close()
    assert "Nothing needs attention" in text_of(serving(tmp_path / "data"), "/")


def test_late_rounds_refusals_members_behind_certificates_and_quality_are_alerts(
    tmp_path: Path, serving: Callable[..., Served]
) -> None:
    now = now_ms()
    ledger = tell(tmp_path / "data", Story(now_ms=now))
    ledger.open_round(Round("sentiment", "run-9", 1, b"n" * 16, 12, now - 1000, now - 9000))
    ledger.record_refusal(Refusal(now, "ipv4:192.0.2.1:5", "sentiment", 1, "bad_signature", "not signed"))
    ledger.record_refusal(Refusal(now, "ipv4:192.0.2.1:5", "sentiment", 1, "expired", "an honest mistake"))
    key = new_key().public
    invited = Invited("0" * 16, b"d" * 32, "late", "edge", now + 1000)
    ledger.membership.invite(invited, now)
    ledger.membership.redeem(invited, key, Certified("01", now + 3 * 24 * 3600 * 1000 + 5000), now)
    edge = next(m for m in ledger.members() if m.name == "edge-1")
    with ledger.engine.begin() as connection:
        late = (schema.transfers.c.keyid == edge.public.keyid, schema.transfers.c.version > 7)
        connection.execute(sa.delete(schema.transfers).where(*late))
        lower = (schema.quality.c.version == 12, schema.quality.c.arm == "synced")
        connection.execute(sa.update(schema.quality).where(*lower), {"value": 0.5})
    ledger.close()
    site = serving(tmp_path / "data")
    text = text_of(site, "/")
    for alert in (
        "Round 1 of sentiment is open past its deadline",
        "1 refused as bad_signature in the last 24 hours",
        "sentiment version 12 has a lower accuracy than base only: 50.0 % against 80.3 %",
        "edge-1 has version 7 of sentiment: 5 behind",
        "The certificate of late ends in 3 days",
    ):
        assert alert in text
    assert "refused as expired" not in text
    assert "5 behind in sentiment" in text_of(site, "/clients?name=EDGE-1")
    assert "5 behind" not in text_of(site, "/clients?name=edge-2")


def test_a_thousand_members_come_in_pages(tmp_path: Path, serving: Callable[..., Served]) -> None:
    ledger = open_ledger(tmp_path / "data")
    for number in range(60):
        ledger.enrol(f"site-{number:02}", new_key().public, "edge", 1)
    ledger.close()
    site = serving(tmp_path / "data")
    assert "page 1 of 2" in text_of(site, "/clients")
    assert "site-59" in text_of(site, "/clients?page=2")
    assert "site-59" not in text_of(site, "/clients")


def test_every_entry_of_a_real_ledger_is_a_sentence_with_names(told: Served) -> None:
    text, page = text_of(told, "/audit"), httpx.get(told.url + "/audit").text
    assert "edge-0 was enrolled as edge." in text_of(told, "/audit?action=enrol")
    assert "ipv4:192.0.2.1:4000 was refused sentiment: replay" in text
    assert page.count("<details>") == 50
    assert all(entry.hash.hex() in page for entry in told.ledger.audit_entries()[-50:])


@pytest.mark.parametrize("action", [*SENTENCES, "unheard of"])
@pytest.mark.parametrize("detail", ["{}", '{"keyid":"' + "a" * 32 + '","round":3,"x_y":"z"}', "[]", "{broken", '{"round":null}'])
def test_any_entry_can_be_said(action: str, detail: str) -> None:
    line = AuditLine(1, 1, action, "sentiment", detail, b"h" * 32)
    sentence = said(line, {"a" * 32: "berlin"}).sentence
    assert "sentiment" in sentence
    assert "a" * 32 not in sentence
    assert said(replace(line, action="accept"), {"a" * 32: "berlin"}).sentence.startswith("An update of")


def test_actions_that_the_ledger_writes_have_a_sentence(told: Served) -> None:
    written = {entry.event.action for entry in told.ledger.audit_entries()}
    assert written <= set(SENTENCES)
    assert Behind(told.ledger).refused_since(0) == {"bad_signature": 60, "replay": 2}


def test_figures_are_kept_until_the_ledger_changes_or_a_minute_is_over(told: Served) -> None:
    reads, clock = [], [0]
    kept = KeptFigures(Summaries(told.ledger), lambda: clock[0])
    assert [kept.get("cards", lambda: reads.append(1) or len(reads)) for _ in range(3)] == [1, 1, 1]
    told.ledger.record_refusal(Refusal(now_ms(), "ipv4:192.0.2.1:5", "sentiment", 1, "replay", "again"))
    assert kept.get("cards", lambda: reads.append(1) or len(reads)) == 2
    clock[0] = 60_000
    assert kept.get("cards", lambda: reads.append(1) or len(reads)) == 3
