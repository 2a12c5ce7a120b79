"""Two Flower rounds in one process, whose spans go where the environment says: python -m tests.rounds.traced_run FOLDER"""

import os
import sys
from pathlib import Path

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from prometheus_client import CollectorRegistry

from compeft_proto import tracing
from compeft_server.app.server import Settings, start
from compeft_server.app.tracing import tracer_from_environment
from compeft_server.data_directory import open_ledger
from compeft_server.flower.strategy import CompressedStrategy
from compeft_server.identity.aggregator_keys import own_key
from compeft_server.rpc.call_interceptor import CallMetrics, Observer
from tests.rounds.conftest import World, grant_usual
from tests.rounds.loopback_grid import LoopbackGrid
from tests.rounds.test_flower_rounds import NODES, PLAN, app_of, arrays, configs, obedient, station


def main(folder: Path) -> None:
    """Start an aggregator, run the rounds, send all spans."""
    data = folder / "data"
    ledger, tracer = open_ledger(data), tracer_from_environment()
    server, port = start(Settings(data), ledger, interceptors=[Observer(CallMetrics(CollectorRegistry()), tracer)])
    world = World(folder, f"127.0.0.1:{port}", ledger, own_key(data), [0])
    ledger.enrol("conductor", world.conductor_key.public, "conductor", 1)
    grant_usual(ledger)
    app = app_of(obedient)

    @app.evaluate()
    def evaluate(message: Message, _: Context) -> Message:
        return Message(RecordDict({"m": MetricRecord({"accuracy": 0.5, "num-examples": 10})}), reply_to=message)

    inner = FedAvg(**NODES | {"fraction_evaluate": 1.0, "min_evaluate_nodes": 2})
    CompressedStrategy(inner, PLAN, station(world)).start(LoopbackGrid(app, configs(world)), arrays(), num_rounds=2)
    tracing.flush()
    server.stop(None).wait()
    if tracer is not None:
        tracer.close()
    ledger.close()
    os._exit(0)


main(Path(sys.argv[1]))
