"""Attacks on the operator: its data directory, its terminal, its page, its disk."""

import http.client
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from compeft_core.errors import InputError
from compeft_proto.clock import now_ms
from compeft_proto.errors import ForbiddenError, StorageFullError
from compeft_proto.keys import new_key
from compeft_server.chunks.disk_space import RESERVE_FILE, keep_reserve
from compeft_server.dashboard.metrics import Registry
from compeft_server.dashboard.security import FAILURES, set_password
from compeft_server.dashboard.server import ListenAddress, Web
from compeft_server.data_directory import check_data, open_ledger
from compeft_server.identity.aggregator_keys import own_key
from tests.attacks.processes import compeft
from tests.faults.test_disk import fill

NAMES = ["../x", "a\x1b]0;x\x07\x1b[31m", "", "x" * 5000, "*", "two words", "a\nb", "\u202ex"]
HOSTS = [
    "evil_rebind.example",
    "EVIL_X.example:80",
    "ev*il.example",
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1@evil",
    "",
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a ledger and a key."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    open_ledger(folder).close()
    own_key(folder)
    return folder


@contextmanager
def page(data: Path) -> Iterator[int]:
    """The live page over a data directory; its port."""
    ledger = open_ledger(data)
    with Web(data, ledger, ListenAddress(), None, Registry(data, ledger)).beside() as port:
        yield port
    ledger.close()


def asked(port: int, method: str, path: str, headers: list[tuple[str, str]], body: str = "") -> tuple[int, bytes]:
    """One request with these very headers."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in [*headers, ("Content-Length", str(len(body)))]:
            connection.putheader(name, value)
        connection.endheaders(body.encode())
        with closing(connection.getresponse()) as answer:
            return answer.status, answer.read()


@pytest.mark.parametrize("name", NAMES)
def test_a_member_is_not_added_under_a_name_that_could_not_be_invited(data: Path, tmp_path: Path, name: str) -> None:
    public = tmp_path / "key.pub"
    public.write_bytes(new_key().public.to_pem())
    done = compeft("clients", "add", "--data", str(data), "--", name, str(public))
    assert (done.returncode, "member name" in done.stderr) == (3, True)


def test_a_name_from_before_does_not_reach_a_terminal_as_it_is(data: Path) -> None:
    ledger = open_ledger(data)
    ledger.enrol("a\x1b]0;x\x07", new_key().public, "edge", now_ms())
    ledger.close()
    for command in (["clients", "list"], ["audit", "log"]):
        shown = compeft(*command, "--data", str(data)).stdout
        assert "\x1b" not in shown
        assert "a\\x1b]0;x\\x07" in shown


@pytest.mark.parametrize("mode", [0o777, 0o702, 0o1777])
def test_a_data_directory_that_others_may_write_to_is_not_served(data: Path, mode: int) -> None:
    data.chmod(mode)
    with pytest.raises(ForbiddenError, match=rf"has mode {mode:04o}, others could replace its keys: chmod 700"):
        check_data(data)
    assert compeft("serve", "--data", str(data), "--port", "0").returncode == 6


def test_the_ledger_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = tmp_path / "open"
        open_ledger(folder).enrol("a", new_key().public, "edge", now_ms())
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in folder.glob("ledger.sqlite*")} == {"0o600"}


def test_a_lost_ledger_is_not_replaced_by_an_empty_one(data: Path) -> None:
    for path in data.glob("ledger.sqlite*"):
        path.unlink()
    with pytest.raises(InputError, match=r"has aggregator.key but no ledger.sqlite: it was deleted or moved"):
        check_data(data)


def test_the_page_without_a_password_answers_to_no_foreign_name(data: Path) -> None:
    with page(data) as port:
        assert {asked(port, "GET", "/clients", [("Host", host)])[0] for host in HOSTS} <= {400, 421}
        assert asked(port, "GET", "/clients", [("Host", f"127.0.0.1:{port}")])[0] == 200


def test_a_request_that_names_two_hosts_is_not_answered(data: Path) -> None:
    with page(data) as port:
        named = [("Host", "127.0.0.1"), ("Host", "evil.example")]
        assert asked(port, "GET", "/clients", named)[0] in (400, 421)


def test_guesses_that_come_all_at_once_are_no_more_than_those_that_come_one_by_one(data: Path) -> None:
    set_password(data, "correct horse battery")
    with page(data) as port:
        here = f"127.0.0.1:{port}"
        headers = [("Host", here), ("Origin", f"http://{here}"), ("Content-Type", "application/x-www-form-urlencoded")]
        with ThreadPoolExecutor(40) as pool:
            answers = list(pool.map(lambda i: asked(port, "POST", "/login", headers, f"password=guess{i}")[0], range(80)))
    assert answers.count(401) <= FAILURES
    assert answers.count(401) + answers.count(429) == 80


def test_whoever_filled_the_disk_can_be_revoked(small_disk: Path) -> None:
    data = small_disk / "data"
    data.chmod(0o700)
    ledger = open_ledger(data)
    ledger.enrol("evil", new_key().public, "edge", now_ms())
    keep_reserve(data)
    filler = fill(data, 0)
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    done = compeft("clients", "revoke", "evil", "--data", str(data))
    assert (done.returncode, done.stdout) == (0, "evil is revoked\n")
    assert not (data / RESERVE_FILE).exists()
    assert ledger.members()[0].revoked
    ledger.close()


def test_a_ledger_on_a_disk_that_is_full_for_good_is_one_line(small_disk: Path) -> None:
    data = small_disk / "data"
    open_ledger(data).close()
    filler = fill(data, 0)
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(StorageFullError, match="its operator must make room"):
        open_ledger(data).enrol("a", new_key().public, "edge", now_ms())
