"""Strategies that watch FedAvg's average without changing it, such as FlowerTune's that counts bytes: found by a probe, and held to it.

The probe: on a copy of the strategy, for two made-up replies of a round 0, its `aggregate_train` has to give exactly what FedAvg gives.
In rounds, it sees the merged arrays in every reply, and has to leave them as they are.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message.message import make_message
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.logger import FLOWER_LOGGER

from compeft_server.flower.run_health import RunStoppedError

FAILURES = (AggregationError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a strategy may end a probe with: it needs more than FedAvg does, so it is not one that only watches."""
PROBE = Metadata(0, "probe", 1, 2, "", "0", 0.0, 3600.0, "train")
"""Of a made-up reply: one outside any run, so that a strategy may be wrapped before Flower says which run it is."""
PLACEHOLDER = {"merged-at-the-aggregator": np.zeros(1, np.float32)}
"""What the replies carry for a strategy whose average of them nobody reads."""


def metrics_of(inner: FedAvg, server_round: int, replies: Sequence[Message], merged: ArrayRecord | None) -> MetricRecord | None:
    """The inner strategy's metrics of a round. merged: what a strategy that watches the average sees; None for any other.

    Errors: RunStoppedError if it makes other arrays of them.
    """
    if merged is None:
        placeholder = ArrayRecord({name: Array(array) for name, array in PLACEHOLDER.items()})
        return FedAvg.aggregate_train(inner, server_round, _carrying(replies, inner.arrayrecord_key, placeholder))[1]
    seen, metrics = inner.aggregate_train(server_round, _carrying(replies, inner.arrayrecord_key, merged))
    if seen is not None and not _alike(seen, merged):
        raise RunStoppedError(
            f"round {server_round}: {type(inner).__name__}.aggregate_train changed the merged arrays, which the aggregator cannot follow: "
            "leave them as they are, or choose a merge method in the plan"
        )
    return metrics


def only_watches(inner: FedAvg) -> bool:
    """Whether a strategy's own `aggregate_train` gives what FedAvg gives for two made-up replies; its copy sees them, not itself."""
    try:
        probed = copy.deepcopy(inner)
    except (TypeError, copy.Error):
        return False
    try:
        with _silent():
            own, plain = probed.aggregate_train(0, _replies(inner)), FedAvg.aggregate_train(inner, 0, _replies(inner))
    except FAILURES:
        return False
    return _same(own[0], plain[0]) and own[1] == plain[1]


def _replies(inner: FedAvg) -> list[Message]:
    """Two answers whose average, median and sum all differ, with unequal weights."""
    made = []
    for weight, values in ((1, (1.0, -4.0, 0.0)), (3, (2.0, 8.0, 1e-3))):
        arrays = ArrayRecord({"probe": Array(np.array(values, np.float32))})
        content = RecordDict({inner.arrayrecord_key: arrays, "metrics": MetricRecord({inner.weighted_by_key: weight})})
        made.append(make_message(PROBE, content))
    return made


def _same(one: ArrayRecord | None, other: ArrayRecord | None) -> bool:
    if one is None or other is None or list(one) != list(other):
        return False
    return all(np.array_equal(one[name].numpy(), other[name].numpy()) for name in one)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what a probed strategy logs of made-up replies from the screen."""
    level = FLOWER_LOGGER.level
    FLOWER_LOGGER.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        FLOWER_LOGGER.setLevel(level)


def _carrying(replies: Sequence[Message], key: str, arrays: ArrayRecord) -> list[Message]:
    """The replies as a strategy expects them, each with these arrays."""
    for reply in replies:
        if not reply.has_error():
            reply.content[key] = arrays
    return list(replies)


def _alike(one: ArrayRecord, other: ArrayRecord) -> bool:
    """Whether two records hold the same arrays, but for the rounding of an average of equal ones."""
    return list(one) == list(other) and all(
        np.allclose(one[name].numpy(), other[name].numpy(), rtol=1e-5, atol=1e-6) for name in other
    )
