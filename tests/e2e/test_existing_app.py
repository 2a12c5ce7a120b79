"""An existing Flower app, compressed, as its users run it: `flwr run` in Flower's simulation, and on a deployment beside the plain one."""

import importlib.util
import os
import shutil
from pathlib import Path
from typing import cast

import pytest

from compeft_server.data_directory import open_ledger
from compeft_server.demo.processes import Processes
from compeft_server.reports.figures.build import read_report
from tests.e2e.flower_runs import FlowerRuns, environment, left_of
from tests.e2e.installed import install_wheel, run_page

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
APPS = Path(__file__).parents[2] / "examples" / "flower-existing"
PAGE = Path(__file__).parents[2] / "docs" / "existing-flower-app.md"
PARAMETERS, CHANCE = 60_670, 0.1
ATTEMPTS = 3
RAY_DID_NOT_START = (
    "Failed to start local SuperLink",
    "Failed to start GCS",
    "raylet",
    "node timed out",
    "Failed to get node info",
    "agent_register_timeout",
)
"""What Flower prints where its own SuperLink, or Ray's processes, did not come up in their own time."""
NO_RAY = importlib.util.find_spec("ray") is None and os.environ.get("CI") != "true"


@pytest.mark.long
@pytest.mark.skipif(NO_RAY, reason="Flower's simulation needs ray: pip install 'flwr[simulation]'")
@pytest.mark.timeout(2 * 600)
def test_the_commands_of_the_page_simulate_the_app_with_an_installed_wheel_and_nothing_else(tmp_path: Path) -> None:
    """docs/existing-flower-app.md, from the first command to the report: no variable and no path of this checkout helps."""
    clients, rounds = 4, 3
    output, folder = simulated_by_the_page(tmp_path, install_wheel(tmp_path / "installed"))
    assert f"clients {clients}, rounds {rounds}, refused 0" in output
    report = read_report(open_ledger(folder / "aggregator"), "digits")
    assert (report.rounds, len(report.clients), len(report.refusals)) == (rounds, clients, 0)
    assert [row.participants for row in report.versions] == [0, *[clients] * rounds]
    score = report.versions[-1].score
    assert score is not None
    assert score.mean > 3 * CHANCE
    assert report.traffic.wire_bytes < 4 * PARAMETERS * clients * (2 * rounds + 1) / 20


def simulated_by_the_page(tmp_path: Path, binaries: Path, page: Path = PAGE, apps: Path = APPS) -> tuple[str, Path]:
    """Run the page's blocks; the output, and the folder. Where Ray does not start, which a busy machine can cause, up to ATTEMPTS times."""
    for attempt in range(1, ATTEMPTS + 1):
        folder = tmp_path / f"attempt-{attempt}"
        shutil.copytree(apps, folder)
        done = run_page(page, folder, binaries)
        output = done.stdout + done.stderr
        ray_failed = any(words in output for words in RAY_DID_NOT_START)
        if not ray_failed or attempt == ATTEMPTS:
            break
    assert done.returncode == 0, output[-6000:]
    assert left_of(folder) == []
    return output, folder


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
