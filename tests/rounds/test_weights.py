"""Updates are weighted as plain Flower weighs them: by the strategy's own key, with real numbers of 0 or more."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from compeft_core import Compression
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.domain.admission import weight_of
from compeft_server.domain.client_weights import bounded_weights
from compeft_server.flower.run_health import RunStoppedError
from compeft_server.flower.strategy import CompressedStrategy, Plan
from tests.rounds.conftest import ORIGIN, World
from tests.rounds.loopback_grid import LoopbackGrid
from tests.rounds.test_flower_rounds import Waking, app_of, configs, manifests, station

PLAN = Plan("weighed", ORIGIN, Compression(1.0), Compression(1.0))
Train = Callable[[Message, Context], Message]


@pytest.fixture(autouse=True)
def flower_task() -> Iterator[None]:
    yield
    TaskIdentity._task_id = TaskIdentity._run_id = TaskIdentity._node_id = None


def begun() -> ArrayRecord:
    rng = np.random.default_rng(3)
    return ArrayRecord({name: Array(rng.normal(size=(20, 30)).astype(np.float32)) for name in "ba"})


def trains(key: str, weights: list[float]) -> Train:
    """Each client moves the arrays in a direction of its own and reports its weight under `key`."""

    def train(message: Message, context: Context) -> Message:
        rng = np.random.default_rng([context.node_id, int(message.content["config"]["server-round"])])
        arrays = {n: a.numpy() + rng.normal(0, 0.1, a.shape).astype(np.float32) for n, a in message.content["arrays"].items()}
        metrics = {key: weights[context.node_id - 1000], "other": 7}
        content = {"arrays": ArrayRecord({n: Array(a) for n, a in arrays.items()}), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    return train


def strategy(key: str, clients: int) -> FedAvg:
    return FedAvg(weighted_by_key=key, min_train_nodes=clients, min_available_nodes=clients, fraction_evaluate=0.0)


def plain(train: Train, key: str, clients: int, rounds: int) -> dict[str, np.ndarray]:
    app = ClientApp()
    app.train()(train)
    result = strategy(key, clients).start(LoopbackGrid(app, [{}] * clients), begun(), num_rounds=rounds)
    return {name: array.numpy() for name, array in result.arrays.items()}


def ours(world: World, train: Train, key: str, clients: int, rounds: int, plan: Plan = PLAN) -> dict[str, np.ndarray]:
    grid = LoopbackGrid(app_of(train), configs(world, clients))
    result = CompressedStrategy(strategy(key, clients), plan, station(world)).start(grid, begun(), num_rounds=rounds)
    return {name: array.numpy() for name, array in result.arrays.items()}


@pytest.mark.parametrize(
    ("key", "weights"),
    [
        ("num-samples", [30, 10]),
        ("num-examples", [0.3, 0.1]),
        ("tokens", [5e8, 1.2e9]),
        ("trust", [1e-9, 3e-9, 2e-9]),
        ("num-examples", [10, 0]),
        ("weight", [0.75, 0.0, 0.5, 1.25]),
        ("1/loss", [1 / 3, 1 / 7, math.pi / 3]),
    ],
)
def test_a_run_that_sends_arrays_whole_ends_where_plain_flower_ends(world: World, key: str, weights: list[float]) -> None:
    train, rounds = trains(key, weights), 3
    expected, found = plain(train, key, len(weights), rounds), ours(world, train, key, len(weights), rounds)
    moved = np.concatenate([(expected[n] - a.numpy()).ravel() for n, a in begun().items()])
    off = np.concatenate([(found[n] - expected[n]).ravel() for n in expected])
    assert np.abs(off).max() < 2**-8 * np.abs(moved).max(), "bfloat16 rounds each step by at most 2**-9 of itself"
    assert list(found) == list(expected)


def test_manifest_and_ledger_hold_the_weight_and_its_name(world: World) -> None:
    ours(world, trains("num-samples", [0.25, 0.75]), "num-samples", 2, 1)
    (made,) = manifests(world, "weighed")
    assert sorted(c.weight for c in made.contributions) == [0.25, 0.75]
    (opened,) = world.ledger.rounds("weighed")
    assert sorted(s.weight for s in world.ledger.submissions("weighed", opened.run, opened.round)) == [0.25, 0.75]


def test_a_late_update_keeps_its_fractional_weight_over_its_staleness(world: World) -> None:
    grid = Waking(app_of(trains("share", [0.5, 0.25])), configs(world))
    grid.slow = {1001}
    plan = replace(PLAN, min_updates=1, max_staleness=1)
    CompressedStrategy(strategy("share", 2), plan, station(world)).start(grid, begun(), num_rounds=2)
    made = manifests(world, "weighed")[-1]
    assert sorted((c.staleness, c.weight) for c in made.contributions) == [(0, 0.5), (1, 0.25 / math.sqrt(2))]


def test_an_app_that_does_not_report_the_strategys_key_is_told_so_by_name(world: World) -> None:
    with pytest.raises(
        RunStoppedError, match=r"lacks the metric 'num-samples', by which the strategy weighs: it has num-examples, other"
    ):
        ours(world, trains("num-examples", [1, 1]), "num-samples", 2, 1)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_that_is_no_number_of_0_or_more_is_refused_at_the_client(world: World, weight: float) -> None:
    with pytest.raises(RunStoppedError, match="invalid weight num-examples="):
        ours(world, trains("num-examples", [weight, weight]), "num-examples", 2, 1)


def test_a_round_whose_weights_are_all_0_is_not_merged(world: World) -> None:
    with pytest.raises(RunStoppedError, match="round 1: every client's num-examples is 0"):
        ours(world, trains("num-examples", [0, 0.0]), "num-examples", 2, 1)
    assert world.ledger.head("weighed") == 0


def test_clients_of_weight_0_are_no_part_of_the_cohort_that_bounds_the_others() -> None:
    assert bounded_weights([0, 0, 0, 5.5], [1.0] * 4, [0.0] * 4) == [0, 0, 0, 5.5]
    assert bounded_weights([0, 0, 1, 1, 9], [1, 1, 1, 1, 30], [0.0] * 5) == [0, 0, 1, 1, 4 * 3 / 30]


def test_an_update_from_before_weights_counts_by_its_examples() -> None:
    assert weight_of(pb.UpdateManifest(num_examples=300)) == 300.0
    assert weight_of(pb.UpdateManifest(num_examples=300, weight=0.0)) == 0.0
