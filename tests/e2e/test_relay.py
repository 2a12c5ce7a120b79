"""A federation whose clients have no way to the aggregator but Flower's messages, beside one whose clients have: `flwr run`, deployed."""

from pathlib import Path

import pytest

from compeft_server.demo.processes import Processes
from compeft_server.domain.records import Transfer
from compeft_server.reports.figures.build import read_report
from tests.e2e.flower_runs import FlowerRuns, environment, left_of
from tests.e2e.test_existing_app import traffic

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(900)]
APP = Path(__file__).parent / "steady_app"
CLIENTS, ROUNDS = 2, 2


def run(folder: Path, *, relay: bool) -> tuple[FlowerRuns, int]:
    """A run of the app in a federation of its own; what Flower counted between SuperLink and SuperNodes."""
    folder.mkdir()
    with Processes(folder / "logs", environment(folder)) as processes:
        runs = FlowerRuns(processes, folder, CLIENTS, simulate=False, expert="steady", cut_off=relay)
        listed = runs.run(APP, {"num-server-rounds": ROUNDS, "relay": relay})
    assert listed["status"] == "finished:completed"
    assert left_of(folder) == []
    return runs, traffic(listed)


def test_clients_that_only_flower_reaches_get_the_very_states_that_others_get(tmp_path: Path) -> None:
    direct, direct_traffic = run(tmp_path / "direct", relay=False)
    relayed, relayed_traffic = run(tmp_path / "relayed", relay=True)
    assert states(relayed) == states(direct)
    assert len(states(relayed)) == ROUNDS + 1

    reports = [read_report(runs.ledger, "steady") for runs in (direct, relayed)]
    for report in reports:
        assert (report.rounds, len(report.clients), len(report.refusals)) == (ROUNDS, CLIENTS, 0)
        assert [row.participants for row in report.versions] == [0, CLIENTS, CLIENTS]
    assert reports[1].traffic.payload_bytes == reports[0].traffic.payload_bytes
    assert sum(t.relayed_bytes for t in edges(direct)) == 0
    carried = sum(t.relayed_bytes for t in edges(relayed))
    assert reports[1].traffic.payload_bytes < carried < 1.2 * reports[1].traffic.payload_bytes
    assert carried < relayed_traffic - direct_traffic < 1.2 * carried, "Flower carried the letters, and nothing else in addition"


def states(runs: FlowerRuns) -> list[bytes]:
    """The state digest of each version."""
    return [version.state_digest for version in runs.ledger.versions("steady", -1, runs.ledger.head("steady"))]


def edges(runs: FlowerRuns) -> list[Transfer]:
    """The transfers of edge clients."""
    keys = {member.public.keyid for member in runs.ledger.members() if member.role == "edge"}
    return [transfer for transfer in runs.ledger.transfers("steady") if transfer.keyid in keys]
