"""Two rounds of real training of a tiny PEFT model at two sites, whole (density 1) or compressed, and the dense average beside it."""

import copy
import os
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from compeft_client.flower.mod import CompressionMod
from compeft_client.flower.peft import arrays_of, load, origin_of
from compeft_core import Compression
from compeft_proto.site_layout import SITE_VARIABLE
from compeft_server.admin.simulated_sites import make_sites
from compeft_server.flower.strategy import CompressedStrategy, Plan
from tests.rounds.conftest import World
from tests.rounds.loopback_grid import LoopbackGrid

NODES = {"min_train_nodes": 2, "min_available_nodes": 2, "fraction_evaluate": 0.0}
WEIGHTS = (1, 3)
DEFAULT = ("default",)
SIZE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama(tied: bool = True, attention_bias: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZE, tie_word_embeddings=tied, attention_bias=attention_bias))


def mixtral() -> MixtralForCausalLM:
    """Experts in fused tensors."""
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZE, num_local_experts=2, num_experts_per_tok=1))


def adapted(base: PreTrainedModel, config: PeftConfig, others: Sequence[str] = ()) -> PeftModel:
    """The base with a fresh adapter, and further ones of the same configuration under other names."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of tied embeddings
        model = get_peft_model(base, config)
        for name in others:
            model.add_adapter(name, copy.deepcopy(config))
    return model


def train_locally(model: PeftModel, site: int, adapters: Sequence[str] = DEFAULT) -> None:
    """Three steps of SGD on rows of this site, on each adapter in turn."""
    rows = torch.randint(0, SIZE["vocab_size"], (4, 6), generator=torch.Generator().manual_seed(10 + site))
    model.eval()  # no dropout: the same steps every time
    for adapter in adapters:
        model.set_adapter(adapter)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=rows, labels=rows).loss.backward()
            optimizer.step()


def dense_rounds(make: Callable[[], PeftModel], rounds: int, adapters: Sequence[str] = DEFAULT) -> dict[str, np.ndarray]:
    """What plain FedAvg gives: after each round, the weighted mean of the sites' arrays."""
    state = {name: array.numpy() for name, array in arrays_of(make(), adapters).items()}
    for _ in range(rounds):
        tuned = []
        for site in range(len(WEIGHTS)):
            model = make()
            load(model, state, adapters)
            train_locally(model, site, adapters)
            tuned.append({name: array.numpy().astype(np.float64) for name, array in arrays_of(model, adapters).items()})
        state = {
            name: np.average([t[name] for t in tuned], axis=0, weights=WEIGHTS).astype(array.dtype)
            for name, array in state.items()
        }
    return state


def federated_rounds(
    world: World, make: Callable[[], PeftModel], rounds: int, density: float, adapters: Sequence[str] = DEFAULT
) -> dict[str, np.ndarray]:
    """The same through a real aggregator: mod, strategy, signed and compressed messages."""
    expert, sites = "tags", world.folder / "sites"
    make_sites(world.folder / "data", sites, len(WEIGHTS), world.address, [expert])
    app = ClientApp(mods=[CompressionMod(lambda _: origin_of(make(), adapters=adapters))])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model, site = make(), int(context.node_config["partition-id"])
        load(model, message.content["arrays"], adapters)
        train_locally(model, site, adapters)
        metrics = MetricRecord({"num-examples": WEIGHTS[site]})
        return Message(RecordDict({"arrays": arrays_of(model, adapters), "metrics": metrics}), reply_to=message)

    model = make()
    plan = Plan.for_model(
        model,
        expert,
        origin=origin_of(model, adapters=adapters),
        uplink=Compression(density),
        downlink=Compression(density),
    )
    grid = LoopbackGrid(app, [{"partition-id": n, "num-partitions": len(WEIGHTS)} for n in range(len(WEIGHTS))])
    begun = arrays_of(model, adapters)
    os.environ[SITE_VARIABLE] = str(sites)
    try:
        result = CompressedStrategy(FedAvg(**NODES), plan).start(grid, begun, num_rounds=rounds)
    finally:
        del os.environ[SITE_VARIABLE]
    return {name: array.numpy() for name, array in result.arrays.items()}
