"""A quality floor: the fewest entries that retain enough of a round's gain, by the metric of whoever asks."""

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from compeft_client.exchange.quality_floor import HALVINGS, Floor, Measure, above
from compeft_core import Compression, Layout, Vector, compress, densify, flatten, layout_of
from compeft_core.errors import InputError

LAYOUT = layout_of({"a.lora_A": (8, 400), "a.lora_B": (300, 8), "head": (2, 10)}, dense=["head"])
NOWHERE = np.zeros(LAYOUT.size, np.float32)
ASKED = Compression(0.5, "norm")
TRIED = ("norm", "bounded_norm", "mean_magnitude")


def vector(seed: int) -> Vector:
    return (np.random.default_rng(seed).laplace(0, 1e-3, LAYOUT.size)).astype(np.float32)


def nearness(goal: Vector, layout: Layout = LAYOUT) -> Measure:
    """A metric whose gain is the part of the way to `goal` that was gone."""

    def measure(arrays: Mapping[str, NDArray[np.float32]]) -> float:
        return -float(np.linalg.norm(flatten(layout, arrays).astype(np.float64) - goal))

    return measure


def retained(goal: Vector, settings: Compression) -> float:
    left = np.linalg.norm(densify(compress(LAYOUT, goal, settings)).astype(np.float64) - goal)
    return float(1 - left / np.linalg.norm(goal.astype(np.float64)))


@pytest.mark.parametrize("part", [0.05, 0.15, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_the_fewest_entries_that_retain_the_floor(seed: int, part: float) -> None:
    goal = vector(seed)
    chosen = above(Floor(part, nearness(goal)), LAYOUT, NOWHERE, goal, goal, ASKED)
    assert retained(goal, chosen) >= part
    assert chosen.density in [ASKED.density / 2**n for n in range(HALVINGS + 1)]
    if chosen.density > ASKED.density / 2**HALVINGS:
        halves = [Compression(chosen.density / 2, rule) for rule in TRIED]
        assert max(retained(goal, half) for half in halves) < part


def test_a_floor_that_nothing_reaches_takes_all_that_was_asked_for_by_the_better_rule() -> None:
    goal = vector(1)
    chosen = above(Floor(1.0, nearness(goal)), LAYOUT, NOWHERE, goal, goal, ASKED)
    assert chosen.density == ASKED.density
    assert retained(goal, chosen) == max(retained(goal, Compression(0.5, rule)) for rule in TRIED)


def test_training_without_a_gain_is_compressed_as_the_round_asks() -> None:
    goal = vector(2)
    away = above(Floor(0.5, nearness(-goal)), LAYOUT, NOWHERE, goal, goal, ASKED)
    assert away == ASKED
    assert above(Floor(0.5, lambda _: 0.7), LAYOUT, NOWHERE, goal, goal, ASKED) == ASKED
    assert above(Floor(0.5, lambda _: float("nan")), LAYOUT, NOWHERE, goal, goal, ASKED) == ASKED


def test_a_compressed_state_that_measures_as_no_number_is_not_good_enough() -> None:
    goal = vector(3)
    near = nearness(goal)

    def measure(arrays: Mapping[str, NDArray[np.float32]]) -> float:
        state = flatten(LAYOUT, arrays)
        kept = np.count_nonzero(state[: LAYOUT.ternary_size]) / LAYOUT.ternary_size
        return near(arrays) if kept in (0, 1) or kept > 0.2 else float("nan")

    assert above(Floor(0.05, measure), LAYOUT, NOWHERE, goal, goal, ASKED).density == ASKED.density / 2


def test_the_search_ends_where_a_single_entry_is_worth_the_floor() -> None:
    goal = NOWHERE.copy()
    goal[17] = 1.0
    chosen = above(Floor(0.99, nearness(goal)), LAYOUT, NOWHERE, goal, goal, ASKED)
    assert chosen == Compression(ASKED.density / 2**HALVINGS, "norm")


@pytest.mark.parametrize("part", [0.0, -0.1, 1.01, float("nan")])
def test_a_floor_that_is_no_part_of_a_gain_is_refused(part: float) -> None:
    with pytest.raises(InputError, match="above 0 and at most 1"):
        Floor(part, nearness(NOWHERE))
