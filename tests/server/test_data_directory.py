"""Which database and which store belong to a data directory; and whole rounds where neither is the default."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.engine import URL

from compeft_core.errors import FormatError, InputError
from compeft_proto.errors import UnreachableError
from compeft_proto.keys import new_key
from compeft_server.admin.backup import back_up
from compeft_server.admin.lineage import Versions
from compeft_server.admin.restore import restore
from compeft_server.app.server import Settings, start
from compeft_server.chunks.directory_store import DirectoryStore
from compeft_server.chunks.object_store import ObjectStore
from compeft_server.data_directory import Storage, choose_storage, open_ledger, open_store, read_storage
from compeft_server.identity.aggregator_keys import own_key
from compeft_server.ledger.audit import check
from compeft_server.ledger.ledger import Ledger
from tests.rounds.conftest import EXPERT, World, running, synced_by, trained
from tests.server import servers

POSTGRESQL = "postgresql+psycopg://compeft@db.example/compeft"
_number = count()


@pytest.fixture
def elsewhere(postgresql: URL, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A PostgreSQL and a bucket, both empty."""
    for name, value in servers.s3_environment(s3).items():
        monkeypatch.setenv(name, value)
    name = f"elsewhere-{os.getpid()}-{next(_number)}"
    servers.make_bucket(s3, name)
    with servers.database(postgresql) as url:
        yield Storage(url, f"s3://{name}")


def test_by_default_everything_lies_in_the_data_directory(tmp_path: Path) -> None:
    open_ledger(tmp_path / "data").close()
    assert isinstance(open_store(tmp_path / "data"), DirectoryStore)
    found = {path.name for path in (tmp_path / "data").iterdir()}
    assert {"ledger.sqlite", "chunks", "partial"} <= found
    assert "storage.toml" not in found


def test_what_was_chosen_once_is_what_every_command_opens(tmp_path: Path, elsewhere: Storage) -> None:
    data = tmp_path / "data"
    assert choose_storage(data, elsewhere) == elsewhere
    assert choose_storage(data, Storage()) == choose_storage(data, elsewhere) == read_storage(data) == elsewhere
    assert (data / "storage.toml").stat().st_mode & 0o077 == 0
    ledger = open_ledger(data)
    assert ledger._engine.dialect.name == "postgresql"
    ledger.close()
    assert isinstance(open_store(data), ObjectStore)
    assert not (data / "ledger.sqlite").exists()


def test_a_choice_does_not_change_by_itself(tmp_path: Path) -> None:
    choose_storage(tmp_path, Storage(POSTGRESQL))
    with pytest.raises(InputError, match=r"storage\.toml names another database"):
        choose_storage(tmp_path, Storage(POSTGRESQL + "2"))
    assert read_storage(tmp_path) == Storage(POSTGRESQL)


def test_data_that_is_there_is_not_left_behind(tmp_path: Path) -> None:
    open_ledger(tmp_path).close()
    with pytest.raises(InputError, match=r"ledger\.sqlite holds data already"):
        choose_storage(tmp_path, Storage(POSTGRESQL))
    open_store(tmp_path)
    with pytest.raises(InputError, match="chunks holds data already"):
        choose_storage(tmp_path, Storage(store="s3://bucket"))


@pytest.mark.parametrize("url", ["sqlite:///x", "mysql://db/x", "postgresql://db/x", "nothing"])
def test_another_kind_of_database_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match=r"postgresql\+psycopg://user@host/name"):
        choose_storage(tmp_path, Storage(url))
    assert read_storage(tmp_path) == Storage()


@pytest.mark.parametrize("text", ["database = 5", 'databse = "x"', "database", '[store]\nurl = "s3://x"', "\xff"])
def test_a_storage_file_that_means_nothing_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "storage.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match=r"storage\.toml"):
        open_ledger(tmp_path)


