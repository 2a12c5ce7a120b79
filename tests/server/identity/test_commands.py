"""The whole way with the commands that people type, against a real `compeft serve`: from `ca init` to a revoked member."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from compeft_client.cli.main import run
from compeft_server.data_directory import open_ledger
from compeft_server.flower.conductor import Conductor, conductor_config
from tests.rounds.conftest import EXPERT, genesis


@dataclass
class Service:
    """A running `compeft serve`."""

    data: Path
    exchange: str
    door: str


def told(log: Path, process: subprocess.Popen[bytes]) -> dict[str, str]:
    """What it says once it listens."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith('{"address"'):
                return dict(json.loads(line))
        time.sleep(0.05)
    raise AssertionError(log.read_text())


@pytest.fixture
def service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Service]:
    data, log = tmp_path / "data", tmp_path / "log"
    assert run(["ca", "init", "--data", str(data), "--host", "localhost"]) == 0
    command = [str(Path(sys.executable).parent / "compeft"), "serve", "--data", str(data), "--port", "0", "--enroll-port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--format", "json"], stdout=output, stderr=output, env=os.environ)
    try:
        said = told(log, process)
        ports = [said[name].rpartition(":")[2] for name in ("address", "enrolment")]
        yield Service(data, f"localhost:{ports[0]}", f"localhost:{ports[1]}")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return dict(json.loads(capsys.readouterr().out))


def invited(service: Service, name: str, role: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    options = ["--role", role, "--address", service.door, "--data", str(service.data), "--format", "json"]
    assert run(["clients", "invite", name, "--expert", "sentiment", *options]) == 0
    return str(said(capsys)["invitation"])


def test_the_whole_way_from_an_authority_to_a_revoked_member(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conductor, site, data = tmp_path / "conductor", tmp_path / "berlin", str(service.data)
    assert run(["enroll", invited(service, "conductor", "conductor", capsys), "--site", str(conductor)]) == 0
    Conductor(conductor_config({"site": conductor})).publish(genesis())
    invitation = invited(service, "berlin", "reader", capsys)
    assert run(["enroll", invitation, "--site", str(site), "--format", "json"]) == 0
    assert said(capsys)["aggregator"] == service.exchange
    assert run(["enroll", invitation, "--site", str(tmp_path / "thief")]) == 6
    pull = ["pull", EXPERT, "-o", str(tmp_path / "out"), "--site", str(site), "--patience", "0", "--format", "json"]
    capsys.readouterr()
    assert run(pull) == 0
    assert said(capsys)["version"] == 0
    assert run(["renew", "--site", str(site), "--when-due", "--format", "json"]) == 0
    assert said(capsys) == {"renewed": False}
    assert run(["renew", "--site", str(site), "--new-key", "--format", "json"]) == 0
    new = said(capsys)["keyid"]
    assert run(["ca", "rotate", "--data", data]) == 0
    assert run(["ca", "renew", "--data", data, "--host", "localhost"]) == 0
    assert run(["renew", "--site", str(site)]) == 0
    assert run(["ca", "retire", "--data", data]) == 0
    assert run(pull) == 0
    capsys.readouterr()
    assert run(["clients", "list", "--data", data, "--format", "json"]) == 0
    rows = {row["keyid"]: row for row in json.loads(capsys.readouterr().out)}
    berlin = sorted((row for row in rows.values() if row["name"] == "berlin"), key=lambda row: row["keyid"] == new)
    assert [row["keyid"] == new for row in berlin] == [False, True], rows
    old = berlin[0]
    assert (old["replaced_by"], old["revoked"], rows[new]["revoked"]) == (new, True, False)
    assert rows[new]["certificate_expires_at_ms"] > rows[new]["enrolled_at_ms"]
    assert run(["clients", "revoke", "berlin", "--data", data]) == 0
    assert run(pull) == 6
    assert run(["renew", "--site", str(site)]) == 6
    assert run(["audit", "verify", "--data", data]) == 0


def test_the_authority_is_shown_and_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(tmp_path)]
    assert run(["ca", "show", *data]) == 3
    assert "compeft ca init" in capsys.readouterr().err
    assert run(["ca", "init", *data, "--host", "agg.example", "--host", "192.0.2.7", "--format", "json"]) == 0
    made = said(capsys)
    assert made["hosts"] == ["agg.example", "192.0.2.7", "localhost", "127.0.0.1"]
    assert run(["ca", "init", *data, "--host", "agg.example"]) == 7
    assert run(["ca", "show", *data, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == made


def test_an_invitation_without_an_address_says_what_to_add(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["clients", "invite", "berlin", "--data", str(tmp_path), "--valid", "30m"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("compeft enroll cpi1_")
    assert "--aggregator HOST:ENROLL_PORT" in line
    assert run(["enroll", line.split()[2], "--site", str(tmp_path / "site")]) == 3
    assert "--aggregator host:port" in capsys.readouterr().err
    assert run(["clients", "invite", "berlin", "--data", str(tmp_path), "--valid", "forever"]) == 3
    assert run(["clients", "invite", "berlin", "--data", str(tmp_path), "--role", "king"]) == 3


def test_a_door_for_new_members_needs_the_aggregators_own_authority(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["ca", "init", "--data", str(tmp_path), "--host", "localhost"])
    pem = str(tmp_path / "ca" / "server.pem")
    options = ["--tls-cert", pem, "--tls-key", pem, "--tls-client-ca", pem, "--port", "0", "--enroll-port", "0"]
    assert run(["serve", "--data", str(tmp_path), *options]) == 3
    assert "own authority" in capsys.readouterr().err


def test_the_aggregators_next_key_waits_for_a_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_ledger(tmp_path).close()
    assert run(["rotate-key", "--data", str(tmp_path), "--format", "json"]) == 0
    keys = said(capsys)
    assert keys["keyid"] != keys["next_keyid"]
    assert run(["rotate-key", "--data", str(tmp_path)]) == 7
    assert (tmp_path / "aggregator-next.key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("command", [["pull", "x", "-o", "out"], ["join", "--superlink", "127.0.0.1:1"]])
def test_a_client_that_was_told_nothing_is_told_of_the_site_folder(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == 3
    assert "missing --site" in capsys.readouterr().err
    assert run([*command, "--site", str(tmp_path)]) == 3
    assert "compeft enroll" in capsys.readouterr().err
