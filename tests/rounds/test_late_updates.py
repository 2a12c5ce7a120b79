"""Late updates: built on an older version, merged in a later round with less weight, or refused. Never lost, never twice."""

import math

import numpy as np
import pytest

from compeft_client.exchange.edge_client import EdgeClient
from compeft_client.exchange.state_directory import StateDirectory
from compeft_core import Vector, compress, densify
from compeft_proto import envelope as dsse
from compeft_proto.clock import now_ms
from compeft_proto.errors import RoundClosedError
from compeft_proto.round_task import RoundTask
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.admin.lineage import Versions
from compeft_server.data_directory import open_store
from tests.rounds.conftest import EXPERT, LAYOUT, RUN, UPLINK, World, synced_by, task_vector, trained


def open_round(world: World, number: int, max_staleness: int, run: str = RUN) -> RoundTask:
    opened = world.conductor().open_round(EXPERT, run, number, 60.0, max_staleness)
    return RoundTask(EXPERT, run, number, opened.round_nonce, opened.base_version, UPLINK)


def pass_rounds(world: World, client: EdgeClient, numbers: range, max_staleness: int) -> None:
    """Whole rounds of one client that is in time."""
    for number in numbers:
        task = open_round(world, number, max_staleness)
        synced_by(client, task)
        client.submit(task, trained(100 + number))
        world.close_round(number)


def residual_of(world: World, name: str) -> Vector:
    directory = StateDirectory(world.folder / f"state-{name}" / EXPERT)
    return directory.residual(directory.load(), LAYOUT)


def manifest_of(world: World, version: int) -> pb.VersionManifest:
    row = world.ledger.versions(EXPERT, version - 1, version)[0]
    return dsse.open_envelope(Envelope.FromString(row.envelope), dsse.only(world.aggregator.public), dsse.VERSION)


@pytest.mark.parametrize("late_by", [1, 2])
def test_a_late_update_joins_the_open_round_with_less_weight(world: World, late_by: int) -> None:
    slow, quick = world.edge("slow"), world.edge("quick")
    task = open_round(world, 1, 2)
    synced_by(slow, task)
    pass_rounds(world, quick, range(1, 1 + late_by), 2)
    now = open_round(world, 1 + late_by, 2)
    synced_by(quick, now)
    quick.submit(now, trained(3))
    receipt = slow.submit(task, trained(1))
    assert receipt.round == 1 + late_by
    closed = world.close_round(1 + late_by)
    assert closed.accepted == 2

    by_name = {m.public.keyid: m.name for m in world.ledger.members()}
    found = {by_name[c.keyid]: (c.weight, c.staleness) for c in manifest_of(world, closed.version).contributions}
    assert found == {"quick": (300.0, 0), "slow": (300.0 / math.sqrt(1 + late_by), late_by)}
    Versions(world.aggregator, open_store(world.folder / "data"), world.ledger).verify(EXPERT, closed.version)
    slow.sync(EXPERT)
    np.testing.assert_array_equal(residual_of(world, "slow"), task_vector(1) - densify(compress(LAYOUT, task_vector(1), UPLINK)))


def test_a_late_update_waits_in_the_round_it_joined(world: World) -> None:
    slow, quick = world.edge("slow"), world.edge("quick")
    task = open_round(world, 1, 1)
    synced_by(slow, task)
    pass_rounds(world, quick, range(1, 2), 1)
    open_round(world, 2, 1)
    receipt = slow.submit(task, trained(1))
    assert slow.resume(EXPERT) == receipt, "the same again gets the same answer"
    slow.sync(EXPERT)
    assert StateDirectory(world.folder / "state-slow" / EXPERT).load().pending is not None
    open_round(world, 3, 1)  # the conductor of round 2 died: nothing of it is merged
    slow.sync(EXPERT)
    np.testing.assert_array_equal(residual_of(world, "slow"), task_vector(1))


@pytest.mark.parametrize(
    ("max_staleness", "message"), [(0, "round 1 of run 'run-1' is closed"), (1, "1 versions late, this one is 2")]
)
def test_an_update_that_is_too_late_is_refused_and_comes_back_whole(world: World, max_staleness: int, message: str) -> None:
    slow, quick = world.edge("slow"), world.edge("quick")
    task = open_round(world, 1, max_staleness)
    synced_by(slow, task)
    pass_rounds(world, quick, range(1, 3), max_staleness)
    open_round(world, 3, max_staleness)
    before = world.everything()
    with pytest.raises(RoundClosedError, match=message):
        slow.submit(task, trained(1))
    assert world.everything() == before
    slow.sync(EXPERT)
    np.testing.assert_array_equal(residual_of(world, "slow"), task_vector(1))


def test_an_update_from_before_a_rollback_or_of_another_run_joins_no_round(world: World) -> None:
    slow, quick = world.edge("slow"), world.edge("quick")
    task = open_round(world, 1, 5)
    synced_by(slow, task)
    pass_rounds(world, quick, range(1, 2), 5)
    open_round(world, 1, 5, run="run-2")
    with pytest.raises(RoundClosedError, match="is closed"):
        slow.submit(task, trained(1))
    world.conductor().close_round(EXPERT, "run-2", 1, "average", 1.0, UPLINK)
    Versions(world.aggregator, open_store(world.folder / "data"), world.ledger).roll_back(EXPERT, 0, now_ms())
    open_round(world, 2, 5)
    with pytest.raises(RoundClosedError, match="is closed"):
        slow.resume(EXPERT)
