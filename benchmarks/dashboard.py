"""How fast the live page answers on a ledger of ten thousand rounds: python -m benchmarks.dashboard [--rounds N] [--clients N]

Prints the median of five answers for each page, by the clock and in processor time (a busy machine stretches only the first), and
the ratio of the second to that of the same page over ten rounds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from compeft_proto.clock import now_ms
from compeft_server.dashboard.metrics import Registry
from compeft_server.dashboard.server import ListenAddress, Web
from tests.server.dashboard.ledgers import Story, tell
from tests.server.dashboard.test_pages import ALL

REPEATS = 5


def measure(rounds: int, clients: int) -> dict[str, tuple[float, float]]:
    """Median seconds of each page, by the clock and of the processor, over a ledger of so many rounds."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        ledger = tell(data, Story(rounds=rounds, clients=clients, now_ms=now_ms()))
        with Web(data, ledger, ListenAddress(), None, Registry(data, ledger)).beside() as port, httpx.Client() as client:
            found = {page: _median(client, f"http://127.0.0.1:{port}{page}") for page in (*ALL, "/metrics")}
        ledger.close()
    return found


def _median(client: httpx.Client, url: str) -> tuple[float, float]:
    client.get(url).raise_for_status()
    walls, processors = [], []
    for _ in range(REPEATS):
        started, used = time.perf_counter(), time.process_time()
        client.get(url).raise_for_status()
        walls.append(time.perf_counter() - started)
        processors.append(time.process_time() - used)
    return statistics.median(walls), statistics.median(processors)


def main() -> None:
    """Measure both ledgers and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    small, large = measure(10, options.clients), measure(options.rounds, options.clients)
    print(f"{'page':<40} {'10 rounds':>12} {f'{options.rounds:,} rounds':>16} {'of that processor':>20} {'ratio':>8}")
    for page, (wall, processor) in large.items():
        figures = (1000 * small[page][0], 1000 * wall, 1000 * processor, processor / small[page][1])
        print("{:<40} {:>9.1f} ms {:>13.1f} ms {:>17.1f} ms {:>7.1f}x".format(page, *figures))


if __name__ == "__main__":
    main()
