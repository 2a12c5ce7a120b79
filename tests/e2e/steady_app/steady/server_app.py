"""The server: rounds of all clients, which reach the aggregator themselves or by letters in Flower's messages."""

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
    run = context.run_config
    plan = Plan("steady", Origin(), Compression(0.2), Compression(0.4), relay=bool(run["relay"]))
    arrays = ArrayRecord({"w": Array(np.zeros((400, 600), np.float32))})
    strategy = CompressedStrategy(FedAvg(), plan, conductor_config(run))
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=int(str(run["num-server-rounds"])))
