"""The server: plain federated averaging of the expert, and one evaluation after the last round. It never imports torch."""

import json
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from flwr.app.user_config import UserConfig
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result

from compeft_proto.convert import compression_of
from compeft_server.flower.conductor import conductor_config
from compeft_server.flower.strategy import CompressedStrategy, Plan
from sentiment.expert import HEAD, initial_arrays, initial_bounds, origin

app = ServerApp()


class FinalEvaluation(FedAvg):
    """FedAvg that asks for an evaluation after the last round only: before that, each client measures what it receives."""

    def __init__(self, last_round: int, clients: int) -> None:
        super().__init__(min_train_nodes=clients, min_evaluate_nodes=clients, min_available_nodes=clients)
        self.last_round = last_round

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """No message before the last round."""
        return super().configure_evaluate(server_round, arrays, config, grid) if server_round == self.last_round else []


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the run's configuration asks for; write what they measured to `results-file`, if one is named."""
    run = context.run_config
    rounds = int(run["num-server-rounds"])
    plain = FinalEvaluation(rounds, int(run["num-clients"]))
    strategy = CompressedStrategy(plain, plan(run), conductor_config(run)) if run["compressed"] else plain
    arrays = initial_arrays(int(run["rank"]), int(run["seed"]))
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({name: Array(array) for name, array in arrays.items()}),
        num_rounds=rounds,
        train_config=ConfigRecord({"base-row-round": 1}),
    )
    if run["results-file"]:
        Path(str(run["results-file"])).write_text(json.dumps(measured(result)), encoding="utf-8")


def plan(run: UserConfig) -> Plan:
    """How the expert travels: the head as it is, the rest ternary, from a seed that costs no bytes."""
    rank, scale = int(run["rank"]), str(run["scale"])
    return Plan(
        expert=str(run["expert"]),
        origin=origin(rank),
        uplink=compression_of(float(run["density"]), scale, 1.0),
        downlink=compression_of(float(run["downlink-density"]), scale, 1.0),
        dense=HEAD,
        seed=int(run["seed"]),
        bounds=initial_bounds(rank),
        averaging=str(run["averaging"]),
        measure_uncompressed_every=1,
        fetch=False,  # nothing here looks at the arrays: `compeft pull` gets them
    )


def measured(result: Result) -> dict[str, object]:
    """Accuracy of every version, the starting one first, and of the frozen base: means over clients."""
    trained, evaluated = result.train_metrics_clientapp, result.evaluate_metrics_clientapp
    rounds = sorted(trained)
    return {
        "accuracy": [trained[r]["accuracy"] for r in rounds] + [evaluated[r]["accuracy"] for r in sorted(evaluated)],
        "base-accuracy": [trained[r]["base-accuracy"] for r in rounds[:1]],
    }
