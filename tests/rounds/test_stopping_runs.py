"""Runs that cannot go on usefully stop with an error that says why; the expert's versions stay."""

import logging
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.logger import FLOWER_LOGGER
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from compeft_core import Compression
from compeft_core.errors import InputError
from compeft_core.server_optimizer import ServerOptimizer
from compeft_proto.clock import now_ms
from compeft_proto.errors import UnreachableError
from compeft_proto.keys import new_key
from compeft_server.flower.conductor import ConductorConfig
from compeft_server.flower.run_health import MetricWatch, RunStoppedError, Scored
from compeft_server.flower.strategy import CompressedStrategy, Plan
from tests.rounds.conftest import ORIGIN, World
from tests.rounds.loopback_grid import LoopbackGrid
from tests.rounds.test_flower_rounds import app_of, configs, station

NODES = {"min_train_nodes": 2, "min_available_nodes": 2, "fraction_evaluate": 0.0}
PLAN = Plan("digits", ORIGIN, Compression(0.5), Compression(0.5))
SHAPES = {"conv.weight": (8, 6), "bn.running_var": (6,), "bn.running_mean": (6,)}
Change = Callable[[Message, Context, dict[str, np.ndarray], dict[str, float]], None]


@pytest.fixture(autouse=True)
def flower_task() -> Iterator[None]:
    yield
    TaskIdentity._task_id = TaskIdentity._run_id = TaskIdentity._node_id = None


def begun() -> ArrayRecord:
    return ArrayRecord({name: Array(np.ones(shape, np.float32)) for name, shape in SHAPES.items()})


def run(world: World, change: Change, rounds: int = 3, plan: Plan = PLAN, run_id: int = 7, clients: int = 2) -> None:
    """A run of clients that move each array a little, and then as `change` says."""

    def train(message: Message, context: Context) -> Message:
        rng = np.random.default_rng(context.node_id)
        arrays = {n: a.numpy() + 0.01 * rng.normal(size=a.shape).astype(np.float32) for n, a in message.content["arrays"].items()}
        metrics = {"num-examples": 10, "train_loss": 0.5}
        change(message, context, arrays, metrics)
        content = {"arrays": ArrayRecord({n: Array(a) for n, a in arrays.items()}), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    grid = LoopbackGrid(app_of(train), configs(world, clients), run_id)
    CompressedStrategy(FedAvg(**NODES | {"min_train_nodes": clients}), plan, station(world)).start(
        grid, begun(), num_rounds=rounds
    )


def head(world: World) -> int:
    return world.ledger.head("digits")


def nothing(*_: object) -> None:
    """Change nothing."""


def leaves_one_out(_message: Message, _context: Context, arrays: dict[str, np.ndarray], _metrics: dict[str, float]) -> None:
    del arrays["bn.running_var"]


def test_an_app_that_answers_with_some_of_its_arrays_ends_the_run_with_the_name_of_one_that_is_missing(world: World) -> None:
    with pytest.raises(RunStoppedError, match=r"2 of 2 clients failed, first node 100[01]: .*'bn\.running_var' is missing"):
        run(world, leaves_one_out)
    assert head(world) == 0


def test_clients_that_are_revoked_between_rounds_end_the_run(world: World) -> None:
    run(world, nothing, 1)
    for member in world.ledger.members():
        if member.role == "edge":
            world.ledger.revoke(member.name, now_ms())
    with pytest.raises(RunStoppedError, match=r"round 1: no client's update was accepted; 2 of 2 clients failed, .*enrolled"):
        run(world, nothing, 1, run_id=8)
    assert head(world) == 1


def test_one_client_that_fails_does_not_end_the_run_and_is_named_in_its_last_lines(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def one_fails(message: Message, context: Context, arrays: dict[str, np.ndarray], metrics: dict[str, float]) -> None:
        if context.node_id == 1001:
            raise OSError("disk of site B is full")

    run(world, one_fails, 2)
    assert head(world) == 2
    assert "client at node 1001 failed in rounds 1, 2: OSError: disk of site B is full" in caplog.messages[-1]


def test_arrays_that_are_not_finite_are_no_update_and_the_tensor_is_named(world: World) -> None:
    with pytest.raises(RunStoppedError, match=r"'conv\.weight' holds NaN or infinity"):
        run(world, lambda _m, _c, arrays, _n: arrays["conv.weight"].fill(np.inf))
    assert head(world) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_loss_of_the_clients_ends_the_run_before_anything_of_that_round_is_merged(world: World, value: float) -> None:
    def diverges(message: Message, context: Context, arrays: dict[str, np.ndarray], metrics: dict[str, float]) -> None:
        if head(world) == 1:
            metrics["train_loss"] = value

    with pytest.raises(
        RunStoppedError, match=r"round 2: train_loss of 2 of 2 clients is NaN .* version 1 stays; .*raise the density"
    ):
        run(world, diverges)
    assert head(world) == 1


def test_a_nan_loss_of_a_minority_does_not_end_the_run(world: World) -> None:
    def one_diverges(message: Message, context: Context, arrays: dict[str, np.ndarray], metrics: dict[str, float]) -> None:
        if context.node_id == 1002:
            metrics["train_loss"] = math.nan

    run(world, one_diverges, 2, clients=3)
    assert head(world) == 2


def test_a_metric_that_falls_off_a_cliff_ends_the_run_and_names_the_last_good_version(world: World) -> None:
    fallen = iter([0.5, 0.9, 0.92, 0.3, 0.2, 0.1])

    def train(message: Message, context: Context) -> Message:
        content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 10})}
        return Message(RecordDict(content), reply_to=message)

    strategy = CompressedStrategy(FedAvg(**NODES), PLAN, station(world))
    with pytest.raises(
        RunStoppedError, match=r"accuracy fell to 0\.2 at version 4, below 0\.5 .* version 2 \(0\.92\) is the last good one"
    ):
        strategy.start(
            LoopbackGrid(app_of(train), configs(world)),
            begun(),
            num_rounds=5,
            evaluate_fn=lambda *_: MetricRecord({"accuracy": next(fallen)}),
        )
    assert head(world) == 4


