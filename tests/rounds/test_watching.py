"""Strategies with an `aggregate_train` of their own: those that only watch FedAvg's are followed, any other is refused by name."""

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian
from flwr.supercore.task_identity import TaskIdentity

from compeft_core.errors import InputError
from compeft_proto.keys import new_key
from compeft_server.flower.conductor import ConductorConfig
from compeft_server.flower.run_health import RunStoppedError
from compeft_server.flower.strategy import CompressedStrategy, Plan
from compeft_server.flower.watching import metrics_of

Answer = tuple[ArrayRecord | None, MetricRecord | None]


@pytest.fixture(autouse=True)
def flower_task() -> Iterator[None]:
    """Flower builds messages only inside a task."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    yield
    TaskIdentity._task_id = TaskIdentity._run_id = TaskIdentity._node_id = None


class Counting(FedAvg):
    """Counts bytes as FlowerTune's tracker does."""

    seen = 0

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Answer:
        kept = list(replies)
        self.seen += sum(record.count_bytes() for m in kept for record in m.content.array_records.values())
        return super().aggregate_train(server_round, kept)


class Halving(FedAvg):
    """Changes the average."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Answer:
        arrays, metrics = super().aggregate_train(server_round, replies)
        return ArrayRecord({n: Array(a.numpy() / 2) for n, a in (arrays or {}).items()}), metrics


class Clipping(FedAvg):
    """Changes what is averaged."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Answer:
        kept = list(replies)
        for reply in kept:
            for name, record in reply.content.array_records.items():
                reply.content[name] = ArrayRecord({n: Array(a.numpy().clip(-1, 1)) for n, a in record.items()})
        return super().aggregate_train(server_round, kept)


class Unweighted(FedAvg):
    """A mean of its own."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Answer:
        each = [next(iter(m.content.array_records.values())) for m in replies]
        mean = {n: Array(np.mean([e[n].numpy() for e in each], axis=0)) for n in each[0]}
        return ArrayRecord(mean), MetricRecord()


class Late(FedAvg):
    """Changes the arrays of rounds only, which a probe does not see."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Answer:
        arrays, metrics = super().aggregate_train(server_round, replies)
        moved = {n: Array(a.numpy() + np.float32(server_round)) for n, a in (arrays or {}).items()}
        return ArrayRecord(moved), metrics


def wrapped(inner: FedAvg) -> CompressedStrategy:
    return CompressedStrategy(inner, Plan("x"), ConductorConfig("127.0.0.1:1", new_key(), new_key().public))


def test_a_strategy_that_watches_is_followed_and_its_counter_has_not_seen_the_probe() -> None:
    inner = Counting()
    assert wrapped(inner)._merging.method == "average"
    assert inner.seen == 0


@pytest.mark.parametrize("kind", [Halving, Clipping, Unweighted])
def test_a_strategy_that_aggregates_by_itself_is_refused_by_name(kind: type[FedAvg]) -> None:
    with pytest.raises(InputError, match=f"{kind.__name__} aggregates by itself"):
        wrapped(kind())


def test_a_strategy_of_flowers_own_is_no_watcher() -> None:
    strategy = wrapped(FedMedian())
    assert (strategy._merging.method, strategy._watches) == ("median", False)


def replies(count: int) -> list[Message]:
    metrics = MetricRecord({"num-examples": 2, "accuracy": 0.5})
    return [Message(RecordDict({"m": metrics}), reply_to=Message(RecordDict(), 1, "train")) for _ in range(count)]


def test_in_a_round_a_watcher_sees_the_merged_arrays_in_every_reply() -> None:
    inner, merged = Counting(), ArrayRecord({"a": Array(np.arange(6, dtype=np.float32))})
    metrics = metrics_of(inner, 1, replies(3), merged)
    assert inner.seen == 3 * merged.count_bytes()
    assert metrics == MetricRecord({"accuracy": 0.5})


def test_a_watcher_that_changes_the_arrays_of_a_round_stops_the_run_by_name() -> None:
    merged = ArrayRecord({"a": Array(np.arange(6, dtype=np.float32))})
    with pytest.raises(RunStoppedError, match=r"round 2: Late\.aggregate_train changed the merged arrays"):
        metrics_of(Late(), 2, replies(2), merged)
