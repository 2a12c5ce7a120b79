"""What a scraper gets, and that rules and dashboards ask for nothing else."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import compeft_client
from compeft_proto.clock import now_ms
from compeft_server.dashboard.metrics import Registry
from compeft_server.rpc.call_interceptor import CallMetrics
from tests.server.dashboard.conftest import Served
from tests.server.dashboard.ledgers import Story, refuse, tell

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana").glob("*.json"))
ALWAYS = {"up"}
"""Written by Prometheus itself."""
NAMES = re.compile(r"\b(?:compeft|grpc_server|process|python|up)[a-z0-9_]*\b")


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The text of an aggregator that has done something of everything."""
    data, calls = tmp_path_factory.mktemp("data"), CollectorRegistry()
    ledger = tell(data, Story(now_ms=now_ms()), Story("topic/news", rounds=3, measured=False))
    refuse(ledger, 3, now_ms())
    (data / "partial").mkdir()
    (data / "partial" / "x").write_bytes(b"12345")
    metrics, labels = CallMetrics(calls), ("unary", "compeft.v1.ExpertExchange", "Conduct")
    metrics.began(labels)
    metrics.ended(labels, "OK", 0.1)
    yield Registry(data, ledger, calls).text().decode()
    ledger.close()


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def test_the_ledger_is_added_up(exposed: str) -> None:
    found = samples(exposed)
    assert found["compeft_experts"] == [({}, 2)]
    assert ({"expert": "sentiment"}, 13) in found["compeft_versions_total"]
    assert ({"expert": "sentiment"}, 1) in found["compeft_rounds_open"]
    assert ({"code": "bad_signature"}, 3) in found["compeft_refusals_total"]
    assert ({"code": "unknown_key"}, 0) in found["compeft_refusals_total"]
    assert ({"expert": "sentiment", "direction": "up"}, 4 * 12 * 700) in found["compeft_payload_bytes_total"]
    assert found["compeft_open_upload_bytes"] == [({}, 5)]
    arms = {labels["arm"]: value for labels, value in found["compeft_quality"]}
    assert arms["base"] == pytest.approx(0.803)
    assert set(arms) == {"base", "dense", "synced"}
    assert {"role": "edge", "state": "enrolled"} in [labels for labels, _ in found["compeft_members"]]


def test_names_follow_the_conventions_and_no_label_names_a_client(exposed: str) -> None:
    for family in text_string_to_metric_families(exposed):
        if not family.name.startswith(("compeft", "grpc")):
            continue
        assert family.documentation
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total") or sample.name.endswith("_created")
            assert set(sample.labels) <= {
                "expert", "direction", "code", "arm", "metric", "role", "state", "version", "python",
                "grpc_type", "grpc_service", "grpc_method", "grpc_code", "le", "source",
            }  # fmt: skip
    assert "edge-0" not in exposed


def test_the_page_serves_them(told: Served) -> None:
    answer = httpx.get(told.url + "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert samples(answer.text)["compeft_build_info"][0][0]["version"]


# Dashboards


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda p: p.name)
def test_a_dashboard_is_well_formed(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"]
    assert isinstance(dashboard["schemaVersion"], int)
    panels = dashboard["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    known = {v["name"] for v in dashboard["templating"]["list"]} | {"__rate_interval"}
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${source}"
        assert len({t["refId"] for t in panel["targets"]}) == len(panel["targets"]) > 0
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= known


def of_the_engine_plugin() -> set[str]:
    """Names of the metrics that the plug-in registers in the engine's own process, read from its source: importing it needs the engine."""
    source = (Path(compeft_client.__file__).parent / "serving" / "vllm_plugin.py").read_text()
    counters = re.findall(r'^ +"(\w+)": (?:counts|made)\.', source, re.MULTILINE)
    assert "misses" in counters
    return set(re.findall(r'"(compeft_serving_\w+)"', source)) | {f"compeft_serving_{name}_total" for name in counters}


@pytest.mark.parametrize("path", [*DASHBOARDS, DEPLOY / "prometheus" / "alerts.yml"], ids=lambda p: p.name)
def test_nothing_is_asked_for_that_is_not_exposed(path: Path, exposed: str) -> None:
    there = (of_the_engine_plugin() if path.name == "serving.json" else set(samples(exposed))) | ALWAYS
    text = path.read_text()
    asked = (
        [e for p in json.loads(text)["panels"] for e in (t["expr"] for t in p["targets"])] if path.suffix == ".json" else [text]
    )
    words = {name for expression in asked for name in NAMES.findall(re.sub(r'"[^"]*"', "", expression))}
    rules = {"compeft"}  # the group's and the job's name
    assert words - rules - there == set()
    assert len(words) >= 4


# Rules


def promtool(*arguments: str) -> None:
    found = shutil.which("promtool")
    if found is None and os.environ.get("CI") != "true":
        pytest.skip("no promtool here: apt-get install prometheus")
    assert found, "continuous integration needs promtool"
    done = subprocess.run([found, *arguments], capture_output=True, text=True, cwd=DEPLOY / "prometheus")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_when_it_should_and_only_then() -> None:
    promtool("test", "rules", "alerts_test.yml")


def test_the_configuration_is_valid() -> None:
    promtool("check", "config", "prometheus.yml")


def test_every_alert_is_tested() -> None:
    rules, tests = ((DEPLOY / "prometheus" / name).read_text() for name in ("alerts.yml", "alerts_test.yml"))
    for name in re.findall(r"alert: (\w+)", rules):
        assert f"alertname: {name}\n        exp_alerts:\n" in tests, name


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda p: p.name)
def test_every_query_of_a_dashboard_parses(path: Path, tmp_path: Path) -> None:
    queries = [t["expr"] for p in json.loads(path.read_text())["panels"] for t in p["targets"]]
    rules: list[Any] = [{"record": f"query:{n}", "expr": q.replace("$__rate_interval", "5m")} for n, q in enumerate(queries)]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "rules.json"))
