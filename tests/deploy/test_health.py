"""`compeft health` against a real aggregator, and `compeft ca issue`: what a service beside it gets."""

import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from compeft_client.cli.main import run
from compeft_proto.clock import now_ms
from compeft_server.identity import authority_files, service_certificates
from compeft_server.identity import certificate_authority as ca
from tests.server.identity.conftest import House

YEAR_MS = 365 * 24 * 3_600_000


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    made.open()
    yield made
    made.close()


def test_the_aggregators_own_machine_needs_no_member_to_ask(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["health", f"localhost:{house.exchange_port}", "--data", str(house.data), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"address": f"localhost:{house.exchange_port}", "status": "serving"}
    assert run(["clients", "list", "--data", str(house.data)]) == 0
    assert "health" not in capsys.readouterr().out, "no member was made for the question"


def test_a_member_asks_with_its_site_folder(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    site = house.enrol("berlin-1")
    assert run(["health", "--site", str(site)]) == 0
    assert f":{house.exchange_port}" in capsys.readouterr().out


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    site = house.enrol("berlin-1")
    assert run(["health", "--site", str(site)]) == 0
    assert run(["health", f"localhost:{house.exchange_port}", "--data", str(house.data)]) == 0
    capsys.readouterr()


def test_nobody_there_is_exit_code_8_and_a_service_that_is_not_there_too(house: House) -> None:
    address = f"localhost:{house.exchange_port}"
    assert run(["health", address, "--data", str(house.data), "--service", "compeft.v1.Nothing"]) == 8
    house.close()
    assert run(["health", address, "--data", str(house.data)]) == 8
    house.open()


def test_without_a_certificate_the_question_gets_no_answer(house: House) -> None:
    assert run(["health", f"localhost:{house.exchange_port}"]) == 8


@pytest.mark.parametrize("words", [["--data", ".", "--site", "."], ["--tls-ca", "x"]])
def test_options_that_do_not_go_together_are_refused(words: list[str]) -> None:
    assert run(["health", *words]) == 3


def test_a_service_gets_a_certificate_once_and_another_when_it_is_due(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "proxy"
    authority_files.init(data, ["localhost"], now_ms())
    assert service_certificates.issue(data, folder, ["fl.example"], now_ms())
    first = (folder / "server.pem").read_bytes()
    assert (folder / "server.pem").stat().st_mode & 0o777 == 0o600
    assert not service_certificates.issue(data, folder, ["fl.example"], now_ms())
    assert (folder / "server.pem").read_bytes() == first
    assert service_certificates.issue(data, folder, ["fl.example"], now_ms() + YEAR_MS * 3 // 4)
    assert service_certificates.issue(data, folder, ["other.example"], now_ms())
    ssl.create_default_context(cafile=folder / "ca.crt").load_cert_chain(folder / "server.pem")
    assert b"PRIVATE" not in (folder / "ca.crt").read_bytes()


def test_a_service_follows_a_change_of_authority(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "proxy"
    authority_files.init(data, ["localhost"], now_ms())
    service_certificates.issue(data, folder, ["fl.example"], now_ms())
    authority_files.rotate(data, now_ms())
    assert service_certificates.issue(data, folder, ["fl.example"], now_ms())
    assert len(ca.certificates_from_pem((folder / "ca.crt").read_bytes(), "ca.crt")) == 2
    authority_files.retire(data, now_ms())
    assert service_certificates.issue(data, folder, ["fl.example"], now_ms()), "the old authority is believed no more"
    assert len(ca.certificates_from_pem((folder / "ca.crt").read_bytes(), "ca.crt")) == 1


def test_the_authoritys_own_folder_is_never_written(tmp_path: Path) -> None:
    data = tmp_path / "data"
    authority_files.init(data, ["localhost"], now_ms())
    before = (data / "ca" / "server.pem").read_bytes()
    assert run(["ca", "issue", str(data / "ca"), "--host", "x.example", "--data", str(data)]) == 7
    assert (data / "ca" / "server.pem").read_bytes() == before
