"""One ledger, every face: JSON, HTML, Markdown, text, CSV, metrics and the live page state the same figures."""

import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from compeft_client.cli.main import run
from compeft_proto.clock import now_ms
from compeft_server.data_directory import open_ledger
from compeft_server.domain.records import Transfer
from compeft_server.reports.formats.text import human_bytes, human_metric, human_times
from tests.server.dashboard.conftest import Served
from tests.server.dashboard.ledgers import LAYOUT, Story, tell

EXPERTS = ("sentiment", "topic")


class Tables(HTMLParser):
    """Every table of a page as rows of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self._inside = False

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._inside = True

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._inside:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def parsed(page: str) -> Tables:
    found = Tables()
    found.feed(page)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts; of the first an upload of a round that is still open, which led to no version yet."""
    folder, now = tmp_path_factory.mktemp("faces") / "data", now_ms()
    ledger = tell(folder, Story(now_ms=now), Story("topic", rounds=3, clients=2, now_ms=now))
    edge = next(m.public.keyid for m in ledger.members() if m.name == "edge-0")
    late = Transfer(now, "up", edge, "sentiment", "run-1", 13, 13, 4 * LAYOUT.size, 700, 9_000_000, 300, 2.0)
    ledger.record_transfer(late)
    flowing = Transfer(now, "up", edge, "sentiment", "run-1", 12, 12, 0, 0, 900, 300, 2.0, 0, 1_000_000, 0.5)
    ledger.record_transfer(flowing)
    ledger.close()
    return folder


