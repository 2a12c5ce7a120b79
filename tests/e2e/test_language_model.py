"""docs/fine-tune-a-language-model.md, from the first command to the report, as it stands: a tiny model, Flower's simulation, a wheel."""

from pathlib import Path

import pytest

from compeft_server.data_directory import open_ledger
from compeft_server.reports.figures.build import read_report
from tests.e2e.installed import install_wheel
from tests.e2e.test_existing_app import NO_RAY, simulated_by_the_page

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(2 * 600)]
ROOT = Path(__file__).parents[2]
PAGE, APPS = ROOT / "docs" / "fine-tune-a-language-model.md", ROOT / "examples" / "language-model"
CLIENTS, ROUNDS = 4, 2


@pytest.mark.skipif(NO_RAY, reason="Flower's simulation needs ray: pip install 'flwr[simulation]'")
def test_the_commands_of_fine_tune_a_language_model_run_as_they_stand(tmp_path: Path) -> None:
    output, folder = simulated_by_the_page(tmp_path, install_wheel(tmp_path / "installed"), PAGE, APPS)
    assert f"clients {CLIENTS}, rounds {ROUNDS}, refused 0" in output
    report = read_report(open_ledger(folder / "aggregator"), "language")
    assert (report.rounds, len(report.clients), len(report.refusals)) == (ROUNDS, CLIENTS, 0)
    assert [row.participants for row in report.versions] == [0, *[CLIENTS] * ROUNDS]
