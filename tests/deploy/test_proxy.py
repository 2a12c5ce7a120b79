"""The proxy of deploy/proxy in front of a real SuperLink: members' SuperNodes come through, and nobody comes through to anything else."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.deploy.conftest import program
from tests.deploy.federation import BIN, Federation, federation

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
OPERATORS = ["/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/runtime/push-logs"]
TRICKS = [
    "/v1/fleet/../control/list-nodes",
    "/v1/fleet/%2e%2e/control/list-nodes",
    "/v1/fleet/pull-messages/../../control/list-nodes",
    "/v1/fleet/..%2fcontrol/list-nodes",
    "//v1/control/list-nodes",
    "/v1/fleet/",
    "/v1/fleet/pull-messages/x",
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("federation"), program("nginx", "apt-get install nginx-light")) as made:
        yield made


def test_a_peer_without_a_certificate_gets_no_byte(running: Federation) -> None:
    for path in ["/v1/fleet/pull-messages", "/health", *OPERATORS]:
        assert running.status(path, running.proxy_port) is None


def test_a_certificate_of_another_authority_gets_no_byte(running: Federation, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    identity = trustme.CA().issue_cert("berlin-1")
    stranger.write_bytes(identity.private_key_and_cert_chain_pem.bytes())
    assert running.status("/v1/fleet/pull-messages", running.proxy_port, identity=stranger) is None


def test_a_server_certificate_of_the_same_authority_is_no_member(running: Federation) -> None:
    identity = running.proxy / "server.pem"
    assert running.status("/v1/fleet/pull-messages", running.proxy_port, identity=identity) is None


def test_the_calls_of_operators_are_there_on_loopback_and_not_through_the_proxy(running: Federation) -> None:
    for path in OPERATORS:
        assert running.status(path, running.superlink_port) not in (None, 404, 405), "the SuperLink itself answers it"
        assert running.through(path) == 404
    for path in ["/health", "/docs", "/openapi.json", "/"]:
        assert running.through(path, "GET") == 404


@pytest.mark.parametrize("path", TRICKS)
def test_no_spelling_of_a_path_leads_out_of_the_fleet_calls(running: Federation, path: str) -> None:
    assert running.through(path) in (400, 404)


def test_a_member_reaches_the_fleet_calls_by_post_only(running: Federation) -> None:
    assert running.through("/v1/fleet/pull-messages") == 401, "Flower itself answers: this node has shown no key of its own"
    assert running.through("/v1/fleet/pull-messages", "GET") == 405


def test_a_body_larger_than_any_object_of_flower_is_refused(running: Federation) -> None:
    assert running.through("/v1/fleet/push-object", body=bytes(9 * 2**20)) == 413
    assert running.through("/v1/fleet/push-object", body=bytes(6 * 2**20)) == 400, (
        "Flower itself answers: that is not a message of its own"
    )


def test_a_supernode_joins_and_trains_a_round_until_its_member_is_refused(running: Federation) -> None:
    key = running.folder / "node.key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(key)], check=True)
    running.flwr("supernode", "register", f"{key}.pub", "own", "--name", "berlin-1")
    listed = lambda: running.flwr("supernode", "list", "own", "--format", "json")  # noqa: E731
    join = [str(BIN / "compeft"), "join", "--site", str(running.site), "--superlink", f"127.0.0.1:{running.tunnel_port}"]
    join += ["--superlink-ca", str(running.site / "tunnel.crt"), "--node-key", str(key), "--port", str(running.node_port)]
    running.processes.start("edge", join)
    running.processes.wait_for("the SuperNode", lambda: '"status": "online"' in listed())

    assert running.run_one_round(running.folder / "merged.txt") == "[1.0, 1.0, 1.0]"
    calls = (running.folder / "logs" / "proxy.log").read_text()
    assert '"CN=berlin-1" POST /v1/fleet/push-messages 200' in calls

    (running.proxy / "refused.map").write_text('"CN=berlin-1" 1;\n')
    running.reload_proxy()
    running.processes.wait_for("the reload", lambda: running.through("/v1/fleet/pull-messages") == 403)
