"""Server optimizers in real rounds: the moments go from version to version, and every step recomputes bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa

from compeft_core import compress, densify
from compeft_core.errors import InputError
from compeft_core.merging.methods import merge
from compeft_core.server_optimizer import ServerOptimizer, descend, no_moments
from compeft_proto.clock import now_ms
from compeft_proto.convert import payload_of
from compeft_proto.errors import WrongBaseError
from compeft_server.admin.lineage import Versions
from compeft_server.data_directory import open_store
from compeft_server.ledger import schema
from tests.rounds.conftest import DOWNLINK, EXPERT, LAYOUT, RUN, UPLINK, World, synced_by, task_vector, trained

MOMENTUM = ServerOptimizer("fedavgm", 0.5, 0.9)
ADAM = ServerOptimizer("fedadam", 1e-3, 0.9, 0.99, 1e-3)


@pytest.fixture
def versions(world: World) -> Versions:
    return Versions(world.aggregator, open_store(world.folder / "data"), world.ledger)


def run_round(world: World, name: str, number: int, optimizer: ServerOptimizer) -> None:
    with world.edge(name) as client:
        task = world.open_round(number)
        synced_by(client, task)
        client.submit(task, trained(number))
    world.conductor().close_round(EXPERT, RUN, number, "average", 1.0, DOWNLINK, optimizer=optimizer)


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM])
def test_the_steps_are_those_of_the_formula_with_moments_carried_on(world: World, optimizer: ServerOptimizer) -> None:
    state = world.edge("start").sync(EXPERT).vector
    moments, residual = no_moments(optimizer, LAYOUT.size), np.zeros(LAYOUT.size, np.float32)
    for number in (1, 2, 3):
        run_round(world, f"edge-{number}", number, optimizer)
        sent = payload_of(LAYOUT, compress(LAYOUT, task_vector(number), UPLINK))
        wanted, moments = descend(optimizer, merge("average", [sent], [300.0]), moments)
        step = densify(compress(LAYOUT, wanted + residual, DOWNLINK))
        state, residual = state + step, wanted + residual - step
    np.testing.assert_array_equal(world.edge("reader").sync(EXPERT).vector, state)


def test_a_version_says_its_optimizer_and_recomputes_bit_for_bit(world: World, versions: Versions) -> None:
    for number, optimizer in enumerate((MOMENTUM, MOMENTUM, ADAM, ADAM, ServerOptimizer()), 1):
        run_round(world, f"edge-{number}", number, optimizer)
    assert [o.optimizer for o in versions.lineage(EXPERT)[1:]] == [MOMENTUM, MOMENTUM, ADAM, ADAM, ServerOptimizer()]
    for number in range(6):
        versions.verify(EXPERT, number)


def test_moments_that_are_not_those_of_the_merge_are_caught(world: World, versions: Versions) -> None:
    for number in (1, 2):
        run_round(world, f"edge-{number}", number, MOMENTUM)
    table = schema.versions
    (other,) = (open_store(world.folder / "data").put(np.ones(LAYOUT.size, "<f4").tobytes()),)
    with world.ledger._engine.begin() as connection:
        connection.execute(sa.update(table).where(table.c.version == 2), {"moment_chunks": other})
    with pytest.raises(WrongBaseError, match="version 2 recomputes to other moments than the aggregator keeps"):
        versions.verify(EXPERT, 2)


def test_after_a_rollback_the_moments_start_again(world: World, versions: Versions) -> None:
    for number in (1, 2):
        run_round(world, f"edge-{number}", number, MOMENTUM)
    versions.roll_back(EXPERT, 1, now_ms())
    run_round(world, "edge-3", 3, MOMENTUM)
    versions.verify(EXPERT, 4)
    before = world.edge("reader-1").sync(EXPERT, 3).vector
    sent = payload_of(LAYOUT, compress(LAYOUT, task_vector(3), UPLINK))
    wanted, _ = descend(MOMENTUM, merge("average", [sent], [300.0]), no_moments(MOMENTUM, LAYOUT.size))
    step = densify(compress(LAYOUT, wanted, DOWNLINK))
    np.testing.assert_array_equal(world.edge("reader-2").sync(EXPERT).vector, before + step)


def test_a_forgotten_client_leaves_no_momentum_behind(world: World, versions: Versions) -> None:
    for number in (1, 2, 3):
        run_round(world, f"edge-{number}", number, MOMENTUM)
    member = next(m for m in world.ledger.members() if m.name == "edge-2")
    versions.forget(EXPERT, member.public.keyid, now_ms())
    versions.verify(EXPERT, 4)
    state, residual, moments = world.edge("start").sync(EXPERT, 0).vector, np.zeros(LAYOUT.size, np.float32), None
    for number in (1, 3):
        sent = payload_of(LAYOUT, compress(LAYOUT, task_vector(number), UPLINK))
        old = no_moments(MOMENTUM, LAYOUT.size) if moments is None else moments
        wanted, moments = descend(MOMENTUM, merge("average", [sent], [300.0]), old)
        step = densify(compress(LAYOUT, wanted + residual, DOWNLINK))
        state, residual = state + step, wanted + residual - step
    np.testing.assert_array_equal(world.edge("reader").sync(EXPERT).vector, state)


def test_an_optimizer_out_of_range_is_refused_and_the_round_stays_open(world: World) -> None:
    client = world.edge("edge")
    task = world.open_round()
    synced_by(client, task)
    client.submit(task, trained(1))
    wrong = replace(MOMENTUM)
    object.__setattr__(wrong, "momentum", 2.0)
    with pytest.raises(InputError, match=r"momentum is 2\.0"):
        world.conductor().close_round(EXPERT, RUN, 1, "average", 1.0, DOWNLINK, optimizer=wrong)
    assert world.ledger.rounds(EXPERT)[0].closed_at_ms is None
    assert world.close_round().version == 1
