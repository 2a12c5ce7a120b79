"""The client: the adapter's arrays in, some epochs on its own rows, arrays out."""

import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import PreTrainedTokenizerBase

from compeft_client.flower.mod import CompressionMod
from compeft_client.flower.peft import origin_of
from language.model import load
from language.task import DATA, SITES, Row, Settings, load_rows, measure
from language.task import train as fit

app = ClientApp(mods=[CompressionMod(lambda context: origin_of(*load(context.run_config)))])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the adapter that came on this client's rows; in the first round, measure the base model alone before."""
    model, tokenizer = load(context.run_config)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    config, run, rows = message.content["config"], context.run_config, rows_of(tokenizer, context, "train")
    metrics = MetricRecord({"num-examples": len(rows)})
    if config["server-round"] == 1:
        metrics.update(base(model, rows_of(tokenizer, context, "test")))
    started = time.perf_counter()
    seed = 1000 * int(run["seed"]) + 100 * int(config["server-round"]) + int(context.node_config["partition-id"])
    how = Settings(
        int(run["batch-size"]), int(run["gradient-accumulation"]), int(run["local-epochs"]), float(run["learning-rate"]), seed
    )
    metrics["train-loss"] = fit(model, rows, how)
    metrics["train-seconds"] = time.perf_counter() - started
    metrics["peak-gpu-bytes"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    arrays = ArrayRecord(get_peft_model_state_dict(model, save_embedding_layers=False))
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the adapter that came on this client's test rows."""
    model, tokenizer = load(context.run_config)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    rows = rows_of(tokenizer, context, "test")
    loss, exact = measure(model, rows)
    metrics = MetricRecord({"loss": loss, "accuracy": exact, "num-examples": len(rows)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def base(model: PeftModel, rows: list[Row]) -> dict[str, float]:
    """What the frozen base model scores without the adapter: zero bytes."""
    with model.disable_adapter():
        loss, exact = measure(model, rows)
    return {"base-loss": loss, "base-accuracy": exact, "test-examples": len(rows)}


def rows_of(tokenizer: PreTrainedTokenizerBase, context: Context, split: str) -> list[Row]:
    """The client's rows: those of its region, or of the folder that its node configuration names as `data`."""
    node, run = context.node_config, context.run_config
    folder = Path(str(node.get("data") or DATA / SITES[int(node["partition-id"]) % len(SITES)]))
    return load_rows(tokenizer, folder, split, int(run[f"{split}-rows"]), int(run["max-tokens"]))
