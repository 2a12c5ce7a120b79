"""The report for a manager: its first paragraph, and the same page in Japanese with the same figures."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compeft_client.cli.main import run
from compeft_server.domain.price import Price
from compeft_server.domain.traffic import Score
from compeft_server.reports.figures.build import read_report
from compeft_server.reports.figures.extras import DensityRow, Extras, Pool
from compeft_server.reports.figures.report import DenseArm, Report
from compeft_server.reports.formats.catalogue_ja import JAPANESE
from compeft_server.reports.formats.html import to_html
from compeft_server.reports.formats.language import ENGLISH, language_of
from compeft_server.reports.formats.summary import summary
from tests.server.dashboard.ledgers import START_MS, Story, refuse, tell

FIGURE = re.compile(r"\d[\d,.]*")
POOL = Pool("cuda", 900.0, 25.0, 0.0021, 0.012)
PRODUCT_WORDS = {"ComPEFT", "sentiment", "accuracy", "edge", "conductor", "bf16", "fp32", "bfloat16", "payload"}


class Words(HTMLParser):
    """The text of a page, and of the column names on its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._style = tag == "style"
        self.found += [value or "" for name, value in attrs if name == "data-label"]

    def handle_data(self, data: str) -> None:
        self.found += [] if self._style or not data.strip() else [data.strip()]


def words_of(page: str) -> list[str]:
    words = Words()
    words.feed(page)
    return words.found


@pytest.fixture
def report(tmp_path: Path) -> Report:
    ledger = tell(tmp_path, Story())
    refuse(ledger, 30, START_MS)
    found = read_report(ledger, "sentiment")
    ledger.close()
    return found


def full(report: Report) -> tuple[Report, Extras]:
    """A report in which every section has something to say."""
    dense = DenseArm("accuracy", (0.5, *[0.9] * 12), 4, 10, 1000, 2.0, "a counter")
    extras = Extras(Price(8.0, "JPY"), POOL, (DensityRow(0.05, 700, 32_000, ""), DensityRow(0.2, 1900, 32_000, "down")))
    return replace(report, dense=dense), extras


def test_the_first_paragraph_says_bytes_quality_and_money_in_sentences(report: Report) -> None:
    words = summary(report, Price(0.08, "EUR"))
    assert words.startswith("On 21 September 2026, 4 clients moved 255 kB instead of 3.20 MB as dense bf16: 12.5× fewer bytes.")
    assert "The accuracy rose from 80.3 % to 85.2 % (measured by 4 clients)." in words
    assert "Uncompressed it is 85.5 %: a difference of \u22120.3 points." in words
    assert "less per 1,000 rounds." in words
    assert words in to_html(report, Extras(Price(0.08, "EUR"))).replace("&#39;", "'")


def test_a_quality_that_fell_or_was_only_reported_is_said_to_be(report: Report) -> None:
    low = Score(0.5, 0.5, 0.5, 1, "alice")
    rows = tuple(replace(row, score=low if row.score else None) for row in report.versions)
    assert "fell from 80.3 % to 50.0 % (reported by alice, not measured)" in summary(replace(report, versions=rows))
    assert "bytes alone say nothing" in summary(
        replace(report, versions=tuple(replace(row, score=None) for row in report.versions))
    )


def test_the_japanese_page_has_the_figures_of_the_english_one(report: Report) -> None:
    found, extras = full(report)
    pages = [to_html(found, extras, language_of(code)) for code in ("en", "ja")]
    tables = [re.findall(r"<tbody>.*?</tbody>", page, re.DOTALL) for page in pages]
    figures = [[FIGURE.findall(re.sub(r'data-label="[^"]*"|<[^>]*>', " ", table)) for table in page[:2]] for page in tables]
    assert figures[0] == figures[1]
    assert sum(map(len, figures[0])) > 100
    assert '<html lang="ja">' in pages[1]
    assert "2026年9月21日" in pages[1]


def test_no_english_sentence_is_left_on_the_japanese_page(report: Report) -> None:
    found, extras = full(report)
    for page in (to_html(found, extras, language_of("ja")), to_html(replace(found, versions=()), Extras(), language_of("ja"))):
        own = [w for w in words_of(page) if "key 0000" not in w]
        english = [
            w
            for w in own
            if len(set(re.findall(r"[A-Za-z]{3,}", w)) - PRODUCT_WORDS) > 3 and not re.search(r"[\u3040-\u30ff]", w)
        ]
        assert english == []


def test_every_sentence_has_the_same_values_in_both_languages() -> None:
    places = re.compile(r"\{(\w+)\}")
    for english, japanese in JAPANESE.items():
        assert sorted(set(places.findall(english))) == sorted(set(places.findall(japanese))), english


def test_counted_nouns_follow_their_number() -> None:
    assert ENGLISH("measured by {clients} client(s)", clients=1) == "measured by 1 client"
    assert ENGLISH("measured by {clients} client(s)", clients=12) == "measured by 12 clients"
    assert language_of("ja").count(1234567) == "1,234,567"


def test_the_command_writes_the_page_in_japanese_and_refuses_other_languages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(tmp_path / "data", Story(rounds=2, clients=2)).close()
    command = ["report", "--data", str(tmp_path / "data")]
    assert run([*command, "--format", "html", "--language", "ja", "-o", str(tmp_path / "report.html")]) == 0
    assert "通信量レポート" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert run([*command, "--format", "html", "--language", "xx"]) == 3
    assert "expected en or ja" in capsys.readouterr().err
    assert run([*command, "--format", "json", "--language", "ja"]) == 3
    assert run([*command, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["clients"] == 2
