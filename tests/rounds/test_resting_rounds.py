"""Rounds in which one LoRA factor rests: what is merged is the mean of the products, and what rests is neither sent nor lost."""

import numpy as np
import pytest

from compeft_client.exchange.edge_client import EdgeClient, Trained
from compeft_client.exchange.state_directory import StateDirectory
from compeft_core import Vector, decode, densify, layout_of, unflatten
from compeft_core.errors import InputError
from compeft_core.frozen_tensors import A_ENDING, B_ENDING, active_places, resting_in_round
from compeft_core.merging.inputs import USUAL
from compeft_proto.round_task import RoundTask
from compeft_server.admin.lineage import Versions
from compeft_server.aggregation.expert_log import ExpertLog
from compeft_server.data_directory import open_store
from tests.rounds.conftest import DOWNLINK, ORIGIN, RUN, UPLINK, World, genesis

LORA = "lora"
LAYOUT = layout_of({"q.lora_A.weight": (4, 200), "q.lora_B.weight": (150, 4), "head": (2, 10)}, dense=["head"])


@pytest.fixture
def published(world: World) -> World:
    world.conductor().publish(genesis(LAYOUT, LORA))
    return world


def open_round(world: World, number: int, resting: tuple[str, ...]) -> RoundTask:
    opened = world.conductor().open_round(LORA, RUN, number, 60.0)
    return RoundTask(LORA, RUN, number, opened.round_nonce, opened.base_version, UPLINK, resting)


def close_round(world: World, number: int) -> None:
    world.conductor().close_round(LORA, RUN, number, "average", 1.0, DOWNLINK)


def train(task: RoundTask, seed: int, size: float = 1e-3) -> Trained:
    """A task vector that is zero where the round rests."""
    vector = np.random.default_rng(seed).normal(0, size, LAYOUT.size).astype(np.float32)
    return Trained(np.where(active_places(LAYOUT, task.resting), vector, np.float32(0)), 300, {}, ORIGIN)


def take_part(client: EdgeClient, task: RoundTask, seed: int) -> None:
    client.sync(LORA, task.version)
    client.submit(task, train(task, seed))


def product(state: Vector) -> np.ndarray:
    arrays = unflatten(LAYOUT, state.astype(np.float64))
    return arrays["q.lora_B.weight"] @ arrays["q.lora_A.weight"]


def residual_of(world: World, name: str) -> Vector:
    directory = StateDirectory(world.folder / f"state-{name}" / LORA)
    return directory.residual(directory.load(), LAYOUT)


@pytest.mark.parametrize("averaging", ["frozen_a", "alternating"])
def test_what_is_merged_is_the_mean_of_the_clients_products(published: World, averaging: str) -> None:
    clients = [published.edge(f"edge-{i}") for i in range(3)]
    log = ExpertLog(published.aggregator.public, open_store(published.folder / "data"), published.ledger)
    expert = log.expert(LORA)
    for number in range(1, 5):
        task = open_round(published, number, resting_in_round(averaging, number))
        before = log.state(expert, task.version).vector.copy()
        for i, client in enumerate(clients):
            take_part(client, task, 10 * number + i)
        close_round(published, number)
        inputs = log.manifest(log.version(LORA, number)).contributions
        sent = [densify(decode(log._encoded(expert, c.update_digest))) for c in inputs]
        merged = log.merged(expert, inputs, "average", 1.0, USUAL).vector
        resting = ~active_places(LAYOUT, task.resting)
        assert not any(vector[resting].any() for vector in sent)
        assert not merged[resting].any()
        of_products = np.mean([product(before + vector) for vector in sent], axis=0)
        np.testing.assert_allclose(product(before + merged), of_products, atol=1e-7)
    Versions(published.aggregator, open_store(published.folder / "data"), published.ledger).verify(LORA, 4)


def test_a_round_of_both_factors_does_not_merge_the_mean_of_the_products(published: World) -> None:
    clients = [published.edge(f"edge-{i}") for i in range(2)]
    log = ExpertLog(published.aggregator.public, open_store(published.folder / "data"), published.ledger)
    task = open_round(published, 1, ())
    for i, client in enumerate(clients):
        client.sync(LORA, 0)
        client.submit(task, train(task, i, 0.1))
    close_round(published, 1)
    expert = log.expert(LORA)
    before, inputs = log.state(expert, 0).vector, log.manifest(log.version(LORA, 1)).contributions
    sent = [densify(decode(log._encoded(expert, c.update_digest))) for c in inputs]
    of_products = np.mean([product(before + vector) for vector in sent], axis=0)
    assert np.abs(product(before + log.merged(expert, inputs, "average", 1.0, USUAL).vector) - of_products).max() > 1e-3


def test_what_an_earlier_round_left_of_a_factor_waits_until_it_is_active_again(published: World) -> None:
    client = published.edge("edge")
    task = open_round(published, 1, ())
    take_part(client, task, 1)
    close_round(published, 1)
    client.sync(LORA)
    left = residual_of(published, "edge")
    resting = ~active_places(LAYOUT, (A_ENDING,))
    assert left[resting].any()

    take_part(client, open_round(published, 2, (A_ENDING,)), 2)
    close_round(published, 2)
    client.sync(LORA)
    np.testing.assert_array_equal(residual_of(published, "edge")[resting], left[resting])

    take_part(client, open_round(published, 3, (B_ENDING,)), 3)
    close_round(published, 3)
    client.sync(LORA)
    assert (residual_of(published, "edge")[resting] != left[resting]).any()


def test_half_the_parameters_travel_at_the_same_density(published: World) -> None:
    sizes = []
    for number, resting in ((1, ()), (2, (A_ENDING,))):
        client = published.edge(f"edge-{number}")
        task = open_round(published, number, resting)
        client.sync(LORA, task.version)
        sizes.append(client.submit(task, train(task, number)))
        close_round(published, number)
    kept = [round(0.05 * 1400), round(0.05 * 600)]
    log = ExpertLog(published.aggregator.public, open_store(published.folder / "data"), published.ledger)
    assert [log._encoded(log.expert(LORA), receipt.update_digest).count for receipt in sizes] == kept


def test_training_that_changed_what_rests_is_refused_before_anything_is_sent(published: World) -> None:
    client = published.edge("edge")
    task = open_round(published, 1, (A_ENDING,))
    synced = client.sync(LORA, 0)
    everything = np.full(LAYOUT.size, 1e-3, np.float32)
    with pytest.raises(InputError, match="training changed 800 parameters there: freeze them"):
        client.submit(task, Trained(everything, 300, {}, ORIGIN))
    assert published.ledger.submissions(LORA, RUN, 1) == []

    rounding = np.where(active_places(LAYOUT, task.resting), everything, synced.vector * np.float32(2**-9))
    client.submit(task, Trained(rounding, 300, {}, ORIGIN))  # what a bfloat16 adapter cannot hold is no change
    assert len(published.ledger.submissions(LORA, RUN, 1)) == 1
