"""Rounds of the digits app in one process: its own client and server code, Flower's strategy around a real aggregator or plain."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from digits import client_app, server_app
from digits.task import Net
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result

from compeft_proto import envelope as dsse
from compeft_proto.site_layout import SIMULATED_CONDUCTOR, SITE_VARIABLE
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.admin.simulated_sites import make_sites
from compeft_server.app.server import Settings, start
from compeft_server.data_directory import open_ledger
from compeft_server.flower.conductor import conductor_config
from compeft_server.flower.strategy import CompressedStrategy, Plan
from compeft_server.identity.aggregator_keys import own_key
from compeft_server.reports.figures.build import read_report
from compeft_server.reports.figures.report import Report
from tests.rounds.loopback_grid import LoopbackGrid

CLIENTS = 5
PARAMETERS = 60_670
LR = 0.05


@dataclass(frozen=True, slots=True)
class Compressed:
    """What a compressed run left: what `start` returned, the ledger's report, and what the aggregator signed."""

    result: Result
    report: Report
    manifests: list[pb.VersionManifest]


def accuracies(result: Result) -> list[float]:
    """On the server's images, before the first round and after each."""
    assert result.evaluate_metrics_serverapp is not None
    return [float(metrics["accuracy"]) for metrics in result.evaluate_metrics_serverapp.values()]


def run_plain(strategy: str, rounds: int) -> Result:
    """The app without its mod, Flower's strategy without ours."""
    app = ClientApp()
    app.train()(client_app.train)
    return _start(server_app.make_strategy(strategy, 0.0).start, _grid(app), ArrayRecord(_fresh()), rounds)


def run_compressed(strategy: str, rounds: int, folder: Path) -> Compressed:
    """The app as it is, around an aggregator in `folder`, with simulated clients."""
    data, sites = folder / "data", folder / "sites"
    ledger = open_ledger(data)
    server, port = start(Settings(data), ledger)
    make_sites(data, sites, CLIENTS, f"127.0.0.1:{port}", ["digits"])
    inner, station = server_app.make_strategy(strategy, 0.0), conductor_config({"site": sites / SIMULATED_CONDUCTOR})
    wrapped = CompressedStrategy(inner, Plan.for_model(Net(), "digits", seed=0), station)
    try:
        os.environ[SITE_VARIABLE] = str(sites)
        grid = _grid(client_app.app)
        result = _start(wrapped.start, grid, ArrayRecord(_fresh()), rounds)
        rows = ledger.versions("digits", 0, ledger.head("digits"))
        keys = dsse.only(own_key(data).public)
        signed = [dsse.open_envelope(Envelope.FromString(row.envelope), keys, dsse.VERSION) for row in rows]
        return Compressed(result, read_report(ledger, "digits"), signed)
    finally:
        del os.environ[SITE_VARIABLE]
        server.stop(None).wait()
        ledger.close()


def _fresh() -> dict[str, Array]:
    torch.manual_seed(0)
    return {name: Array(tensor.numpy()) for name, tensor in Net().state_dict().items()}


def _grid(app: ClientApp) -> LoopbackGrid:
    nodes: list[dict[str, object]] = [{"partition-id": n, "num-partitions": CLIENTS} for n in range(CLIENTS)]
    return LoopbackGrid(app, nodes, run_config={"local-epochs": 4, "batch-size": 16})


def _start(begin: Callable[..., Result], grid: LoopbackGrid, arrays: ArrayRecord, rounds: int) -> Result:
    config = ConfigRecord({"lr": LR})
    return begin(grid=grid, initial_arrays=arrays, num_rounds=rounds, train_config=config, evaluate_fn=server_app.evaluate)
