"""`verify-merge` fails wherever a client that fetches the version would."""

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from compeft_core.errors import CompeftError
from compeft_proto.errors import ChunkMismatchError, UnknownExpertError, WrongBaseError
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.admin.lineage import Versions
from compeft_server.data_directory import open_store
from compeft_server.ledger import schema
from tests.attacks.processes import compeft
from tests.rounds.conftest import EXPERT, World, synced_by, trained


@pytest.fixture
def made(world: World) -> World:
    """An expert with version 1, which two clients made."""
    task = world.open_round()
    for number in range(2):
        client = world.edge(f"edge-{number}")
        synced_by(client, task)
        client.submit(task, trained(number))
    world.close_round()
    return world


def own_chunk(world: World) -> Path:
    """The first chunk of version 1's own payload."""
    sealed = Envelope.FromString(world.ledger.versions(EXPERT, 0, 1)[0].envelope)
    name = pb.VersionManifest.FromString(sealed.payload).chunks[0].sha256.hex()
    return world.folder / "data" / "chunks" / name[:2] / name


def delete_chunk(world: World) -> None:
    own_chunk(world).unlink()


def alter_chunk(world: World) -> None:
    data = bytearray(own_chunk(world).read_bytes())
    data[len(data) // 2] ^= 1
    own_chunk(world).write_bytes(data)


def alter_column(world: World) -> None:
    engine = sa.create_engine(f"sqlite:///{world.folder / 'data' / 'ledger.sqlite'}")
    with engine.begin() as connection:
        connection.execute(sa.update(schema.versions).where(schema.versions.c.version == 1), {"state_digest": b"\x09" * 32})
    engine.dispose()


DAMAGES: dict[Callable[[World], None], type[CompeftError]] = {
    delete_chunk: UnknownExpertError,
    alter_chunk: ChunkMismatchError,
    alter_column: WrongBaseError,
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_a_client_cannot_fetch_does_not_verify(made: World, damage: Callable[[World], None]) -> None:
    data = made.folder / "data"
    versions = Versions(made.aggregator, open_store(data), made.ledger)
    versions.verify(EXPERT, 1)
    damage(made)
    with pytest.raises(DAMAGES[damage]):
        versions.verify(EXPERT, 1)
    assert compeft("verify-merge", EXPERT, "--data", str(data)).returncode != 0
    with pytest.raises(CompeftError):
        made.edge("reader").sync(EXPERT)
