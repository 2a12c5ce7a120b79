"""The whole system with its real processes: aggregator, Flower's SuperLink, four SuperNodes, real training of a real model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.e2e
COMPEFT = str(Path(sys.executable).parent / "compeft")


def processes_of(folder: Path) -> list[str]:
    """Command lines of running processes that name `folder`, in their arguments or as Flower's home."""
    found = []
    for process in psutil.process_iter():
        try:
            line, home = process.cmdline(), process.environ().get("FLWR_HOME", "")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and (str(folder) in " ".join(line) or str(folder) in home):
            found.append(" ".join(line))
    return found


@pytest.mark.timeout(600)
def test_one_federated_round_trains_merges_returns_and_reports(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [COMPEFT, "demo", "--rounds", "1", "--folder", str(folder), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout.splitlines()[-1])

    assert (values["rounds"], values["clients"], values["refused"]) == (1, 4, 0)
    assert 0.7 < values["base_accuracy"] < 0.9
    assert 0.7 < values["final_accuracy"] < 0.9
    assert values["payload_bytes"] < values["wire_bytes"] < values["dense_bf16_bytes"] / 20
    assert values["dense_fp32_bytes"] == 2 * values["dense_bf16_bytes"] == 4 * 332_546 * 4 * 3
    assert values["control_bytes"] < 4 * 332_546, "no weights in Flower's messages"
    assert [row["version"] for row in values["versions"]] == [0, 1]
    assert {row["name"] for row in values["per_client"]} == {"edge-0", "edge-1", "edge-2", "edge-3"}
    page = Path(values["report"]).read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert json.loads((folder / "report.json").read_text())["final_accuracy"] == values["final_accuracy"]
    adapter = load_file(Path(values["expert_directory"]) / "adapter_model.safetensors")
    assert sum(tensor.size for tensor in adapter.values()) == 331_776
    assert processes_of(folder) == []


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_demo_of_a_language_model_reports_both_arms(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [COMPEFT, "demo", "--model", "tiny", "--rounds", "1", "--compare", "--folder", str(folder), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout.splitlines()[-1])
    assert (values["rounds"], values["clients"], values["refused"], values["base_accuracy"]) == (1, 4, 0, 0.0)
    assert values["dense"]["dense_fp32_bytes"] == 4 * 8_192 * 4 * 3, "down, up, and down again to be measured"
    assert values["payload_bytes"] < values["dense"]["dense_fp32_bytes"] / 20
    adapter = load_file(Path(values["expert_directory"]) / "adapter_model.safetensors")
    assert sum(tensor.size for tensor in adapter.values()) == 8_192
    assert processes_of(folder) == []


def test_a_demo_of_a_model_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    command = [COMPEFT, "demo", "--model", str(tmp_path / "none"), "--folder", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "has no config.json; name a model's folder, or take --model tiny" in done.stderr


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "starting"), [(signal.SIGINT, "edge-3"), (signal.SIGTERM, "flwr run"), (signal.SIGHUP, "compeft serve")]
)
def test_an_interrupted_demo_leaves_no_process_and_a_ledger_that_holds(
    tmp_path: Path, number: signal.Signals, starting: str
) -> None:
    folder = tmp_path / "run"
    command = [COMPEFT, "demo", "--rounds", "1", "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as demo:
        give_up = time.monotonic() + 60
        while not any(starting in line for line in processes_of(folder)) and time.monotonic() < give_up:
            time.sleep(0.02)
        assert len(processes_of(folder)) > 1
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=40)
    assert demo.returncode == 130
    assert errors.splitlines()[-1] == "interrupted"
    give_up = time.monotonic() + 30  # what Flower was just starting, in a session of its own, ends by itself
    while processes_of(folder) and time.monotonic() < give_up:
        time.sleep(0.2)
    assert processes_of(folder) == []
    audited = subprocess.run([COMPEFT, "audit", "verify", "--data", str(folder / "aggregator")], check=False)
    assert audited.returncode == 0


def test_a_demo_does_not_write_into_a_folder_that_exists(tmp_path: Path) -> None:
    done = subprocess.run([COMPEFT, "demo", "--folder", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr == f"error: {tmp_path} exists already: choose another --folder\n"
