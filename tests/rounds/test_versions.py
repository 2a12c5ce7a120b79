"""Lineage, verification, rolling back and forgetting, on versions that a real exchange has made."""

from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa

from compeft_client.exchange.edge_client import EdgeClient
from compeft_proto import envelope as dsse
from compeft_proto.clock import now_ms
from compeft_proto.errors import ConflictError, UnknownExpertError, WrongBaseError
from compeft_server.admin.lineage import Versions
from compeft_server.data_directory import open_store
from compeft_server.ledger import schema
from tests.rounds.conftest import EXPERT, World, synced_by, trained


@pytest.fixture
def versions(world: World) -> Versions:
    return Versions(world.aggregator, open_store(world.folder / "data"), world.ledger)


def run_rounds(world: World, clients: list[EdgeClient], numbers: range, only: dict[int, list[int]] | None = None) -> None:
    """Rounds in which each client submits, or those that `only` names for a round."""
    for number in numbers:
        task = world.open_round(number)
        for i, client in enumerate(clients):
            synced_by(client, task)
            if only is None or i in only.get(number, []):
                client.submit(task, trained(10 * number + i))
        world.close_round(number)


def test_every_version_names_its_contributors_and_recomputes_bit_for_bit(world: World, versions: Versions) -> None:
    run_rounds(world, [world.edge("a"), world.edge("b")], range(1, 4))
    origins = versions.lineage(EXPERT)
    assert [[name for name, _ in sorted(o.contributors)] for o in origins] == [[], ["a", "b"], ["a", "b"], ["a", "b"]]
    assert [o.round for o in origins] == [0, 1, 2, 3]
    for number in range(4):
        versions.verify(EXPERT, number)


def test_a_version_that_was_not_merged_from_its_inputs_is_caught(world: World, versions: Versions) -> None:
    run_rounds(world, [world.edge("a"), world.edge("b")], range(1, 3))
    lying = world.ledger.versions(EXPERT, 1, 2)[0]
    manifest = versions._log.manifest(lying)
    manifest.contributions[0].weight *= 2
    resealed = dsse.seal(world.aggregator, dsse.VERSION, manifest).SerializeToString()
    with world.ledger._engine.begin() as connection:
        table = schema.versions
        connection.execute(sa.update(table).where(table.c.version == 2), {"envelope": resealed})
    with pytest.raises(WrongBaseError, match="version 2 recomputes to"):
        versions.verify(EXPERT, 2)


def test_rolling_back_appends_the_old_state_and_clients_follow(world: World, versions: Versions) -> None:
    client = world.edge("a")
    run_rounds(world, [client], range(1, 4))
    old = world.edge("reader").sync(EXPERT, 1)
    made = versions.roll_back(EXPERT, 1, now_ms())
    assert made.version == 4
    assert client.sync(EXPERT).vector.tobytes() == old.vector.tobytes()
    versions.verify(EXPERT, 4)
    run_rounds(world, [client], range(4, 5))
    assert client.sync(EXPERT).version == 5
    versions.verify(EXPERT, 5)


def test_a_forgotten_client_is_as_if_it_had_never_contributed(world: World, versions: Versions) -> None:
    a, b = world.edge("a"), world.edge("b")
    run_rounds(world, [a, b], range(1, 3), only={1: [0], 2: [0, 1]})
    before = world.edge("reader").sync(EXPERT, 1).vector
    member = next(m for m in world.ledger.members() if m.name == "b")
    versions.forget(EXPERT, member.public.keyid, now_ms())
    versions.verify(EXPERT, 3)
    state = versions._recompute(versions._log.expert(EXPERT), 2, [member.public.keyid]).state
    assert a.sync(EXPERT).vector.tobytes() == state.vector.tobytes()
    assert not np.array_equal(state, before)
    assert versions.lineage(EXPERT)[3].forgotten == (member.public.keyid,)


def test_a_client_forgotten_before_stays_forgotten(world: World, versions: Versions) -> None:
    run_rounds(world, [world.edge("a"), world.edge("b"), world.edge("c")], range(1, 3))
    keys = {m.name: m.public.keyid for m in world.ledger.members()}
    versions.forget(EXPERT, keys["b"], now_ms())
    versions.forget(EXPERT, keys["c"], now_ms())
    assert set(versions.lineage(EXPERT)[4].forgotten) == {keys["b"], keys["c"]}
    versions.verify(EXPERT, 4)


def test_what_cannot_be_mended_is_named(world: World, versions: Versions) -> None:
    run_rounds(world, [world.edge("a")], range(1, 2))
    with pytest.raises(UnknownExpertError, match="contributed to no version"):
        versions.forget(EXPERT, "0" * 32, now_ms())
    with pytest.raises(UnknownExpertError, match="versions 0 to 1"):
        versions.roll_back(EXPERT, 1, now_ms())
    with pytest.raises(UnknownExpertError, match="no expert 'x'"):
        versions.lineage("x")
    world.open_round(2)
    with pytest.raises(ConflictError, match="is open"):
        versions.roll_back(EXPERT, 0, now_ms())


def test_a_snapshot_of_another_state_is_not_believed(world: World, versions: Versions) -> None:
    client = world.edge("a")
    run_rounds(world, [client, world.edge("b")], range(1, 3))
    member = next(m for m in world.ledger.members() if m.name == "b")
    versions.forget(EXPERT, member.public.keyid, now_ms())
    snapshot = world.ledger.versions(EXPERT, 2, 3)[0]
    manifest = versions._log.manifest(snapshot)
    manifest.state_digest = b"\x01" * 32
    resealed = replace(snapshot, envelope=dsse.seal(world.aggregator, dsse.VERSION, manifest).SerializeToString())
    with world.ledger._engine.begin() as connection:
        table = schema.versions
        connection.execute(sa.update(table).where(table.c.version == 3), {"envelope": resealed.envelope})
    with pytest.raises(WrongBaseError, match="version 3 has state"):
        client.sync(EXPERT)
