"""The server: a strategy, some rounds, an evaluation after each, and the model in a file."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx, Krum, Strategy

from compeft_server.flower.strategy import CompressedStrategy, Plan
from digits.task import Net, load_central_data, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the run's configuration asks for."""
    run = context.run_config
    torch.manual_seed(0)
    strategy = make_strategy(str(run["strategy"]), float(run["fraction-evaluate"]))
    strategy = CompressedStrategy(strategy, Plan.for_model(Net(), "digits", seed=0))
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        train_config=ConfigRecord({"lr": float(run["learning-rate"])}),
        num_rounds=int(run["num-server-rounds"]),
        evaluate_fn=evaluate,
    )
    if run["model-file"]:
        torch.save(result.arrays.to_torch_state_dict(), str(run["model-file"]))


def make_strategy(name: str, fraction_evaluate: float) -> Strategy:
    """One of Flower's strategies."""
    if name == "fedprox":
        return FedProx(fraction_evaluate=fraction_evaluate, proximal_mu=0.1)
    if name == "fedadam":
        return FedAdam(fraction_evaluate=fraction_evaluate, eta=0.01, tau=0.001)
    if name == "krum":
        return Krum(fraction_evaluate=fraction_evaluate, num_malicious_nodes=1)
    return FedAvg(fraction_evaluate=fraction_evaluate)


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Measure the merged model on images that no client has."""
    net = Net()
    net.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = test(net, load_central_data(batch_size=64))
    return MetricRecord({"loss": loss, "accuracy": accuracy})
