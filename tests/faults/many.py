"""Many clients at once, each with a large update: `python -m tests.faults.many [--clients 64] [--megabytes 200]`. Prints memory.

The clients share one payload in memory; each stamps its own chunks, so the aggregator gets and keeps all of them.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.exchange_load import dense_layout, payload_of, publish, seal, storm
from compeft_proto.chunk_refs import CHUNK_BYTES
from tests.faults.site import Site

CHUNKS_A_TRANSFER = 8
SMALLEST_BOUND = 256 * 2**20
"""What decoding one payload and Python itself may take, however few clients there are."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """What happened: updates accepted, seconds, and the aggregator's memory in bytes before and at most."""

    clients: int
    payload_bytes: int
    accepted: int
    seconds: float
    idle_bytes: int
    peak_bytes: int

    @property
    def bound_bytes(self) -> int:
        """The most that it may have grown."""
        return max(SMALLEST_BOUND, CHUNKS_A_TRANSFER * CHUNK_BYTES * self.clients)

    def __str__(self) -> str:
        grown, mb = self.peak_bytes - self.idle_bytes, 2**20
        return (
            f"{self.clients} clients x {self.payload_bytes / mb:.0f} MB: {self.accepted} accepted in {self.seconds:.0f} s "
            f"({self.clients * self.payload_bytes / mb / self.seconds:.0f} MB/s); memory {self.idle_bytes / mb:.0f} MB idle, "
            f"{self.peak_bytes / mb:.0f} MB at most: grown by {grown / mb:.0f} MB, the bound is {self.bound_bytes / mb:.0f} MB"
        )


def crowd(folder: Path, clients: int, payload_bytes: int) -> Crowd:
    """All clients at once, one update each."""
    site, layout = Site(folder), dense_layout(payload_bytes)
    site.start()
    try:
        first, opened = publish(site, layout, "large")
        base = payload_of(layout, 1)
        work = [[seal(site.enrol(f"edge-{n}"), first, opened, replace(base, stamp=n + 1))] for n in range(clients)]
        site.stop()
        site.start()
        idle = site.resident_bytes()
        started = time.monotonic()
        storm(site, work)
        accepted = len(site.ledger.submissions("large", "run", 1))
        return Crowd(clients, len(base.base), accepted, time.monotonic() - started, idle, site.peak_bytes())
    finally:
        site.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64, help="how many at once")
    parser.add_argument("--megabytes", type=int, default=200, help="payload of each")
    parser.add_argument("--folder", type=Path, help="where the aggregator keeps its data; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        print(crowd(Path(temporary), options.clients, options.megabytes * 2**20))


if __name__ == "__main__":
    main()
