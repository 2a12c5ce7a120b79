"""How fast the live page answers on a ledger of ten thousand rounds: python -m benchmarks.dashboard [--rounds N] [--clients N]

Prints the median of five answers for each page, in milliseconds, and the ratio to the same page over ten rounds: what a page costs should
hardly grow with the ledger.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from compeft_server.serving import now_ms
from compeft_server.web.metrics import Registry
from compeft_server.web.running import Door, Web
from tests.web.ledgers import Story, tell
from tests.web.test_pages import ALL

REPEATS = 5


def measure(rounds: int, clients: int) -> dict[str, float]:
    """Median seconds of each page over a ledger of so many rounds."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        ledger = tell(data, Story(rounds=rounds, clients=clients, now_ms=now_ms()))
        with Web(data, ledger, Door(), None, Registry(data, ledger)).beside() as port, httpx.Client() as client:
            found = {page: _median(client, f"http://127.0.0.1:{port}{page}") for page in (*ALL, "/metrics")}
        ledger.close()
    return found


def _median(client: httpx.Client, url: str) -> float:
    client.get(url).raise_for_status()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        client.get(url).raise_for_status()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Measure both ledgers and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    small, large = measure(10, options.clients), measure(options.rounds, options.clients)
    print(f"{'page':<40} {'10 rounds':>12} {f'{options.rounds:,} rounds':>16} {'ratio':>8}")
    for page, seconds in large.items():
        print(f"{page:<40} {1000 * small[page]:>9.1f} ms {1000 * seconds:>13.1f} ms {seconds / small[page]:>7.1f}x")


if __name__ == "__main__":
    main()
