"""Flower strategies around a real aggregator: which LoRA factors rest, which optimizer runs, who is waited for, what is refused."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)
from flwr.supercore.task_identity import TaskIdentity

from compeft_client.exchange.quality_floor import Floor
from compeft_client.exchange.state_directory import StateDirectory
from compeft_client.flower.mod import CompressionMod
from compeft_client.identity.edge_config import edge_of
from compeft_core import Compression, MergeParameters, decode, densify, flatten, layout_of, state_digest
from compeft_core.errors import InputError, LayoutMismatchError
from compeft_core.frozen_tensors import A_ENDING, B_ENDING, active_places
from compeft_core.merging.inputs import USUAL
from compeft_core.server_optimizer import ServerOptimizer
from compeft_proto.merge_settings import MergeSettings
from compeft_proto.round_task import RESTING
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.admin.lineage import Versions
from compeft_server.aggregation.expert_log import ExpertLog
from compeft_server.data_directory import open_store
from compeft_server.flower.conductor import ConductorConfig
from compeft_server.flower.equivalents import merging_of
from compeft_server.flower.quorum_grid import QuorumGrid
from compeft_server.flower.run_health import RunStoppedError
from compeft_server.flower.strategy import CompressedStrategy, Plan
from tests.rounds.conftest import ORIGIN, World
from tests.rounds.loopback_grid import LoopbackGrid

NODES = {"min_train_nodes": 2, "min_available_nodes": 2, "fraction_evaluate": 0.0}
PLAN = Plan("lora", ORIGIN, Compression(0.3), Compression(0.5), dense=("head",))
Train = Callable[[Message, Context], Message]


@pytest.fixture(autouse=True)
def flower_task() -> Iterator[None]:
    """Flower builds messages only inside a task."""
    yield
    TaskIdentity._task_id = TaskIdentity._run_id = TaskIdentity._node_id = None


def arrays(rank: int = 3) -> ArrayRecord:
    a = np.random.default_rng(0).normal(0, 0.1, (rank, 8)).astype(np.float32)
    shapes = {"q.lora_A.weight": a, "q.lora_B.weight": np.zeros((6, rank), np.float32), "head": np.zeros(4, np.float32)}
    return ArrayRecord({name: Array(array) for name, array in shapes.items()})


def tuned(message: Message, context: Context, resting: tuple[str, ...]) -> Message:
    """What an app answers that has moved everything but what rests."""
    rng = np.random.default_rng(context.node_id)
    received = {name: array.numpy() for name, array in message.content["arrays"].items()}
    moved = {
        name: array if name.endswith(resting) else array + rng.normal(0, 0.01, array.shape).astype(np.float32)
        for name, array in received.items()
    }
    content = {
        "arrays": ArrayRecord({name: Array(array) for name, array in moved.items()}),
        "metrics": MetricRecord({"num-examples": 10, "accuracy": 0.5}),
    }
    return Message(RecordDict(content), reply_to=message)


def obedient(message: Message, context: Context) -> Message:
    record = message.content.config_records.get(RESTING, {})
    return tuned(message, context, tuple(str(ending) for ending in record.get(RESTING, ())) or ("nothing rests",))


def heedless(message: Message, context: Context) -> Message:
    return tuned(message, context, ("nothing rests",))


def concentrated(message: Message, context: Context) -> Message:
    """An answer that has moved some rows only: there is something to learn for a codec."""
    reply = tuned(message, context, ("nothing rests",))
    received = {name: array.numpy() for name, array in message.content["arrays"].items()}
    moved = {name: array.numpy() for name, array in reply.content["arrays"].items()}
    some = {
        name: np.where(np.arange(len(a)).reshape(-1, *[1] * (a.ndim - 1)) < 40, moved[name], a) for name, a in received.items()
    }
    reply.content["arrays"] = ArrayRecord({name: Array(array) for name, array in some.items()})
    return reply


def app_of(train: Train) -> ClientApp:
    app = ClientApp(mods=[CompressionMod(lambda _: ORIGIN)])
    app.train()(train)
    return app


def configs(world: World, count: int = 2) -> list[dict[str, object]]:
    """A node configuration for each client, enrolled if it is new."""
    found = []
    for number in range(count):
        path = world.folder / f"edge-{number}.key"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_bytes(world.enrol(f"edge-{number}").to_pem())
        place = {"aggregator": world.address, "aggregator-key": str(world.folder / "data" / "aggregator.pub"), "patience-s": 0.0}
        found.append(place | {"key": str(path), "state-dir": str(world.folder / f"state-{number}")})
    return found


def station(world: World) -> ConductorConfig:
    return ConductorConfig(world.address, world.conductor_key, world.aggregator.public)


def run(world: World, inner: FedAvg, plan: Plan, rounds: int, train: Train = obedient, run_id: int = 7) -> LoopbackGrid:
    grid = LoopbackGrid(app_of(train), configs(world), run_id)
    CompressedStrategy(inner, plan, station(world)).start(grid, arrays(), num_rounds=rounds)
    return grid


def manifests(world: World, expert: str = "lora") -> list[pb.VersionManifest]:
    """What was signed for each version after version 0; each recomputes."""
    store = open_store(world.folder / "data")
    log = ExpertLog(world.aggregator.public, store, world.ledger)
    found = world.ledger.versions(expert, 0, world.ledger.head(expert))
    for version in found:
        Versions(world.aggregator, store, world.ledger).verify(expert, version.version)
    return [log.manifest(version) for version in found]


@pytest.mark.parametrize(
    ("averaging", "resting"),
    [("factors", [(), (), ()]), ("frozen_a", [(A_ENDING,)] * 3), ("alternating", [(A_ENDING,), (B_ENDING,), (A_ENDING,)])],
)
def test_the_plan_says_which_factors_rest_and_the_app_is_told(
    world: World, averaging: str, resting: list[tuple[str, ...]]
) -> None:
    run(world, FedAvg(**NODES), replace(PLAN, averaging=averaging), 3)
    log = ExpertLog(world.aggregator.public, open_store(world.folder / "data"), world.ledger)
    layout = layout_of({name: tuple(a.shape) for name, a in arrays().items()}, ["head"])
    for manifest, endings in zip(manifests(world), resting, strict=True):
        assert len(manifest.contributions) == 2
        rests = ~active_places(layout, endings)
        for c in manifest.contributions:
            assert not densify(decode(log._encoded(log.expert("lora"), c.update_digest)))[rests].any()


@pytest.mark.parametrize(("averaging", "budget"), [("factors", 2000), ("frozen_a", 900)])
def test_a_budget_holds_for_every_round_and_is_used_in_both_directions(world: World, averaging: str, budget: int) -> None:
    plan = replace(PLAN, budget_bytes=budget, averaging=averaging, uplink=Compression(0.6), downlink=Compression(0.6))
    grid = LoopbackGrid(app_of(obedient), configs(world))
    CompressedStrategy(FedAvg(**NODES), plan, station(world)).start(grid, arrays(300), num_rounds=2)
    made = manifests(world)
    assert [m.round for m in made] == [1, 2]
    for manifest in made:
        up = [update_of(world, c.update_digest) for c in manifest.contributions]
        spent = sum(sum(ref.size for ref in u.chunks) for u in up) + 2 * sum(ref.size for ref in manifest.chunks)
        assert 0.9 * budget < spent <= budget
        assert all(0.02 < u.coding.compression.density < 0.59 for u in [manifest, *up])


def test_a_site_may_send_less_than_its_round_asks_for(world: World) -> None:
    sites = configs(world)
    sites[0]["max-update"] = "300B"
    CompressedStrategy(FedAvg(**NODES), PLAN, station(world)).start(
        LoopbackGrid(app_of(obedient), sites), arrays(300), num_rounds=2
    )
    for manifest in manifests(world):
        sizes = sorted(sum(ref.size for ref in update_of(world, c.update_digest).chunks) for c in manifest.contributions)
        assert sizes[0] <= 300 < sizes[1]


def test_a_site_may_take_less_time_than_its_round_asks_for_once_it_knows_its_rate(world: World) -> None:
    sites = configs(world)
    sites[0]["max-upload-s"] = "0.0001"
    CompressedStrategy(FedAvg(**NODES), PLAN, station(world)).start(
        LoopbackGrid(app_of(obedient), sites), arrays(300), num_rounds=2
    )
    (first, second) = (
        sorted(update_of(world, c.update_digest).coding.compression.density for c in manifest.contributions)
        for manifest in manifests(world)
    )
    assert first[0] == first[1] == second[1]
    assert second[0] < second[1]


def test_a_site_keeps_its_floor_of_a_rounds_gain_with_as_few_entries_as_that_takes(world: World) -> None:
    def measured(by_name: Mapping[str, np.ndarray]) -> float:
        return float(sum(np.abs(array).sum() for name, array in by_name.items() if "lora_B" in name))

    def app(retained: float | None) -> ClientApp:
        found = ClientApp(mods=[CompressionMod(lambda _: ORIGIN, floor=lambda _: retained and Floor(retained, measured))])
        found.train()(obedient)
        return found

    densities = []
    for retained in (None, 0.9, 0.1):
        name = f"lora-{retained}".replace(".", "-")
        plan = replace(PLAN, expert=name, uplink=Compression(0.6))
        grid = LoopbackGrid(app(retained), configs(world), len(densities))
        CompressedStrategy(FedAvg(**NODES), plan, station(world)).start(grid, arrays(300), num_rounds=1)
        (made,) = manifests(world, name)
        densities.append({update_of(world, c.update_digest).coding.compression.density for c in made.contributions})
    assert densities[0] == {0.6}
    assert max(densities[2]) < min(densities[1]) <= 0.6


@pytest.mark.parametrize("seconds", ["0", "-3", "nan", "soon", 0.0])
def test_a_time_that_is_none_is_refused_and_not_left_out(world: World, seconds: object) -> None:
    with pytest.raises(InputError, match="max-upload-s is"):
        edge_of(configs(world)[0] | {"max-upload-s": seconds})


def test_both_links_take_the_codec_of_the_plan(world: World) -> None:
    CompressedStrategy(FedAvg(**NODES), replace(PLAN, codec="rice"), station(world)).start(
        LoopbackGrid(app_of(obedient), configs(world)), arrays(300), num_rounds=1
    )
    (made,) = manifests(world)
    assert [made.coding.codec, *(update_of(world, c.update_digest).coding.codec for c in made.contributions)] == ["rice"] * 3
    Versions(world.aggregator, open_store(world.folder / "data"), world.ledger).verify("lora", 1)


def test_each_client_takes_the_codec_that_is_sooner_over_its_own_link_once_it_knows_that(world: World) -> None:
    sites, plan = configs(world), replace(PLAN, codec="auto")
    for run_id, rates in enumerate([(), (1.0, 1e12)]):
        for site, rate in zip(sites, rates, strict=False):
            memory = StateDirectory.of(Path(str(site["state-dir"])), "lora")
            memory.save(replace(memory.load(), upload_bytes_per_s=rate))
        CompressedStrategy(FedAvg(**NODES), plan, station(world)).start(
            LoopbackGrid(app_of(concentrated), sites, run_id), arrays(300), num_rounds=1
        )
    unknown, known = manifests(world)
    assert [unknown.coding.codec, known.coding.codec] == ["context"] * 2
    assert {update_of(world, c.update_digest).coding.codec for c in unknown.contributions} == {"context"}
    codecs = {c.keyid: update_of(world, c.update_digest).coding.codec for c in known.contributions}
    assert [codecs[edge_of(site).key.keyid] for site in sites] == ["context", "rice4"]


def update_of(world: World, digest: bytes) -> pb.UpdateManifest:
    submission = world.ledger.submission(digest)
    assert submission is not None
    return pb.UpdateManifest.FromString(Envelope.FromString(submission.envelope).payload)


def test_a_run_whose_apps_all_train_what_rests_stops_and_says_so(world: World) -> None:
    with pytest.raises(
        RunStoppedError, match=r"2 of 2 clients failed, first node 100[01]: .*training changed .* parameters there"
    ):
        run(world, FedAvg(**NODES), replace(PLAN, averaging="frozen_a"), 1, heedless)
    assert manifests(world) == []
    assert world.ledger.rounds("lora")[0].closed_at_ms is not None


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (FedAvg(**NODES), ServerOptimizer()),
        (FedProx(**NODES, proximal_mu=0.1), ServerOptimizer()),
        (FedAvgM(**NODES, server_learning_rate=0.5, server_momentum=0.9), ServerOptimizer("fedavgm", 0.5, 0.9)),
        (FedAvgM(**NODES), ServerOptimizer()),
        (FedAdam(**NODES, eta=0.01, beta_1=0.8, beta_2=0.9, tau=1e-2), ServerOptimizer("fedadam", 0.01, 0.8, 0.9, 1e-2)),
        (FedYogi(**NODES, eta=0.01), ServerOptimizer("fedyogi", 0.01, 0.9, 0.99, 1e-3)),
        (FedAdagrad(**NODES, eta=0.01), ServerOptimizer("fedadagrad", 0.01, 0.0, 0.0, 1e-3)),
    ],
)
def test_a_strategy_that_the_aggregator_has_as_well_is_followed(inner: FedAvg, expected: ServerOptimizer) -> None:
    assert merging_of(inner, "average", USUAL, None).optimizer == expected
    chosen = ServerOptimizer("fedavgm", 0.1, 0.2)
    assert merging_of(inner, "ties", USUAL, chosen).optimizer == chosen
    assert merging_of(inner, "ties", USUAL, chosen).method == "ties"


class Own(FedAvg):
    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[None, None]:
        return None, None


@pytest.mark.parametrize(
    ("inner", "method", "parameters"),
    [
        (Krum(**NODES, num_malicious_nodes=2), "krum", MergeParameters(byzantine=2)),
        (MultiKrum(**NODES, num_malicious_nodes=1, num_nodes_to_select=3), "multi_krum", MergeParameters(byzantine=1, keep=3)),
        (FedTrimmedAvg(**NODES, beta=0.25), "trimmed_mean", MergeParameters(trim=0.25)),
        (FedMedian(**NODES), "median", USUAL),
    ],
)
def test_a_robust_strategy_is_followed_with_its_own_numbers(inner: FedAvg, method: str, parameters: MergeParameters) -> None:
    assert merging_of(inner, "average", USUAL, None) == MergeSettings(method, parameters=parameters)
    with pytest.raises(InputError, match="leave one of them at its default"):
        merging_of(inner, "ties", USUAL, None)


@pytest.mark.parametrize("inner", [Bulyan(**NODES), QFedAvg(**NODES, client_learning_rate=0.1), Own()])
def test_a_strategy_that_aggregates_in_a_way_of_its_own_is_refused_by_name(world: World, inner: FedAvg) -> None:
    with pytest.raises(InputError, match=r"(Bulyan|QFedAvg|Own) aggregates by itself"):
        CompressedStrategy(inner, PLAN, station(world))


def test_a_wrapped_fedadam_runs_at_the_aggregator(world: World) -> None:
    run(world, FedAdam(**NODES, eta=0.01), PLAN, 3)
    found = manifests(world)
    assert [m.optimizer.name for m in found] == ["fedadam"] * 3
    assert [len(m.contributions) for m in found] == [2] * 3


class Waking(LoopbackGrid):
    """The slow node answers what it was sent in one round during the next."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        if not messages:
            return []
        late, self.asleep = self.asleep, []
        numbers = super().push_messages(messages)
        for message in late:
            self._answer(message)
        return numbers


