"""The command line: keys, members, help, and errors as one line or one JSON object with a stable exit code."""

import json
import stat
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from compeft_client.cli.exit_codes import EXIT_CODES, exit_code
from compeft_client.cli.main import run
from compeft_core.errors import CompeftError
from compeft_proto.errors import BY_CODE


def test_a_new_key_is_for_its_owner_only_and_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "edge.key"
    assert run(["keys", "new", str(file), "--format", "json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run(["keys", "show", str(tmp_path / "edge.pub"), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["keyid"] == made["keyid"]
    before = file.read_bytes()
    assert run(["keys", "new", str(file)]) == 3
    assert file.read_bytes() == before
    assert capsys.readouterr().err == f"error: {file} exists already: a key is never overwritten\n"


def test_members_are_added_listed_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, data = str(tmp_path / "edge.key"), str(tmp_path / "data")
    run(["keys", "new", key])
    assert run(["clients", "add", "berlin", str(tmp_path / "edge.pub"), "--data", data]) == 0
    assert run(["clients", "revoke", "berlin", "--data", data]) == 0
    capsys.readouterr()
    assert run(["clients", "list", "--data", data, "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["role"], row["revoked"]) == ("berlin", "edge", True)
    assert run(["clients", "revoke", "nobody", "--data", data]) == 3


LOOKING = ["clients list", "experts list", "report", "audit log", "audit verify", "policy list", "gc", "rotate-key"]


@pytest.mark.parametrize("command", LOOKING)
def test_looking_at_a_mistyped_data_directory_makes_none(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "mistyped"
    assert run([*command.split(), "--data", str(data)]) == 3
    assert capsys.readouterr().err.startswith(f"error: {data} is not a data directory, it has no ledger.sqlite")
    assert not data.exists()


def test_a_member_without_a_site_folder_is_told_how_to_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COMPEFT_SITE", raising=False)
    assert run(["pull", "x", "-o", str(tmp_path / "out")]) == 3
    assert capsys.readouterr().err == "error: missing --site: give the folder that `compeft enroll` made, or set COMPEFT_SITE\n"
    assert run(["pull", "x", "-o", str(tmp_path / "out"), "--aggregator", "127.0.0.1:9", "--key", "k", "--state-dir", "s"]) == 3
    assert capsys.readouterr().err.startswith("error: missing --aggregator-key: give each, or --site")


def test_an_error_is_one_line_or_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "nothing.pub")
    assert run(["keys", "show", missing]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert run(["keys", "show", missing, "--format", "json"]) == 3
    assert json.loads(capsys.readouterr().err)["error"] == "bad_input"


def test_wrong_usage_is_one_json_object_too_if_that_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "show", "--format", "json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.err) == {"error": "usage", "message": "Missing argument 'FILE'."}
    assert said.out == ""


def test_what_the_system_refuses_is_one_line_that_names_the_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no folder")
    assert run(["keys", "new", str(tmp_path / "file" / "edge.key")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'file'}: File exists\n"


def test_help_names_arguments_and_has_plain_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["unpack", "--help"]) == 0
    said = capsys.readouterr().out
    assert "FILE  an expert file  [required]" in said
    assert "\\[" not in said


def test_a_wrong_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "show", "--colour"]) == 2
    assert "--colour" in capsys.readouterr().err


EDGE = ["weights-digest", "base-stats", "join", "pull", "keys new", "keys show", "enroll", "renew"]
OPERATOR = ["serve", "demo", "report", "clients add", "clients invite", "clients list", "clients revoke", "rotate-key"]
AUTHORITY = ["ca init", "ca show", "ca renew", "ca rotate", "ca retire"]
VERSIONS = ["lineage", "verify-merge", "forget", "experts log", "experts list", "experts rollback", "audit log", "audit verify"]
EXPERTS = ["experts show", "experts promote", "experts retire"]
POLICY = ["policy allow", "policy deny", "policy clear", "policy list", "policy explain"]
WEB = ["dashboard", "dashboard-password"]


@pytest.mark.parametrize("command", EDGE + OPERATOR + AUTHORITY + VERSIONS + EXPERTS + POLICY + WEB)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command.split(), "--help"]) == 0
    assert "Example" in capsys.readouterr().out


def test_an_aggregator_that_is_not_there_is_a_transfer_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["keys", "new", str(tmp_path / "edge.key")])
    options = ["--aggregator", "127.0.0.1:9", "--aggregator-key", str(tmp_path / "edge.pub"), "--key", str(tmp_path / "edge.key")]
    options += ["--state-dir", str(tmp_path / "state"), "--patience", "0"]
    assert run(["pull", "x", "-o", str(tmp_path / "out"), *options]) == 8
    assert "127.0.0.1:9 cannot be reached" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_port_where_something_else_listens_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        assert run(["health", address]) == 8
        server.shutdown()
    said = capsys.readouterr().err
    assert f"aggregator {address} cannot be reached" in said
    assert "the server on that port is not an aggregator: is it the right port?" in said
    assert run(["health", "127.0.0.1"]) == 3
    assert capsys.readouterr().err == "error: invalid address '127.0.0.1': expected HOST:PORT, such as aggregator.example:8443\n"


def test_a_remote_aggregator_without_tls_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["keys", "new", str(tmp_path / "edge.key")])
    options = [
        "--aggregator",
        "192.0.2.1:9443",
        "--aggregator-key",
        str(tmp_path / "edge.pub"),
        "--key",
        str(tmp_path / "edge.key"),
    ]
    assert run(["pull", "x", "-o", str(tmp_path / "out"), *options, "--state-dir", str(tmp_path / "state")]) == 3
    assert "--tls-ca" in capsys.readouterr().err


def test_listening_beyond_loopback_without_tls_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--data", str(tmp_path), "--host", "0.0.0.0", "--port", "0"]) == 3
    assert "needs TLS" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve --data {0}", "serve --data {0} --enroll-port", "dashboard --data {0}"])
def test_a_port_that_is_none_is_wrong_usage_at_once(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command.format(tmp_path / "data").split()
    words += ["99999"] if words[-1].startswith("--") else ["--port", "99999"]
    assert run(words) == 2
    assert "99999" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_every_error_has_an_exit_code() -> None:
    assert all(exit_code(cls("x")) in EXIT_CODES.values() for cls in BY_CODE.values())
    assert exit_code(CompeftError("x")) == 1
