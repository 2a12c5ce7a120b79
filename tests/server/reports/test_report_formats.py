"""The manager's report from the command line: since, price, pool, densities; HTML, Markdown, JSON, CSV and Parquet."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from compeft_client.cli.main import run
from compeft_core import Compression, compress, encode, layout_of
from compeft_core.errors import FormatError, InputError
from compeft_server.cli.report import moment_of
from compeft_server.data_directory import open_ledger
from compeft_server.domain.records import Quality
from compeft_server.reports.figures.build import read_report
from compeft_server.reports.figures.extras import DENSITIES, payload_size, pool_from_json
from compeft_server.reports.formats.table_rows import COLUMNS, rows_of, to_csv
from compeft_server.reports.formats.text import MAX_VERSIONS, human_money
from tests.server.dashboard.ledgers import LAYOUT, ROUND_MS, START_MS, Story, tell

POOL = {
    "device": "cuda",
    "experts_per_gb": 900.5,
    "bf16_experts_per_gb": 25,
    "switch_s": 0.0021,
    "bf16_hotswap_s": 0.012,
    "more": 1,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tell(tmp_path / "data", Story()).close()
    return tmp_path / "data"


def report(data: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert run(["report", "--data", str(data), *options]) == 0
    return capsys.readouterr().out


# What it counts


def test_since_leaves_out_earlier_bytes_but_not_the_quality(data: Path) -> None:
    ledger = open_ledger(data)
    everything = read_report(ledger, "sentiment")
    late = read_report(ledger, "sentiment", since_ms=START_MS - 4 * ROUND_MS)
    assert [row.version for row in late.versions] == [9, 10, 11, 12]
    assert late.rounds == 4
    assert late.traffic.wire_bytes == sum(row.traffic.wire_bytes for row in everything.versions[-4:])
    assert late.base == everything.base
    assert late.final is not None
    assert late.final.score == everything.versions[-1].score
    ledger.close()


def test_the_text_has_base_only_uncompressed_and_compressed_beside_the_saving(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = report(data, capsys)
    assert [line.split()[:3] for line in said.splitlines() if line.strip().startswith(("base only", "uncompressed"))] == [
        ["base", "only", "80.3"],
        ["uncompressed", "85.5", "%"],
    ]
    assert "at accuracy 85.2 % (base only 80.3 %, uncompressed 85.5 %), version 12, measured by 4 clients" in " ".join(
        said.split()
    )


def test_a_locale_without_a_character_of_the_report_gets_a_question_mark(data: Path) -> None:
    command = [str(Path(sys.executable).with_name("compeft")), "report", "--data", str(data)]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "latin-1"}, check=True)
    assert b"?" in done.stdout


def test_the_spread_over_clients_and_runs_is_stated(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = open_ledger(data)
    found = read_report(ledger, "sentiment")
    assert found.deviation == pytest.approx(np.std([0.0, 0.004, 0.008, 0.012], ddof=1))
    assert [r.run for r in found.runs] == ["run-1"]
    client = ledger.members()[1].public.keyid
    ledger.record_quality(Quality(1, "sentiment", "run-2", 1, 12, "synced", client, "accuracy", 0.9, 250))
    ledger.close()
    assert "over 2 runs" in report(data, capsys, "--format", "html")
    assert "run run-2 | 90.0 %" in report(data, capsys, "--format", "md")


@pytest.mark.parametrize(("words", "at_ms"), [("1970-01-02", 86_400_000), ("1970-01-01T02:00+01:00", 3_600_000)])
def test_since_takes_days_and_times_in_utc_unless_they_name_a_zone(words: str, at_ms: int) -> None:
    assert moment_of(words) == at_ms


def test_since_takes_nothing_else() -> None:
    with pytest.raises(InputError, match="is not a date"):
        moment_of("yesterday")


def test_old_versions_of_a_long_log_share_a_row_and_the_sums_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(tmp_path, Story(rounds=MAX_VERSIONS + 49, clients=1)).close()
    page = report(tmp_path, capsys, "--format", "html")
    assert "0 to 49" in page
    assert 'scope="row">50</th>' in page
    assert 'scope="row">49</th>' not in page


# Money, pool, densities


def test_money_is_bytes_times_the_price(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(report(data, capsys, "--format", "json", "--price-per-gb", "0.5", "--currency", "CHF"))
    assert values["cost"]["wire"] == pytest.approx(values["wire_bytes"] / 1e9 * 0.5)
    assert values["cost"]["currency"] == "CHF"
    assert json.loads(report(data, capsys, "--format", "json"))["cost"] is None
    assert [human_money(a, "EUR") for a in (1234.5, 0.0, 0.08, 0.000236)] == [
        "1,234.50 EUR",
        "0.00 EUR",
        "0.0800 EUR",
        "0.000236 EUR",
    ]


@pytest.mark.parametrize("options", [["--price-per-gb", "nan"], ["--price-per-gb", "1", "--currency", ""]])
def test_a_price_that_cannot_be_is_refused(data: Path, options: list[str]) -> None:
    assert run(["report", "--data", str(data), "--format", "json", *options]) in (2, 3)


def test_gpu_use_is_what_was_measured_or_said_not_to_be(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pool.json").write_text(json.dumps(POOL))
    for format in ("html", "md"):
        assert ("No pool has reported" if format == "html" else "Not measured") in report(data, capsys, "--format", format)
        shown = report(data, capsys, "--format", format, "--pool", str(tmp_path / "pool.json"))
        assert all(words in shown for words in ("measured on cuda", "900", "2.10 ms", "12.0 ms"))


@pytest.mark.parametrize("option", ["--pool", "--dense"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_file_beside_the_ledger_is_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, content: bytes
) -> None:
    (tmp_path / "damaged.json").write_bytes(content)
    assert run(["report", "--data", str(data), option, str(tmp_path / "damaged.json")]) == 4
    assert f"{tmp_path / 'damaged.json'}: " in capsys.readouterr().err


def test_a_terminal_shows_the_money_and_the_pool_too(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pool.json").write_text(json.dumps(POOL))
    plain = report(data, capsys)
    assert "a GB" not in plain
    shown = report(data, capsys, "--price-per-gb", "0.5", "--currency", "CHF", "--pool", str(tmp_path / "pool.json"))
    assert "at 0.500 CHF a GB" in shown
    assert "on cuda: 900 experts a GB" in shown
    assert "2.10 ms to switch" in shown


@pytest.mark.parametrize("change", [{"switch_s": 0}, {"experts_per_gb": "9"}, {"device": ""}, {"bf16_hotswap_s": float("nan")}])
def test_a_pool_file_with_a_field_that_cannot_be_is_refused_by_name(change: dict[str, object]) -> None:
    with pytest.raises(FormatError, match=next(iter(change))):
        pool_from_json(json.dumps(POOL | change))
    with pytest.raises(FormatError):
        pool_from_json("[]")


def test_sizes_at_other_densities_are_those_of_real_encodings() -> None:
    layout = layout_of({"a.lora_A": (8, 4000), "a.lora_B": (4000, 8), "head": (2, 10)}, dense=["head"])
    vector = np.random.default_rng(1).normal(0, 1, layout.size).astype(np.float32)
    for density in DENSITIES:
        real = len(encode(compress(layout, vector, Compression(density, "norm"))))
        assert payload_size(layout, density) == pytest.approx(real, rel=0.02)


def test_the_quality_of_a_density_is_known_only_where_it_was_used(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["density"]: row["used"] for row in json.loads(report(data, capsys, "--format", "json"))["densities"]}
    assert rows == {0.01: None, 0.02: None, 0.05: None, 0.1: None, 0.2: "down"}
    words = report(data, capsys, "--format", "md")
    assert "| uncompressed | 85.5 % |" in words
    assert "85.2 %, measured (in use, down)" in words
    assert words.count("unknown: not measured at this density") == 4


# Formats


def test_markdown_has_whole_tables_and_no_stray_markup(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = report(data, capsys, "--format", "md")
    assert text.startswith("# Bandwidth report: sentiment")
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 4
    for table in tables:
        assert len({line.count("|") for line in table}) == 1


def test_csv_has_a_documented_row_for_each_transfer(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(report(data, capsys, "--format", "csv").splitlines()))
    assert len(rows) == 100
    assert list(rows[0]) == [column.name for column in COLUMNS]
    up = next(row for row in rows if row["direction"] == "up" and row["version"] == "3")
    assert (up["client"], up["role"], up["dense_fp32_bytes"]) == ("edge-0", "edge", str(4 * LAYOUT.size))
    assert (up["version_density"], up["version_codec"], up["version_method"]) == ("0.2", "context", "average")
    assert float(up["quality_base"]) == pytest.approx(0.803)
    assert up["at"].endswith("Z")


def test_parquet_has_the_same_rows_with_types_and_descriptions(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(data, capsys, "--format", "parquet", "-o", str(tmp_path / "t.parquet"))
    table = pq.read_table(tmp_path / "t.parquet")
    ledger = open_ledger(data)
    assert table.num_rows == len(list(rows_of(ledger, ())))
    ledger.close()
    assert str(table.schema.field("at").type) == "timestamp[ms, tz=UTC]"
    assert all(field.metadata[b"description"] for field in table.schema)
    assert run(["report", "--data", str(data), "--format", "parquet"]) == 3


def test_a_spreadsheet_runs_nothing_of_a_csv() -> None:
    row = {column.name: None for column in COLUMNS} | {"at": 0, "client": "=1+1"}
    assert ",'=1+1," in to_csv(iter([row]))


def test_every_column_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "dashboard.md").read_text()
    for column in COLUMNS:
        assert f"| `{column.name}` |" in page, column.name


def test_an_expert_need_be_named_only_where_there_are_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(tmp_path, Story(rounds=1), Story("topic/news", rounds=1)).close()
    assert run(["report", "--data", str(tmp_path)]) == 3
    assert "sentiment, topic/news" in capsys.readouterr().err
    assert len(report(tmp_path, capsys, "--format", "csv").splitlines()) == 1 + 2 * 12


# Narrow screens


def test_every_cell_of_a_table_carries_the_name_of_its_column(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = report(data, capsys, "--format", "html")
    tables = re.findall(r"<table.*?</table>", page, re.DOTALL)
    assert len(tables) >= 6
    for table in tables:
        columns = re.findall(r"<t[hd]\b[^>]*>", table.split("<thead>")[1].split("</thead>")[0].split("<tr>")[-1])
        for row in re.findall(r"<tr\b.*?</tr>", table.split("<tbody>")[1], re.DOTALL):
            cells = re.findall(r"<t[hd]\b([^>]*)>", row)
            assert len(cells) == len(columns)
            assert all("data-label=" in cell for cell in cells)
    assert 'data-label="wire up"' in page
    assert 'data-label="fewer than bf16"' in page


# Energy


def test_energy_is_bytes_times_the_operators_own_factors_in_every_format(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    factors = ("--kwh-per-gb", "50", "--co2-per-kwh", "380")
    values = json.loads(report(data, capsys, "--format", "json", *factors))
    assert values["energy"]["wire"]["kwh"] == pytest.approx(values["wire_bytes"] / 1e9 * 50)
    assert values["energy"]["dense_bf16"]["co2_g"] == pytest.approx(values["dense_bf16_bytes"] / 1e9 * 50 * 380)
    shown = f"{1000 * values['energy']['wire']['kwh']:.3g} Wh"
    for kind in ("html", "md", "text"):
        words = " ".join(report(data, capsys, "--format", kind, *factors).split())
        assert shown in words
        assert "energy, 50 kWh a GB (given by the operator)" in words
    assert json.loads(report(data, capsys, "--format", "json"))["energy"] is None


@pytest.mark.parametrize("options", [["--kwh-per-gb", "nan"], ["--kwh-per-gb", "-1"], ["--co2-per-kwh", "380"]])
def test_factors_that_cannot_be_are_refused(data: Path, options: list[str]) -> None:
    assert run(["report", "--data", str(data), "--format", "json", *options]) == 3
