"""`compeft report --to mlflow`: the figures of the JSON at a tracking server, in a database and in MLflow's own file store."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from compeft_client.cli.main import run
from compeft_proto.clock import now_ms
from tests.server.dashboard.ledgers import Story, tell

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow's own use of SQLAlchemy


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tell(tmp_path / "data", Story(rounds=3, now_ms=now_ms())).close()
    add = ["kpi", "add", "sentiment", "--data", str(tmp_path / "data"), "--name", "tickets solved (%)"]
    assert run([*add, "--value", "63", "--at", "2026-11-01"]) == run([*add, "--value", "66", "--at", "2026-11-08"]) == 0
    return tmp_path / "data"


@pytest.mark.parametrize("store", ["sqlite", "file"])
def test_the_run_has_the_figures_of_the_json(
    data: Path, tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}" if store == "sqlite" else f"file:{tmp_path / 'mlruns'}"
    money = ["--price-per-gb", "80"]
    assert run(["report", "--data", str(data), *money, "--format", "json"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert run(["report", "--data", str(data), *money, "--to", "mlflow", "--tracking-uri", uri]) == 0
    number = capsys.readouterr().out.split("MLflow run ")[1].split()[0]
    client = MlflowClient(tracking_uri=uri)
    found = client.get_run(number)
    assert found.info.status == "FINISHED"
    assert found.data.params["expert"] == "sentiment"
    for name in ("wire_bytes", "savings_bf16", "final_accuracy", "base_accuracy", "dense_bf16_bytes"):
        assert found.data.metrics[name] == pytest.approx(values[name])
    assert found.data.metrics["up.wire_bytes"] == values["up"]["wire_bytes"]
    assert found.data.metrics["cost.wire"] == pytest.approx(values["cost"]["wire"])
    steps = {m.step: m.value for m in client.get_metric_history(number, "version.accuracy")}
    assert steps == pytest.approx({v["version"]: v["accuracy"] for v in values["versions"] if v["accuracy"] is not None})
    history = client.get_metric_history(number, "kpi.tickets solved ___")
    assert [(m.value, m.timestamp) for m in history] == [(v["value"], v["at_ms"]) for v in values["kpis"][0]["values"]]
    assert {a.path for a in client.list_artifacts(number)} == {"report.json", "report.html"}


def test_a_tracking_server_that_is_not_named_or_not_known_is_said_so(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "--data", str(data), "--to", "mlflow"]) == 3
    assert "expected --tracking-uri" in capsys.readouterr().err
    assert run(["report", "--data", str(data), "--to", "mlflow", "--tracking-uri", "nowhere://x"]) == 3
    assert "refused the report" in capsys.readouterr().err