def test_a_database_that_does_not_answer_is_one_line_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=r"://u:\*\*\*@127\.0\.0\.1:1/x cannot be reached") as caught:
        Ledger("postgresql+psycopg://u:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rounds_on_postgresql_and_s3_are_rounds(tmp_path: Path, elsewhere: Storage) -> None:
    choose_storage(tmp_path / "data", elsewhere)
    with running(tmp_path) as world:
        clients = [world.edge("a"), world.edge("b")]
        for number in (1, 2):
            task = world.open_round(number)
            for i, client in enumerate(clients):
                synced_by(client, task)
                client.submit(task, trained(10 * number + i))
            assert world.close_round(number).version == number
        assert np.array_equal(clients[0].sync(EXPERT).vector, world.edge("reader").sync(EXPERT).vector)
        versions = Versions(world.aggregator, open_store(tmp_path / "data"), world.ledger)
        for number in range(3):
            versions.verify(EXPERT, number)
        check(world.ledger.audit_entries())
    assert [path.name for path in (tmp_path / "data").iterdir() if path.is_dir()] == ["partial"]
    assert list((tmp_path / "data" / "partial").iterdir()) == []


def test_two_aggregators_on_one_database_and_bucket_are_one(tmp_path: Path, elsewhere: Storage) -> None:
    choose_storage(tmp_path / "data", elsewhere)
    with running(tmp_path) as world:
        second = Settings(tmp_path / "second")
        choose_storage(second.data, elsewhere)
        (second.data / "aggregator.key").write_bytes((tmp_path / "data" / "aggregator.key").read_bytes())
        (second.data / "aggregator.key").chmod(0o600)
        ledger = open_ledger(second.data)
        server, port = start(second, ledger)
        twin = World(tmp_path / "twin", f"127.0.0.1:{port}", ledger, own_key(second.data), [0], world.conductor_key)
        here, there = world.edge("here"), twin.edge("there")
        task = world.open_round()
        for number, client in enumerate([here, there]):
            synced_by(client, task)
            client.submit(task, trained(number))
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda each: each.close_round(), [world, twin]))
        assert [(closed.accepted, closed.version) for closed in both] == [(2, 1), (2, 1)]
        assert [v.version for v in ledger.versions(EXPERT, -1, 9)] == [0, 1]
        assert np.array_equal(here.sync(EXPERT).vector, there.sync(EXPERT).vector)
        assert twin.ledger.rounds(EXPERT) == world.ledger.rounds(EXPERT)
        check(ledger.audit_entries())
        server.stop(None).wait()
        ledger.close()


# Names of folders


NAMES = [
    "q?one",
    "q?mode=memory",
    "p%20x",
    "p%",
    "a#b",
    "a&b=c",
    "a b ",
    "a:b@c",
    ":memory:",
    "file:x",
    "[1]",
    "{x}",
    "'\"`",
    "a\\b",
]
NAMES += ["é 日本", "~", "-x", "a;b", "a\nb", "*", "$HOME", "sqlite:///x"]


def test_a_folder_may_have_any_name_and_keeps_its_own_ledger(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        folder = tmp_path.joinpath(*[part for part in name.split("/") if part])
        ledger = open_ledger(folder)
        ledger.enrol(f"member-{number}", new_key().public, "edge", 1)
        ledger.close()
        assert [path.name for path in folder.iterdir() if path.is_file()] == ["ledger.sqlite"], name
    for number, name in enumerate(NAMES):
        ledger = open_ledger(tmp_path.joinpath(*[part for part in name.split("/") if part]))
        assert [m.name for m in ledger.members()] == [f"member-{number}"], name
        ledger.close()
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_a_relative_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (":memory:", "file:x", "q?one", "p%20x"):
        open_ledger(Path(name)).close()
        assert (tmp_path / name / "ledger.sqlite").exists(), name


def test_a_backup_of_a_folder_of_any_name_is_that_folders(tmp_path: Path) -> None:
    for name in ("q?one", "p%20x", "a#b"):
        ledger = open_ledger(tmp_path / name)
        ledger.enrol(f"of {name}", new_key().public, "edge", 1)
        ledger.close()
        own_key(tmp_path / name)
        back_up(tmp_path / name, tmp_path / f"{name}.tar", 1)
        restore(tmp_path / f"{name}.tar", tmp_path / f"again {name}")
        ledger = open_ledger(tmp_path / f"again {name}")
        assert [m.name for m in ledger.members()] == [f"of {name}"]
        ledger.close()


def test_a_name_that_is_not_text_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="UTF-8"):
        open_ledger(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")))
