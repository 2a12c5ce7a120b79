"""What goes wrong around a running aggregator: its ledger is deleted, its disk is full, its page is held open, its password changes."""

import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from compeft_client.exchange.edge_client import EdgeClient
from compeft_client.identity.edge_config import Edge
from compeft_proto.clock import now_ms
from compeft_proto.errors import RewoundLogError, TransferError, UnreachableError
from compeft_proto.keys import new_key
from compeft_proto.site_layout import HEAD_FILE
from compeft_server.app.server import Settings, start
from compeft_server.chunks.disk_space import RESERVE_FILE, keep_reserve
from compeft_server.dashboard import slow_requests
from compeft_server.dashboard.security import set_password
from compeft_server.data_directory import LEDGER_FILE, open_ledger
from compeft_server.ledger.database import LedgerGoneError
from tests.attacks.processes import compeft
from tests.attacks.test_operator import asked, data, page
from tests.faults.test_disk import fill
from tests.rounds.conftest import EXPERT, World, running, synced_by, trained

__all__ = ["data"]


def test_a_ledger_that_is_deleted_while_it_is_used_is_not_replaced_by_an_empty_one(world: World) -> None:
    client, path = world.edge("member"), world.folder / "data" / LEDGER_FILE
    client.sync(EXPERT)
    path.rename(path.with_suffix(".gone"))
    with pytest.raises(LedgerGoneError, match="was deleted or exchanged while it was in use"):
        world.ledger.members()
    with pytest.raises(UnreachableError, match="was deleted or exchanged"):
        client.sync(EXPERT)
    assert not path.exists()
    path.with_suffix(".gone").rename(path)
    assert client.sync(EXPERT).version == 0


def test_a_ledger_that_is_exchanged_while_it_is_used_is_not_written_to(world: World) -> None:
    path = world.folder / "data" / LEDGER_FILE
    copy = path.with_suffix(".copy")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    path.rename(path.with_suffix(".gone"))
    copy.rename(path)
    with pytest.raises(LedgerGoneError):
        world.enrol("late")
    with closing(sqlite3.connect(path)) as found:
        assert found.execute("SELECT count(*) FROM keys WHERE name = 'late'").fetchone() == (0,)
    path.with_suffix(".gone").rename(path)


def test_a_client_with_a_newer_version_than_a_restored_backup_is_told_and_may_go_back(tmp_path: Path) -> None:
    with running(tmp_path) as world:
        client = world.edge("member")
        shutil.copytree(tmp_path / "data", tmp_path / "older")
        task = world.open_round()
        synced_by(client, task)
        client.submit(task, trained(1))
        world.close_round()
        assert client.sync(EXPERT).version == 1
    (tmp_path / "older" / HEAD_FILE).unlink(missing_ok=True)
    edge: Edge = client._edge
    (edge.state / HEAD_FILE).unlink()
    ledger = open_ledger(tmp_path / "older")
    server, port = start(Settings(tmp_path / "older"), ledger)
    again = EdgeClient(Edge(f"127.0.0.1:{port}", edge.key, edge.aggregator, edge.state, patience_s=0))
    try:
        with pytest.raises(
            RewoundLogError, match=r"has versions 0 to 0 here, this client has version 1: .* restored from an older backup"
        ):
            again.sync(EXPERT)
        assert again.sync(EXPERT, go_back=True).version == 0
    finally:
        server.stop(None).wait()
        ledger.close()


