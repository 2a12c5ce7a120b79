"""Rounds that a hostile client takes part in, over real gRPC: what robust methods make of them, and what a version says of it."""

from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa
from flwr.serverapp.strategy import FedAvg

from compeft_client.exchange.edge_client import Trained
from compeft_core import InputError, MergeParameters, Vector, compress, densify, encode, merge, parse
from compeft_proto import envelope as dsse
from compeft_proto.clock import now_ms
from compeft_proto.errors import WrongBaseError
from compeft_server.admin.lineage import Versions
from compeft_server.cli.versions import _as_json, _as_text
from compeft_server.data_directory import open_store
from compeft_server.flower.conductor import ConductorConfig
from compeft_server.flower.strategy import CompressedStrategy, Plan
from compeft_server.ledger import schema
from tests.rounds.conftest import DOWNLINK, EXPERT, LAYOUT, ORIGIN, RUN, UPLINK, World, synced_by, task_vector, trained

SIGNAL = 5 * task_vector(0) * np.abs(task_vector(1)) / 1e-3
HONEST = 4
DEFENCES = {
    "krum": MergeParameters(byzantine=1),
    "multi_krum": MergeParameters(byzantine=1),
    "trimmed_mean": MergeParameters(trim=0.2),
    "median": MergeParameters(),
    "sign_majority": MergeParameters(quorum=0.25),
}


def honest(i: int) -> Trained:
    return replace(trained(i), task_vector=(SIGNAL + 0.3 * task_vector(10 + i)).astype(np.float32))


def poisoned() -> Trained:
    """The honest direction turned round, a hundred times as large, with a claim of a million examples."""
    return replace(trained(9), task_vector=(-100 * SIGNAL).astype(np.float32), num_examples=10**6)


def composed(world: World, updates: list[Trained], method: str, parameters: MergeParameters) -> Vector:
    """How far one round with these updates moves the expert; the last update comes from a client named attacker."""
    task = world.open_round()
    names = [*(f"edge-{i}" for i in range(len(updates) - 1)), "attacker"]
    clients = [world.edge(name) for name in names]
    before = [synced_by(client, task).vector for client in clients]
    for client, update in zip(clients, updates, strict=True):
        client.submit(task, update)
    world.conductor().close_round(EXPERT, RUN, 1, method, 1.0, DOWNLINK, parameters)
    return clients[0].sync(EXPERT).vector - before[0]


def versions(world: World) -> Versions:
    return Versions(world.aggregator, open_store(world.folder / "data"), world.ledger)


def cosine(a: Vector, b: Vector) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def honest_step() -> Vector:
    """Where the honest clients alone would have taken the expert, by plain averaging."""
    updates = [parse(encode(compress(LAYOUT, honest(i).task_vector, UPLINK))) for i in range(HONEST)]
    return densify(compress(LAYOUT, merge("average", updates, [1.0] * HONEST), DOWNLINK))


@pytest.mark.parametrize("method", DEFENCES)
def test_a_poisoned_update_does_not_turn_the_composed_expert(world: World, method: str) -> None:
    moved, target = composed(world, [*map(honest, range(HONEST)), poisoned()], method, DEFENCES[method]), honest_step()
    assert cosine(moved, target) > 0.8
    assert np.linalg.norm(moved - target) < 0.7 * np.linalg.norm(target)
    versions(world).verify(EXPERT, 1)


def test_the_same_poison_turns_an_average(world: World) -> None:
    moved = composed(world, [*map(honest, range(HONEST)), poisoned()], "average", MergeParameters())
    assert cosine(moved, honest_step()) < 0


def test_a_version_says_whom_krum_left_out_and_by_which_parameters(world: World) -> None:
    composed(world, [*map(honest, range(HONEST)), poisoned()], "multi_krum", DEFENCES["multi_krum"])
    origin = versions(world).lineage(EXPERT)[1]
    left_out = {name for name, c in origin.contributors if c.left_out}
    assert "attacker" in left_out
    assert len(left_out) == 3
    assert origin.merge_parameters == {"byzantine": 1, "keep": 0}
    assert "multi_krum byzantine=1 keep=0" in _as_text(origin)
    assert "attacker (left out)" in _as_text(origin)
    assert _as_json(origin)["merge_parameters"] == {"byzantine": 1, "keep": 0}


def test_a_manifest_that_lies_about_the_choice_is_caught(world: World) -> None:
    composed(world, [*map(honest, range(HONEST)), poisoned()], "krum", DEFENCES["krum"])
    version = world.ledger.versions(EXPERT, 0, 1)[0]
    manifest = versions(world)._log.manifest(version)
    manifest.contributions[0].left_out = not manifest.contributions[0].left_out
    resealed = dsse.seal(world.aggregator, dsse.VERSION, manifest).SerializeToString()
    with world.ledger._engine.begin() as connection:
        table = schema.versions
        connection.execute(sa.update(table).where(table.c.version == 1), {"envelope": resealed})
    with pytest.raises(WrongBaseError, match="names other updates as left out"):
        versions(world).verify(EXPERT, 1)


def test_a_round_that_is_too_small_for_krum_stays_open_and_can_be_closed_otherwise(world: World) -> None:
    with pytest.raises(InputError, match="krum needs 5 updates to withstand 1 hostile ones, but got 3"):
        composed(world, [*map(honest, range(2)), poisoned()], "krum", DEFENCES["krum"])
    closed = world.conductor().close_round(EXPERT, RUN, 1, "median", 1.0, DOWNLINK)
    assert (closed.closed, closed.version) == (True, 1)


def test_a_parameter_that_the_method_does_not_take_is_refused(world: World) -> None:
    with pytest.raises(InputError, match="average takes no parameters, not trim"):
        composed(world, [honest(0), honest(1)], "average", MergeParameters(trim=0.4))


def test_a_client_is_forgotten_from_a_merge_that_is_then_too_small_for_krum(world: World) -> None:
    composed(world, [*map(honest, range(HONEST)), poisoned()], "krum", DEFENCES["krum"])
    made = versions(world)
    member = next(m for m in world.ledger.members() if m.name == "edge-0")
    made.forget(EXPERT, member.public.keyid, now_ms())
    made.verify(EXPERT, 2)


def test_dare_recomputes_from_its_recorded_seed(world: World) -> None:
    composed(world, [honest(0), honest(1)], "dare_ties", MergeParameters(drop=0.3, seed=77))
    made = versions(world)
    made.verify(EXPERT, 1)
    assert made.lineage(EXPERT)[1].merge_parameters == {"drop": 0.3, "seed": 77}


def test_the_whole_layout_moves(world: World) -> None:
    moved = composed(world, [*map(honest, range(HONEST)), poisoned()], "trimmed_mean", DEFENCES["trimmed_mean"])
    assert np.abs(moved[LAYOUT.ternary_size :]).max() > 0


def test_a_plan_with_a_parameter_for_another_method_fails_before_the_first_round(world: World) -> None:
    plan = Plan(EXPERT, ORIGIN, UPLINK, DOWNLINK, merge_method="median", merge_parameters=MergeParameters(trim=0.3))
    with pytest.raises(InputError, match="median takes no parameters, not trim"):
        CompressedStrategy(FedAvg(), plan, ConductorConfig(world.address, world.conductor_key, world.aggregator.public))
