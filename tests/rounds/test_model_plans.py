"""`Plan.for_model`: what a plan reads from a torch module, a PEFT model, or arrays; and runs with the defaults that follow from it."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn

from compeft_client.checkpoints.base_model_digest import model_weights_digest
from compeft_client.flower.arrays import array_record
from compeft_client.flower.mod import CompressionMod
from compeft_core import state_digest
from compeft_core.errors import FormatError, InputError
from compeft_core.layout import flatten, layout_of
from compeft_proto.round_task import Origin, as_type, canonical_json
from compeft_proto.site_layout import SITE_VARIABLE
from compeft_proto.state_steps import initial_state, pack_snapshot
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.admin.simulated_sites import make_sites
from compeft_server.flower.conductor import ConductorConfig, conductor_config
from compeft_server.flower.run_health import RunStoppedError
from compeft_server.flower.strategy import CompressedStrategy, Plan
from tests.rounds.conftest import World
from tests.rounds.loopback_grid import LoopbackGrid
from tests.rounds.test_flower_rounds import manifests

NODES = {"min_train_nodes": 2, "min_available_nodes": 2, "fraction_evaluate": 0.0}


@pytest.fixture(autouse=True)
def flower_task() -> Iterator[None]:
    yield
    TaskIdentity._task_id = TaskIdentity._run_id = TaskIdentity._node_id = None


class Net(nn.Module):
    """A convolution with BatchNorm, an inner layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16)
        self.inner, self.score = nn.Linear(64, 64), nn.Linear(64, 20)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.q, self.score = nn.Embedding(50, 64), nn.Linear(64, 64), nn.Linear(64, 40)


