"""An existing Flower app under four of Flower's strategies, plain and compressed: `python -m benchmarks.flower_existing [--rounds 5]`.

The digits app of examples/flower-existing with five clients, in one process: its own client and server code; the plain arm is Flower's own
strategy, the other the same wrapped, around a real aggregator over gRPC. Prints accuracy on the server's images after the last round, and
bytes: of the plain arm's arrays as float32, of the other what the kernel counted on the aggregator's sockets, all clients, both
directions. The last line is one JSON object. A minute.
"""

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "flower-existing" / "compressed"))

from tests.examples.digits_rounds import CLIENTS, PARAMETERS, accuracies, run_compressed, run_plain

STRATEGIES = ("fedavg", "fedprox", "fedadam", "krum")


def main() -> None:
    """One line a strategy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    logging.getLogger("flwr").setLevel(logging.ERROR)
    plain_bytes, rows = 4 * PARAMETERS * CLIENTS * 2 * rounds, {}
    print(f"{'':<8} {'plain':>8} {'compressed':>11} {'plain bytes':>12} {'wire bytes':>11} {'fewer':>6}")
    for name in STRATEGIES:
        plain = accuracies(run_plain(name, rounds))[-1]
        with tempfile.TemporaryDirectory() as folder:
            done = run_compressed(name, rounds, Path(folder))
        found, wire = accuracies(done.result)[-1], done.report.traffic.wire_bytes
        print(f"{name:<8} {plain:>8.1%} {found:>11.1%} {plain_bytes:>12,} {wire:>11,} {plain_bytes / wire:>5.1f}x", flush=True)
        rows[name] = {"plain": plain, "compressed": found, "plain_bytes": plain_bytes, "wire_bytes": wire}
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