def test_a_round_closes_by_quorum_and_the_late_update_joins_the_next(world: World) -> None:
    grid = Waking(app_of(obedient), configs(world))
    grid.slow = {1001}
    plan = replace(PLAN, min_updates=1, max_staleness=1)
    CompressedStrategy(FedAvg(**NODES), plan, station(world)).start(grid, arrays(), num_rounds=3)
    names = {m.public.keyid: m.name for m in world.ledger.members()}
    joined = [sorted((names[c.keyid], c.staleness) for c in m.contributions) for m in manifests(world)]
    assert joined == [[("edge-0", 0)], [("edge-0", 0), ("edge-1", 1)], [("edge-0", 0), ("edge-1", 1)]]


def test_without_late_updates_a_slow_client_keeps_its_work_in_its_residual(world: World) -> None:
    grid = Waking(app_of(obedient), configs(world))
    grid.slow = {1001}
    CompressedStrategy(FedAvg(**NODES), replace(PLAN, min_updates=1), station(world)).start(grid, arrays(), num_rounds=2)
    assert [len(m.contributions) for m in manifests(world)] == [1, 1]
    assert {r.code for r in world.ledger.refusals("lora")} == {"round_closed"}


def test_a_deadline_ends_the_waiting_and_a_round_without_any_update_ends_the_run(world: World) -> None:
    grid = LoopbackGrid(app_of(obedient), configs(world))
    grid.slow = {1000, 1001}
    plan = replace(PLAN, min_updates=1, deadline_s=0.2)
    with pytest.raises(RunStoppedError, match="none of 2 clients answered before the deadline"):
        CompressedStrategy(FedAvg(**NODES), plan, station(world)).start(grid, arrays(), num_rounds=1)
    assert manifests(world) == []


