"""The commands of an operator who looks after what is stored."""

import json
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from compeft_client.cli.main import run
from compeft_server.data_directory import Storage, choose_storage, open_ledger, open_store
from compeft_server.identity.aggregator_keys import own_key
from tests.server import servers
from tests.server.facts import EXPERT, version


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with an expert in it, and a chunk that nobody needs."""
    data = tmp_path / "data"
    own_key(data)
    ledger = open_ledger(data)
    ledger.create(EXPERT, version(0))
    ledger.close()
    open_store(data).put(b"garbage")
    return data


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    """What a command that succeeds prints as JSON."""
    assert run([*arguments, "--format", "json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_gc_says_what_it_removed_in_both_formats(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, "gc", "--data", str(data), "--dry-run")
    assert (found["removed_chunks"], found["young_chunks"], found["dry_run"]) == (0, 1, True)
    assert run(["gc", "--data", str(data)]) == 0
    assert "1 chunks that nobody needs stay for their grace period" in capsys.readouterr().out


def test_a_backup_is_restored_by_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive, restored = tmp_path / "backup.tar", tmp_path / "restored"
    made = said(capsys, "backup", "--data", str(data), "-o", str(archive))
    back = said(capsys, "restore", str(archive), "--data", str(restored))
    assert made == back | {"path": str(archive)}
    ledger = open_ledger(restored)
    assert ledger.experts() == ["sentiment"]
    ledger.close()
    assert (restored / "aggregator.key").read_bytes() == (data / "aggregator.key").read_bytes()
    assert run(["restore", str(archive), "--data", str(restored)]) == 3
    assert "is not empty: restore into a new directory" in capsys.readouterr().err
    assert run(["audit", "verify", "--data", str(restored)]) == 0


def test_every_command_finds_the_database_that_was_chosen(
    tmp_path: Path, postgresql: URL, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    with servers.database(postgresql) as url:
        choose_storage(data, Storage(url))
        ledger = open_ledger(data)
        ledger.create(EXPERT, version(0))
        ledger.close()
        assert run(["experts", "list", "--data", str(data)]) == 0
        assert run(["audit", "verify", "--data", str(data)]) == 0
        assert run(["gc", "--data", str(data)]) == 0
        assert "sentiment" in capsys.readouterr().out
        assert run(["backup", "--data", str(data), "-o", str(tmp_path / "x.tar")]) == 3
    assert "run pg_dump" in capsys.readouterr().err
    assert not (data / "ledger.sqlite").exists()


def test_serve_refuses_a_database_it_does_not_know_before_it_makes_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "--data", str(tmp_path / "data"), "--database", "mysql://db/x"]) == 3
    assert "'mysql', it must be postgresql+psycopg://" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
