"""The server: rounds that close as soon as one client has answered, and take updates that come late."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from compeft_core import Compression
from compeft_proto.round_task import Origin
from compeft_server.flower.conductor import conductor_config
from compeft_server.flower.strategy import CompressedStrategy, Plan

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    plan = Plan("tiny", Origin(), Compression(0.2), Compression(0.4), min_updates=1, max_staleness=3, deadline_s=120.0)
    inner = FedAvg(min_train_nodes=1, min_available_nodes=1, fraction_evaluate=0.0)
    arrays = ArrayRecord({"w": Array(np.zeros((20, 30), np.float32))})
    strategy = CompressedStrategy(inner, plan, conductor_config(context.run_config))
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=int(str(context.run_config["num-server-rounds"])))
