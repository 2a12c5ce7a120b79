"""How fast the live page answers on a ledger of ten thousand rounds and a thousand members: python -m benchmarks.dashboard [--rounds N]
[--clients N] [--members N]

Prints the median of five answers for each page, by the clock and in processor time (a busy machine stretches only the first), and
the ratio of the second to that of the same page over ten rounds; and the size of the page. A page must take less than 500 ms and 300 kB.
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
from compeft_server.ledger import schema
from tests.server.dashboard.ledgers import Story, tell
from tests.server.dashboard.test_pages import ALL

REPEATS = 5


def measure(rounds: int, clients: int, members: int) -> dict[str, tuple[float, float, int]]:
    """Median seconds of each page, by the clock and of the processor, and its bytes, over a ledger of this many rounds."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        ledger = tell(data, Story(rounds=rounds, clients=clients, now_ms=now_ms()))
        enrolled = [
            {"keyid": f"{n:032x}", "public": n.to_bytes(32), "name": f"site-{n:04}", "role": "edge", "enrolled_at_ms": 1}
            for n in range(members - clients - 1)
        ]
        with ledger.engine.begin() as connection:  # the table itself: one by one they would take minutes
            connection.execute(schema.keys.insert(), enrolled)
        with Web(data, ledger, ListenAddress(), None, Registry(data, ledger)).beside() as port, httpx.Client() as client:
            found = {page: _median(client, f"http://127.0.0.1:{port}{page}") for page in (*ALL, "/metrics")}
        ledger.close()
    return found


def _median(client: httpx.Client, url: str) -> tuple[float, float, int]:
    size = len(client.get(url).raise_for_status().content)
    walls, processors = [], []
    for _ in range(REPEATS):
        started, used = time.perf_counter(), time.process_time()
        client.get(url).raise_for_status()
        walls.append(time.perf_counter() - started)
        processors.append(time.process_time() - used)
    return statistics.median(walls), statistics.median(processors), size


def main() -> None:
    """Measure both ledgers and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--members", type=int, default=1000)
    options = parser.parse_args()
    small, large = measure(10, options.clients, 10), measure(options.rounds, options.clients, options.members)
    print(
        f"{'page':<40} {'10 rounds':>12} {f'{options.rounds:,} rounds':>16} {'of that processor':>20} {'ratio':>8} {'size':>10}"
    )
    for page, (wall, processor, size) in large.items():
        figures = (1000 * small[page][0], 1000 * wall, 1000 * processor, processor / small[page][1], size / 1000)
        print("{:<40} {:>9.1f} ms {:>13.1f} ms {:>17.1f} ms {:>7.1f}x {:>7.1f} kB".format(page, *figures))


if __name__ == "__main__":
    main()