def tagger(**settings: object) -> nn.Module:
    """A PEFT model whose LoRA rests on `q`."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(Tagger(), LoraConfig(r=32, target_modules=["q"], modules_to_save=["score"], **settings))


def test_buffers_heads_and_tiny_matrices_of_a_module_travel_dense() -> None:
    dense = Plan.for_model(Net(), "digits").dense_if_sent
    assert {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "score.weight", "conv.weight"} <= dense
    assert "inner.weight" not in dense


def test_arrays_by_name_are_enough() -> None:
    by_name = {"a.weight": np.zeros((64, 64), np.float32), "classifier.weight": np.zeros((64, 20), np.float32)}
    assert Plan.for_model(by_name, "x").dense_if_sent == {"classifier.weight"}
    assert Plan.for_model(ArrayRecord(Net().state_dict()), "x").dense_if_sent >= {"score.weight"}


def test_what_is_no_model_is_refused_by_its_type() -> None:
    with pytest.raises(InputError, match="invalid model list: expected a torch module"):
        Plan.for_model([1, 2], "x")


@pytest.mark.parametrize("dora", [False, True])
def test_a_peft_model_names_its_adapter_its_configuration_and_its_base_models_weights(dora: bool) -> None:
    model = tagger(use_dora=dora)
    plan = Plan.for_model(model, "tags")
    sent = get_peft_model_state_dict(model)
    assert set(plan.dense_if_sent) & set(sent) == {n for n in sent if "score" in n or "magnitude" in n}
    fields = json.loads(plan.origin.adapter_config)
    assert (fields["r"], fields["use_dora"], fields["target_modules"], fields["peft_type"]) == (32, dora, ["q"], "LORA")
    assert LoraConfig(**{k: v for k, v in fields.items() if k != "peft_type"}).r == 32
    torch.manual_seed(0)
    assert plan.origin.base_model_digest == model_weights_digest(Tagger())


def test_a_seed_draws_lora_as_peft_does(world: World) -> None:
    model = tagger()
    plan = Plan.for_model(model, "tags", seed=3)
    sent = get_peft_model_state_dict(model)
    assert {n: plan.bounds[n] for n in sent} == {n: 0.0 if "lora_B" in n else 0.125 for n in sent}
    drawn = CompressedStrategy(FedAvg(), plan, station_of_world(world)).seeded_arrays(array_record(sent))
    a = drawn["base_model.model.q.lora_A.weight"].numpy()
    assert abs(np.abs(a).mean() - 0.0625) < 0.003
    assert not drawn["base_model.model.q.lora_B.weight"].numpy().any()


def test_a_model_that_was_trained_is_not_drawn_again_but_refused_by_name() -> None:
    net = Net()
    with pytest.raises(InputError, match=r"'norm\.weight' is not a fresh uniform draw .* leave seed out"):
        Plan.for_model(net, "digits", seed=0)
    trained = {"w": torch.nn.Linear(64, 64).weight.detach() * 1.5}
    with pytest.raises(InputError, match="'w' is not a fresh uniform draw"):
        Plan.for_model(trained, "digits", seed=0)


def station_of_world(world: World) -> ConductorConfig:
    make_sites(world.folder / "data", world.folder / "sites", 2, world.address, ["tags", "digits"])
    return conductor_config({"site": str(world.folder / "sites" / "simulated-conductor")})


def run(
    world: World, monkeypatch: pytest.MonkeyPatch, plan: Plan, begun: ArrayRecord, moved: dict[str, np.ndarray]
) -> ArrayRecord:
    """One round of an app after its two edits: sites by COMPEFT_SITE, each client answers with `moved` in the types it received."""
    make_sites(world.folder / "data", world.folder / "sites", 2, world.address, [plan.expert])
    monkeypatch.setenv(SITE_VARIABLE, str(world.folder / "sites"))
    app, seen = ClientApp(mods=[CompressionMod()]), []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen.append({name: array.dtype for name, array in message.content["arrays"].items()})
        changed = {name: moved.get(name, array.numpy()) for name, array in message.content["arrays"].items()}
        content = {"arrays": array_record(changed), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    grid = LoopbackGrid(app, [{"partition-id": n, "num-partitions": 2} for n in range(2)])
    result = CompressedStrategy(FedAvg(**NODES), plan).start(grid, begun, num_rounds=1)
    assert seen == [{name: array.dtype for name, array in begun.items()}] * 2
    return result.arrays


def test_a_model_with_batchnorm_needs_no_change_and_its_counter_stays_an_integer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net()
    moved = {"norm.num_batches_tracked": np.array(18, np.int64), "norm.running_var": np.full(16, 0.25, np.float32)}
    arrays = run(world, monkeypatch, Plan.for_model(net, "digits"), ArrayRecord(net.state_dict()), moved)
    assert arrays["norm.num_batches_tracked"].numpy() == np.array(18, np.int64)
    assert arrays["norm.num_batches_tracked"].dtype == "int64"
    np.testing.assert_array_equal(arrays["norm.running_var"].numpy(), moved["norm.running_var"])
    net.load_state_dict(arrays.to_torch_state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_floating_point_types_take_part(
    world: World, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    net = nn.Sequential(nn.Linear(64, 64, bias=False)).to(dtype)
    begun = array_record(net.state_dict())
    weight = begun["0.weight"].numpy()
    arrays = run(world, monkeypatch, Plan.for_model(net, "digits"), begun, {"0.weight": weight + weight.dtype.type(0.5)})
    net.load_state_dict(arrays.to_torch_state_dict())
    assert arrays["0.weight"].dtype == {"bfloat16": "float32"}.get(
        str(dtype).removeprefix("torch."), str(dtype).removeprefix("torch.")
    )
    assert (arrays["0.weight"].numpy() != weight).any()


def test_an_expert_with_an_origin_takes_clients_that_do_not_state_theirs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tagger()
    sent = get_peft_model_state_dict(model)
    b = np.random.default_rng(0).normal(0, 0.1, (64, 32)).astype(np.float32)
    run(world, monkeypatch, Plan.for_model(model, "tags"), array_record(sent), {"base_model.model.q.lora_B.weight": b})
    (made,) = manifests(world, "tags")
    assert len(made.contributions) == 2
    genesis = world.ledger.expert("tags")
    assert genesis is not None
    assert genesis.base_model_digest == Plan.for_model(model, "tags").origin.base_model_digest


def test_a_run_with_neither_site_nor_variable_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(SITE_VARIABLE, raising=False)
    with pytest.raises(InputError, match="no site for the conductor: set COMPEFT_SITE"):
        CompressedStrategy(FedAvg(), Plan("x"))
    monkeypatch.setenv(SITE_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match=r"is not a site folder, it has no site\.json"):
        CompressedStrategy(FedAvg(), Plan("x"))


@pytest.mark.parametrize(
    ("values", "most"),
    [
        (np.zeros(10_000, np.float32), 0.02),
        (np.random.default_rng(0).normal(size=10_000).astype(np.float16).astype(np.float32), 0.6),
        (np.random.default_rng(0).uniform(-0.1, 0.1, 10_000).astype(np.float32), 0.95),
        (np.frombuffer(np.random.default_rng(0).integers(0, 2**30, 10_000, np.uint32).tobytes(), np.float32).copy(), 1.0),
    ],
)
def test_initial_arrays_travel_compressed_without_loss_and_never_larger(values: np.ndarray, most: float) -> None:
    layout = layout_of({"w": values.shape})
    coding, payload = pack_snapshot(values)
    genesis = pb.Genesis(expert="x", state_digest=state_digest(layout, values), snapshot=pb.Snapshot(coding=coding))
    np.testing.assert_array_equal(initial_state(genesis, layout, payload).vector, values)
    assert len(payload) <= most * values.nbytes
    with pytest.raises(FormatError):
        initial_state(genesis, layout, payload[:-1])
    genesis.snapshot.coding = "other"
    with pytest.raises(FormatError, match="coded by 'other'"):
        initial_state(genesis, layout, payload)


def test_counts_are_rounded_and_unknown_types_refused() -> None:
    assert as_type(np.array([1.6, -0.4, 300.0], np.float32), "uint8").tolist() == [2, 0, 255]
    with pytest.raises(FormatError, match="'complex64' do not travel"):
        as_type(np.zeros(1, np.float32), "complex64")
    assert flatten(layout_of({"n": ()}), {"n": np.array(3, np.int64)}).tolist() == [3.0]


def test_an_adapter_option_that_nobody_knows_is_refused_by_name_before_anybody_trains(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = Origin(adapter_config=canonical_json({"peft_type": "LORA", "r": 8, "use_flora": True, "use_other": None}))
    plan = Plan.for_model(nn.Linear(64, 64), "tags", origin=origin)
    with pytest.raises(
        RunStoppedError, match="tags is trained with the option use_flora: True, which this version does not know"
    ):
        run(world, monkeypatch, plan, array_record(nn.Linear(64, 64).state_dict()), {})


def test_the_app_of_the_readme_runs_as_it_stands(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    sources = [readme.split(f"```python\n# {name}_app.py\n")[1].split("```")[0] for name in ("client", "server")]
    client, server = ({}, {})
    for source, names in zip(sources, (client, server), strict=True):
        exec(source, names)
    make_sites(world.folder / "data", world.folder / "sites", 2, world.address, ["my-expert"])
    monkeypatch.setenv(SITE_VARIABLE, str(world.folder / "sites"))
    grid = LoopbackGrid(client["app"], [{"partition-id": n, "num-partitions": 2} for n in range(2)])
    server["main"](grid, Context(run_id=7, node_id=1, node_config={}, state=RecordDict(), run_config={}))
    assert [len(m.contributions) for m in manifests(world, "my-expert")] == [2, 2, 2]
