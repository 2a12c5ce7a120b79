"""Business metrics over time: stated once, kept, and shown beside the bytes in every format."""

import json
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_client.cli.main import run
from compeft_proto.clock import now_ms
from compeft_proto.errors import ConflictError
from compeft_server.data_directory import open_ledger
from compeft_server.domain.kpi import Kpi, KpiSeries, KpiValue
from compeft_server.ledger.audit import check
from compeft_server.reports.formats.kpi_chart import HEIGHT, LEFT, WIDTH, draw_kpi, human_value
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


def test_every_face_shows_the_newest_value_with_goal_and_baseline(
    data: Path, capsys: pytest.CaptureFixture[str], serving: object
) -> None:
    assert add(data, "--unit", "%", "--goal", "70", "--baseline", "61", "--value", "66.5") == 0
    capsys.readouterr()
    said = {}
    for kind in ("json", "html", "md", "text"):
        assert run(["report", "--data", str(data), "--format", kind]) == 0
        said[kind] = capsys.readouterr().out
    assert json.loads(said["json"])["kpis"][0]["values"][0]["value"] == 66.5
    assert "tickets solved: 66.5 %; goal 70 %, baseline 61 %" in said["html"]
    assert said["html"].count('class="mark-version"') == 4
    assert "| tickets solved | 66.5 % | 70 % | 61 % |" in said["md"]
    assert "tickets solved: 66.5 %" in said["text"]
    site = serving(data)  # type: ignore[operator]
    assert "tickets solved: 66.5 %; goal 70 %" in httpx.get(site.url + "/expert?name=sentiment").text
    assert 'compeft_kpi{expert="sentiment",name="tickets solved"} 66.5' in httpx.get(site.url + "/metrics").text


@given(st.lists(st.tuples(st.integers(0, 2**42), st.floats(-1e9, 1e9)), max_size=8), st.none() | st.floats(-1e9, 1e9))
def test_every_point_lies_in_the_picture(values: list[tuple[int, float]], goal: float | None) -> None:
    series = KpiSeries(Kpi("e", "n", goal=goal), tuple(KpiValue(at, v) for at, v in sorted(dict(values).items())))
    chart = draw_kpi(series, [(1, 5)])
    assert (chart is None) == (not values)
    if chart is not None:
        assert all(LEFT <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in chart.points)
    assert human_value(None, "%") == "–"