@pytest.mark.parametrize(
    ("metric", "values"),
    [("accuracy", [0.2, 0.9, 0.3, 0.8, 0.4, 0.7]), ("train-loss", [9.0, 2.0, 0.5, 0.1]), ("perplexity", [90.0, 20.0, 2.0])],
)
def test_one_bad_round_or_a_falling_loss_is_no_reason_to_stop(metric: str, values: list[float]) -> None:
    watch = MetricWatch(metric, 0.5)
    for version, value in enumerate(values):
        watch.add(Scored(version, value))


def test_a_metric_of_nan_stops_at_once_and_a_watch_may_be_off() -> None:
    with pytest.raises(RunStoppedError, match=r"accuracy of version 3 is nan: version 2 \(0\.8\) is the last good one"):
        MetricWatch("accuracy", None, Scored(2, 0.8)).add(Scored(3, math.nan))
    off = MetricWatch("accuracy", None)
    for version, value in enumerate([0.9, 0.1, 0.1, 0.1]):
        off.add(Scored(version, value))


@pytest.mark.parametrize("part", [0.0, 1.0, -1.0, math.nan])
def test_a_part_of_the_best_metric_lies_between_0_and_1(part: float) -> None:
    with pytest.raises(InputError, match="invalid stop_below"):
        Plan("x", ORIGIN, Compression(0.5), Compression(0.5), stop_below=part)


def test_a_variance_stays_positive_however_hard_the_clients_and_the_optimizer_pull_at_it(world: World) -> None:
    seen: list[np.ndarray] = []

    def shrinks(message: Message, context: Context, arrays: dict[str, np.ndarray], metrics: dict[str, float]) -> None:
        seen.append(message.content["arrays"]["bn.running_var"].numpy())
        arrays["bn.running_var"] = seen[-1] * np.float32(0.01)

    plan = Plan("digits", ORIGIN, Compression(0.05), Compression(0.05), optimizer=ServerOptimizer("fedavgm", 1.0, 0.9))
    run(world, shrinks, 6, plan)
    assert all((variance > 0).all() for variance in seen)
    assert seen[-1].max() < 0.05


def test_a_run_whose_aggregator_is_down_ends_before_a_client_is_asked_with_one_line_in_the_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    grid = LoopbackGrid(app_of(lambda message, context: message), configs(world, 2), 7)
    down = ConductorConfig("127.0.0.1:9", new_key(), new_key().public)
    FLOWER_LOGGER.addHandler(caplog.handler)
    caplog.handler.setLevel(logging.INFO)
    try:
        with pytest.raises(
            UnreachableError, match=r"aggregator 127\.0\.0\.1:9 cannot be reached: .*is `compeft serve` running"
        ) as error:
            CompressedStrategy(FedAvg(**NODES), PLAN, down).start(grid, begun(), num_rounds=1)
        caplog.clear()
        FLOWER_LOGGER.log(logging.ERROR, "%s raised an exception", "Simulation", exc_info=error.value)  # as Flower does
        printed = caplog.handler.format(caplog.records[-1])
    finally:
        FLOWER_LOGGER.removeHandler(caplog.handler)
    assert "Simulation raised an exception: aggregator 127.0.0.1:9 cannot be reached" in printed
    assert len(printed.splitlines()) == 1
    assert error.value.__cause__ is None


def test_an_unexpected_error_keeps_its_traceback_in_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    CompressedStrategy(FedAvg(**NODES), PLAN, station(world))
    FLOWER_LOGGER.addHandler(caplog.handler)
    try:
        {}["absent"]
    except KeyError as error:
        FLOWER_LOGGER.log(logging.ERROR, "failed", exc_info=error)
    finally:
        FLOWER_LOGGER.removeHandler(caplog.handler)
    assert "Traceback" in caplog.handler.format(caplog.records[-1])
