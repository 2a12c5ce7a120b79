"""Many clients at once: all are accepted, and memory stays within a few chunks a transfer.

Payloads are larger than those that the aggregator keeps in memory for the next merge: 512 MiB in all, of which 256 may be held.
"""

from pathlib import Path

from tests.faults.many import crowd


def test_many_clients_at_once_are_accepted_in_bounded_memory(tmp_path: Path) -> None:
    outcome = crowd(tmp_path, clients=16, payload_bytes=32 * 2**20)
    assert outcome.accepted == 16
    assert outcome.peak_bytes - outcome.idle_bytes <= outcome.bound_bytes