COMMANDS = {
    "clients revoke": ("clients", "revoke", "evil"),
    "clients list": ("clients", "list"),
    "policy deny": ("policy", "deny", EXPERT, "evil"),
    "audit verify": ("audit", "verify"),
    "rotate-key": ("rotate-key",),
    "gc": ("gc",),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_operator_has_room_on_a_full_disk(small_disk: Path, name: str) -> None:
    data = small_disk / "data"
    data.chmod(0o700)
    ledger = open_ledger(data)
    ledger.enrol("evil", new_key().public, "edge", now_ms())
    ledger.close()
    compeft("rotate-key", "--data", str(data))
    (data / "aggregator-next.key").unlink()
    keep_reserve(data)
    with suppress(OSError), fill(data, 0).open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    done = compeft(*COMMANDS[name], "--data", str(data))
    assert done.returncode == 0, done.stderr
    assert not (data / RESERVE_FILE).exists()


# The live page


def hung_up(port: int, *pieces: bytes, every_s: float = 0.2) -> bool:
    """Whether the page ends a connection that sends these pieces, and then nothing."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.settimeout(10)
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(every_s)
            while connection.recv(65_536):
                continue
        except TimeoutError:
            return False
        except OSError:
            return True
        return True


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, data: Path) -> Iterator[int]:
    """The page, which waits for a second instead of ten."""
    monkeypatch.setattr(slow_requests, "SLOW_S", 1.0)
    with page(data) as port:
        yield port


POST = (
    b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n"
)
HALVES = {
    "nothing at all": (),
    "half a line": (b"GET / HT",),
    "half of its headers": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-", b"Slow: "),
    "a header now and then": (b"GET / HTTP/1.1\r\n", *([b"X-Slow: 1\r\n"] * 20)),
    "half a form": (POST, b"password="),
    "a form byte by byte": (POST, *([b"x"] * 20)),
    "a second request that never ends": (b"GET /static/x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET / HTTP/1.1\r\nX"),
}


@pytest.mark.parametrize("name", HALVES)
def test_a_request_that_never_arrives_is_ended(impatient: int, name: str) -> None:
    assert hung_up(impatient, *HALVES[name])
    assert asked(impatient, "GET", "/", [("Host", f"127.0.0.1:{impatient}")])[0] == 200


FOREIGN = [
    [("Origin", "https://evil.example"), ("Content-Type", "text/plain")],
    [("Origin", "null"), ("Content-Type", "text/plain")],
    [("Content-Type", "text/plain")],
    [("Sec-Fetch-Site", "cross-site"), ("Content-Type", "application/x-www-form-urlencoded")],
    [("Sec-Fetch-Site", "same-site"), ("Content-Type", "text/plain")],
]


@pytest.mark.parametrize("headers", FOREIGN, ids=lambda headers: "; ".join(value for _, value in headers))
def test_a_form_of_another_site_is_refused_whatever_it_calls_itself(data: Path, headers: list[tuple[str, str]]) -> None:
    set_password(data, "correct horse battery")
    with page(data) as port:
        for path in ("/login", "/logout"):
            status, _ = asked(port, "POST", path, [("Host", f"127.0.0.1:{port}"), *headers], "password=correct horse battery")
            assert status == 403, path


def entered(port: int) -> str:
    """The cookie of somebody who knows the password."""
    import http.client

    here = f"127.0.0.1:{port}"
    headers = {"Origin": f"http://{here}", "Content-Type": "application/x-www-form-urlencoded"}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", "/login", "password=correct+horse+battery", headers)
        with closing(connection.getresponse()) as answer:
            answer.read()
            return str(answer.getheader("set-cookie")).split(";")[0]


def test_a_cookie_of_before_opens_nothing_after_a_restart_with_another_password(data: Path) -> None:
    set_password(data, "correct horse battery")
    with page(data) as port:
        cookie = entered(port)
        assert asked(port, "GET", "/clients", [("Host", "127.0.0.1"), ("Cookie", cookie)])[0] == 200
    set_password(data, "another horse battery")
    with page(data) as port:
        for made in (cookie, "compeft=", "compeft=" + "A" * 43, cookie + "x", "compeft=" + "A" * 60_000):
            assert asked(port, "GET", "/clients", [("Host", "127.0.0.1"), ("Cookie", made)])[0] in (303, 400, 401)


QUERIES = [
    "%00",
    "%1b%5b2J",
    "../../etc/passwd",
    "%2e%2e%2f",
    "'%20OR%201=1--",
    "%f0%9f%92%a9",
    "%ff%fe",
    "9" * 400,
    "-1",
    "NaN",
    "a" * 20_000,
]


@pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
def test_no_query_makes_the_page_fail(data: Path, query: str) -> None:
    with page(data) as port:
        for path in (
            "/clients?page=",
            "/rounds?page=",
            "/expert?name=",
            "/audit?action=",
            "/audit?subject=",
            "/static/",
            "/client?name=",
        ):
            status, body = asked(port, "GET", path + query, [("Host", "127.0.0.1")])
            assert status < 500, path
            assert b"Traceback" not in body


def test_a_member_of_a_replaced_ledger_hears_no_path(world: World) -> None:
    client, path = world.edge("member"), world.folder / "data" / LEDGER_FILE
    client.sync(EXPERT)
    path.rename(path.with_suffix(".gone"))
    with pytest.raises(TransferError) as caught:
        client.sync(EXPERT)
    assert str(world.folder) not in str(caught.value)
    path.with_suffix(".gone").rename(path)
