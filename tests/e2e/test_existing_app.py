"""An existing Flower app, compressed, as its users run it: `flwr run` in Flower's simulation, and on a deployment beside the plain one."""

import importlib.util
import os
from pathlib import Path
from typing import cast

import pytest

from compeft_server.demo.processes import Processes
from compeft_server.reports.build import read_report
from tests.e2e.flower_runs import FlowerRuns, environment, left_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
APPS = Path(__file__).parents[2] / "examples" / "flower-existing"
PARAMETERS, CHANCE = 60_670, 0.1
NO_RAY = importlib.util.find_spec("ray") is None and os.environ.get("CI") != "true"


@pytest.mark.skipif(NO_RAY, reason="Flower's simulation needs ray: pip install 'flwr[simulation]'")
def test_a_simulation_learns_through_an_aggregator_with_a_key_for_every_simulated_client(tmp_path: Path) -> None:
    clients, rounds = 4, 2
    with Processes(tmp_path / "logs", environment(tmp_path)) as processes:
        runs = FlowerRuns(processes, tmp_path, clients, simulate=True)
        listed = runs.run(APPS / "compressed", {"num-server-rounds": rounds, "model-file": str(tmp_path / "model.pt")})
    assert listed["status"] == "finished:completed", (tmp_path / "logs" / "run.log").read_text()[-4000:]
    report = read_report(runs.ledger, "digits")
    assert (report.rounds, len(report.clients), len(report.refusals)) == (rounds, clients, 0)
    assert [row.participants for row in report.versions] == [0, clients, clients]
    score = report.versions[-1].score
    assert score is not None
    assert score.mean > 3 * CHANCE
    assert report.traffic.wire_bytes < 4 * PARAMETERS * clients * (2 * rounds + 1) / 20
    assert (tmp_path / "model.pt").stat().st_size > 4 * PARAMETERS
    assert left_of(tmp_path) == []


def test_a_deployment_learns_in_a_twentieth_of_what_the_plain_app_sends(tmp_path: Path) -> None:
    clients = 2
    with Processes(tmp_path / "logs", environment(tmp_path)) as processes:
        runs = FlowerRuns(processes, tmp_path, clients, simulate=False)
        compressed = runs.run(APPS / "compressed", {"num-server-rounds": 1})
        plain = runs.run(APPS / "plain", {"num-server-rounds": 1}, compressed=False)
    assert compressed["status"] == plain["status"] == "finished:completed"
    report = read_report(runs.ledger, "digits")
    assert (report.rounds, len(report.clients), len(report.refusals)) == (1, clients, 0)
    score = report.versions[-1].score
    assert score is not None
    assert score.mean > 3 * CHANCE
    assert traffic(plain) > 4 * PARAMETERS * clients * 3, "weights down, up, and down again to be measured"
    assert report.traffic.wire_bytes + traffic(compressed) < traffic(plain) / 20
    assert left_of(tmp_path) == []


def traffic(listed: dict[str, object]) -> int:
    """Bytes that Flower counted between SuperLink and SuperNodes, both directions."""
    return int(cast(dict[str, int], listed["network-traffic"])["total-bytes"])
