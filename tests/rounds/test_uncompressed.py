"""Plan(measure_uncompressed_every=n): clients measure their own update before compression, and the report shows it as what it is."""

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from compeft_client.cli.main import run as command
from compeft_client.flower.mod import CompressionMod
from compeft_core import Compression
from compeft_core.errors import InputError
from compeft_server.flower.strategy import CompressedStrategy, Plan
from compeft_server.ledger.lookups.totals import Summaries
from tests.rounds.conftest import ORIGIN, World
from tests.rounds.loopback_grid import LoopbackGrid
from tests.rounds.test_flower_rounds import NODES, PLAN, arrays, configs, obedient, station


@pytest.fixture(autouse=True)
def flower_task() -> Iterator[None]:
    """Flower builds messages only inside a task."""
    yield
    TaskIdentity._task_id = TaskIdentity._run_id = TaskIdentity._node_id = None


def size_of(record: ArrayRecord) -> float:
    """What this app calls its accuracy: it depends on every entry."""
    return float(sum(np.abs(array.numpy()).sum() for array in record.values()))


class App:
    """A ClientApp, and what it was asked to measure and had tuned, by node."""

    def __init__(self) -> None:
        self.tuned: dict[int, list[float]] = {}
        self.asked: dict[int, list[float]] = {}
        self.app = ClientApp(mods=[CompressionMod(lambda _: ORIGIN)])
        self.app.train()(self._train)
        self.app.evaluate()(self._evaluate)

    def _train(self, message: Message, context: Context) -> Message:
        reply = obedient(message, context)
        self.tuned.setdefault(context.node_id, []).append(size_of(reply.content["arrays"]))
        return reply

    def _evaluate(self, message: Message, context: Context) -> Message:
        value = size_of(message.content.array_records["arrays"])
        self.asked.setdefault(context.node_id, []).append(value)
        del message.content["arrays"]
        return Message(RecordDict({"m": MetricRecord({"accuracy": value, "num-examples": 10})}), reply_to=message)


def go(world: World, app: App, plan: Plan, rounds: int, relay: bool = False) -> LoopbackGrid:
    inner = FedAvg(**NODES | {"fraction_evaluate": 1.0, "min_evaluate_nodes": 2})
    grid = LoopbackGrid(app.app, configs(world))
    CompressedStrategy(inner, replace(plan, relay=relay), station(world)).start(grid, arrays(), num_rounds=rounds)
    return grid


@pytest.mark.parametrize("relay", [False, True])
def test_each_client_measures_its_own_update_as_it_was_before_compression(world: World, relay: bool) -> None:
    app = App()
    grid = go(world, app, replace(PLAN, measure_uncompressed_every=2), 4, relay)
    rows = [q for q in world.ledger.quality("lora") if q.arm == "own"]
    assert [(q.round, q.version) for q in rows] == [(2, 2), (2, 2), (4, 4), (4, 4)]
    expected = sorted(tuned[n] for tuned in app.tuned.values() for n in (1, 3))
    assert sorted(q.value for q in rows) == pytest.approx(expected, rel=1e-6)
    assert {q.num_examples for q in rows} == {10}
    synced = [q for q in world.ledger.quality("lora") if q.arm == "synced" and q.version == 4]
    assert all(q.value not in expected for q in synced)
    assert all(len(values) == 4 + 2 for values in app.asked.values())
    assert all(not context.state for context in grid._contexts.values())


def test_without_the_setting_nothing_is_kept_or_measured_twice(world: World) -> None:
    app = App()
    go(world, app, PLAN, 2)
    assert all(len(values) == 2 for values in app.asked.values())
    assert not [q for q in world.ledger.quality("lora") if q.arm == "own"]


def test_every_face_says_that_it_is_each_clients_own_update(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    go(world, App(), replace(PLAN, uplink=Compression(0.1), measure_uncompressed_every=1), 1)
    standing = Summaries(world.ledger).newest_quality("lora", "accuracy")
    assert standing.dense is not None
    assert standing.dense.score.own
    data, said = str(world.folder / "data"), {}
    for kind in ("json", "html", "md", "text"):
        assert command(["report", "--data", data, "--expert", "lora", "--format", kind]) == 0
        said[kind] = capsys.readouterr().out
    values = json.loads(said["json"])
    assert values["uncompressed_accuracy"] == pytest.approx(standing.dense.score.mean)
    assert values["uncompressed_is"] == "own updates"
    shown = f"{100 * values['uncompressed_accuracy']:.1f} %"
    assert "uncompressed, each client&#39;s own update" in said["html"]
    assert f"| uncompressed, each client's own update | {shown} |" in said["md"]
    assert "own update" in said["text"]
    assert all(shown in text for text in (said["html"], said["text"]))


def test_a_number_below_zero_is_refused() -> None:
    with pytest.raises(InputError, match="invalid measure_uncompressed_every -1: expected 0"):
        Plan("lora", measure_uncompressed_every=-1)
