"""`compeft serve --web` and `compeft dashboard` as real processes."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from compeft_client.cli.main import run
from compeft_server.dashboard.security import read_password

COMPEFT = [sys.executable, "-c", "from compeft_client.cli.main import main; main()"]


@contextmanager
def running(*arguments: str) -> Iterator[dict[str, str]]:
    """What the process says once it listens; it must end well when it is told to."""
    with subprocess.Popen([*COMPEFT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=20)
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in err


def test_the_aggregator_serves_its_page_and_what_it_counts_of_calls(tmp_path: Path) -> None:
    data, key = str(tmp_path / "data"), str(tmp_path / "edge.key")
    options = ["serve", "--data", data, "--port", "0", "--web", "0", "--log-format", "json", "--format", "json"]
    with running(*options) as said:
        assert run(["keys", "new", key]) == 0
        pull = ["pull", "x", "-o", str(tmp_path / "out"), "--aggregator", said["address"], "--aggregator-key", said["public_key"]]
        assert run([*pull, "--key", key, "--state-dir", str(tmp_path / "state"), "--patience", "0"]) == 6
        assert httpx.get(said["web"]).status_code == 200
        metrics = httpx.get(said["web"] + "metrics").text
    assert 'grpc_server_handled_total{grpc_code="UNAUTHENTICATED",grpc_method="Sync"' in metrics
    assert 'compeft_refusals_total{code="unknown_key"} 1.0' in metrics


def test_the_page_runs_on_its_own_over_a_data_directory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with running("dashboard", "--data", str(tmp_path / "data"), "--port", "0", "--format", "json") as said:
        assert "There is no expert yet." in httpx.get(said["address"]).text


def test_the_page_makes_no_data_directory_and_stays_off_other_addresses(tmp_path: Path) -> None:
    assert run(["dashboard", "--data", str(tmp_path / "none")]) == 3
    assert not (tmp_path / "none").exists()
    assert run(["dashboard", "--data", str(tmp_path), "--host", "0.0.0.0", "--port", "0"]) == 3


def test_a_password_is_read_from_standard_input(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMPEFT, "dashboard-password", "--data", str(tmp_path)], input="correct horse battery\n", capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "correct" not in done.stdout
    password = read_password(tmp_path)
    assert password is not None
    assert password.fits("correct horse battery")
