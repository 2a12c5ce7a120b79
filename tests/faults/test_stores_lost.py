"""PostgreSQL and S3 go away under a running aggregator: what is asked meanwhile is a typed error, and it goes on when they are back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from compeft_proto.errors import TransferError
from compeft_server.admin.audit_check import verify_log
from compeft_server.data_directory import Storage, choose_storage
from tests.rounds.conftest import EXPERT, World, running, synced_by, trained
from tests.server import servers

Lost = servers.PostgreSQL | servers.SeaweedFS


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Lost]]:
    """Both servers, running."""
    folder = tmp_path_factory.mktemp("servers")
    found: dict[str, Lost] = {"PostgreSQL": servers.PostgreSQL(folder / "pg"), "S3": servers.SeaweedFS(folder / "s3")}
    for server in found.values():
        server.start()
    yield found
    for server in found.values():
        server.stop()


@pytest.fixture
def world(places: dict[str, Lost], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An aggregator on an empty database and bucket of theirs."""
    database, bucket = places["PostgreSQL"], places["S3"]
    assert isinstance(database, servers.PostgreSQL)
    assert isinstance(bucket, servers.SeaweedFS)
    for name, value in servers.s3_environment(bucket.address).items():
        monkeypatch.setenv(name, value)
    name = tmp_path.name.replace("_", "-").lower()[-40:].strip("-")
    servers.make_bucket(bucket.address, name)
    with servers.database(database.start()) as url:
        choose_storage(tmp_path / "data", Storage(url, f"s3://{name}/chunks"))
        with running(tmp_path) as made:
            yield made


@pytest.mark.parametrize("name", ["PostgreSQL", "S3"])
def test_a_round_goes_on_after_a_store_was_lost_in_the_middle_of_it(world: World, places: dict[str, Lost], name: str) -> None:
    clients = [world.edge("a"), world.edge("b")]
    task = world.open_round()
    for client in clients:
        synced_by(client, task)
    assert clients[0].submit(task, trained(0)) is not None
    places[name].stop()
    with pytest.raises(TransferError) as caught:
        clients[1].submit(task, trained(1))
    assert "Traceback" not in str(caught.value)
    assert "password" not in str(caught.value)
    places[name].start()
    assert clients[1].resume(EXPERT) is not None
    closed = world.close_round()
    assert (closed.accepted, closed.version) == (2, 1)
    assert world.edge("reader").sync(EXPERT).version == 1
    verify_log(world.ledger)
