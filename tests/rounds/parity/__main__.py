"""Run every app plain, whole (density 1 both ways) and at 5 % up and 10 % down; print a table in Markdown."""

import argparse
import logging
import random
import tempfile
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp

from compeft_client.flower.mod import CompressionMod
from compeft_core import Compression
from compeft_server.flower.strategy import CompressedStrategy, Plan
from tests.rounds.conftest import World, running
from tests.rounds.loopback_grid import LoopbackGrid
from tests.rounds.parity.apps import APPS, App
from tests.rounds.test_flower_rounds import configs, station

WHOLE = Compression(1.0)


def plain(app: App, rounds: int) -> ArrayRecord:
    """What plain Flower ends with."""
    client = ClientApp()
    client.train()(app.train)
    nodes: list[dict[str, object]] = [{"partition-id": n} for n in range(len(app.weights))]
    random.seed(0)
    return app.strategy().start(LoopbackGrid(client, nodes), app.begun(), num_rounds=rounds).arrays


def ours(world: World, app: App, rounds: int, up: Compression, down: Compression) -> tuple[ArrayRecord, int]:
    """What the wrapped strategy ends with, and the payload bytes of its updates and versions, each counted once a client."""
    client = ClientApp(mods=[CompressionMod()])
    client.train()(app.train)
    nodes = [{**config, "partition-id": n} for n, config in enumerate(configs(world, len(app.weights)))]
    plan = Plan.for_model(app.task.model(), "parity", uplink=up, downlink=down)
    random.seed(0)
    result = CompressedStrategy(app.strategy(), plan, station(world)).start(
        LoopbackGrid(client, nodes), app.begun(), num_rounds=rounds
    )
    moved = [t for t in world.ledger.transfers("parity") if t.round]
    return result.arrays, sum(t.payload_bytes for t in moved)


def farthest(found: ArrayRecord, expected: ArrayRecord, begun: ArrayRecord) -> float:
    """The largest difference between two results, in relation to the largest change since the start."""
    pairs = [(found[n].numpy(), expected[n].numpy(), begun[n].numpy()) for n in expected]
    moved = max(float(np.abs(e.astype(np.float64) - b).max()) for _, e, b in pairs)
    return max(float(np.abs(f.astype(np.float64) - e).max()) for f, e, _ in pairs) / moved


def measured(app: App, rounds: int) -> tuple[float, float, float, float]:
    """Accuracy plain, whole and at 5 %, and how far the whole result is from the plain one."""
    expected = plain(app, rounds)
    with tempfile.TemporaryDirectory() as one, running(Path(one)) as world:
        whole, _ = ours(world, app, rounds, WHOLE, WHOLE)
    with tempfile.TemporaryDirectory() as two, running(Path(two)) as world:
        sparse, _ = ours(world, app, rounds, Compression(0.05), Compression(0.1))
    accuracies = (app.accuracy(arrays) for arrays in (expected, whole, sparse))
    return (*accuracies, farthest(whole, expected, app.begun()))  # type: ignore[return-value]  # three accuracies


def main() -> None:
    """One line an app."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    print(f"| app, {rounds} rounds | plain FedAvg | density 1 | farthest apart | 5 % up, 10 % down |\n|---|---|---|---|---|")
    for app in APPS:
        expected, whole, sparse, apart = measured(app, rounds)
        print(f"| {app.name} | {expected:.1%} | {whole:.1%} | {apart:.2%} | {sparse:.1%} |", flush=True)


if __name__ == "__main__":
    main()