@pytest.fixture(scope="module")
def faces(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By expert and format, what `compeft report` writes."""
    folder, found = tmp_path_factory.mktemp("written"), {}
    for expert in EXPERTS:
        for kind in ("json", "html", "md", "csv", "text"):
            path = folder / f"{expert}.{kind}"
            assert run(["report", "--data", str(data), "--expert", expert, "--format", kind, "-o", str(path)]) == 0
            found.setdefault(expert, {})[kind] = path.read_text()
        found[expert]["values"] = json.loads(found[expert]["json"])
    return found


def total_cells(values: dict[str, Any]) -> list[str]:
    up, down = values["up"], values["down"]
    sizes = [values["dense_fp32_bytes"], values["dense_bf16_bytes"], up["payload_bytes"], down["payload_bytes"]]
    return [human_bytes(size) for size in (*sizes, up["wire_bytes"], down["wire_bytes"])]


@pytest.mark.parametrize("expert", EXPERTS)
def test_csv_adds_up_to_the_json(faces: dict[str, dict[str, Any]], expert: str) -> None:
    values, rows = faces[expert]["values"], list(csv.DictReader(faces[expert]["csv"].splitlines()))
    for direction in ("up", "down"):
        ours = [r for r in rows if r["direction"] == direction and r["role"] == "edge"]
        for name in ("dense_fp32_bytes", "dense_bf16_bytes", "payload_bytes", "relayed_bytes"):
            assert sum(int(r[name]) for r in ours) == values[direction][name], name
        wire = sum(int(r["wire_received_bytes"]) + int(r["wire_sent_bytes"]) for r in ours)
        assert wire == values[direction]["wire_bytes"]
    by_version = {int(r["version"]): r["quality"] for r in rows}
    for version in values["versions"]:
        stated = by_version[version["version"]]
        assert (float(stated) if stated else None) == pytest.approx(version["accuracy"])
        assert {r["quality_reported_by"] for r in rows} == {""}
    assert [float(r["quality_base"]) for r in rows] == pytest.approx([values["base_accuracy"]] * len(rows))


@pytest.mark.parametrize("expert", EXPERTS)
def test_a_saving_is_of_the_bytes_that_led_to_the_quality_beside_it(faces: dict[str, dict[str, Any]], expert: str) -> None:
    values = faces[expert]["values"]
    led = [v for v in values["versions"] if v["version"] <= values["final_version"]]
    wire = sum(v[way]["wire_bytes"] for v in led for way in ("up", "down"))
    dense = sum(v[way]["dense_fp32_bytes"] for v in led for way in ("up", "down"))
    assert values["savings_of"]["wire_bytes"] == wire
    assert values["savings_fp32"] == pytest.approx(dense / wire)
    assert values["savings_bf16"] == pytest.approx(dense / 2 / wire)
    assert (wire < values["wire_bytes"]) == (expert == "sentiment")


@pytest.mark.parametrize("expert", EXPERTS)
def test_html_markdown_and_text_show_the_figures_of_the_json(faces: dict[str, dict[str, Any]], expert: str) -> None:
    values, page = faces[expert]["values"], parsed(faces[expert]["html"])
    by_name = {row[0].strip(): [cell.strip() for cell in row] for row in page.rows if row}
    assert by_name["total"][3:9] == total_cells(values)
    fp32, bf16 = human_times(values["savings_fp32"]), human_times(values["savings_bf16"])
    quality = human_metric("accuracy", values["savings_of"]["accuracy"])
    row = "total" if values["savings_of"]["wire_bytes"] == values["wire_bytes"] else f"up to {values['final_version']}"
    assert by_name[row][9:11] == [fp32, bf16]
    assert by_name[row][1] == quality
    text, markdown = " ".join(faces[expert]["text"].split()), faces[expert]["md"]
    said = f"{fp32} fewer bytes than dense fp32, {bf16} than bf16, at accuracy {quality}"
    assert said in page.text
    assert said in text
    assert said in markdown
    for version in values["versions"]:
        shown = human_metric("accuracy", version["accuracy"])
        name = f"{version['version']}" + ("" if version["published"] else " (open)")
        assert by_name[name][1] == shown
        assert by_name[name][9:11] == [human_times(version["savings_fp32"]), human_times(version["savings_bf16"])]
        cells = [c.strip() for c in re.search(rf"(?m)^\| {version['version']} \|.*$", markdown).group().split("|")]  # type: ignore[union-attr]
        assert cells[2] == shown
        assert cells[7:9] == [human_times(version["savings_fp32"]), human_times(version["savings_bf16"])]


@pytest.mark.parametrize("expert", EXPERTS)
def test_a_rate_is_that_of_bytes_that_flowed(faces: dict[str, dict[str, Any]], expert: str) -> None:
    rate = faces[expert]["values"]["measured_bits_per_second"]
    assert rate == (8 * 1_000_000 / 0.5 if expert == "sentiment" else None)
    for kind in ("html", "md"):
        assert ("measured upload rate, 16 Mbit/s" in faces[expert][kind]) == (expert == "sentiment")


def test_metrics_and_the_live_page_have_the_figures_of_the_json(
    data: Path, faces: dict[str, dict[str, Any]], serving: Callable[..., Served]
) -> None:
    site = serving(data)
    samples = {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(httpx.get(site.url + "/metrics").text)
        for s in family.samples
    }
    table = parsed(httpx.get(site.url + "/experts").text)
    by_name = {row[0].strip(): [cell.strip() for cell in row] for row in table.rows if row}
    overview = parsed(httpx.get(site.url + "/").text).text
    for expert in EXPERTS:
        values = faces[expert]["values"]
        for way in ("up", "down"):
            label = (("direction", way), ("expert", expert))
            for name, key in {
                "wire_received_bytes": "wire_to_aggregator_bytes",
                "wire_sent_bytes": "wire_from_aggregator_bytes",
            }.items():
                assert samples[f"compeft_{name}_total", label] == values[way][key]
            for name in ("payload_bytes", "dense_fp32_bytes", "relayed_bytes"):
                assert samples[f"compeft_{name}_total", label] == values[way][name]
        for arm, key in {"synced": "final_accuracy", "base": "base_accuracy"}.items():
            where = (("arm", arm), ("expert", expert), ("metric", "accuracy"), ("source", "measured"))
            assert samples["compeft_quality", where] == pytest.approx(values[key])
        bf16, fp32 = human_times(values["savings_bf16"]), human_times(values["savings_fp32"])
        assert by_name[expert][-2:] == [human_bytes(values["wire_bytes"]), bf16]
        assert f"{human_bytes(values['wire_bytes'])} on the wire" in overview
        assert f"{bf16} fewer than bf16, {fp32} than fp32" in overview
        page = parsed(httpx.get(f"{site.url}/expert?name={expert}").text)
        rows = {row[0].strip(): [cell.strip() for cell in row] for row in page.rows if row}
        for version in values["versions"]:
            if version["published"]:
                assert rows[str(version["version"])][-2:] == [
                    human_metric("accuracy", version["accuracy"]),
                    human_times(version["savings_bf16"]),
                ]
    open_ledger(data).close()
