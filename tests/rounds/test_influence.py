"""A client's say in a merge is bounded, whatever it claims; an honest cohort is merged by its numbers of examples."""

from dataclasses import replace

import numpy as np
import pytest

from compeft_server.domain.client_weights import bounded_weights
from tests.rounds.conftest import EXPERT, World, synced_by, task_vector, trained


def test_honest_clients_weigh_as_many_as_their_examples() -> None:
    assert bounded_weights([100, 300, 200], [1e-3, 1.2e-3, 0.9e-3], [0, 0, 0]) == [100, 300, 200]


def test_a_claim_of_many_examples_is_capped_against_the_cohort() -> None:
    assert bounded_weights([100, 100, 10**7], [1.0, 1.0, 1.0], [2.0, 2.0, 2.0]) == [100, 100, 400]


def test_a_large_scale_lowers_the_weight_by_as_much() -> None:
    assert bounded_weights([100, 100, 100], [1.0, 1.0, 30.0], [0, 0, 0]) == [100, 100, pytest.approx(10)]


def test_a_large_dense_part_lowers_the_weight_by_as_much() -> None:
    assert bounded_weights([100, 100, 100], [1.0, 1.0, 1.0], [1.0, 2.0, 60.0]) == [100, 100, pytest.approx(10)]


def test_two_clients_are_no_cohort() -> None:
    assert bounded_weights([1, 10**6], [1.0, 50.0], [0, 0]) == [1, 10**6]


def test_rounds_without_a_kept_entry_are_merged_all_the_same() -> None:
    assert bounded_weights([5, 5, 5], [0.0, 0.0, 7.0], [0, 0, 0]) == [5, 5, 5]


def test_an_attacker_moves_the_composed_expert_by_no_more_than_its_bound(world: World) -> None:
    honest = [world.edge(f"edge-{i}") for i in range(3)]
    attacker = world.edge("attacker")
    task = world.open_round()
    for i, client in enumerate(honest):
        synced_by(client, task)
        client.submit(task, trained(i))
    before = synced_by(attacker, task).vector
    attacker.submit(task, replace(trained(9), task_vector=task_vector(9) * 1e4, num_examples=10_000_000))
    world.close_round()
    moved = np.abs(honest[0].sync(EXPERT).vector - before)
    largest = 4 * 3 * np.abs(task_vector(0)).max()
    assert 0 < moved.max() < largest
