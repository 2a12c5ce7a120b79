"""The server: a fresh adapter, a strategy, some rounds, and what the clients measured after each."""

import json
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from language.model import load
from language.strategy import FlowerTune

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the run's configuration asks for; keep the adapter and the measurements where it names places for them."""
    run = context.run_config
    model, tokenizer = load(run)
    strategy: FedAvg = FlowerTune(fraction_evaluate=1.0, min_train_nodes=4, min_evaluate_nodes=4, min_available_nodes=4)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(get_peft_model_state_dict(model, save_embedding_layers=False)),
        num_rounds=int(run["num-server-rounds"]),
    )
    if run["save-to"]:
        set_peft_model_state_dict(model, result.arrays.to_torch_state_dict())
        model.save_pretrained(str(run["save-to"]), save_embedding_layers=False)
        tokenizer.save_pretrained(str(run["save-to"]))
    if run["results-file"]:
        Path(str(run["results-file"])).write_text(json.dumps(measured(result)), encoding="utf-8")


def measured(result: Result) -> dict[str, list[float]]:
    """Accuracy (answers given exactly) and loss, of the base model alone and after each round: means over the clients' test rows."""
    first, after = result.train_metrics_clientapp[1], result.evaluate_metrics_clientapp
    return {name: [first[f"base-{name}"], *(after[r][name] for r in sorted(after))] for name in ("accuracy", "loss")}