def test_only_training_is_cut_short(world: World) -> None:
    grid = LoopbackGrid(app_of(obedient), configs(world))
    waiting = QuorumGrid(grid, 1, 60.0)
    asked = [waiting.create_message(RecordDict(), "evaluate", node, "1") for node in waiting.get_node_ids()]
    assert len(list(waiting.send_and_receive(asked))) == 2, "both answer, with an error here, and nobody is left out"
    assert list(waiting.send_and_receive([])) == []
    assert waiting.run.run_id == 7


def test_a_new_run_goes_on_and_one_with_another_rank_is_another_expert(world: World, tmp_path: Path) -> None:
    run(world, FedAvg(**NODES), PLAN, 1)
    run(world, FedAvg(**NODES), PLAN, 1, run_id=8)
    assert [m.run for m in manifests(world)] == ["7", "8"]
    grid = LoopbackGrid(app_of(obedient), configs(world), 9)
    with pytest.raises(LayoutMismatchError, match="another rank or another set of arrays is another expert"):
        CompressedStrategy(FedAvg(**NODES), PLAN, station(world)).start(grid, arrays(rank=5), num_rounds=1)
    CompressedStrategy(FedAvg(**NODES), replace(PLAN, expert="lora-5"), station(world)).start(grid, arrays(rank=5), num_rounds=1)
    assert len(manifests(world, "lora-5")) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"averaging": "fedit"}, "averaging is 'fedit'"),
        ({"averaging": "alternating", "max_staleness": 1}, "take no late updates"),
        ({"min_updates": 0}, "min_updates 0"),
        ({"max_staleness": -1}, "max_staleness -1"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(PLAN, **fields)


def test_the_version_that_was_published_comes_back_to_the_serverapp(world: World) -> None:
    grid, seen = LoopbackGrid(app_of(obedient), configs(world)), []
    strategy = CompressedStrategy(FedAvg(**NODES), PLAN, station(world))

    def evaluate(server_round: int, merged: ArrayRecord) -> None:
        seen.append(state_of(merged))

    result = strategy.start(grid, arrays(), num_rounds=2, evaluate_fn=evaluate)
    assert seen == [state_of(arrays()), *(m.state_digest for m in manifests(world))]
    assert state_of(result.arrays) == seen[-1]
    again = CompressedStrategy(FedAvg(**NODES), PLAN, station(world))
    result = again.start(LoopbackGrid(app_of(obedient), configs(world), 8), arrays(), num_rounds=1)
    assert state_of(result.arrays) == manifests(world)[-1].state_digest, "also where a run goes on"


def state_of(record: ArrayRecord) -> bytes:
    """The digest that names these arrays."""
    layout = layout_of({name: tuple(array.shape) for name, array in record.items()}, ["head"])
    return state_digest(layout, flatten(layout, {name: array.numpy() for name, array in record.items()}))


def test_arrays_keep_the_order_of_the_app_on_both_sides(world: World) -> None:
    names = [str(number) for number in range(12)]  # as ArrayRecord names a list: "10" stands before "2" in a layout
    started = ArrayRecord({name: Array(np.full(3, int(name), np.float32)) for name in names})
    seen = []

    def by_place(message: Message, context: Context) -> Message:
        received = message.content["arrays"].to_numpy_ndarrays()
        seen.append([round(float(array.mean())) for array in received])
        content = {"arrays": ArrayRecord(received), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    grid = LoopbackGrid(app_of(by_place), configs(world))
    plan = Plan("by-place", ORIGIN, Compression(0.3), Compression(0.5))
    result = CompressedStrategy(FedAvg(**NODES), plan, station(world)).start(grid, started, num_rounds=1)
    assert seen == [list(range(12))] * 2
    assert list(result.arrays) == names


def test_a_run_may_leave_the_arrays_at_the_aggregator_but_then_it_cannot_evaluate_them(world: World) -> None:
    plan = replace(PLAN, fetch=False)
    grid = LoopbackGrid(app_of(obedient), configs(world))
    result = CompressedStrategy(FedAvg(**NODES), plan, station(world)).start(grid, arrays(), num_rounds=1)
    assert (len(result.arrays), len(manifests(world))) == (0, 1)
    with pytest.raises(InputError, match="evaluate_fn needs the merged arrays here"):
        CompressedStrategy(FedAvg(**NODES), plan, station(world)).start(grid, arrays(), evaluate_fn=lambda *_: None)


@pytest.mark.parametrize("array", [np.zeros((64, 64), np.int8), np.zeros((), np.bool_), np.zeros(3, np.complex64)])
def test_an_array_that_holds_neither_floating_point_numbers_nor_counts_is_refused_by_name(
    world: World, array: np.ndarray
) -> None:
    record = ArrayRecord({"layer.codes": Array(array)})
    with pytest.raises(InputError, match=rf"'layer\.codes' is {array.dtype}: only floating-point arrays travel"):
        CompressedStrategy(FedAvg(**NODES), PLAN, station(world)).start(LoopbackGrid(app_of(obedient), []), record)


def test_only_a_plan_with_a_seed_gives_arrays(world: World) -> None:
    with pytest.raises(InputError, match="the plan has no seed"):
        CompressedStrategy(FedAvg(**NODES), PLAN, station(world)).seeded_arrays(arrays())
