"""The client's memory: it survives a restart at any point, and a damaged one is named, not used."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compeft_client.exchange.edge_client import EdgeClient
from compeft_client.exchange.state_directory import StateDirectory
from compeft_client.identity.edge_config import Edge
from compeft_core import compress, densify
from compeft_core.errors import InputError
from compeft_proto.errors import ConflictError, ReplayError, UnreachableError
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from tests.rounds.conftest import EXPERT, LAYOUT, UPLINK, World, genesis, synced_by, task_vector, trained


def residual_of(folder: Path) -> np.ndarray:
    directory = StateDirectory(folder / EXPERT)
    return directory.residual(directory.load(), LAYOUT)


def after_a_merged_round(world: World) -> EdgeClient:
    """A client whose first update is in version 1, which it has."""
    client = world.edge("edge")
    task = world.open_round(1)
    synced_by(client, task)
    client.submit(task, trained(1))
    world.close_round(1)
    client.sync(EXPERT)
    return client


def test_a_merged_update_leaves_what_compression_dropped(world: World) -> None:
    after_a_merged_round(world)
    expected = task_vector(1) - densify(compress(LAYOUT, task_vector(1), UPLINK))
    np.testing.assert_array_equal(residual_of(world.folder / "state-edge"), expected)


def test_an_update_of_an_abandoned_round_comes_back_whole(world: World) -> None:
    client = world.edge("edge")
    task = world.open_round(1)
    synced_by(client, task)
    client.submit(task, trained(1))
    world.open_round(2)
    client.sync(EXPERT)
    np.testing.assert_array_equal(residual_of(world.folder / "state-edge"), task_vector(1))


def test_a_refused_update_comes_back_whole(world: World) -> None:
    client = world.edge("edge")
    task = world.open_round(1)
    synced_by(client, task)
    world.close_round(1)
    with pytest.raises(Exception, match="closed"):
        client.submit(task, trained(1))
    client.sync(EXPERT)
    np.testing.assert_array_equal(residual_of(world.folder / "state-edge"), task_vector(1))


def test_an_update_stays_pending_while_its_round_is_open(world: World) -> None:
    client = world.edge("edge")
    task = world.open_round()
    synced_by(client, task)
    client.submit(task, trained(1))
    client.sync(EXPERT)
    with pytest.raises(ConflictError, match="under way"):
        client.submit(task, trained(2))
    assert StateDirectory(world.folder / "state-edge" / EXPERT).load().pending is not None


def test_a_restarted_client_goes_on_where_it_was(world: World) -> None:
    key = world.enrol("edge")
    task = world.open_round()
    with world.edge("edge", key) as client:
        synced_by(client, task)
        client.submit(task, trained(1))
    world.close_round()
    with world.edge("edge", key) as client:
        assert client.sync(EXPERT).version == 1
    assert world.ledger.sequences(EXPERT, key.keyid).merged == 1


def test_a_version_that_is_ones_own_update_is_not_fetched_again(world: World) -> None:
    client = world.edge("edge")
    task = world.open_round()
    synced_by(client, task)
    client.submit(task, trained(1))
    world.close_round()
    client.sync(EXPERT)
    assert [t.payload_bytes for t in world.transfers(4) if t.direction == "down"] == [0, 0]


def test_two_processes_cannot_share_a_memory(world: World) -> None:
    client = world.edge("edge")
    with StateDirectory(world.folder / "state-edge" / EXPERT).lock(), pytest.raises(ConflictError, match="in use"):
        client.sync(EXPERT)


@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"pending": 3}'])
def test_a_damaged_index_is_named(world: World, damage: bytes) -> None:
    client = world.edge("edge")
    client.sync(EXPERT)
    index = world.folder / "state-edge" / EXPERT / "state.json"
    index.write_bytes(damage)
    with pytest.raises(InputError, match="is damaged"):
        client.sync(EXPERT)


@pytest.mark.parametrize("newer", [False, True], ids=["nothing new", "a step on it"])
def test_a_damaged_state_is_named_and_not_used(world: World, newer: bool) -> None:
    client, other = world.edge("edge"), world.edge("other")
    client.sync(EXPERT)
    folder = world.folder / "state-edge" / EXPERT
    name = StateDirectory(folder).load().synced
    if newer:
        task = world.open_round()
        synced_by(other, task)
        other.submit(task, trained(1))
        world.close_round()
    (folder / name).write_bytes(np.full(LAYOUT.size, 0.5, "<f4").tobytes())
    with pytest.raises(InputError, match=f"{name} is damaged"):
        client.sync(EXPERT)
    assert StateDirectory(folder).load().version == 0


def test_a_damaged_residual_is_named_and_not_used(world: World) -> None:
    client = after_a_merged_round(world)
    folder = world.folder / "state-edge" / EXPERT
    name = StateDirectory(folder).load().target
    (folder / name).write_bytes(bytes(4 * LAYOUT.size))
    task = world.open_round(2)
    synced_by(client, task)
    with pytest.raises(InputError, match=f"{name} is damaged"):
        client.submit(task, trained(2))


def test_a_vector_that_an_earlier_release_named_by_its_sha256_is_read(world: World) -> None:
    after_a_merged_round(world)
    before = residual_of(world.folder / "state-edge")
    directory = StateDirectory(world.folder / "state-edge" / EXPERT)
    memory = directory.load()
    earlier = directory.write((world.folder / "state-edge" / EXPERT / memory.target).read_bytes())
    directory.save(replace(memory, target=earlier))
    np.testing.assert_array_equal(residual_of(world.folder / "state-edge"), before)


def test_a_client_that_missed_rounds_catches_up(world: World) -> None:
    busy, idle = world.edge("busy"), world.edge("idle")
    idle.sync(EXPERT)
    for number in (1, 2, 3):
        task = world.open_round(number)
        synced_by(busy, task)
        busy.submit(task, trained(number))
        world.close_round(number)
    assert idle.sync(EXPERT).vector.tobytes() == busy.sync(EXPERT).vector.tobytes()
    assert idle.sync(EXPERT).version == 3


def test_experts_whose_names_nest_do_not_disturb_each_other(world: World) -> None:
    world.conductor().publish(genesis(expert=f"{EXPERT}/french"))
    client = world.edge("edge")
    client.sync(f"{EXPERT}/french")
    task = world.open_round()
    synced_by(client, task)
    client.submit(task, trained(1))
    world.close_round()
    assert client.sync(EXPERT).version == 1
    assert client.sync(f"{EXPERT}/french").version == 0


def test_an_expert_name_cannot_leave_the_state_directory(world: World) -> None:
    client = EdgeClient(Edge(world.address, world.enrol("edge"), world.aggregator.public, world.folder / "inside"))
    with pytest.raises(Exception, match="expert name"):
        client.sync("../outside")
    assert not (world.folder / "outside").exists()


def test_an_update_that_the_client_has_taken_back_is_not_accepted_any_more(world: World) -> None:
    key = world.enrol("edge")
    client = Slow(Edge(world.address, key, world.aggregator.public, world.folder / "state-edge", patience_s=0))
    task = world.open_round()
    synced_by(client, task)
    with pytest.raises(UnreachableError):
        client.submit(task, trained(1))
    client.sync(EXPERT)  # the client gives it up: all of it goes to the residual
    with pytest.raises(ReplayError, match="sequence number 1, the newest accepted or settled is 1"):
        EdgeClient._send(client, *client.under_way)
    assert world.close_round().accepted == 0
    np.testing.assert_array_equal(residual_of(world.folder / "state-edge"), task_vector(1))


class Slow(EdgeClient):
    """A client that gives up while its update is still under way."""

    def _send(self, sealed: Envelope, payload: bytes) -> pb.Receipt:
        self.under_way = sealed, payload
        raise UnreachableError("gave up waiting")
