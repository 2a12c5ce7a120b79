"""Any adapter in rounds: two rounds of real training at density 1 give the dense average; what has no sound average is refused by name."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig, PeftModel, ShiraConfig, VeraConfig

from compeft_client.flower.peft import arrays_of, origin_of
from compeft_core.errors import InputError
from compeft_proto.keys import new_key
from compeft_server.flower.conductor import ConductorConfig
from compeft_server.flower.run_health import RunStoppedError
from compeft_server.flower.strategy import CompressedStrategy, Plan
from tests.rounds import adapter_rounds
from tests.rounds.adapter_rounds import adapted, dense_rounds, federated_rounds, llama, mixtral
from tests.rounds.conftest import World

Make = Callable[[], PeftModel]


@pytest.fixture(autouse=True)
def flower_task() -> Iterator[None]:
    """Flower builds messages only inside a task."""
    torch.set_num_threads(1)
    yield
    TaskIdentity._task_id = TaskIdentity._run_id = TaskIdentity._node_id = None


def lora(**settings: object) -> LoraConfig:
    return LoraConfig(**({"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | settings))  # type: ignore[arg-type]  # any of its fields


def half(dtype: torch.dtype) -> PeftModel:
    """Base and adapter in half precision."""
    return adapted(llama(), lora()).to(dtype)


def resized() -> PeftModel:
    """Two tokens more than the base had, embeddings trained."""
    base = llama(tied=False)
    torch.manual_seed(2)
    base.resize_token_embeddings(50, mean_resizing=False)
    return adapted(base, lora(modules_to_save=["embed_tokens", "lm_head"]))


KINDS: dict[str, tuple[Make, str]] = {
    "plain": (lambda: adapted(llama(), lora()), "lora_B"),
    "DoRA": (lambda: adapted(llama(), lora(use_dora=True)), "lora_magnitude_vector"),
    "rsLoRA": (lambda: adapted(llama(), lora(use_rslora=True, lora_alpha=4)), "lora_B"),
    "rank_pattern": (lambda: adapted(llama(), lora(rank_pattern={"layers.0.self_attn.q_proj": 5})), "lora_B"),
    "modules_to_save": (lambda: adapted(llama(tied=False), lora(modules_to_save=["lm_head"])), "lm_head"),
    "resized embeddings": (resized, "embed_tokens"),
    "trainable tokens": (lambda: adapted(llama(tied=False), lora(trainable_token_indices=[3, 4])), "trainable_tokens_delta"),
    "trainable tokens, tied": (lambda: adapted(llama(), lora(trainable_token_indices=[3, 4])), "trainable_tokens_delta"),
    "tied embeddings saved whole": (
        lambda: adapted(llama(), lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
        "embed_tokens",
    ),
    "biases": (lambda: adapted(llama(attention_bias=True), lora(bias="all")), "q_proj.base_layer.bias"),
    "embedding LoRA": (lambda: adapted(llama(tied=False), lora(target_modules=["embed_tokens"])), "lora_embedding_B"),
    "fused experts": (
        lambda: adapted(mixtral(), lora(target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"])),
        "lora_B",
    ),
    "IA3": (
        lambda: adapted(llama(), IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[])),
        "ia3_l",
    ),
    "VeRA": (lambda: adapted(llama(), VeraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])), "vera_lambda"),
    "bfloat16": (partial(half, torch.bfloat16), "lora_B"),
    "float16": (partial(half, torch.float16), "lora_B"),
}


def far(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], begun: dict[str, np.ndarray]) -> float:
    """The largest distance from the dense average, as a part of how far that has moved, over all arrays together."""
    moved = np.sqrt(sum(np.square(wanted[n].astype(np.float64) - begun[n]).sum() for n in wanted))
    off = np.sqrt(sum(np.square(found[n].astype(np.float64) - wanted[n]).sum() for n in wanted))
    return float(off / moved)


@pytest.mark.parametrize("kind", list(KINDS))
def test_two_rounds_at_density_1_give_the_dense_average(world: World, kind: str) -> None:
    make, marked = KINDS[kind]
    begun = {name: array.numpy().astype(np.float64) for name, array in arrays_of(make()).items()}
    wanted, found = dense_rounds(make, 2), federated_rounds(world, make, 2, 1.0)
    assert list(found) == list(wanted)
    changed = [name for name in wanted if marked in name and (wanted[name] != begun[name]).any()]
    assert changed, f"training moved no {marked}"
    assert far(found, wanted, begun) < 0.02, "each message rounds its values to bfloat16"


@pytest.mark.parametrize("kind", ["plain", "DoRA", "resized embeddings", "fused experts"])
def test_compressed_rounds_go_the_dense_ones_way(world: World, kind: str) -> None:
    make, _ = KINDS[kind]
    begun = {name: array.numpy().astype(np.float64) for name, array in arrays_of(make()).items()}
    wanted, found = dense_rounds(make, 2), federated_rounds(world, make, 2, 0.25)
    steps = [np.concatenate([(each[n] - begun[n]).ravel() for n in wanted]) for each in (wanted, found)]
    assert np.dot(*steps) / np.linalg.norm(steps[0]) / np.linalg.norm(steps[1]) > 0.3


def test_several_adapters_train_in_one_expert(world: World) -> None:
    names = ("default", "berlin")
    make = partial(lambda: adapted(llama(), lora(), others=["berlin"]))
    begun = {name: array.numpy().astype(np.float64) for name, array in arrays_of(make(), names).items()}
    wanted, found = dense_rounds(make, 2, names), federated_rounds(world, make, 2, 1.0, names)
    assert {name.split("/")[0] for name in found} == set(names)
    assert far(found, wanted, begun) < 0.02
    assert all((found[n] != begun[n]).any() for n in found if "lora_B" in n), "both have trained"


def test_a_seed_for_other_arrays_than_the_models_is_refused_by_name_and_one_for_the_arrays_draws_them() -> None:
    """A plan of the first adapter knows nothing of the second one: without a word, A would begin as zeros and never train."""
    model = adapted(llama(), lora(), others=["berlin"])
    arrays = arrays_of(model, ("default", "berlin"))
    station = ConductorConfig("127.0.0.1:1", new_key(), new_key().public)
    with pytest.raises(InputError, match=r"array 'default/.*lora_A.weight' is not one of the model that the plan was made for"):
        CompressedStrategy(FedAvg(), Plan.for_model(model, "x", seed=0), station).seeded_arrays(arrays)
    drawn = CompressedStrategy(FedAvg(), Plan.for_model(arrays, "x", seed=0), station).seeded_arrays(arrays)
    assert all(array.numpy().any() for name, array in drawn.items() if "lora_A" in name)


def test_of_a_large_trained_embedding_only_touched_rows_move(world: World) -> None:
    """The rows that training leaves alone stay as they are to the bit, whatever is compressed beside them."""
    make = resized
    begun = {name: array.numpy() for name, array in arrays_of(make()).items()}
    found = federated_rounds(world, make, 2, 0.25)
    rows = [torch.randint(0, 48, (4, 6), generator=torch.Generator().manual_seed(10 + site)) for site in range(2)]
    untouched = sorted(set(range(50)) - set(torch.cat(rows).flatten().tolist()))
    name = next(n for n in found if "embed_tokens" in n)
    assert len(untouched) > 5
    np.testing.assert_array_equal(found[name][untouched], begun[name][untouched])


REFUSED: dict[str, tuple[PeftConfig, str]] = {
    "AdaLoRA": (
        AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=10, tinit=1, tfinal=1),
        "peft_type ADALORA, which cannot be averaged over sites: each site prunes other ranks",
    ),
    "PiSSA": (lora(init_lora_weights="pissa"), "init_lora_weights 'pissa': it starts from its base model, which it changed"),
    "SHiRA": (
        ShiraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        "SHIRA and random_seed None, which cannot be averaged over sites: each site draws other entries",
    ),
    "LoRA with biases beside B": (lora(lora_bias=True), "lora_bias True, which cannot be combined"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_has_no_sound_average_is_refused_by_name_on_the_server(name: str) -> None:
    config, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        origin_of(adapted(llama(), config))


def test_a_parameter_that_trains_and_does_not_travel_is_refused_by_name() -> None:
    model = adapted(llama(), lora())
    model.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(InputError, match=r"parameter 'base_model.model.model.norm.weight' trains and PEFT does not save it"):
        arrays_of(model)


def test_a_client_refuses_it_too_before_it_trains(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not ask: its plan has the configuration as `Plan.for_model` reads it."""
    trained: list[int] = []
    monkeypatch.setattr(adapter_rounds, "train_locally", lambda *_: trained.append(1))
    from compeft_client.flower import peft as helpers

    monkeypatch.setattr(helpers, "check_fields", lambda *_: None)
    make = partial(lambda: adapted(llama(), lora(init_lora_weights="pissa")))
    with pytest.raises(RunStoppedError, match="tags has init_lora_weights 'pissa'"):
        federated_rounds(world, make, 1, 1.0)
    assert trained == []
