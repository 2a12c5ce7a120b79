"""The server: plain federated averaging of the expert, and one evaluation after the last round. It never imports torch."""

from collections.abc import Iterable

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from sentiment.expert import initial_arrays

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
    """Run the rounds that the run's configuration asks for."""
    run = context.run_config
    rounds = int(run["num-server-rounds"])
    strategy = FinalEvaluation(rounds, int(run["num-clients"]))
    # COMPRESSION GOES HERE: if run["compressed"]: strategy = CompressedStrategy(strategy, ...)
    arrays = initial_arrays(int(run["rank"]), int(run["seed"]))
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({name: Array(array) for name, array in arrays.items()}),
        num_rounds=rounds,
        train_config=ConfigRecord({"base-row-round": 1}),
    )
