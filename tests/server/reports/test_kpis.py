"""Business metrics over time: stated once, kept, and shown beside the bytes in every format."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_client.cli.main import run
from compeft_proto.clock import now_ms
from compeft_proto.errors import ConflictError
from compeft_server.data_directory import open_ledger
from compeft_server.domain.kpi import Kpi, KpiSeries, KpiValue
from compeft_server.ledger.audit import check
from compeft_server.reports.figures.report import Publication
from compeft_server.reports.formats.kpi_chart import AXIS, BYTES_BOTTOM, BYTES_TOP, LEFT, WIDTH, draw_kpi, human_value
from compeft_server.reports.formats.text import iso
from tests.server.dashboard.conftest import Served
from tests.server.dashboard.ledgers import Story, tell

NAME = "tickets solved"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tell(tmp_path / "data", Story(rounds=3, clients=2, now_ms=now_ms())).close()
    return tmp_path / "data"


def add(data: Path, *options: str) -> int:
    return run(["kpi", "add", "sentiment", "--data", str(data), "--name", NAME, *options])


def test_values_from_the_command_line_and_from_a_file_are_one_series(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("at,value,note\n2026-11-02,64.5,x\n2026-11-03T08:00+01:00,66,\n")
    assert add(data, "--unit", "%", "--goal", "70", "--baseline", "61", "--value", "63", "--at", "2026-11-01") == 0
    assert add(data, "--csv", str(tmp_path / "t.csv")) == 0
    assert add(data, "--csv", str(tmp_path / "t.csv")) == 0
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "1 new value",
        "2 new values",
        "0 new values",
    ]
    assert run(["kpi", "list", "sentiment", "--data", str(data), "--format", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed == [
        {"name": NAME, "unit": "%", "goal": 70.0, "baseline": 61.0, "values": 3, "newest": 66.0, "at": "2026-11-03T07:00:00.000Z"}
    ]
    ledger = open_ledger(data)
    check(ledger.audit_entries())
    with pytest.raises(ConflictError, match=r"is 66\.0, not 67\.0"):
        ledger.kpis.add(Kpi("sentiment", NAME), [KpiValue(ledger.kpis.series("sentiment")[0].values[-1].at_ms, 67.0)], 1)
    ledger.close()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--value", "nan"],
        ["--value", "1", "--csv", "x"],
        ["--csv", "nowhere.csv"],
        ["--value", "1", "--at", "soon"],
        ["--value", "1", "--unit", "x" * 17],
        ["--value", "1", "--goal", "inf"],
    ],
)
def test_what_is_no_value_is_refused(data: Path, options: list[str]) -> None:
    assert add(data, *options) == 3


@pytest.mark.parametrize(
    "text", ["at,value\nx,1\n", "at,value\n2026-11-01,nan\n", "at,value\n2026-11-01\n", "when,value\n2026-11-01,1\n"]
)
def test_a_damaged_file_is_refused_by_its_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert add(data, "--csv", str(tmp_path / "t.csv")) == 4
    assert "line 2" in (said := capsys.readouterr().err) or "no column 'at'" in said


def test_every_face_shows_the_same_series_with_goal_and_baseline(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], serving: Callable[..., Served]
) -> None:
    assert add(data, "--unit", "%", "--goal", "70", "--baseline", "61", "--value", "63.5", "--at", "2020-01-01") == 0
    assert add(data, "--value", "66.5") == 0
    capsys.readouterr()
    said = {}
    for kind in ("json", "html", "md", "text"):
        assert run(["report", "--data", str(data), "--format", kind]) == 0
        said[kind] = capsys.readouterr().out
    (stated,) = json.loads(said["json"])["kpis"]
    newest, goal, baseline = stated["values"][-1]["value"], stated["goal"], stated["baseline"]
    assert (newest, goal, baseline) == (66.5, 70, 61)
    words = f"tickets solved: {newest:g} %; goal {goal:g} %, baseline {baseline:g} %"
    assert words in said["html"]
    assert said["html"].count('class="mark-version"') == 4
    assert f"| tickets solved | {newest:g} % | {goal:g} % | {baseline:g} % |" in said["md"]
    assert f"tickets solved: {newest:g} %, goal {goal:g} %, baseline {baseline:g} %" in said["text"]
    site = serving(data)
    assert words in httpx.get(site.url + "/expert?name=sentiment").text
    metrics = httpx.get(site.url + "/metrics").text
    for name, value in (("kpi", newest), ("kpi_goal", goal), ("kpi_baseline", baseline)):
        assert f'compeft_{name}{{expert="sentiment",name="tickets solved"}} {float(value)}' in metrics
    assert run(["report", "--data", str(data), "--format", "csv", "--rows", "kpis"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [float(r["value"]) for r in rows] == [v["value"] for v in stated["values"]]
    assert [r["at"] for r in rows] == [iso(v["at_ms"]) for v in stated["values"]]
    assert {(float(r["goal"]), float(r["baseline"]), r["unit"]) for r in rows} == {(goal, baseline, "%")}
    values = json.loads(said["json"])
    assert [int(r["wire_bytes"]) for r in rows] == [0, values["wire_bytes"]]
    assert [int(r["dense_bf16_bytes"]) for r in rows] == [0, values["dense_bf16_bytes"]]
    assert [r["version"] for r in rows] == ["", "3"]
    assert run(["report", "--data", str(data), "--format", "parquet", "--rows", "kpis", "-o", str(tmp_path / "k.parquet")]) == 0
    assert pq.read_table(tmp_path / "k.parquet")["value"].to_pylist() == [63.5, 66.5]
    assert run(["report", "--data", str(data), "--format", "json", "--rows", "kpis"]) == 3


VERSIONS = st.lists(
    st.builds(Publication, st.just(1), st.integers(0, 2**42), st.integers(0, 10**12), st.integers(0, 10**13)), max_size=5
)


@given(st.lists(st.tuples(st.integers(0, 2**42), st.floats(-1e9, 1e9)), max_size=8), st.none() | st.floats(-1e9, 1e9), VERSIONS)
def test_every_point_and_bar_lies_in_the_picture(
    values: list[tuple[int, float]], goal: float | None, versions: list[Publication]
) -> None:
    series = KpiSeries(Kpi("e", "n", goal=goal), tuple(KpiValue(at, v) for at, v in sorted(dict(values).items())))
    chart = draw_kpi(series, versions)
    assert (chart is None) == (not values)
    if chart is not None:
        assert all(LEFT <= x <= WIDTH and 0 <= y <= AXIS for x, y in chart.points)
        assert all(b.x >= LEFT and b.x + b.width <= WIDTH for b in chart.bars)
        assert all(BYTES_TOP <= y <= BYTES_BOTTOM for b in chart.bars for y in (b.dense, b.wire))
    assert human_value(None, "%") == "–"
